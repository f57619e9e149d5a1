"""Weights of a file into any model: paired by name, laid out as the model's program reads them, nothing guessed.

The order of things: which leaf takes which array (`names.py`, rules), how the array's axes become the leaf's
(`axes.py`), then every problem in one error, and only then is the first array read. Arrays are read and handed over
one by one, so that memory holds the model once, and one array more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import trees
from jaxlite.adapters import GivenBack, adapt, give_back
from jaxlite.contract import Model, Network
from jaxlite.finetuning import matching, program
from jaxlite.finetuning.account import Report, Row
from jaxlite.finetuning.matching import Plan, Target, Transform, leaves_of, own_path
from jaxlite.finetuning.reading import read
from jaxlite.finetuning.weights import Weights, WeightsError, floating_dtype, is_floating


class Loaded(NamedTuple):
  """A model with a file's weights.

  Attributes:
    network: the model and its values: predicts, trains on (`jl.train(model=network)`), teaches.
    report: what became of each array; print it.
    module: what was given, in its own framework.
  """

  network: Network
  report: Report
  module: Any

  def give_back(self) -> GivenBack:
    """Returns the values in the framework's own form, as `jaxlite.give_back`; a Keras model is written to."""
    return give_back(self.network, self.module)

  def __repr__(self) -> str:
    return f'Loaded({self.network!r}, {len(self.report.matched)} of {len(self.report.rows)} arrays matched)'


def load_weights(
  model: Any,
  source: Any,
  inputs: Any,
  *,
  rules: Mapping[str, str | None] | None = None,
  transforms: Mapping[str, Transform] | None = None,
  new: trees.Rule = None,
  head: str = 'match',
  match: str = 'names',
  layout: str | None = None,
  dtype: Any = None,
  key: Any = None,
) -> Loaded:
  """Puts a file's weights into a model of any framework.

  Leaves and arrays are paired by name, as frameworks differ in them (`layer1.0.conv1.weight` is
  `layer1_0/conv1/kernel`). How a kernel's axes lie comes from the file's convention and from what the model's program
  sums over, never from its shape. What is missing, left over, of another shape or unclear is refused, with the rule to
  write; nothing is skipped unless a rule says so. What a file does not hold stays the model's own: epsilons, padding,
  activations; compare predictions with the original's once.

  Args:
    model: what `adapt` takes: a Model, a Network, a Linen, NNX or Equinox module, a Haiku transform, a Keras model,
      (function, params).
    source: what `read` takes, or the Weights that it gave.
    inputs: one batch, arrays or ShapeDtypeStructs [B, ...]: what the model is traced with.
    rules: regular expressions on the file's names, each with what replaces its match (`{'^bert\\.': ''}`), or None
      for arrays that are left out. The first that matches counts; one that matches nothing is an error.
    transforms: regular expressions on the model's paths, each with an order of axes (`(1, 0)`) or a function of the
      stored array, in place of what the layout says.
    new: a rule on the model's paths that keep their first values, whatever the file holds.
    head: 'match', or 'new': the model's last kernel and what stands beside it keep their first values.
    match: 'names', or 'order': leaves that no name pairs take, kind by kind, the arrays left over in the file's order,
      where every shape fits: the order of definition in files of PyTorch, npz and GGUF, of the numbers in names in
      others, which sort them. So do leaves that names pair by numbers which begin elsewhere (`fc1` of a file that
      counts from 1). Check the report.
    layout: whose convention kernels follow, 'torch' ([out, in], OIHW) or 'jax' ([in, out], HWIO); None: as the format
      or its names say.
    dtype: of floating leaves; None: the model's own. 'stored' keeps the file's.
    key: a root key, for first values of what is new; None: `jax.random.key(0)`.

  Returns:
    Loaded: (network, report, module).

  Raises:
    WeightsError: arrays are missing, left over, of another shape or layout than can be told.
    ValueError: a rule matches nothing.
    TypeError: model or inputs is none.

  >>> import flax.linen as nn, tempfile
  >>> path = f'{tempfile.mkdtemp()}/w.npz'
  >>> np.savez(path, **{'fc.weight': np.arange(6.0).reshape(2, 3), 'fc.bias': np.zeros(2)})
  >>> module = nn.Dense(2, name='fc')
  >>> loaded = load_weights(module, path, jnp.ones((1, 3)), rules={'^fc.': ''})
  >>> loaded.network.params['kernel'].tolist(), loaded.report.transposed
  ([[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]], ('kernel',))
  """
  if match not in ('names', 'order'):
    raise ValueError(f"match is 'names' or 'order'; got {match!r}")
  if head not in ('match', 'new'):
    raise ValueError(f"head is 'match' or 'new'; got {head!r}")
  if inputs is None or not all(hasattr(leaf, 'shape') and hasattr(leaf, 'dtype') for leaf in jax.tree.leaves(inputs)):
    raise TypeError(f'inputs is one batch of arrays, or their jax.ShapeDtypeStructs; got {str(inputs)[:80]}')
  dtype = dtype if dtype is None or dtype == 'stored' else floating_dtype(dtype)
  held = read(source)
  adapted = adapt(model)
  key = jax.random.key(0) if key is None else key
  network = model if isinstance(model, Network) else None
  params, state = (
    (network.params, network.model_state) if network else jax.eval_shape(lambda k: adapted.init(k, inputs), key)
  )
  target = Target(leaves_of(params, state), *program.read_program(adapted, params, state, inputs))
  kept = _kept(target, new, head)
  found = matching.match(held, target, kept, rules or {}, transforms or {}, layout, by_order=match == 'order')
  values, rows = _values(held, found.plans, target.leaves, dtype)
  values |= _first(adapted, network, key, inputs, kept)
  rows += [Row(path, '', f'new: {why}', tuple(target.leaves[path].shape)) for path, why in kept.items()]
  rows += [Row('', name, f'left out: {why}', held.shape(name)) for name, why in found.left.items()]
  params, state = _filled(params, values), _filled(state, values)
  ready = Network(adapted, params, state) if network is None else network._replace(params=params, model_state=state)
  return Loaded(ready, Report(held.where, tuple(rows)), model)


def _kept(target: Target, new: trees.Rule, head: str) -> dict[str, str]:
  """Paths that keep their first values, each with why."""
  kept = {}
  if head == 'new':
    paths = program.last(target.kernels, list(target.leaves))
    if not paths:
      raise WeightsError("head='new' needs a model whose program has a kernel, and finds none: name leaves by new=")
    tied = [path for path in paths if path in target.tables]
    if tied:
      raise WeightsError(
        f"head='new' would begin {tied[0]!r} anew, which is a looked-up table too: name it by new= if that is meant, "
        'or give the model a last layer of its own'
      )
    kept = dict.fromkeys(paths, "head='new'")
  if new not in (None, (), []):  # a list that a program made may be empty
    kept |= dict.fromkeys(sorted(trees.select(target.leaves, new, what='load_weights: new')), 'new=')
  return kept


def _values(
  held: Weights, plans: Mapping[str, Plan], leaves: Mapping[str, Any], dtype: Any
) -> tuple[dict[str, Any], list[Row]]:
  """Reads array after array, and hands each over before the next: JAX's copy is the only one that stays."""
  values, rows = {}, []
  for path, plan in plans.items():
    leaf, how = leaves[path], plan.how
    array = np.asarray(plan.move(held[plan.source]))
    if array.shape != tuple(leaf.shape):
      raise WeightsError(
        f'transforms of {path!r} give the shape {list(array.shape)}; the model has {list(leaf.shape)}: mend the rule'
      )
    floats = is_floating(np.dtype(leaf.dtype))
    if floats != is_floating(array.dtype):
      raise WeightsError(
        f'{plan.source!r} is {array.dtype} and {path!r} is {np.dtype(leaf.dtype)}: numbers of another kind, no weights '
        'for it: convert them by transforms='
      )
    wanted = array.dtype if dtype == 'stored' else np.dtype(dtype) if dtype is not None and floats else leaf.dtype
    wanted = jax.dtypes.canonicalize_dtype(wanted)
    if array.dtype != wanted:
      how = (*how, f'cast from {array.dtype}')
      array = _cast(array, wanted, plan.source)
    if is_floating(array.dtype) and not np.isfinite(array).all():
      how = (*how, 'holds entries that are not finite')
    values[path] = jnp.array(array)  # a copy: what trains on owns its arrays, and the file may go
    rows.append(Row(path, plan.source, ', '.join(how) or 'as stored', held.shape(plan.source)))
  return values, rows


def _cast(array: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
  """Casts, and refuses what would become infinite, or another whole number."""
  with np.errstate(over='ignore', invalid='ignore'):
    made = array.astype(dtype)
    if is_floating(dtype):
      narrow = float(jnp.finfo(dtype).max) < float(jnp.finfo(array.dtype).max)
      lost = int((np.isfinite(array) & ~np.isfinite(made)).sum()) if narrow else 0
    else:
      lost = int((made.astype(array.dtype) != array).sum())
  if lost:
    raise WeightsError(f'{name!r} has {lost:,} entries that {dtype} cannot hold: load it in a wider dtype=')
  return made


def _first(adapted: Model, network: Network | None, key: Any, inputs: Any, kept: Mapping[str, str]) -> dict[str, Any]:
  """First values of what the file has nothing for; the others are never made."""
  if not kept:
    return {}
  if network is not None:
    return {path: leaf for path, leaf in leaves_of(network.params, network.model_state).items() if path in kept}

  def some(key: Any, inputs: Any) -> dict[str, Any]:
    return {path: leaf for path, leaf in leaves_of(*adapted.init(key, inputs)).items() if path in kept}

  shapes = all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(inputs))
  given = jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), inputs) if shapes else inputs
  return dict(jax.jit(some)(key, given))


def _filled(tree: Any, values: Mapping[str, Any]) -> Any:
  def one(path: str, leaf: Any) -> Any:
    value = values.get(own_path(path))
    if value is None and isinstance(leaf, jax.ShapeDtypeStruct):
      raise WeightsError(f'{path!r} has no value: load the model that its run made, without parts of a recipe')
    return leaf if value is None else value

  return trees.map_with_path(one, tree)
