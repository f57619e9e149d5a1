"""Hooks in a training loop of somebody else's: the wrapped model and the wrapped gradient, with any optimizer."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import trees
from jaxlite.contract import Batch, Grad, Hook, Model, Params, Recipe, Selective, State, Terms, chain
from jaxlite.errors import counted
from jaxlite.graph.init_numpy import copied, on_host
from jaxlite.graph.model import Weights, weights_of
from jaxlite.step.gradient import check_given, first_values, forward_of, gradient_of, meshed, no_gradient_of, value_of
from jaxlite.step.own_tree import named, own_names
from jaxlite.step.state import inputs_of
from jaxlite.tasks.lift import lift_loss

# model_state: int32[4], the step of the first forward in training, the step of the last, how often `after` followed,
# and how often with another step than it should; -1 before the first.
LOOP = 'jl.loop'


class Wrapped(NamedTuple):
  """What a loop of your own needs of hooks; the optimizer stays yours.

  `params` are nested dicts, as `init` gives them; or the tree that your framework's optimizer works on, with the same
  paths: `nnx.state(net, nnx.Param)`, `eqx.filter(net, eqx.is_inexact_array)`. Where hooks learn something (`lsq`,
  `hint`), that is the pair of this tree and theirs, {'jl.lsq': ...}. Gradients come in the tree that params came in.

  Attributes:
    init: (key, batch, params=None, model_state=None) -> (params, model_state). `key` is the root key of the run.
    gradient: (params, model_state, batch, key, step) -> (grads, model_state, terms). `step` counts optimizer steps
      from 0; the sum of the terms is minimized. Inside of `jax.jit` it is one program; outside of it, on a CPU,
      `accumulate` sends its micro-batches one by one, which is faster where the model convolves.
    value: the same arguments -> what is minimized, for an optimizer that asks again (`value_fn=` of a line search).
    model: the wrapped Model. `after(params, model_state, step + 1)` follows each update, or averages and masks stand
      still; `apply(..., train=False, key=None)` is the model as deployed, `export` the network without its hooks.
    weights: (key, batch, params=None) -> {path: layout}, what `prune` and others work on; paths of the tree of
      `params`, where one is given. See `told`.
    check: (model_state) -> None; raises where `after` was not called after each step, or with another step. Call it
      at log steps: it waits for the device.
  """

  init: Callable[..., tuple[Params, State]]
  gradient: Grad
  value: Callable[..., jax.Array]
  model: Model
  weights: Callable[..., dict[str, Any]]
  check: Callable[[State], None]


def wrap(model: Model, loss: Callable[[Any, Batch], jax.Array], hooks: Recipe | Hook) -> Wrapped:
  """Wraps a model and its gradient in hooks, for a training loop of your own.

  In such a loop the losses are bit-equal to those of `train_step` with the same parts, where both are compiled to the
  same operations. `train_step` takes faster forms of pools and convolutions on CPU; `jl.for_cpu` of your step does.

  Args:
    model: from an adapter.
    loss: (outputs, batch) -> float[B], as in `train_step`.
    hooks: from `jl.chain`: quantization, averages, distillation, accumulation; no update parts.

  Returns:
    A Wrapped.

  Raises:
    TypeError: no Model, or no hooks.
    ValueError: the hooks hold an update part, which is your optimizer's; when called, params that are not the model's,
      or, outside of a trace, an evaluation or an export of averages that `after` never moved.

  >>> import jaxlite as jl
  >>> model = jl.from_function(lambda p, x: x @ p['w'], {'w': jnp.zeros((3, 2))})
  >>> loop = wrap(model, jl.cross_entropy, jl.average(0.9))
  >>> import optax
  >>> batch, key, tx = {'inputs': jnp.ones((4, 3)), 'labels': jnp.zeros(4, int)}, jax.random.key(0), optax.sgd(0.1)
  >>> params, model_state = loop.init(key, batch)
  >>> opt_state = tx.init(params)
  >>> for step in range(2):
  ...   grads, model_state, terms = loop.gradient(params, model_state, batch, key, step)
  ...   updates, opt_state = tx.update(grads, opt_state, params)
  ...   params = optax.apply_updates(params, updates)
  ...   model_state = loop.model.after(params, model_state, step + 1)
  >>> round(float(terms['task']), 3)
  0.554
  """
  if not isinstance(model, Model):
    raise TypeError(f'wrap takes a Model, from an adapter such as jl.from_nnx; got {type(model).__name__}')
  hooks = chain(hooks) if isinstance(hooks, Hook) else hooks
  if not isinstance(hooks, Recipe):
    raise TypeError(f'wrap takes hooks from jl.chain(...); got {type(hooks).__name__}')
  if any(not isinstance(part, Hook) for part in hooks.parts):
    raise ValueError(
      'wrap takes hooks alone; this chain holds a part that changes updates (an optimizer, prune): put it into your '
      'optimizer, optax.chain(..., prune(...)), or take jl.train_step, which does both'
    )
  counts = hooks._replace(model=lambda bare: _counted(hooks.model(bare)))
  inner = counts.model(model)
  terms = hooks.loss(lift_loss(loss))
  gradient = hooks.grad(gradient_of(inner, terms))
  value = value_of(hooks.grad(no_gradient_of(forward_of(inner, terms))))

  @functools.lru_cache(maxsize=8)
  def known(treedef: Any, shapes: tuple[Any, ...]) -> frozenset[str]:
    inputs = jax.tree.unflatten(treedef, shapes)
    return frozenset(trees.paths(jax.eval_shape(inner.init, jax.random.key(0), inputs)[0]))

  def check_paths(params: Any, batch: Batch) -> None:
    leaves, treedef = jax.tree.flatten(jax.tree.map(_shape, inputs_of(batch)))
    wanted, found = known(treedef, tuple(leaves)), frozenset(own_names(params))
    for path in sorted(wanted ^ found):
      what = 'are the arrays that learn; this one' if path in found else 'hold all that learns; they lack'
      fix = 'take out what is none' if path in found else "give (tree, {'jl.x': ...}) where hooks learn something"
      raise ValueError(
        f'params {what} {"is none: " if path in found else ""}{path!r}: {fix}, as nnx.state(net, nnx.Param) or '
        'eqx.filter(net, eqx.is_inexact_array)'
      )

  def own_gradient(params: Any, model_state: State, batch: Batch, key: Any, step: Any) -> tuple[Any, State, Terms]:
    seen, back = named(params)
    if seen is not params:
      check_paths(params, batch)
    grads, model_state, terms = meshed(gradient)(seen, model_state, batch, key, step)
    return back(grads), model_state, terms

  def own_value(params: Any, *args: Any) -> jax.Array:
    return value(named(params)[0], *args)

  def init(key: jax.Array, batch: Batch, params: Any = None, model_state: State | None = None) -> tuple[Any, State]:
    check_given(key, params)
    seen, back = (None, lambda params: params) if params is None else named(params)
    values, state = begun(key, inputs_of(batch), seen, model_state)
    return back(values), state

  @functools.partial(on_host, unread=(1,))
  def begun(key: jax.Array, inputs: Any, params: Params | None, model_state: State | None) -> tuple[Params, State]:
    values, state = first_values(model, counts, key, inputs, params, model_state)
    return jax.tree.map(copied, (values, state))

  def weights(key: jax.Array, batch: Batch, params: Any = None) -> dict[str, Any]:
    found = weights_of(model, key, inputs_of(batch))
    if params is None:
      return found
    names = own_names(params)
    own = Weights({names[path]: layout for path, layout in found.items() if path in names})
    own.program, own.names = found.program, names
    own.filled = {names[path]: why for path, why in found.filled.items() if path in names}
    return own

  return Wrapped(init, own_gradient, own_value, _in_any_tree(inner), weights, check)


def told(part: Any, weights: Mapping[str, Any]) -> Any:
  """Tells a part which leaves are weights, and how their axes lie, for a chain of Optax's own.

  `optax.chain` hands `init` the params alone; a part that selects weights then goes by their shapes and names.

  Args:
    part: `prune`, `rigl`, `l2` or another that selects weights.
    weights: {path: layout}, as `Wrapped.weights` gives them.

  Returns:
    The same part, whose `init` needs the params alone.

  Raises:
    TypeError: a part that selects no weights.

  >>> import optax
  >>> import jaxlite as jl
  >>> params = {'norm': jnp.ones((2, 2)), 'w': jnp.arange(1.0, 5.0).reshape(2, 2)}
  >>> state = optax.chain(optax.sgd(0.1), told(jl.prune(0.5), {'w': None})).init(params)
  >>> state[1].masks['norm'] is None, state[1].masks['w'].shape
  (True, (2, 2))
  """
  if not isinstance(part, Selective):
    raise TypeError(f'told takes a part that selects weights (prune, rigl, l2); got {type(part).__name__}')
  known = copy.copy(weights)
  return part._replace(init=lambda params, weights=None: part.init(params, known))


def check(model_state: State) -> None:
  """Raises where a loop does not call `after` once after each step."""
  first, last, done, wrong = np.moveaxis(np.asarray(jax.device_get(model_state[LOOP])), -1, 0)
  steps = np.where(first < 0, 0, last - first + 1)
  if np.any(done < steps):
    raise ValueError(
      f'`after` was called {counted(int(np.min(done)), "time")} in {counted(int(np.max(steps)), "step")}, so averages '
      'and masks stand still: model_state = loop.model.after(params, model_state, step + 1) follows each update'
    )
  if np.any(done > steps):
    raise ValueError(
      f'the step that `gradient` was given moved by {counted(int(np.max(steps)), "step")} while `after` was called '
      f'{counted(int(np.max(done)), "time")}: count steps up, schedules and random draws go by it'
    )
  if np.any(wrong > 0):
    raise ValueError(
      f'`after` counts the step that it follows: give it step + 1, where `gradient` was given step; '
      f'{counted(int(np.max(wrong)), "call")} did not'
    )


def _counted(model: Model) -> Model:
  """Counts forwards in training and what follows them, so that a loop which forgets `after` can be told."""

  def init(key: Any, inputs: Any) -> tuple[Params, State]:
    params, state = model.init(key, inputs)
    return params, {**state, LOOP: jnp.array([-1, -1, 0, 0], jnp.int32)}

  def apply(params: Params, state: State, inputs: Any, *, train: bool, key: Any, step: Any = None) -> Any:
    if not train:
      _check_now(state)
    outputs, new = model.apply(params, _without(state), inputs, train=train, key=key, step=step)
    if LOOP not in state:
      return outputs, new
    counts = state[LOOP]
    if train and step is not None:
      now = jnp.asarray(step).astype(jnp.int32)
      first = jnp.where(counts[0] < 0, now, counts[0])
      counts = jnp.stack([first, now, counts[2], counts[3]])
    return outputs, {**new, LOOP: counts}

  def after(params: Params, state: State, step: Any) -> State:
    new = model.after(params, _without(state), step)
    if LOOP not in state:
      return new
    counts = state[LOOP]
    wrong = counts[3] + (jnp.asarray(step).astype(jnp.int32) != counts[1] + 1)
    return {**new, LOOP: jnp.stack([counts[0], counts[1], counts[2] + 1, wrong])}

  def export(params: Params, state: State) -> tuple[Params, State]:
    _check_now(state)
    return model.export(params, _without(state))

  return Model(init, apply, after, export)


def _check_now(state: State) -> None:
  """Outside of a trace what was never moved is told where it would be read."""
  if LOOP in state and not isinstance(state[LOOP], jax.core.Tracer):
    check(state)


def _without(state: State) -> State:
  return {name: value for name, value in state.items() if name != LOOP}


def _in_any_tree(model: Model) -> Model:
  """Lets params come in the tree of a framework's own."""

  def apply(params: Any, state: State, inputs: Any, *, train: bool, key: Any, step: Any = None) -> Any:
    return model.apply(named(params)[0], state, inputs, train=train, key=key, step=step)

  def after(params: Any, state: State, step: Any) -> State:
    return model.after(named(params)[0], state, step)

  def export(params: Any, state: State) -> tuple[Params, State]:
    return model.export(named(params)[0], state)

  return model._replace(apply=apply, after=after, export=export)


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))
