"""What published weights of the reference networks are called: one table for each form in which they are published."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from jaxlite.models.efficientnet import EfficientNetLite
from jaxlite.models.mobilenet import MobileNetV2
from jaxlite.models.resnet_photographs import DeepResNet
from jaxlite.models.vit import ViT


class Source(NamedTuple):
  """Where one of our arrays comes from.

  Attributes:
    name: of the published tensor; several, with spaces between, are joined along their first axis.
    form: how it is turned: 'same', 'conv' (OIHW), 'dense' ([out, in]), 'patch' (a convolution over patches),
      'token' ([1, 1, D]), 'positions' ([1, T, D]).
  """

  name: str
  form: str = 'same'

  @property
  def names(self) -> tuple[str, ...]:
    """Of all tensors that it is made of."""
    return tuple(self.name.split(' '))


Table = dict[str, Source]


class Form(NamedTuple):
  """A form in which weights of a network are published.

  Attributes:
    name: whose it is.
    table: module -> sources by our path, collection first: 'params/stem/conv/kernel'.
    fields: of the module, as the weights were trained; names cannot tell them, and others would be silently wrong.
  """

  name: str
  table: Callable[[Any], Table]
  fields: dict[str, Any]


def forms_of(module: Any) -> tuple[Form, ...]:
  """Returns the forms in which weights of a network are published; none for a network nobody publishes.

  >>> [form.name for form in forms_of(MobileNetV2())]
  ['torchvision', 'timm']
  """
  match module:
    case MobileNetV2():
      symmetric = {'epsilon': 1e-5}
      return Form('torchvision', _torchvision_mobilenet, symmetric), Form('timm', _timm_inverted, symmetric)
    case EfficientNetLite():
      trained = {'epsilon': 1e-3 if module.same else 1e-5}
      return Form('timm', _timm_inverted, trained), Form('efficientnet-pytorch', _pytorch_efficientnet, trained)
    case DeepResNet():
      trained = {'epsilon': 1e-5}
      return Form('torchvision', _resnet, trained), Form('transformers', _transformers_resnet, trained)
    case ViT():
      trained = {'class_token': True, 'exact_gelu': True, 'heads': module.width // 64}
      timm = Form('timm', _timm_vit, {**trained, 'epsilon': 1e-6})
      return timm, Form('transformers', _transformers_vit, {**trained, 'epsilon': 1e-12})
  return ()


def _normed(ours: str, conv: str, norm: str) -> Table:
  """A `ConvNorm`."""
  return {
    f'params/{ours}/conv/kernel': Source(f'{conv}.weight', 'conv'),
    f'params/{ours}/norm/scale': Source(f'{norm}.weight'),
    f'params/{ours}/norm/bias': Source(f'{norm}.bias'),
    f'batch_stats/{ours}/norm/mean': Source(f'{norm}.running_mean'),
    f'batch_stats/{ours}/norm/var': Source(f'{norm}.running_var'),
  }


def _dense(ours: str, theirs: str) -> Table:
  return {
    f'params/{ours}/kernel': Source(f'{theirs}.weight', 'dense'),
    f'params/{ours}/bias': Source(f'{theirs}.bias'),
  }


def _norm(ours: str, theirs: str) -> Table:
  return {f'params/{ours}/scale': Source(f'{theirs}.weight'), f'params/{ours}/bias': Source(f'{theirs}.bias')}


def _places(module: Any) -> Iterator[tuple[int, int, bool]]:
  """(stage, block within it, whether it widens first) of each inverted residual block."""
  for stage, one in enumerate(module.stages()):
    for block in range(one.blocks):
      yield stage, block, one.expand != 1


def _torchvision_mobilenet(module: Any) -> Table:
  table = _normed('stem', 'features.0.0', 'features.0.1')
  index = 0
  for index, (_, _, widens) in enumerate(_places(module), 1):
    ours, theirs = f'block{index}', f'features.{index}.conv'
    if widens:
      table |= _normed(f'{ours}/expand', f'{theirs}.0.0', f'{theirs}.0.1')
    at = 1 if widens else 0
    table |= _normed(f'{ours}/depthwise', f'{theirs}.{at}.0', f'{theirs}.{at}.1')
    table |= _normed(f'{ours}/project', f'{theirs}.{at + 1}', f'{theirs}.{at + 2}')
  last = f'features.{index + 1}'
  return table | _normed('last', f'{last}.0', f'{last}.1') | _dense('head', 'classifier.1')


def _timm_inverted(module: Any) -> Table:
  table = _normed('stem', 'conv_stem', 'bn1')
  for index, (stage, block, widens) in enumerate(_places(module), 1):
    ours, theirs = f'block{index}', f'blocks.{stage}.{block}'
    layers = ('expand', 'conv_pw'), ('depthwise', 'conv_dw'), ('project', 'conv_pwl')
    if not widens:
      layers = ('depthwise', 'conv_dw'), ('project', 'conv_pw')
    for norm, (layer, conv) in enumerate(layers, 1):
      table |= _normed(f'{ours}/{layer}', f'{theirs}.{conv}', f'{theirs}.bn{norm}')
  return table | _normed('last', 'conv_head', 'bn2') | _dense('head', 'classifier')


def _pytorch_efficientnet(module: Any) -> Table:
  table = _normed('stem', '_conv_stem', '_bn0')
  for index, (_, _, widens) in enumerate(_places(module), 1):
    ours, theirs = f'block{index}', f'_blocks.{index - 1}'
    if widens:
      table |= _normed(f'{ours}/expand', f'{theirs}._expand_conv', f'{theirs}._bn0')
    table |= _normed(f'{ours}/depthwise', f'{theirs}._depthwise_conv', f'{theirs}._bn1')
    table |= _normed(f'{ours}/project', f'{theirs}._project_conv', f'{theirs}._bn2')
  return table | _normed('last', '_conv_head', '_bn1') | _dense('head', '_fc')


def _resnet(module: Any) -> Table:
  table = _normed('stem', 'conv1', 'bn1')
  layers = ('first', 'second', 'third')[: 3 if module.bottleneck else 2]
  for stage, count in enumerate(module.blocks, 1):
    for block in range(count):
      ours, theirs = f'stage{stage}_block{block + 1}', f'layer{stage}.{block}'
      for index, layer in enumerate(layers, 1):
        table |= _normed(f'{ours}/{layer}', f'{theirs}.conv{index}', f'{theirs}.bn{index}')
      if block == 0 and (stage > 1 or module.bottleneck):
        table |= _normed(f'{ours}/shortcut', f'{theirs}.downsample.0', f'{theirs}.downsample.1')
  return table | _dense('head', 'fc')


def _timm_vit(module: Any) -> Table:
  table = {
    'params/embed/kernel': Source('patch_embed.proj.weight', 'patch'),
    'params/embed/bias': Source('patch_embed.proj.bias'),
    'params/class_token': Source('cls_token', 'token'),
    'params/position_bias': Source('pos_embed', 'positions'),
  }
  layers = {'qkv': 'attn.qkv', 'out': 'attn.proj', 'dense1': 'mlp.fc1', 'dense2': 'mlp.fc2'}
  for index, (ours, theirs) in itertools.product(range(module.layers), layers.items()):
    table |= _dense(f'block{index + 1}/{ours}', f'blocks.{index}.{theirs}')
  for index, norm in itertools.product(range(module.layers), (1, 2)):
    table |= _norm(f'block{index + 1}/norm{norm}', f'blocks.{index}.norm{norm}')
  return table | _norm('norm', 'norm') | _dense(module.classifier, 'head')


def _transformers_resnet(module: Any) -> Table:
  def normed(ours: str, theirs: str) -> Table:
    return _normed(ours, f'{theirs}.convolution', f'{theirs}.normalization')

  table = normed('stem', 'resnet.embedder.embedder')
  layers = ('first', 'second', 'third')[: 3 if module.bottleneck else 2]
  for stage, count in enumerate(module.blocks, 1):
    for block in range(count):
      ours, theirs = f'stage{stage}_block{block + 1}', f'resnet.encoder.stages.{stage - 1}.layers.{block}'
      for index, layer in enumerate(layers):
        table |= normed(f'{ours}/{layer}', f'{theirs}.layer.{index}')
      if block == 0 and (stage > 1 or module.bottleneck):
        table |= normed(f'{ours}/shortcut', f'{theirs}.shortcut')
  return table | _dense('head', 'classifier.1')


def _transformers_vit(module: Any) -> Table:
  table = {
    'params/embed/kernel': Source('vit.embeddings.patch_embeddings.projection.weight', 'patch'),
    'params/embed/bias': Source('vit.embeddings.patch_embeddings.projection.bias'),
    'params/class_token': Source('vit.embeddings.cls_token', 'token'),
    'params/position_bias': Source('vit.embeddings.position_embeddings', 'positions'),
  }
  layers = {'out': 'attention.output.dense', 'dense1': 'intermediate.dense', 'dense2': 'output.dense'}
  norms = {'norm1': 'layernorm_before', 'norm2': 'layernorm_after'}
  for index in range(module.layers):
    ours, theirs = f'block{index + 1}', f'vit.encoder.layer.{index}'
    for leaf, kind, form in (('kernel', 'weight', 'dense'), ('bias', 'bias', 'same')):
      parts = (f'{theirs}.attention.attention.{one}.{kind}' for one in ('query', 'key', 'value'))
      table[f'params/{ours}/qkv/{leaf}'] = Source(' '.join(parts), form)
    for one, other in layers.items():
      table |= _dense(f'{ours}/{one}', f'{theirs}.{other}')
    for one, other in norms.items():
      table |= _norm(f'{ours}/{one}', f'{theirs}.{other}')
  return table | _norm('norm', 'vit.layernorm') | _dense(module.classifier, 'classifier')
