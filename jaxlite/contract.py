"""The contract: what a part of a recipe is, what a model is, and how parts are chained. Read this first.

A **part** is one of two things, never both:

- an *update part* is an Optax transformation. It changes updates, owns its step count, and works in any foreign loop.
  One that must come last (`prune`: what it masks stays zero) is a `Last`.
- a `Hook` changes how the model runs (`model`), what is minimized (`loss`) or how gradients are taken (`grad`). Each
  field wraps the thing it is named after; a field left out is the identity.

To write a new part, ask what it touches. Weights on their way into the model: `reparam` with a view. The forward
itself: a `Hook(model=...)`. A term of the loss: `Hook(loss=...)` reading what the model left in `jl.taps`. The batch,
or several passes per step: `Hook(grad=...)`. The updates: plain Optax. A hook named `x` keeps what it learns in
`params['jl.x']`, what its forward needs in `model_state['jl.x']` and arrays that never change in
`model_state['jl.const']['x']`.

A part accounts for itself. A state (a NamedTuple anywhere in an optimizer's state or in `model_state['jl.x']`) may have
`account(params) -> Account` for the ledger, `status() -> Status` for the guards of a run, and `hear(score) -> state`
for validation scores, larger is better; one of an update part may have `point(params) -> params`, where the model is to
be read when it does not train. A hook may say more by its fields `account` and `dispatches`.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlite.batching import asked, in_parts
from jaxlite.errors import check_dict, misplaced

CONST = 'jl.const'  # model_state: arrays that never change, by owner: no gradient, no moments, not donated
TAPS = 'jl.taps'  # model_state: values that a forward leaves for the loss, dropped after the step
POINT = 'jl.point'  # the params as a model is read when it does not train, where an update part says so
LOSSES = 'loss/'  # begins the name of a tap that is itself a term of the loss: what a network brings (regularizers)
APART = 'jl.apart'  # the `jax.named_scope` of a network whose bits stay its own: no equation in it is rewritten

Params = dict[str, Any]
State = dict[str, Any]
Batch = Mapping[str, Any]
Terms = dict[str, jax.Array]


class Model(NamedTuple):
  """The only picture of a model: four pure functions. Nothing past the adapters knows a framework.

  Attributes:
    init: (key, inputs) -> (params, model_state). Both are dicts; `inputs` is one batch, [B, ...].
    apply: (params, model_state, inputs, *, train, key, step=None) -> (outputs, model_state). `key` is the
      run's root key (None where nothing is random); randomness comes from `stream(key, name, step)`.
    after: (params, model_state, step) -> model_state, once an optimizer step on the new params; `step` counts it in.
    export: (params, model_state) -> (params, model_state), merging and stripping what hooks added.
  """

  init: Callable[..., tuple[Params, State]]
  apply: Callable[..., tuple[Any, State]]
  after: Callable[..., State] = lambda params, model_state, step: model_state
  export: Callable[..., tuple[Params, State]] = lambda params, model_state: (params, model_state)


class Network(NamedTuple):
  """A model with its values: what a teacher is, and what `jaxlite.load` gives back.

  Attributes:
    model: the functions.
    params: its parameters.
    model_state: its other arrays.
    encode: raw inputs as a user has them (a table's rows, texts) -> the model's inputs; None where they are arrays.
    answer: raw outputs -> what a user wants of them, by name ('labels', 'proba'); None where nobody said.
  """

  model: Model
  params: Params
  model_state: State
  encode: Callable[[Any], Any] | None = None
  answer: Callable[[Any], dict[str, Any]] | None = None

  def predict(self, inputs: Any) -> Any:
    """Returns the model's outputs for raw inputs [B, ...], 512 at a time, as in evaluation: a classifier's logits."""
    encoded = inputs if self.encode is None else self.encode(inputs)
    return in_parts(lambda part: _predictor(self.model.apply)(self.params, self.model_state, part), encoded)

  def predict_labels(self, inputs: Any) -> Any:
    """Returns what is predicted in the task's own terms: classes by name, targets in their units."""
    return self._answers(inputs, 'labels')

  def predict_proba(self, inputs: Any) -> Any:
    """Returns probabilities: float[B, classes], of a binary task float[B]."""
    return self._answers(inputs, 'proba')

  def _answers(self, inputs: Any, what: str) -> Any:
    bare, encoded = self._replace(encode=None), inputs if self.encode is None else self.encode(inputs)
    answer = self.answer or (lambda outputs: {})
    return in_parts(lambda part: asked(answer(jax.device_get(bare.predict(part))), what), encoded, most=8192)

  def __repr__(self) -> str:
    leaves = jax.tree.leaves(self.params)
    return f'Network({len(leaves)} arrays, {sum(jnp.size(leaf) for leaf in leaves):,} parameters)'


@functools.lru_cache(maxsize=16)  # jit caches by function object: keep one for each model
def _predictor(apply: Callable[..., Any]) -> Callable[..., Any]:
  return getattr(apply, 'compiled', jax.jit)(lambda p, s, x: apply(p, s, x, train=False, key=None)[0])


class Context(NamedTuple):
  """What a loss may read. Outputs and state are those of the train-time forward.

  Attributes:
    outputs: what the model returned, usually logits, float[B, classes].
    batch: the whole batch.
    params: the outermost params: before any view.
    model_state: with the taps of this forward.
    key, step: the run's root key; int32[], the optimizer step.
  """

  outputs: Any
  batch: Batch
  params: Params
  model_state: State
  key: Any
  step: Any


Loss = Callable[[Context], Terms]  # named scalar terms; their sum is minimized, each is a metric
Grad = Callable[..., tuple[Params, State, Terms]]  # (params, model_state, batch, key, step) -> (grads, state, terms)


class Account(NamedTuple):
  """What a part did in a run, in words; '' where there is nothing to tell.

  Attributes:
    when: the steps at which it acted.
    touched: arrays, by number and path.
    left: what it could not do or reach: a warning at a run's end, behind the part's name.
  """

  when: str = ''
  touched: str = ''
  left: str = ''


class Status(NamedTuple):
  """How a part stands: arrays of any shape, so that the state of several models (`vmap`) can answer.

  Attributes:
    reached: bool[...], whether it is at its goal; before that a model is no candidate for the best.
    broken: int32[...], values of its own that another part changed; above 0 a run stops.
    rejected: bool[...], whether it left the last update out: then the step keeps model_state, and a run goes on.
  """

  reached: Any = True
  broken: Any = 0
  rejected: Any = False


class Hook(NamedTuple):
  """A part that is no Optax transformation: it wraps the model, the loss or the gradient.

  Attributes:
    name: unique in a chain; its entries are keyed 'jl.<name>'.
    model: Model -> Model.
    loss: Loss -> Loss. Adds a term, or rescales 'task'; never touches another part's term.
    grad: Grad -> Grad. May call the inner gradient several times.
    account: (trained, bare, inputs) -> Account: of the Network that a run ended with, constants among its state, the
      Model without hooks and one batch of inputs. None leaves it to the hook's states.
    dispatches: `grad` called outside a trace runs several programs; a step does so where one would be slow.
    distribution: it reads outputs as logits over classes of which one is right.
    reads: its model is made from the program of the model inside (quantization, hints).
    as_one: as `model`, for a part outside that `reads`: each weight is made as one operand. None where `model` is so.
  """

  name: str
  model: Callable[[Model], Model] = lambda inner: inner
  loss: Callable[[Loss], Loss] = lambda inner: inner
  grad: Callable[[Grad], Grad] = lambda inner: inner
  account: Callable[[Network, Model, Any], Account] | None = None
  dispatches: bool = False
  distribution: bool = False
  reads: bool = False
  as_one: Callable[[Model], Model] | None = None

  @property
  def init(self) -> Any:
    """Raises: plain Optax would silently ignore a hook, so it is told."""
    raise TypeError(f'{self.name!r} is a hook, not an Optax transformation: chain it with jl.chain and jl.train_step')

  @property
  def update(self) -> Any:
    """Raises, as `init` does."""
    return self.init


class Side(Hook):
  """A Hook whose model runs a network beside the student (a teacher).

  `chain` composes it outside every other model hook, whatever its place, so that no rewrite (quantization,
  masks, remat) ever reaches the side network, and it runs in the scope `APART`: its outputs are bit-equal to its own.
  Its constants serve training alone: they are not deployed.
  """


class Selective(optax.GradientTransformationExtraArgs):
  """An update part that works on weights only: its `init` takes `(params, weights=None)`.

  `weights` are the paths that enter a contraction, as `train_step` reads them off the model, each with the layout
  of its axes (`jaxlite.graph.layouts.LeafLayout`, None where it is not clear); None in a foreign loop, where the part
  goes by shape and name.
  """


class Last(Selective):
  """A Selective that must come last; `chain` refuses a later update that is not one."""


class Recipe(NamedTuple):
  """Parts, composed. May itself be a part of another chain.

  Attributes:
    tx: the update parts, as one Optax transformation.
    model: wraps a Model in every model hook.
    loss: wraps a Loss in every loss hook.
    grad: wraps a Grad in every grad hook.
    parts: the parts themselves, flat, outermost first.
  """

  tx: optax.GradientTransformationExtraArgs
  model: Callable[[Model], Model]
  loss: Callable[[Loss], Loss]
  grad: Callable[[Grad], Grad]
  parts: tuple[Any, ...]


def chain(*parts: Any) -> Recipe:
  """Chains parts into a recipe: weights, batch and updates meet them from left to right.

  Args:
    *parts: Optax transformations, Hooks and Recipes; the first is outermost.

  Returns:
    The Recipe.

  Raises:
    TypeError: something is no part.
    ValueError: two hooks of one name, one of a step's own, or an update after a `Last` that is not one.

  >>> import optax
  >>> recipe = chain(Hook('mine'), optax.sgd(0.1))
  >>> [type(part).__name__ for part in recipe.parts]
  ['Hook', 'GradientTransformationExtraArgs']
  """
  flat = tuple(one for part in parts for one in (part.parts if isinstance(part, Recipe) else (part,)))
  last = None
  names = {'task', 'loss', 'const', 'taps', 'point', 'health', 'loop', 'statistics'}  # the step's own
  for index, part in enumerate(flat):
    if isinstance(part, Hook):
      if part.name in names:
        raise ValueError(f"a hook needs a name of its own; {part.name!r} stands twice or is the step's: give one name=")
      names.add(part.name)
    elif isinstance(part, optax.MultiSteps):
      raise TypeError('optax.MultiSteps hides steps from other parts: use jl.accumulate(k) in a jl.chain')
    elif isinstance(part, optax.GradientTransformation | optax.GradientTransformationExtraArgs):
      if last is not None and not isinstance(part, Last):
        raise ValueError(
          f'what prune masks must stay zero, so no update may follow it; part {index} does: move part {last} to the end'
        )
      last = index if isinstance(part, Last) else last
    else:
      raise TypeError(f'a part is an Optax transformation, a Hook or a Recipe; part {index} is {misplaced(part)}')
  hooks = [part for part in flat if isinstance(part, Hook)]
  outward = sorted(hooks, key=lambda hook: not isinstance(hook, Side))
  models = [(any(one.reads for one in outward[:i]) and hook.as_one) or hook.model for i, hook in enumerate(outward)]
  return Recipe(
    tx=_chain_updates([part for part in flat if not isinstance(part, Hook)]),
    model=_compose(models),
    loss=_compose([hook.loss for hook in hooks]),
    grad=_compose([hook.grad for hook in hooks]),
    parts=flat,
  )


def _compose(wrappers: list[Callable[[Any], Any]]) -> Callable[[Any], Any]:
  def wrap(inner: Any) -> Any:
    for wrapper in reversed(wrappers):  # the first part ends up outermost
      inner = wrapper(inner)
    return inner

  return wrap


def _chain_updates(updates: list[Any]) -> optax.GradientTransformationExtraArgs:
  """As `optax.chain`, and tells each `Selective` which paths are weights, and how their axes lie."""

  def init(params: Any, weights: Mapping[str, Any] | None = None) -> tuple[Any, ...]:
    return tuple(part.init(params, weights) if isinstance(part, Selective) else part.init(params) for part in updates)

  def update(grads: Any, state: tuple[Any, ...], params: Any = None, **extra: Any) -> tuple[Any, tuple[Any, ...]]:
    if len(state) != len(updates):
      raise ValueError(f'the recipe has {len(updates)} update parts, its state {len(state)}: init it with this recipe')
    new = []
    for part, part_state in zip(updates, state, strict=True):
      grads, part_state = optax.with_extra_args_support(part).update(grads, part_state, params, **extra)
      new.append(part_state)
    return grads, tuple(new)

  return optax.GradientTransformationExtraArgs(init, update)


def reparam(
  model: Model,
  name: str,
  init: Callable[[jax.Array, Params, State], tuple[Params, State]],
  view: Callable[..., Params],
) -> Model:
  """Lets weights pass through a view before the model sees them, in `apply`, `after` and `export` alike.

  Args:
    model: what stands inside.
    name: the hook's name; its entries (`jl.<name>`, const of that owner) are stripped on export.
    init: (key, params, model_state) -> (params, model_state), adding the hook's own entries.
    view: (params, model_state, *, train, key, step) -> params as the inner model knows them.

  Returns:
    The wrapped Model.

  >>> import jax, jax.numpy as jnp
  >>> def apply(p, s, x, *, train, key, step=None):
  ...   return x @ p['w'], s
  >>> base = Model(init=lambda key, x: ({'w': jnp.ones((2, 2))}, {}), apply=apply)
  >>> half = reparam(base, 'half', lambda k, p, s: (p, s), lambda p, s, **kw: {'w': p['w'] / 2})
  >>> half.export(*half.init(jax.random.key(0), None))[0]['w'][0, 0].item()
  0.5
  """

  def wrapped_init(key: jax.Array, inputs: Any) -> tuple[Params, State]:
    params, state = model.init(key, inputs)
    check_dict(params, name)
    return init(stream(key, name), params, state)

  def apply(params: Params, state: State, inputs: Any, *, train: bool, key: Any, step: Any = None) -> Any:
    seen = view(params, state, train=train, key=key, step=step)
    return model.apply(seen, state, inputs, train=train, key=key, step=step)

  def after(params: Params, state: State, step: Any) -> State:
    return model.after(view(params, state, train=False, key=None, step=step), state, step)

  def export(params: Params, state: State) -> tuple[Params, State]:
    seen = view(params, state, train=False, key=None, step=None)
    return model.export(drop_extras(seen, name), drop_extras(state, name))

  return Model(wrapped_init, apply, after, export)


def drop_extras(tree: Mapping[str, Any], name: str) -> dict[str, Any]:
  """Returns params or model_state without the entries of the hook `name`."""
  kept = {key: value for key, value in tree.items() if key not in (f'jl.{name}', CONST)}
  const = {owner: value for owner, value in tree.get(CONST, {}).items() if owner != name}
  return {**kept, CONST: const} if const else kept


def with_const(model_state: State, name: str, value: Any) -> State:
  """Returns model_state with arrays that never change, owned by the hook `name`."""
  return {**model_state, CONST: {**model_state.get(CONST, {}), name: value}}


def join_const(model_state: State, const: Any) -> State:
  """Returns the model_state that a Model takes: with the constants that a TrainState keeps apart; None is none."""
  return model_state if const is None else {**model_state, CONST: const}


def split_const(model_state: State) -> tuple[State, Any]:
  """Returns what a step changes (neither constants nor taps) and the constants; `join_const` is its inverse."""
  return {name: value for name, value in model_state.items() if name not in (CONST, TAPS)}, model_state.get(CONST)


def with_tap(model_state: State, name: str, value: Any) -> State:
  """Returns model_state with a value left for the loss."""
  return {**model_state, TAPS: {**model_state.get(TAPS, {}), name: value}}


def stream(key: Any, name: str, step: Any = None) -> Any:
  """Returns fold_in(fold_in(key, crc32(name)), step): the key of one source of randomness; no key is ever carried.

  Args:
    key: the root key, typed; None stays None.
    name: the source's name; it is hashed by crc32, since Python's own hash differs between processes.
    step: int32[] or None for a source drawn once.

  >>> a, b = stream(jax.random.key(0), 'dropout', 3), stream(jax.random.key(0), 'dropout', 4)
  >>> bool((jax.random.key_data(a) == jax.random.key_data(b)).all())
  False
  """
  if key is None:
    return None
  key = jax.random.fold_in(key, zlib.crc32(name.encode()))
  return key if step is None else jax.random.fold_in(key, step)
