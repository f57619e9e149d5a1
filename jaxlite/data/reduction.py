"""Fewer features for a whole data set: fitted on the training split alone, kept with the run, applied on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxlite.data.columns import Columns
from jaxlite.data.dataset import Dataset, Split, check_dataset
from jaxlite.data.inputs import leaves
from jaxlite.data.mixtures import Mixture
from jaxlite.data.principal_components import pca
from jaxlite.data.projection import Projection
from jaxlite.data.random_projections import random_projection
from jaxlite.data.selection import mutual_information, select
from jaxlite.data.streams import Stream
from jaxlite.errors import nearest

WAYS = ('pca', 'randomized_pca', 'incremental_pca', 'random_projection', 'sparse_projection', 'mutual_information')
_MIXED = 256  # examples a batch, of a mixture that is looked at


def reduce(
  data: Dataset,
  by: Any = 'pca',
  components: float | None = None,
  *,
  whiten: bool = False,
  leaf: str = '',
  seed: int = 0,
) -> Dataset:
  """Brings the inputs of a data set to fewer features, by what its training split shows and nothing else.

  The arrays stay as they are: the map is a part of the model, as standardizing is, so that what predicts takes raw
  inputs and every exported file holds it. The network sees [B, components].

  Args:
    data: a Dataset. Where it standardizes its inputs, the map is fitted on standardized ones.
    by: 'pca', 'randomized_pca' (many features), 'incremental_pca' (one pass over the data); 'random_projection' or
      'sparse_projection'; 'mutual_information', which takes features as they are; float[features], the importance of
      each feature, such as `permutation_importance` of a network measures; or a Projection of your own.
    components: how many; a share of the variance in (0, 1) for 'pca', which has 0.95 by default; a random projection
      has what keeps squared distances within a tenth.
    whiten: of a PCA, each component has deviation 1.
    leaf: path of the inputs' leaf, where they are a tree with several of numbers.
    seed: of what is drawn.

  Returns:
    The Dataset, with `reduction`, and notes on what is kept.

  Raises:
    TypeError: no Dataset.
    ValueError: ids or masks, more components than there can be, nothing that varies, a data set that was reduced.

  >>> from jaxlite.data import from_arrays
  >>> rows = np.random.default_rng(0).normal(size=(100, 2)) @ np.ones((2, 6)) + np.eye(6)[np.arange(100) % 6] / 9
  >>> data = reduce(from_arrays((rows, np.arange(100) % 2)), 'pca', 2)
  >>> data.reduction.told(), data.reduction(data.test.inputs).shape
  ('pca: 6 features become 2, 99.9 % of the variance', (10, 2))
  """
  check_dataset(data, 'reduce')
  if data.reduction is not None:
    raise ValueError(f'a data set is reduced once; this one is ({data.reduction.told()}): give the one before it')
  how = {'by': by, 'components': components, 'whiten': whiten, 'leaf': leaf, 'seed': seed}
  place, leaf = _leaf_of(data, leaf)
  rows = _rows_of(data.train, place)
  change = _standardized(data, place)
  found = _found(data, by, components, whiten, seed, rows, change)
  found = found._replace(leaf=leaf, how=how, standardized=change is not None)
  named = _named(data, found)
  return data._replace(reduction=found, notes=(*data.notes, _said(found), *named))


def _said(found: Projection) -> str:
  values = found.weight.size + (0 if found.mean is None else found.mean.size)
  return f'inputs are reduced, {found.told()}; the map, {values:,} values, is in the model and in every export'


def again(data: Dataset, reduction: Projection | None) -> Dataset:
  """Returns another data set of the same kind, reduced in the same way by its own training split."""
  return data if reduction is None else reduce(data, **reduction.how)


def seen(data: Dataset, inputs: Any) -> Any:
  """Returns inputs in the form in which the network of a run sees them: reduced, where the data set says so.

  Values are those of inputs that were standardized before.
  """
  if data.reduction is None:
    return inputs
  import jax

  place, _ = _leaf_of(data, data.reduction.leaf)
  flat, treedef = jax.tree.flatten(inputs)
  flat[place] = data.reduction(flat[place])
  return treedef.unflatten(flat)


def _found(
  data: Dataset,
  by: Any,
  components: float | None,
  whiten: bool,
  seed: int,
  rows: Any,
  change: Callable[[np.ndarray], np.ndarray] | None,
) -> Projection:
  if isinstance(by, Projection):
    _left_out(by.kind, components=components is not None, whiten=whiten)
    shape = np.shape(rows if not callable(rows) else next(iter(rows())))[1:]
    if by.shape != shape:
      raise ValueError(f'a projection fits the inputs; these are [N, {_dims(shape)}], it takes [N, {_dims(by.shape)}]')
    return by
  if not isinstance(by, str):
    _left_out('a choice of features', whiten=whiten)
    shape = np.shape(rows if not callable(rows) else next(iter(rows())))[1:]
    return select(by, _asked(components, 'a choice of features'), shape)
  if by not in WAYS:
    raise ValueError(f'reduce goes by {", ".join(WAYS)}, or by importances; got {by!r} (nearest: {nearest(by, WAYS)})')
  if by.endswith('pca'):
    method = {'pca': 'exact', 'randomized_pca': 'randomized', 'incremental_pca': 'incremental'}[by]
    share = 0.95 if method == 'exact' and components is None else _asked(components, by)
    return pca(rows, share, method=method, whiten=whiten, seed=seed, change=change)
  _left_out(by, whiten=whiten)
  if by == 'mutual_information':
    if callable(rows):
      raise ValueError(f'mutual_information looks at arrays; train of {data.name} is a {type(data.train).__name__}')
    told = mutual_information(rows, data.train.labels)
    return select(told, _asked(components, by), rows.shape[1:], kind='features by mutual information')
  kind = {'random_projection': 'gaussian', 'sparse_projection': 'sparse'}[by]
  return random_projection(rows, components, kind=kind, seed=seed)


def _asked(components: Any, by: str) -> Any:
  if components is None:
    raise ValueError(f'{by} is told how many components it makes: give components')
  return components


def _left_out(by: str, **given: bool) -> None:
  for name, there in given.items():
    if there:
      raise ValueError(f'{name} says nothing to {by}: leave it out')


def _dims(shape: Any) -> str:
  return ', '.join(map(str, shape))


def _leaf_of(data: Dataset, leaf: str) -> tuple[int, str]:
  """Which leaf is reduced, by number and by path."""
  known = leaves(data.test.inputs)
  paths = [path for path, _ in known]
  if leaf:
    if leaf not in paths:
      raise ValueError(
        f'leaf names one of the inputs, {", ".join(paths)}; got {leaf!r} (nearest: {nearest(leaf, paths)})'
      )
    return paths.index(leaf), leaf
  numbers = [place for place, (_, array) in enumerate(known) if array.dtype == np.uint8 or array.dtype.kind == 'f']
  if not numbers:
    kinds = ', '.join(f'{array.dtype}' for _, array in known)
    raise ValueError(
      f"features that are reduced are numbers; these inputs are {kinds}, ids or masks: .astype('float32')"
    )
  if len(numbers) > 1:
    names = ', '.join(paths[place] for place in numbers)
    raise ValueError(
      f'one leaf of the inputs is reduced, and {names} are of numbers: name it, leaf={paths[numbers[0]]!r}'
    )
  return numbers[0], paths[numbers[0]]


def _rows_of(train: Any, place: int) -> Any:
  """The training rows of a leaf: an array, or a function that gives them batch by batch."""
  import jax

  if isinstance(train, Split | Columns):
    return jax.tree.leaves(train.inputs)[place]
  batch: Callable[[int], Any]
  if isinstance(train, Stream):
    steps, batch = train.steps, lambda step: train.at(0, step)
  elif isinstance(train, Mixture):
    size = min(_MIXED, train.epoch)
    steps, batch = train.steps_of(size), lambda step: train.at(size, 0, step)
  else:
    raise ValueError(f'reduce looks at training examples; train is a {type(train).__name__}')

  def rows() -> Iterator[np.ndarray]:
    return (jax.tree.leaves(batch(step)['inputs'])[place] for step in range(steps))

  return rows


def _standardized(data: Dataset, place: int) -> Callable[[np.ndarray], np.ndarray] | None:
  """What standardizing does to a leaf; None where it does nothing."""
  import jax

  if data.mean is None:
    return None
  treedef = jax.tree.structure(data.test.inputs)
  mean, std = (treedef.flatten_up_to(tree)[place] for tree in (data.mean, data.std))
  if mean is None:
    return None
  mean, std = (np.asarray(value, np.float64) for value in (mean, std))
  return lambda rows: (rows - mean) / std


def _named(data: Dataset, found: Projection) -> list[str]:
  """A projection's notes, with names in place of the features' numbers where there are some."""
  columns, names = found.columns, data.feature_names
  if columns is None or len(names) != found.features:
    return list(found.notes)
  kept = [names[column] for column in columns]
  shown = ', '.join(kept[:12]) + (f' and {len(kept) - 12} more' if len(kept) > 12 else '')
  return [f'{shown} are kept', *found.notes]
