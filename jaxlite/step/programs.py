"""Which compiled programs run the pure step: one per step, several steps in one, or several programs per step on CPU.

Nothing here decides what is computed: that is `train_step.py`. Jit, donation, rewrites for CPU, dispatching the
micro-batches of a step one by one, and compiling ahead of the first step belong here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import trees
from jaxlite.contract import Batch, Grad, Hook, Model, Params, Recipe, State, Terms, join_const, split_const
from jaxlite.cpu.replace import Choices, exchanged, replaced, sites
from jaxlite.cpu.site import Site
from jaxlite.graph.walk import has_primitive
from jaxlite.host.gc_pause import paused
from jaxlite.step.gradient import meshed
from jaxlite.step.state import TrainState, inputs_of, refuse_empty
from jaxlite.step.under_way import few_under_way


class PureStep(NamedTuple):
  """A train step as pure functions.

  In `update` and `step`, `live` is the state without its key and constants, which are `fixed`, (key, const): what a
  program gives back costs microseconds an array, so it gives nothing twice. For the same reason a loss of one term is
  that term alone in the metrics.

  Attributes:
    recipe: whose hooks wrap `model` and `inner`.
    model: wrapped in the recipe's model hooks.
    inner: one forward and one backward pass, as the recipe's gradient hooks are given it.
    update: (live, fixed, grads, model_state, terms, asked) -> (live, metrics), what follows the gradient. `asked` is
      (batch, model_state before it), for parts that ask the loss again or leave a step out.
    step: (live, fixed, batch) -> (live, metrics), gradient and update.
    evaluate: (params, model_state, const, step, batch) -> (outputs, terms).
  """

  recipe: Recipe
  model: Model
  inner: Grad
  update: Callable[[TrainState, Any, Params, State, Terms, tuple[Batch, State]], tuple[TrainState, Terms]]
  step: Callable[[TrainState, Any, Batch], tuple[TrainState, Terms]]
  evaluate: Callable[[Params, State, Any, Any, Batch], tuple[Any, Terms]]


class Programs(NamedTuple):
  """Compiled programs for a PureStep.

  Attributes:
    step: (state, batch) -> (state, metrics), as `Train.step`.
    steps: (state, batches) -> (state, metrics), as `Train.steps`.
    eval: (state, batch) -> (outputs, terms), as `Train.eval`.
    compile: (state, batch) -> the `jax.stages.Compiled` of `step` for arrays like these, None where a step is several
      programs; runs nothing, so that another thread can do it while something else is prepared.
    tune: (state, batch, choose) -> Programs in which each rewrite for CPU has the form that `choose`, given the
      `Site`s of the step's program, names by their keys. Shapes are enough.
    jaxpr: (state, batch) -> (the step, the forward as evaluated), traced for arrays of these shapes, before rewrites
      for CPU and before dispatch: what they compute.
    traced: (state, batch) -> the step's one program as a `jax.stages.Traced`, rewrites included, whose
      `lower().compile()` is what `step` runs; None where a step is several programs. Shapes are enough.
    gradient: (state, batch) -> the jaxpr of one gradient as the recipe's hooks ask for it, rewrites included: of a
      micro-batch, where they cut the batch up. Shapes are enough.
  """

  step: Callable[[TrainState, Batch], tuple[TrainState, Terms]]
  steps: Callable[[TrainState, Batch], tuple[TrainState, Terms]]
  eval: Callable[[TrainState, Batch], tuple[Any, Terms]]
  compile: Callable[[TrainState, Batch], Any]
  tune: Callable[[TrainState, Batch, Callable[[Iterable[Site]], Choices]], Programs]
  jaxpr: Callable[[TrainState, Batch], tuple[Any, Any]]
  traced: Callable[[TrainState, Batch], Any]
  gradient: Callable[[TrainState, Batch], Any]


class _Parts(NamedTuple):
  """What programs of all choices of rewrites share, so that it is traced and compiled once.

  Attributes:
    traced: the whole step.
    evaluated: `PureStep.evaluate`, compiled before it is rewritten.
    update: compiled, for a gradient that other programs made; donates the state and the gradient's new model_state.
    convolves: (state, inputs) -> bool, whether the forward has a convolution.
    splits: (state, batch) -> bool, whether the step runs as several programs; None where it never does.
  """

  traced: Callable[..., Any]
  evaluated: Callable[..., Any]
  update: Callable[..., Any]
  convolves: Callable[[TrainState, Any], bool]
  splits: Callable[[TrainState, Batch], bool] | None


def programs_of(pure: PureStep, rewrites: bool | Choices = True) -> Programs:
  """Makes the programs of a step; they are compiled when they are first called.

  Args:
    pure: the step.
    rewrites: as in `train_step`.
  """
  convolves = _convolves(pure.model)

  def splits(state: TrainState, batch: Batch) -> bool:
    return on_cpu(state, batch) and convolves(state, inputs_of(batch))

  dispatches = any(isinstance(part, Hook) and part.dispatches for part in pure.recipe.parts)
  update = jax.jit(pure.update, donate_argnums=(0, 3))
  parts = _Parts(
    jax.jit(meshed(pure.step)), jax.jit(meshed(pure.evaluate)), update, convolves, splits if dispatches else None
  )
  choices = rewrites if isinstance(rewrites, Mapping) else None
  return _assembled(pure, parts, choices, rewrites is not False)


def _assembled(pure: PureStep, parts: _Parts, choices: Choices | None, rewrite: bool) -> Programs:
  faster = functools.partial(exchanged, choices=choices) if rewrite else lambda fn: fn
  compiled = jax.jit(faster(parts.traced), donate_argnums=0)
  step = _single(compiled)
  if parts.splits is not None:
    step = _either(parts.splits, _dispatched(pure.recipe.grad(faster(pure.inner)), parts.update), step)

  def traced(state: TrainState, batch: Batch) -> Any:
    if parts.splits is None or not parts.splits(state, batch):
      with paused():
        return compiled.trace(*_split(state), batch)
    return None

  def compile_ahead(state: TrainState, batch: Batch) -> Any:
    if (program := traced(state, batch)) is None:
      return None
    with paused():
      return program.lower().compile()

  def tune(state: TrainState, batch: Batch, choose: Callable[[Iterable[Site]], Choices]) -> Programs:
    return _assembled(pure, parts, choose(_sites(pure, parts, state, batch).values()), rewrite)

  def jaxpr(state: TrainState, batch: Batch) -> tuple[Any, Any]:
    state, batch = jax.tree.map(_shape, (state, batch))
    read = (state.params, state.model_state, state.const, state.step)
    return jax.make_jaxpr(parts.traced)(*_split(state), batch), jax.make_jaxpr(parts.evaluated)(*read, batch)

  def gradient(state: TrainState, batch: Batch) -> Any:
    found = _gradients(pure, *jax.tree.map(_shape, (state, batch)))[0]
    return replaced(found, choices) if rewrite else found

  one_by_one = few_under_way(step)  # convolving steps are sent off singly, however many are asked for
  steps, evaluate = few_under_way(_told(_several(pure, parts, faster, one_by_one))), _evaluation(parts, faster)
  return Programs(few_under_way(_told(step)), steps, evaluate, compile_ahead, tune, jaxpr, traced, gradient)


def _told(run: Callable[..., Any]) -> Callable[..., Any]:
  """Tells of a state that was given away: a step before writes over it, and XLA's own words name no cause."""

  def told(state: TrainState, batch: Batch) -> tuple[TrainState, Terms]:
    try:
      return run(state, batch)
    except (RuntimeError, ValueError) as error:
      if 'deleted' not in str(error) or not any(map(_is_gone, jax.tree.leaves(state))):
        raise
      raise ValueError(
        'a step writes over the state that it is given, and a step before was given this one: go on with what that '
        'returned, or keep a copy, jax.tree.map(jnp.copy, state)'
      ) from error

  return told


def _is_gone(leaf: Any) -> bool:
  return isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer) and leaf.is_deleted()


def _single(compiled: Callable[..., Any]) -> Callable[..., Any]:
  """One program per step."""
  first = [True]  # emptied by the first call, which traces and compiles

  def step(state: TrainState, batch: Batch) -> tuple[TrainState, Terms]:
    done, key, params, model_state, opt_state, const = state
    live = TrainState(done, None, params, model_state, opt_state, None)
    if first:
      first.clear()
      with paused():
        live, metrics = compiled(live, (key, const), batch)
    else:
      live, metrics = compiled(live, (key, const), batch)
    return _joined(live, key, const), _with_loss(metrics)

  return step


def _dispatched(gradient: Grad, update: Callable[..., Any]) -> Callable[..., Any]:
  """A step whose gradient is several programs: XLA:CPU runs a convolution in accumulate's scan many times slower."""

  def step(state: TrainState, batch: Batch) -> tuple[TrainState, Terms]:
    done, key, params, model_state, opt_state, const = state
    grads, full, terms = gradient(params, join_const(model_state, const), batch, key, done)
    live = TrainState(done, None, params, None, opt_state, None)
    live, metrics = update(live, (key, const), grads, split_const(full)[0], terms, (batch, model_state))
    return _joined(live, key, const), _with_loss(metrics)

  return step


def _either(
  splits: Callable[[TrainState, Batch], bool], several: Callable[..., Any], single: Callable[..., Any]
) -> Callable[..., Any]:
  def step(state: TrainState, batch: Batch) -> tuple[TrainState, Terms]:
    return several(state, batch) if splits(state, batch) else single(state, batch)

  return step


def _several(pure: PureStep, parts: _Parts, faster: Callable[..., Any], step: Callable[..., Any]) -> Callable[..., Any]:
  """Several steps per dispatch: a scan, or a loop in Python where a convolution in a scan would be slow."""

  @functools.partial(jax.jit, donate_argnums=0)
  @faster
  def scanned(live: TrainState, fixed: Any, batches: Batch) -> tuple[TrainState, Terms]:
    return jax.lax.scan(lambda live, batch: pure.step(live, fixed, batch), live, batches)

  def steps(state: TrainState, batches: Batch) -> tuple[TrainState, Terms]:
    count = _count(dict(batches))
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), inputs_of(batches))
    if count and on_cpu(state, batches) and parts.convolves(state, one):
      metrics = []
      for i in range(count):
        state, terms = step(state, jax.tree.map(lambda leaf, i=i: leaf[i], dict(batches)))
        metrics.append(terms)
      return state, jax.tree.map(lambda *values: jnp.stack(values), *metrics)
    live, metrics = scanned(*_split(state), dict(batches))
    return _joined(live, state.key, state.const), _with_loss(metrics)

  return steps


def _count(batches: Batch) -> int:
  """How many batches there are: every leaf is [k, B, ...]."""
  sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(batches)}
  if len(sizes) != 1 or () in sizes:
    told = ', '.join(f'{path} {list(np.shape(leaf))}' for path, leaf in trees.by_path(dict(batches)).items())
    raise ValueError(
      f'steps takes batches of which every leaf is [k, B, ...], with one k for all; got {told or "none"}'
    )
  return int(sizes.pop()[0])


def _evaluation(parts: _Parts, faster: Callable[..., Any]) -> Callable[..., Any]:
  evaluated = jax.jit(faster(parts.evaluated))

  def evaluate(state: TrainState, batch: Batch) -> tuple[Any, Terms]:
    return evaluated(state.params, state.model_state, state.const, state.step, batch)

  return evaluate


def _convolves(model: Model) -> Callable[[TrainState, Any], bool]:
  """Tells, for (state, inputs), whether the forward in training has a convolution; traced once a shape."""

  @functools.lru_cache(maxsize=8)
  def convolves_at(treedef: Any, shapes: tuple[Any, ...]) -> bool:
    params, state, const, key, inputs = jax.tree.unflatten(treedef, shapes)
    refuse_empty(inputs)  # which a network may not even be traced on
    forward = functools.partial(model.apply, train=True)
    jaxpr = jax.make_jaxpr(forward)(params, join_const(state, const), inputs, key=key, step=np.int32(0))
    return has_primitive(jaxpr, 'conv_general_dilated')

  def convolves(state: TrainState, inputs: Any) -> bool:
    arrays = (state.params, state.model_state, state.const, state.key, inputs)
    leaves, treedef = jax.tree.flatten(jax.tree.map(_shape, arrays))
    return convolves_at(treedef, tuple(leaves))

  return convolves


def _sites(pure: PureStep, parts: _Parts, state: TrainState, batch: Batch) -> dict[str, Site]:
  """The sites of what will be dispatched: of the whole step, or of the gradient as the recipe's hooks call it."""
  if parts.splits is None or not parts.splits(state, batch):
    return sites(jax.make_jaxpr(parts.traced)(*_split(state), batch))
  found: dict[str, Site] = {}
  for jaxpr in _gradients(pure, state, batch):
    found.update(sites(jaxpr))
  return found


def _gradients(pure: PureStep, state: TrainState, batch: Batch) -> list[Any]:
  """The jaxprs of the gradients that the recipe's hooks ask for."""
  found = []

  def seen(*args: Any) -> Any:
    found.append(jax.make_jaxpr(pure.inner)(*jax.tree.map(_shape, args)))
    return pure.inner(*args)

  full = join_const(state.model_state, state.const)
  jax.eval_shape(pure.recipe.grad(seen), state.params, full, batch, state.key, state.step)
  return found


def on_cpu(state: TrainState, batch: Batch) -> bool:
  """Whether the arrays of this call lie on CPU, or will; False inside a trace, where lowering decides."""
  leaves = jax.tree.leaves((state.step, batch))
  if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
    return False
  # A shape, or an array of NumPy, lies nowhere yet: it will where the others are, or where JAX puts an array.
  placed = next((leaf.devices() for leaf in leaves if isinstance(leaf, jax.Array)), jax.devices()[:1])
  return all(device.platform == 'cpu' for device in placed)


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
  # As JAX will hold it: of labels in 64 bits, newer versions warn in each trace.
  return jax.ShapeDtypeStruct(jnp.shape(leaf), jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True))


def _split(state: TrainState) -> tuple[TrainState, Any]:
  """The state as a program takes it: what is donated, and what is not."""
  return state._replace(key=None, const=None), (state.key, state.const)


def _joined(live: TrainState, key: Any, const: Any) -> TrainState:
  """The state as its user has it. Not `_replace`, which costs a microsecond more, at every step."""
  return TrainState(live[0], key, live[2], live[3], live[4], const)


def _with_loss(metrics: Terms) -> Terms:
  return metrics if len(metrics) > 1 else {'loss': next(iter(metrics.values())), **metrics}
