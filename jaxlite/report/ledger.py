"""What every part of a recipe did in a run: when it acted, what it touched, what it could not.

Read off what a run leaves (states, constants, the program it runs, its log), not off what was asked of it: a part
that did nothing shows. Nothing here knows a part: states and hooks are asked for their account (see `contract.py`),
and what every hook leaves behind is told of one that says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlite import trees
from jaxlite.contract import Account, Hook, Model, Network, Params, Recipe, Side, join_const
from jaxlite.errors import arrays, counted
from jaxlite.optim import optax_account
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
    A Row per part, in the recipe's order.

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
  trained = Network(model, state.params, join_const(state.model_state, state.const))
  rows = []
  for part in recipe.parts:
    if isinstance(part, Hook):
      rows.append(_hook(part, network, trained, state, inputs, history))
    else:
      rows.append(_update(part, next(updates), state))
  return rows


def told(tree: Any, params: Params) -> Account:
  """Returns what the states in a tree say together: those that tell of themselves first, then Optax's own.

  >>> import optax, jax.numpy as jnp
  >>> params = {'w': jnp.ones(2)}
  >>> told(optax.adam(0.1).init(params), params)
  Account(when='0 steps', touched='', left='')
  """
  tree = jax.tree.map(_at_hand, tree)
  own = [node.account(params) for node in trees.able(tree, 'account')]
  known = [optax_account(node) for node in trees.nodes(tree, _is_state)]
  theirs = [one for one in known if one is not None]

  def said(field: str) -> str:
    return _joined(getattr(one, field) for one in own) or _joined(getattr(one, field) for one in theirs)

  return Account(said('when'), said('touched'), _joined(one.left for one in own + theirs))


def _at_hand(leaf: Any) -> Any:
  """A count as NumPy has it: NumPy's functions ask an array of JAX for its own, each a program to compile."""
  count = isinstance(leaf, jax.Array) and not leaf.ndim and not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended)
  return np.asarray(leaf) if count else leaf


def name_of(part: Any, own: Any) -> str:
  """Returns what an update part is called: by what made it, or by the states it keeps.

  Args:
    part: an Optax transformation.
    own: its state.

  >>> import optax
  >>> name_of(optax.sgd(0.1, momentum=0.9), optax.sgd(0.1, momentum=0.9).init(1.0))
  'Trace'
  """
  name = getattr(part.update, '__qualname__', type(part).__name__).split('.')[0].lstrip('_')
  if name not in ('chain', 'named_chain'):
    return name
  kept = [type(node).__name__.removesuffix('State') for node in _states(own)]
  return ', '.join(dict.fromkeys(kept)) or 'optax.chain'


def _update(part: Any, own: Any, state: TrainState) -> Row:
  said = told(own, state.params)
  learning = counted(len(jax.tree.leaves(state.params)), 'array')
  when = said.when or counted(int(state.step), 'step')
  return Row(name_of(part, own), when, said.touched or learning, said.left)


def _is_state(node: Any) -> bool:
  return isinstance(node, tuple) and hasattr(node, '_fields')


def _states(own: Any) -> list[Any]:
  """The states of an Optax chain that hold something."""
  if _is_state(own):
    return [own] if jax.tree.leaves(own) else []
  return [node for one in own for node in _states(one)] if isinstance(own, tuple | list) else []


def _hook(
  hook: Hook, bare: Model, trained: Network, state: TrainState, inputs: Any, history: Sequence[Mapping[str, Any]]
) -> Row:
  entry, touched = f'jl.{hook.name}', []
  if _has(state.params, entry):
    touched.append(f'learned {arrays(trees.paths(state.params[entry]))}')
  if _has(state.const, hook.name):
    held = trees.by_path(state.const[hook.name])
    size = sum(np.size(leaf) for leaf in held.values())
    touched.append(f'{size:,} values of its teacher' if isinstance(hook, Side) else f'held still {arrays(held)}')
  own = state.model_state.get(entry)
  said = [told(own, state.params)]
  if hook.account is not None:
    said.append(hook.account(trained, bare, inputs))
  elif not any(said[0]) and jax.tree.leaves(own):
    touched.append(f'keeps {counted(len(jax.tree.leaves(own)), "array")}')
  touched += [one.touched for one in said]
  touched.append(_term(hook.name, history))
  if not any(touched):
    fields = {'the model': 'model', 'the loss': 'loss', 'the gradient': 'grad'}
    touched = [what for what, field in fields.items() if getattr(hook, field) is not getattr(_IDLE, field)]
    if not touched:
      said.append(Account(left='it changes nothing'))
  when = _joined(one.when for one in said) or 'each training step'
  return Row(hook.name, when, _joined(touched), _joined(one.left for one in said))


def _has(tree: Mapping[str, Any] | None, name: str) -> bool:
  return bool(tree) and name in tree and bool(jax.tree.leaves(tree[name]))


def _term(name: str, history: Sequence[Mapping[str, Any]]) -> str:
  """How a term of the loss moved; '' where no point has it."""
  points = [point for point in history if point.get('kind') == 'train' and isinstance(point.get(name), int | float)]
  if not points:
    return ''
  first, last = points[0], points[-1]
  return f'its term went from {first[name]:.4g} by step {first["step"]:,} to {last[name]:.4g} by {last["step"]:,}'


def _joined(words: Iterable[str]) -> str:
  return '; '.join(dict.fromkeys(filter(None, words)))
