"""The train step: pure, compiled once, its state donated. Knows the contract and nothing of frameworks or files."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlite import trees
from jaxlite.contract import (
  CONST,
  TAPS,
  Batch,
  Context,
  Hook,
  Loss,
  Model,
  Params,
  Recipe,
  Selective,
  State,
  Terms,
  stream,
)
from jaxlite.cpu.replace import Choices, for_cpu, sites
from jaxlite.cpu.site import Site
from jaxlite.graph.init_numpy import copied, on_host
from jaxlite.graph.model import weights_of
from jaxlite.graph.walk import has_primitive
from jaxlite.step.programs import _sites_within, on_cpu
from jaxlite.step.state import HEALTH, TrainState, _health
from jaxlite.tasks.lift import lift_loss


class Train(NamedTuple):
  """The functions of a training run.

  Attributes:
    init: (key, batch, params=None, model_state=None) -> TrainState.
    step: (state, batch) -> (state, metrics). Donates the state but for its key and constants; metrics are scalars on
      the device: 'loss' and each of its terms.
    steps: (state, batches) -> (state, metrics), several steps a dispatch; leaves are [k, B, ...] and [k].
    eval: (state, batch) -> (outputs, {'task': loss}), as deployed: no dropout, averages in place of live weights.
    model: the Model wrapped in the recipe's hooks.
    compile: (state, batch) -> None; compiles `step` for arrays like these and runs nothing, so that another thread can
      do it while something else is made ready.
    tune: (state, batch, choose) -> Train, the same functions, in which each rewrite for CPU has the form that
      `choose`, given the `Site`s of the step's program, names by their keys. Shapes are enough.
  """

  init: Callable[..., TrainState]
  step: Callable[[TrainState, Batch], tuple[TrainState, Terms]]
  steps: Callable[[TrainState, Batch], tuple[TrainState, Terms]]
  eval: Callable[[TrainState, Batch], tuple[Any, Terms]]
  model: Model
  compile: Callable[[TrainState, Batch], None]
  tune: Callable[[TrainState, Batch, Callable[[Iterable[Site]], Choices]], Train]


def train_step(
  model: Model,
  loss: Callable[[Any, Batch], jax.Array],
  recipe: Recipe,
  *,
  rewrites: bool | Choices = True,
) -> Train:
  """Builds the functions that train a model by a recipe.

  Args:
    model: from an adapter.
    loss: (outputs, batch) -> float[B], or a scalar.
    recipe: from `jl.chain`; it holds an optimizer.
    rewrites: whether the programs for CPU take faster forms of pools and convolutions (see `for_cpu`): by shape, or
      as these choices say. Programs for other platforms are what they are without.

  Returns:
    A Train.

  Raises:
    ValueError: the recipe updates nothing; at init, a part that matches no parameter, an aliased leaf, or
      optax.MultiSteps anywhere in the recipe.

  >>> import jax, jax.numpy as jnp, optax
  >>> import jaxlite as jl
  >>> model = jl.from_function(lambda p, x: x @ p['w'], {'w': jnp.zeros((3, 2))})
  >>> train = train_step(model, jl.cross_entropy, jl.chain(optax.sgd(0.1)))
  >>> batch = {'inputs': jnp.ones((4, 3)), 'labels': jnp.zeros(4, int)}
  >>> state = train.init(jax.random.key(0), batch)
  >>> state, metrics = train.step(state, batch)
  >>> int(state.step), round(float(metrics['loss']), 3)
  (1, 0.693)
  """
  if not isinstance(recipe, Recipe):
    raise TypeError(f'train_step takes a recipe from jl.chain(...); got {type(recipe).__name__}')
  if not any(isinstance(part, optax.GradientTransformation) for part in recipe.parts):
    raise ValueError('the recipe holds no optimizer, so nothing would learn: add one, e.g. optax.adam(1e-3)')
  wrapped = recipe.model(model)
  inner = gradient_of(wrapped, recipe.loss(lift_loss(loss)))
  gradient = recipe.grad(inner)
  accumulates = any(isinstance(part, Hook) and part.dispatches for part in recipe.parts)

  def init(key: jax.Array, batch: Batch, params: Params | None = None, model_state: State | None = None) -> TrainState:
    _check_key(key)
    if params is not None:
      trees.check_distinct(params, 'the parameters')  # in a trace they would be several
    return made(key, _inputs(batch), params, model_state)

  @functools.partial(on_host, unread=(1,))
  def made(key: jax.Array, inputs: Any, params: Params | None, model_state: State | None) -> TrainState:
    start = model if params is None else model._replace(init=_given(model, params, model_state))
    params, state = recipe.model(start).init(stream(key, 'init'), inputs)
    trees.check_distinct(params, 'the parameters')
    state = {**state, HEALTH: jnp.full(2, -1, jnp.int32)}
    const = state.pop(CONST, {})
    params = jax.tree.map(copied, params)
    selects = any(isinstance(part, Selective) for part in recipe.parts)
    weights = weights_of(model, key, inputs) if selects else None
    opt_state = on_host(lambda params: recipe.tx.init(params, weights))(params)
    if trees.find(opt_state, optax.MultiStepsState):
      raise ValueError(
        'optax.MultiSteps hides steps from other parts: take it out and put jl.accumulate(k) in the chain'
      )
    live = jax.tree.map(copied, (state, opt_state))
    return TrainState(jnp.int32(0), copied(key), params, *live, const)

  # What a program gives back costs microseconds an array, so it gives nothing twice: the key stays outside, and a loss
  # of one term is that term. `live` is the state without its key and constants, which are `fixed`.
  def update(live: TrainState, fixed: Any, grads: Params, state: State, terms: Terms) -> tuple[TrainState, Terms]:
    total = functools.reduce(jnp.add, terms.values())
    state = {**state, HEALTH: _health(state[HEALTH], total, live)}
    updates, opt_state = recipe.tx.update(grads, live.opt_state, live.params, value=total)
    params = optax.apply_updates(live.params, updates)
    step = live.step + 1
    state = wrapped.after(params, {**state, CONST: fixed[1]}, step)
    metrics = terms if len(terms) == 1 else {'loss': total, **terms}
    return TrainState(step, None, params, _live(state), opt_state, None), metrics

  def whole(live: TrainState, fixed: Any, batch: Batch) -> tuple[TrainState, Terms]:
    key, const = fixed
    grads, state, terms = gradient(live.params, {**live.model_state, CONST: const}, batch, key, live.step)
    return update(live, fixed, grads, _live(state), terms)

  traced = jax.jit(whole)  # traced once, however the program is rewritten

  compiled_update = jax.jit(update, donate_argnums=(0, 3))

  @functools.lru_cache(maxsize=8)
  def convolves_at(treedef: Any, shapes: tuple[Any, ...]) -> bool:
    params, state, const, key, inputs = jax.tree.unflatten(treedef, shapes)
    forward = functools.partial(wrapped.apply, train=True)
    jaxpr = jax.make_jaxpr(forward)(params, {**state, CONST: const}, inputs, key=key, step=jnp.int32(0))
    return has_primitive(jaxpr, 'conv_general_dilated')

  def convolves(state: TrainState, inputs: Any) -> bool:
    arrays = (state.params, state.model_state, state.const, state.key, inputs)
    leaves, treedef = jax.tree.flatten(jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), x.dtype), arrays))
    return convolves_at(treedef, tuple(leaves))

  def assembled(choices: Choices | None) -> Train:
    def faster(fn: Callable[..., Any]) -> Callable[..., Any]:
      return fn if rewrites is False else for_cpu(fn, choices)

    compiled = jax.jit(faster(traced), donate_argnums=0)
    dispatched = recipe.grad(faster(inner))

    def compile_ahead(state: TrainState, batch: Batch) -> None:
      if not (accumulates and on_cpu(state, batch) and convolves(state, _inputs(batch))):  # that is several programs
        compiled.lower(state._replace(key=None, const=None), (state.key, state.const), batch).compile()

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Terms]:
      done, key, params, model_state, opt_state, const = state
      if accumulates and on_cpu(state, batch) and convolves(state, _inputs(batch)):
        # Not in one program: XLA:CPU runs a convolution inside accumulate's scan many times slower.
        grads, full, terms = dispatched(params, {**model_state, CONST: const}, batch, key, done)
        live = TrainState(done, None, params, None, opt_state, None)
        live, metrics = compiled_update(live, (key, const), grads, _live(full), terms)
      else:
        live = TrainState(done, None, params, model_state, opt_state, None)
        live, metrics = compiled(live, (key, const), batch)
      return _joined(live, key, const), _with_loss(metrics)

    @functools.partial(jax.jit, donate_argnums=0)
    @faster
    def scanned(live: TrainState, fixed: Any, batches: Batch) -> tuple[TrainState, Terms]:
      return jax.lax.scan(lambda live, batch: whole(live, fixed, batch), live, batches)

    def steps(state: TrainState, batches: Batch) -> tuple[TrainState, Terms]:
      one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), _inputs(batches))
      if on_cpu(state, batches) and convolves(state, one):
        metrics = []
        for i in range(jax.tree.leaves(batches)[0].shape[0]):
          state, one = step(state, jax.tree.map(lambda leaf, i=i: leaf[i], dict(batches)))
          metrics.append(one)
        return state, jax.tree.map(lambda *values: jnp.stack(values), *metrics)
      live, metrics = scanned(state._replace(key=None, const=None), (state.key, state.const), dict(batches))
      return _joined(live, state.key, state.const), _with_loss(metrics)

    @jax.jit
    @faster
    def evaluated(params: Params, state: State, const: Any, step: Any, batch: Batch) -> tuple[Any, Terms]:
      state = {**state, CONST: const}
      outputs, _ = wrapped.apply(params, state, _inputs(batch), train=False, key=None, step=step)
      return outputs, lift_loss(loss)(Context(outputs, batch, params, state, None, step))

    def evaluate(state: TrainState, batch: Batch) -> tuple[Any, Terms]:
      return evaluated(state.params, state.model_state, state.const, state.step, batch)

    return Train(init, step, steps, evaluate, wrapped, compile_ahead, tune)

  def tune(state: TrainState, batch: Batch, choose: Callable[[Iterable[Site]], Choices]) -> Train:
    if accumulates and on_cpu(state, batch) and convolves(state, _inputs(batch)):
      found = _sites_within(recipe, inner, state, batch)  # of a micro-step, which is what will be dispatched
    else:
      live = state._replace(key=None, const=None)
      found = sites(jax.make_jaxpr(traced)(live, (state.key, state.const), batch))
    return assembled(choose(found.values()))

  return assembled(rewrites if isinstance(rewrites, Mapping) else None)


def _joined(live: TrainState, key: Any, const: Any) -> TrainState:
  """The state as its user has it. Not `_replace`, which costs a microsecond more, at every step."""
  return TrainState(live[0], key, live[2], live[3], live[4], const)


def _with_loss(metrics: Terms) -> Terms:
  return metrics if len(metrics) > 1 else {'loss': next(iter(metrics.values())), **metrics}


def gradient_of(model: Model, loss: Loss) -> Callable[..., Any]:
  """The innermost Grad: one forward and one backward pass."""

  def gradient(params: Params, state: State, batch: Batch, key: Any, step: Any) -> tuple[Params, State, Terms]:
    def objective(params: Params) -> Any:
      outputs, new_state = model.apply(params, state, _inputs(batch), train=True, key=key, step=step)
      terms = loss(Context(outputs, batch, params, new_state, key, step))
      return functools.reduce(jnp.add, terms.values()), (new_state, terms)

    grads, (new_state, terms) = jax.grad(objective, has_aux=True)(params)
    return grads, {name: value for name, value in new_state.items() if name != TAPS}, terms

  return gradient


def _inputs(batch: Batch) -> Any:
  if 'inputs' not in batch:
    raise ValueError(f"a batch is a dict with 'inputs' (and 'labels', 'weight'); got the keys {sorted(batch)}")
  return batch['inputs']


def _live(state: State) -> State:
  return {name: value for name, value in state.items() if name != CONST}


def _given(model: Model, params: Params, model_state: State | None) -> Callable[..., Any]:
  def init(key: Any, inputs: Any) -> tuple[Params, State]:
    return params, model.init(key, inputs)[1] if model_state is None else model_state

  return init


def _check_key(key: Any) -> None:
  if not jnp.issubdtype(getattr(key, 'dtype', jnp.float32), jax.dtypes.prng_key):
    raise ValueError(f'init takes a typed key: pass jax.random.key(seed); got {type(key).__name__}')
