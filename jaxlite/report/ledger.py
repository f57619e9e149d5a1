"""What every part of a recipe did in a run: when it acted, what it touched, what it could not.

Read off what a run leaves (states, constants, the program it runs, its log), not off what was asked of it: a part
that did nothing shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlite import trees
from jaxlite.contract import CONST, Hook, Model, Params, Recipe, Side
from jaxlite.optim._accumulate import Accumulate
from jaxlite.optim._penalties import L2State
from jaxlite.optim._plateau import PlateauState
from jaxlite.optim._proximal import ProximalState
from jaxlite.optim._swa import SwaState
from jaxlite.pruning import _masks as masking
from jaxlite.pruning._mask_state import PruneState
from jaxlite.quantization._qat import weight_bits
from jaxlite.quantization._quantize import coverage
from jaxlite.step.state import TrainState

_IDLE = Hook('idle')  # every field of it changes nothing


class Row(NamedTuple):
  """One part's account, in words.

  Attributes:
    part: its name; of an Optax transformation what made it, or the states it keeps.
    when: the steps at which it acted.
    touched: arrays, by number and path.
    left: what it could not do, or did not reach; '' where there is nothing to tell.
  """

  part: str
  when: str
  touched: str
  left: str = ''


def account(
  recipe: Recipe,
  network: Model,
  model: Model,
  state: TrainState,
  inputs: Any,
  history: Sequence[Mapping[str, Any]] = (),
) -> list[Row]:
  """Tells what each part of a recipe did.

  Args:
    recipe: as it was trained by.
    network: the Model without hooks.
    model: the Model wrapped in its hooks.
    state: at the end of training.
    inputs: one batch, [B, ...].
    history: the points of metrics.jsonl: from those of kind 'train' come the terms of the loss.

  Returns:
    A Row a part, in the recipe's order.

  >>> import jax.numpy as jnp, optax
  >>> import jaxlite as jl
  >>> net = jl.from_function(lambda p, x: x @ p['w'], {'w': jnp.ones((3, 2))})
  >>> recipe = jl.chain(jl.optim.label_smoothing(0.1), optax.adam(0.1), jl.prune(0.5))
  >>> train = jl.train_step(net, jl.cross_entropy, recipe)
  >>> batch = {'inputs': jnp.ones((1, 3)), 'labels': jnp.array([0])}
  >>> state, _ = train.step(train.init(jax.random.key(0), batch), batch)
  >>> for row in account(recipe, net, train.model, state, batch['inputs']):
  ...   print(*row, sep=' | ')
  label_smoothing | each training step | the loss |\x20
  ScaleByAdam | 1 step | 1 array |\x20
  prune | 1 update; masks drawn once, at update 0 | 1 array: w; 3 of 6 weights are zero |\x20
  """
  updates = iter(state.opt_state)
  bits = weight_bits(model, state.params, {**state.model_state, CONST: state.const}, inputs)
  rows = []
  for part in recipe.parts:
    if isinstance(part, Hook):
      rows.append(_hook(part, network, state, inputs, history, bits))
    else:
      rows.append(_update(part, next(updates), state))
  return rows


# --- update parts ------------------------------------------------------------------------------------------------


def _update(part: Any, own: Any, state: TrainState) -> Row:
  name = part.update.__qualname__.split('.')[0].lstrip('_')
  kept = [type(node).__name__.removesuffix('State') for node in _states(own)]
  if name in ('chain', 'named_chain'):
    name = ', '.join(dict.fromkeys(kept)) or 'optax.chain'
  steps, learning = int(state.step), len(jax.tree.leaves(state.params))
  for kind, tell in _TOLD.items():
    nodes = trees.find(own, kind)
    if nodes:
      return Row(name, *tell(nodes[0], state.params))
  return Row(name, _count(steps, 'step'), _count(learning, 'array'))


def _states(own: Any) -> list[Any]:
  """The states of an Optax chain that hold something."""
  named = isinstance(own, tuple) and hasattr(own, '_fields')
  if named:
    return [own] if jax.tree.leaves(own) else []
  return [node for one in own for node in _states(one)] if isinstance(own, tuple | list) else []


def _pruned(own: PruneState, params: Params) -> tuple[str, str, str]:
  masked = trees.paths(own.masks)
  leaves = dict(zip(*trees.flatten(params)[:2], strict=True))
  arrays = [np.asarray(leaves[path]) for path in masked]
  zeros, size = sum(int((array == 0).sum()) for array in arrays), sum(array.size for array in arrays)
  left = []
  if not bool(own.reached):
    left.append(f'its target: masks stand at sparsity {float(own.sparsity):.3f}')
  if int(own.broken):
    left.append(f'{int(own.broken):,} weights were written to after it: it must be the last part')
  touched = f'{_named(masked)}; {zeros:,} of {size:,} weights are zero'
  return f'{_count(int(own.count), "update")}; {_drawn(int(own.refreshes), int(own.last))}', touched, '; '.join(left)


def _drawn(times: int, last: int) -> str:
  if not times:
    return 'masks never drawn anew'
  return (
    f'masks drawn once, at update {last:,}' if times == 1 else f'masks drawn {times:,} times, last at update {last:,}'
  )


def _rated(own: Any, params: Params) -> tuple[str, str, str]:
  rates = dict(zip(*trees.flatten(own.rates)[:2], strict=True))
  touched = [path for path, rate in rates.items() if float(rate)]
  when = _count(int(own.count), 'update') if 'count' in own._fields else 'each step'
  return when, _named(touched), '' if touched else 'it has a rate of 0 everywhere'


def _scaled(own: PlateauState, params: Params) -> tuple[str, str, str]:
  seen, scale = int(own.observed), float(own.scale)
  left = '' if seen else 'it was given no score: call observe_score after each validation'
  return f'{_count(seen, "score")} seen', f'updates are multiplied by {scale:g} at the end', left


_TOLD: dict[type, Callable[[Any, Params], tuple[str, str, str]]] = {
  PruneState: _pruned,
  L2State: _rated,
  ProximalState: _rated,
  PlateauState: _scaled,
}

# --- hooks ---------------------------------------------------------------------------------------------------------


def _hook(
  hook: Hook,
  network: Model,
  state: TrainState,
  inputs: Any,
  history: Sequence[Mapping[str, Any]],
  bits: Mapping[str, int],
) -> Row:
  entry, when, touched, left = f'jl.{hook.name}', '', [], ''
  if _has(state.params, entry):
    touched.append(f'learned {_named(trees.paths(state.params[entry]))}')
  if _has(state.const, hook.name):
    held = trees.paths(state.const[hook.name])
    size = sum(np.size(leaf) for leaf in jax.tree.leaves(state.const[hook.name]))
    touched.append(f'{size:,} values of its teacher' if isinstance(hook, Side) else f'held still {_named(held)}')
  quantized = _quantized(hook, network, inputs)
  if quantized:
    own = {path: bits[path] for path in quantized if path in bits}
    touched.append(f'{_named(own)} in {" and ".join(map(str, sorted(set(own.values()))))} bits')
    left = '; '.join(_floats(network, inputs, bits))
  elif hook.name in (views := masking.views(state.model_state)):
    view = views[hook.name]
    masked, asked = view['masks'], float(view['sparsity'])
    leaves = dict(zip(*trees.flatten(state.params)[:2], strict=True))
    live = sum(int(masking.unpack(mask, np.shape(leaves[path])).sum()) for path, mask in masked.items())
    size = sum(np.size(leaves[path]) for path in masked)
    touched.append(f'{_named(masked)}; {size - live:,} of {size:,} weights are masked')
    left = '' if asked else 'it masked nothing: its begin lies beyond the last step'
  elif _has(state.model_state, entry):
    kept = state.model_state[entry]
    touched.append(f'keeps {_count(len(jax.tree.leaves(kept)), "array")}')
    for swa in trees.find(kept, SwaState):
      when = f'{_count(int(swa.count), "set")} of weights averaged'
      left = '' if int(swa.count) else 'it averaged nothing: its begin lies beyond the last step'
  if terms := _term(hook.name, history):
    touched.append(terms)
  if not touched:
    fields = {'the model': 'model', 'the loss': 'loss', 'the gradient': 'grad'}
    touched = [what for what, field in fields.items() if getattr(hook, field) is not getattr(_IDLE, field)]
    left = '' if touched else 'it changes nothing'
  what = 'each step, in micro-batches' if isinstance(hook, Accumulate) else 'each training step'
  return Row(hook.name, when or what, '; '.join(touched), left)


def _has(tree: Mapping[str, Any] | None, name: str) -> bool:
  return bool(tree) and name in tree and bool(jax.tree.leaves(tree[name]))


def _quantized(hook: Hook, network: Model, inputs: Any) -> list[str]:
  """The weights that this hook alone puts into integers."""
  if hook.model is _IDLE.model:
    return []
  model = hook.model(network)

  def start(key: Any) -> Any:
    return model.init(key, inputs)

  try:
    params, model_state = jax.eval_shape(start, jax.random.key(0))
    return sorted(weight_bits(model, params, model_state, inputs))
  except ValueError:  # it works on what another hook brings, so alone it has nothing to do
    return []


def _floats(network: Model, inputs: Any, bits: Mapping[str, int]) -> list[str]:
  """The contractions that stay float, and why."""
  params, model_state = jax.eval_shape(lambda key: network.init(key, inputs), jax.random.key(0))

  def forward(params: Any, model_state: Any, inputs: Any) -> Any:
    return network.apply(params, model_state, inputs, train=False, key=None)[0]

  told = []
  for row in coverage(forward)(params, model_state, inputs):
    if not row.quantized:
      told.append(f'{row.name or row.kind}: {row.why}')
    elif not any(path in bits for path in row.name.partition('#')[0].split('+')):
      told.append(f'{row.name}: kept float')
  return told


def _term(name: str, history: Sequence[Mapping[str, Any]]) -> str:
  """How a term of the loss moved; '' where no point has it."""
  points = [point for point in history if point.get('kind') == 'train' and isinstance(point.get(name), int | float)]
  if not points:
    return ''
  first, last = points[0], points[-1]
  return f'its term went from {first[name]:.4g} by step {first["step"]:,} to {last[name]:.4g} by {last["step"]:,}'


def _count(number: int, what: str) -> str:
  return f'{number:,} {what}' + ('' if number == 1 else 's')


def _named(paths: Sequence[str] | Mapping[str, Any], most: int = 4) -> str:
  paths = list(paths)
  shown = ', '.join(paths[:most]) + (f' and {len(paths) - most} more' if len(paths) > most else '')
  return _count(len(paths), 'array') + (f': {shown}' if paths else '')
