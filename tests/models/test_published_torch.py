"""The numbers of torchvision's and timm's own modules, in a process of another Python that has them.

JAXLITE_TORCH_PYTHON=/path/to/python pytest -m slow tests/models/test_published_torch.py
"""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxlite.finetuning import read
from jaxlite.models import EfficientNetLite0, EfficientNetLite2, MobileNetV2, ResNet18, ResNet50, ViTSmall, published

PYTHON = os.environ.get('JAXLITE_TORCH_PYTHON', '')
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(not PYTHON, reason='JAXLITE_TORCH_PYTHON names no Python with torch, torchvision and timm'),
]
# Random weights, and statistics as if it had been trained: a norm that does nothing hides mistakes.
MAKE = """
import sys, numpy as np, torch
name, size, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
torch.manual_seed(0)
whose, _, name = name.partition(':')
if whose == 'torchvision':
  import torchvision.models
  module = getattr(torchvision.models, name)(weights=None)
else:
  import timm
  module = timm.create_model(name, pretrained=False)
for key, value in module.state_dict().items():
  if key.endswith('running_var'): value.uniform_(0.5, 2.0)
  elif key.endswith('running_mean'): value.normal_(0, 0.2)
  elif value.ndim == 1 and key.endswith('weight'): value.uniform_(0.7, 1.3)
  elif key.endswith(('bias', 'pos_embed', 'cls_token')): value.normal_(0, 0.2)
torch.save(module.state_dict(), f'{folder}/weights.pth')
if whose == 'timm-resized':
  from timm.layers import resample_abs_pos_embed
  known = module.state_dict()
  module = timm.create_model(name, pretrained=False, img_size=size)
  grid = size // 16
  known['pos_embed'] = resample_abs_pos_embed(known['pos_embed'], (grid, grid), num_prefix_tokens=1)
  module.load_state_dict(known)
x = torch.randn(2, 3, size, size)
module.eval()
with torch.no_grad():
  np.savez(f'{folder}/known.npz', x=x.numpy(), logits=module(x).numpy())
"""


@pytest.mark.parametrize(
  'name, module, size',
  [
    ('torchvision:mobilenet_v2', MobileNetV2(), 224),
    ('torchvision:resnet18', ResNet18(), 224),
    ('torchvision:resnet50', ResNet50(), 224),
    ('timm:vit_small_patch16_224', ViTSmall(), 224),
    ('timm-resized:vit_small_patch16_224', ViTSmall(), 160),
    ('timm:mobilenetv2_100', MobileNetV2(), 160),
    ('timm:mobilenetv2_140', MobileNetV2(1.4), 97),
    ('timm:resnet18', ResNet18(), 97),
    ('timm:tf_efficientnet_lite0', EfficientNetLite0(), 224),
    ('timm:tf_efficientnet_lite2', EfficientNetLite2(), 97),
    ('timm:efficientnet_lite0', EfficientNetLite0(same=False, epsilon=1e-5), 160),
  ],
)
def test_logits_are_those_of_the_module_that_the_weights_came_from(tmp_path, name, module, size):
  words = [PYTHON, '-W', 'ignore', '-c', MAKE, name, str(size), str(tmp_path)]
  environment = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
  done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  known = np.load(tmp_path / 'known.npz')
  told = published(module, read(tmp_path / 'weights.pth'), size)
  assert not told.fresh
  assert all(one.endswith('num_batches_tracked') for one in told.dropped)
  logits = jax.jit(module.apply)(told.variables, known['x'].transpose(0, 2, 3, 1))
  error = np.abs(logits - known['logits']).max() / np.abs(known['logits']).max()
  print(f'{name} at {size}: largest relative difference {error:.1e}', file=sys.stderr)
  assert error < 1e-5
