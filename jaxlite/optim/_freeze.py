"""Freezing: leaves that do not learn, cost no gradient, no moments and no bytes in periodic checkpoints."""

from __future__ import annotations

from typing import Any

from jaxlite import trees
from jaxlite.contract import CONST, Hook, Model, Params, State, reparam, with_const


def freeze(select: trees.Rule, *, name: str = 'freeze') -> Hook:
  """Takes the leaves that a rule picks out of what is trained.

  They move to `model_state['jl.const'][name]`: the gradient is not even computed, the optimizer and the clip
  by global norm never see them. To every other part they are weights as before.

  Args:
    select: a rule on paths, e.g. r'^(conv|norm)'.
    name: the hook's name.

  Returns:
    A Hook on the model; its place in the chain does not matter.

  Raises:
    ValueError: at init, a rule that matches nothing, or one that leaves nothing to train.

  >>> import jax, jax.numpy as jnp
  >>> def apply(p, s, x, *, train, key, step=None):
  ...   return x @ p['a'] @ p['b'], s
  >>> base = Model(lambda key, x: ({'a': jnp.eye(2), 'b': jnp.eye(2)}, {}), apply)
  >>> params, state = freeze('^a$').model(base).init(jax.random.key(0), jnp.ones((1, 2)))
  >>> sorted(params), sorted(state['jl.const']['freeze'])
  (['b'], ['a'])
  """

  def init(key: Any, params: Params, state: State) -> tuple[Params, State]:
    names = [path for path in trees.paths(params) if not trees.is_extra(path)]
    chosen = trees.select(names, select, what=f'{name}: rule')
    if len(chosen) == len(trees.paths(params)):
      raise ValueError(f'{name}: the rule picks every parameter, so nothing would learn: narrow it')
    frozen, live = trees.split(params, chosen)
    return live, with_const(state, name, frozen)

  def view(params: Params, state: State, **_: Any) -> Params:
    return trees.merge(params, state[CONST][name])

  def model(inner: Model) -> Model:
    return reparam(inner, name, init, view)

  return Hook(name, model=model)
