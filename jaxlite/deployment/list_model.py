"""The list of operations in a run's folder as a Model of the arrays of its checkpoint: a program whose equations are
seen, whatever framework the network was written in and whatever hooks stood around it.

What a run compiled is answered by XLA's kernels alone, which on a CPU are slow at convolutions: `faster` lets the list
answer there, by the kernels that evaluation had.
"""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlite import trees
from jaxlite.contract import POINT, Model, Network, Params, State
from jaxlite.cpu.replace import exchanged
from jaxlite.deployment import opening, stablehlo
from jaxlite.deployment.held import Held
from jaxlite.deployment.operations import Graph, saved_list
from jaxlite.deployment.running.program import batch_of, checked, computed, value_of

# What a list does to params alone, and which is gone once values are in it (`operations.folding`).
_OF_PARAMS = {
  'bitcast_convert_type': lambda x, *, new_dtype: lax.bitcast_convert_type(x, jnp.dtype(new_dtype)),
  'shift_left': lax.shift_left,
  'shift_right_logical': lax.shift_right_logical,
  'shift_right_arithmetic': lax.shift_right_arithmetic,
  'nextafter': lax.nextafter,
}
_LISTED: contextvars.ContextVar[bool] = contextvars.ContextVar('listed', default=False)


def list_model(held: Held, outputs: Any) -> tuple[Model, Params, State]:
  """Returns a run's network as a Model, with its values.

  Args:
    held: what was read of the run.
    outputs: the structure of the network's outputs.

  Raises:
    ValueError: there is no list; the message says why.
  """
  graph, known = saved_list.open_list(held)
  split = {name: _split(path) for name, path in known.items()}
  own: dict[str, dict[str, Any]] = {'params': {}, 'model_state': {}}
  for name, (kind, rest) in split.items():
    own[kind][rest] = jnp.asarray(held.values[known[name]])

  def apply(params: Params, state: State, inputs: Any, *, train: bool, key: Any, step: Any = None) -> Any:
    del train, key, step
    here = {'params': params, 'model_state': state}
    values = {name: here[kind][rest] for name, (kind, rest) in split.items()}
    return jax.tree.unflatten(outputs, _run(graph, values, inputs)), state

  apply.compiled = exchanged  # type: ignore[attr-defined]  # as the network that it stands for
  params, state = own['params'], own['model_state']
  return Model(lambda key, inputs: (params, state), apply), params, state


def faster(held: Held, network: Network) -> Network:
  """Returns a sealed network that is answered by its list where it is called on a CPU and convolves.

  The first call compares both on a few inputs. Where they differ by more than rounding, of values of other shapes or
  other numbers than the run's, in teachers, gradients and on every other platform, the compiled program answers.

  Args:
    held: what was read of the run.
    network: as `stablehlo.sealed_network` gives it.
  """
  stored, sealed = held.stored, network.model.apply
  if stored.about['batch'] is not None or stored.made.get('quantized'):  # a list takes any size; rounding turns bits
    return network
  try:
    graph, named = saved_list.saved(held.folder, held.run)
  except ValueError:
    return network
  if all(one.kind != 'conv_general_dilated' for one in graph.operations):
    return network
  # Numbers stand in the opened list as they are now; of arrays shapes are enough, and who predicted once is kept
  # (`contract._predictor`): it would keep the weights too.
  known = {path: held.values[path] for path in named.values() if path in held.values}
  known = {
    path: one if np.size(one) == 1 else jax.ShapeDtypeStruct(one.shape, one.dtype) for path, one in known.items()
  }
  light = held._replace(params=None, model_state=None, values=known)
  agrees: list[bool] = []

  @functools.cache
  def opened() -> tuple[Graph, dict[str, str], Any]:
    tree = stored.program.out_tree
    found = jax.tree.unflatten(tree, range(tree.num_leaves))
    return *saved_list.open_list(light), jax.tree.structure(found[0] if 'own' in stored.about else found)

  def apply(params: Params, state: State, inputs: Any, *, train: bool, key: Any, step: Any = None) -> Any:
    if train or not _LISTED.get():
      return sealed(params, state, inputs, train=train, key=key, step=step)
    graph, known, outputs = opened()
    arrays = trees.by_path({'params': params, 'model_state': state})
    values = {name: arrays[path] for name, path in known.items()}
    return jax.tree.unflatten(outputs, _run(graph, values, stablehlo.checked_inputs(stored, inputs))), state

  def quick(fn: Callable[..., Any]) -> Callable[..., Any]:
    def listed(*args: Any) -> Any:
      before = _LISTED.set(True)
      try:
        return fn(*args)
      finally:
        _LISTED.reset(before)

    return exchanged(listed)

  def forward(params: Params, state: State, inputs: Any) -> Any:
    return apply(params, state, inputs, train=False, key=None)[0]

  def serves(params: Params, state: State) -> bool:
    """Whether the list says what the program does of these values."""
    leaves, tree = jax.tree.flatten({'params': params, 'model_state': state})
    values = dict(zip(_paths(tree), leaves, strict=True))
    if not all(_is_as_known(values.get(path), one) for path, one in known.items()):
      return False
    if not agrees:
      try:
        opening.check_same(stored, values, functools.partial(quick(forward), params, state), params)
        agrees.append(True)
      except Exception:  # whatever a list raises that the lowering of another version wrote: the program still answers
        agrees.append(False)
    return agrees[0]

  def compiled(fn: Callable[..., Any]) -> Callable[..., Any]:
    by_list, by_program = quick(fn), jax.jit(fn)

    def run(params: Params, state: State, inputs: Any) -> Any:
      traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((params, state, inputs)))
      lists = not traced and jax.default_backend() == 'cpu' and serves(params, state)
      return (by_list if lists else by_program)(params, state, inputs)

    return run

  vars(apply).update(vars(sealed), compiled=compiled)
  return network._replace(model=network.model._replace(apply=apply))


@functools.lru_cache(maxsize=16)  # at each call they would cost a deep network a millisecond
def _paths(tree: Any) -> list[str]:
  return trees.paths(jax.tree.unflatten(tree, range(tree.num_leaves)))


def _is_as_known(value: Any, known: Any) -> bool:
  """Whether an array is of the kind that a list was opened for; a number has to be that number."""
  if value is known:
    return True
  alike = (getattr(value, 'shape', None), getattr(value, 'dtype', None)) == (known.shape, known.dtype)
  return alike and (isinstance(known, jax.ShapeDtypeStruct) or np.array_equal(value, known))


def _run(graph: Graph, weights: Mapping[str, Any], inputs: Any) -> list[Any]:
  """The results of a list for weights by name and raw inputs [B, ...]."""
  paths, leaves, _ = trees.flatten(inputs)
  given = {f'input/{path}' if path else 'input': leaf for path, leaf in zip(paths, leaves, strict=True)}
  values: dict[str, Any] = checked(graph, given)
  batch = batch_of(graph, values)
  values.update(weights)
  for one in graph.operations:
    if one.kind in _OF_PARAMS:
      (name,) = one.outputs
      operands = (value_of(graph, each, values, batch) for each in one.inputs)
      values[name] = _OF_PARAMS[one.kind](*operands, **one.attributes)
    else:
      values.update(computed(graph, one, values, batch))
  return [value_of(graph, name, values, batch) for name in graph.outputs]


def _split(path: str) -> tuple[str, str]:
  """(params or model_state, the path in it): the point at which params are read is what they are where none train."""
  kind, _, rest = path.partition('/')
  return 'params' if rest.startswith(f'{POINT}/') else kind, rest
