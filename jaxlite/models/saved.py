"""A reference network as JSON values, so that a run that was made of one is opened again without being told which."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jaxlite.models.bert import Bert
from jaxlite.models.cnn import SmallCNN
from jaxlite.models.decoder import Decoder
from jaxlite.models.depthwise import DepthwiseCNN
from jaxlite.models.efficientnet import (
  EfficientNetLite,
  EfficientNetLite0,
  EfficientNetLite1,
  EfficientNetLite2,
  EfficientNetLite3,
  EfficientNetLite4,
)
from jaxlite.models.embedding_bag import EmbeddingBag
from jaxlite.models.lenet import LeNet5
from jaxlite.models.mlp import MLP, LeNet300
from jaxlite.models.mobilenet import MobileNetV2
from jaxlite.models.resnet import ResNet, ResNet8, ResNet20
from jaxlite.models.resnet_photographs import DeepResNet, ResNet18, ResNet34, ResNet50
from jaxlite.models.vit import ViT, ViTSmall

_NETWORKS = (
  *(MLP, Bert, Decoder, DepthwiseCNN, EmbeddingBag, LeNet5, LeNet300, ResNet, ResNet8, ResNet20, SmallCNN, ViT),
  *(DeepResNet, ResNet18, ResNet34, ResNet50, MobileNetV2, ViTSmall),
  *(EfficientNetLite, EfficientNetLite0, EfficientNetLite1, EfficientNetLite2, EfficientNetLite3, EfficientNetLite4),
)
_OF_FLAX = frozenset({'parent', 'name'})  # fields that say where a module stands, not what it computes


def described(module: Any) -> dict[str, Any] | None:
  """Returns what a reference network is made of; None for any other module.

  >>> described(MLP((8, 4), classes=3))
  {'network': 'MLP', 'fields': {'widths': [8, 4], 'classes': 3, 'dtype': 'float32'}}
  """
  kind = type(module)
  if kind not in _NETWORKS:
    return None
  names = [one.name for one in dataclasses.fields(kind) if one.name not in _OF_FLAX]
  fields = {name: _plain(name, getattr(module, name)) for name in names}
  if not all(isinstance(one, bool | int | float | str | None) for value in fields.values() for one in _flat(value)):
    return None  # a field that JSON does not hold
  return {'network': kind.__name__, 'fields': fields}


def made(told: Any) -> Any:
  """Returns the network that `described` told of; None where it is none of ours.

  >>> made(described(SmallCNN(classes=3))).classes
  3
  """
  if not isinstance(told, Mapping):
    return None
  kind = {one.__name__: one for one in _NETWORKS}.get(str(told.get('network')))
  fields = told.get('fields')
  if kind is None or not isinstance(fields, Mapping) or not _OF_FLAX.isdisjoint(fields):
    return None
  try:
    return kind(**{name: _value(name, value) for name, value in fields.items()})
  except (TypeError, ValueError, RecursionError):  # of another version, or nobody's
    return None


def _plain(name: str, value: Any) -> Any:
  if name == 'dtype' and value is not None:
    return jnp.dtype(value).name
  return [_plain('', one) for one in value] if isinstance(value, tuple | list) else value


def _value(name: str, value: Any) -> Any:
  if name == 'dtype' and value is not None:
    return jnp.dtype(value)
  return tuple(_value('', one) for one in value) if isinstance(value, list) else value


def _flat(value: Any) -> tuple[Any, ...]:
  return tuple(leaf for one in value for leaf in _flat(one)) if isinstance(value, tuple | list) else (value,)
