"""The reference network of the widths that a shrunk one has left, where it computes the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import trees
from jaxlite.adapters import from_linen
from jaxlite.contract import Network
from jaxlite.models.cnn import SmallCNN
from jaxlite.models.decoder import Decoder
from jaxlite.models.depthwise import DepthwiseCNN
from jaxlite.models.embedding_bag import EmbeddingBag
from jaxlite.models.mlp import MLP
from jaxlite.models.resnet import ResNet
from jaxlite.models.vit import ViT

_NEAR = 1e-4  # of the largest output: another order of the same sums


def narrower(whole: Any, small: Network, inputs: Any) -> Any:
  """Returns the reference network whose own parameters these are.

  Args:
    whole: the reference network that was shrunk.
    small: what is left of it.
    inputs: one batch, arrays or shapes [B, ...].

  Raises:
    TypeError: it is no reference network.
    ValueError: none of its kind computes the same.
  """
  name = type(whole).__name__
  sizes = {path: leaf.shape for path, leaf in trees.by_path(small.params).items()}
  fields = _fields(whole, sizes)
  if fields is None:
    raise TypeError(f'the smaller network is had of those of jaxlite.models that have widths; got {name}')
  try:
    found = dataclasses.replace(whole, **fields)
    model = from_linen(found)
    shapes = jax.eval_shape(model.init, jax.random.key(0), inputs)
  except (ValueError, TypeError) as error:  # a field that does not take these widths
    raise ValueError(f'{name} has no fields for what is left of it ({error}): use the shrunk model') from None
  wanted = {path: leaf.shape for path, leaf in trees.by_path(shapes).items()}
  for path, leaf in trees.by_path((small.params, small.model_state)).items():
    if wanted.get(path) != leaf.shape:
      told = 'nothing' if path not in wanted else list(wanted[path])
      raise ValueError(
        f'{name} has no fields for what is left of it: {path.partition("/")[2]!r} is {list(leaf.shape)} and would be '
        f'{told} with {fields}: use the shrunk model'
      )
  given = _some(inputs, sizes)
  answers = [
    jax.jit(lambda params, state, inputs, apply=one.apply: apply(params, state, inputs, train=False, key=None)[0])(
      small.params, small.model_state, given
    )
    for one in (small.model, model)
  ]
  apart = float(jnp.max(jnp.abs(answers[0] - answers[1])))
  if not apart <= _NEAR * max(1.0, float(jnp.max(jnp.abs(answers[0])))):
    raise ValueError(
      f'{name} with {fields} does not compute the same (outputs {apart:.2g} apart): what was removed across a norm '
      'counts in its statistics in the shrunk model and would not there, and heads are split by width: use that model'
    )
  return found


def _fields(whole: Any, sizes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
  """The widths that are left, by the fields that say them; None for a network that has none."""

  def last(path: str) -> int:
    return sizes[path][-1] if path in sizes else 0

  match whole:
    case MLP():
      return {'widths': tuple(last(f'dense{one}/bias') for one, _ in enumerate(whole.widths, 1))}
    case SmallCNN():
      features = tuple(
        next(last(path) for path in sorted(sizes) if path.startswith(f'conv{one}/') and path.endswith('kernel'))
        for one, _ in enumerate(whole.features, 1)
      )
      return {'features': features, 'hidden': last('dense1/bias')}
    case ResNet():
      stages = range(1, len(whole.widths) + 1)
      return {'widths': tuple(last(f'stage{one}_block1/second/conv/kernel') for one in stages)}
    case DepthwiseCNN():
      widths = [(last(f'pointwise{one}/kernel'), stride) for one, (_, stride) in enumerate(whole.blocks, 1)]
      return {'stem': last('stem/kernel'), 'blocks': tuple(widths)}
    case EmbeddingBag():
      return {'width': last('embedding'), 'hidden': last('dense1/bias')}
    case ViT() | Decoder():
      width = next(size[-1] for path, size in sizes.items() if path.endswith('block1/norm1/scale'))
      grows = '/up/' if 'block1/up/kernel' in sizes else '/dense1/'
      return {'width': width, 'hidden': next(size[-1] for path, size in sizes.items() if f'block1{grows}' in path)}
  return None


def _some(inputs: Any, sizes: Mapping[str, tuple[int, ...]]) -> Any:
  """Inputs of these shapes: noise, and the first tokens."""
  rng = np.random.default_rng(0)
  most = min((size[0] for path, size in sizes.items() if 'embed' in path), default=2)

  def one(leaf: Any) -> np.ndarray:
    if np.issubdtype(leaf.dtype, np.floating):
      return rng.normal(size=leaf.shape).astype(leaf.dtype)
    if leaf.dtype == bool:
      return np.ones(leaf.shape, bool)
    return rng.integers(0, most, leaf.shape).astype(leaf.dtype)

  return jax.tree.map(one, inputs)
