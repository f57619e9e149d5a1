"""Keras 3 on JAX: a layer holds its variables, draws from seed generators, and may bring losses of its own.

Here is what only Keras has: variables that were frozen, seeds that are variables, and losses of layers.
"""

from __future__ import annotations

import collections
import functools
import sys
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlite import errors, trees
from jaxlite.adapters import common
from jaxlite.contract import CONST, LOSSES, Model, Params, State, with_const, with_tap

_OWNER = 'keras'  # of the variables under jl.const
_TERM = 'layer_losses'


class _Variables(NamedTuple):
  """A network's variables by path, as they were when it was first run."""

  trained: dict[str, Any]
  others: dict[str, Any]
  seeds: tuple[Any, ...]


def from_keras(model: Any) -> Model:
  """Makes a Model of a Keras 3 model or layer that runs on JAX.

  Trainable variables are params, under Keras's own paths ('sequential/dense/kernel'). The others are
  `model_state['state']`; those that training never changes (frozen layers, tables) stand in `jl.const`, so that they
  are not copied or saved with every step, and quantization sees them as weights. A frozen batch normalization runs as
  in evaluation, as in Keras. Seeds are no state: each is made from the key at every forward.

  Losses that layers bring (regularizers, `add_loss`) are counted: a forward in training leaves their sum in
  `jl.taps`, and `train_step` minimizes it as the term 'layer_losses', beside 'task'. An optimizer, losses and metrics
  that the model was compiled with are not used, nor are constraints; a mask that reaches the outputs does not reach
  the loss: give such examples a weight.

  The first values are Keras's own, drawn by seeds that its layers took when they were made: call
  `keras.utils.set_random_seed(0)` before the model is made to have the same run twice.

  Keras numbers layers without a name on through a process: call `keras.utils.clear_session()` before a model is built
  again to resume it there, or name the layers.

  Args:
    model: a `keras.Model` or `keras.Layer`, built or not, called as `model(inputs, training=train)`. Where it is not
      built, it is with the shapes of the first inputs. Freeze layers before; the model itself is never changed.

  Returns:
    The Model. `init` gives copies of the variables' values as they are then.

  Raises:
    TypeError: not an instance of a Keras layer.
    ValueError: Keras runs on another backend, or two variables have one path; at a forward, a variable that no layer
      of the model holds.

  >>> import os
  >>> os.environ['KERAS_BACKEND'] = 'jax'
  >>> import keras, jax, jax.numpy as jnp
  >>> model = from_keras(keras.Sequential([keras.layers.Dense(2, name='dense')], name='net'))
  >>> sorted(model.init(jax.random.key(0), jnp.ones((1, 3)))[0]['net']['dense'])
  ['bias', 'kernel']
  """
  keras = _backend(model, 'from_keras')
  scope_of = _scopes(keras)
  kept: dict[str, Any] = {}  # the variables and which of them are constant, once known

  def variables(inputs: Any) -> _Variables:
    if 'variables' not in kept:
      if not all(layer.built for layer in _layers(model)):
        _build(keras, model, inputs)
      kept['variables'] = _read(model)
    return kept['variables']

  def run(flat: Mapping[str, Any], inputs: Any, train: bool, key: Any) -> tuple[Any, list[Any], Any]:
    known = variables(inputs)
    held = known.trained | known.others
    absent = [name for name in held if name not in flat]
    if absent:
      raise ValueError(f'a forward needs every variable of the model; {absent} are missing: init this model')
    count = len(known.seeds)
    seeds = jnp.zeros((count, 2), jnp.uint32) if key is None else jax.random.bits(key, (count, 2), jnp.uint32)
    pairs = [(variable, flat[name]) for name, variable in held.items()]
    scope = scope_of(model, pairs + list(zip(known.seeds, seeds, strict=True)))
    try:
      with scope:
        outputs = model(inputs, training=train)
        losses = scope.brought() if train else []
    except Exception:
      if scope.wrong:  # Keras wraps what is raised inside of a layer into lines of its own
        raise ValueError(scope.wrong) from None
      raise
    if key is None and any(id(seed) in scope.changed for seed in known.seeds):
      raise ValueError('a seed was drawn from without a key')
    return outputs, losses, scope

  def constants(inputs: Any) -> frozenset[str]:
    """Which variables a forward in training leaves alone."""
    if 'constants' not in kept:
      known, changed = variables(inputs), set()

      def trace(flat: Any, inputs: Any) -> None:
        changed.update(run(flat, inputs, True, jax.random.key(0))[2].changed)

      if known.others:
        shapes = {name: _shape(one) for name, one in (known.trained | known.others).items()}
        jax.eval_shape(trace, shapes, inputs)
      kept['constants'] = frozenset(name for name, one in known.others.items() if id(one) not in changed)
    return kept['constants']

  def born(key: Any, inputs: Any) -> tuple[Params, State]:
    del key
    known = variables(inputs)
    values = [{name: one.value for name, one in group.items()} for group in (known.trained, known.others)]
    return trees.nest(values[0]), {'state': trees.nest(values[1])} if values[1] else {}

  def forward(params: Params, state: State, inputs: Any, train: bool, key: Any) -> tuple[Any, State]:
    flat = trees.by_path(trees.merge(params, state.get('state', {})))
    outputs, losses, scope = run(flat, inputs, train, key)
    total = functools.reduce(jnp.add, [jnp.sum(one, dtype=jnp.float32) for one in losses]) if losses else None
    new = {name: scope.get_current_value(one) for name, one in variables(inputs).others.items()}
    return (outputs, total), {'state': trees.nest(new)} if new else state

  inner = common.build(born, forward)

  def init(key: Any, inputs: Any) -> tuple[Params, State]:
    params, state = common.owned(born(key, inputs))  # not jitted: values may be assigned between two calls
    fixed, moving = trees.split(state.get('state', {}), constants(inputs))
    state = {'state': moving} if moving else {}
    return params, with_const(state, _OWNER, fixed) if fixed else state

  def apply(
    params: Params, model_state: State, inputs: Any, *, train: bool, key: Any, step: Any = None
  ) -> tuple[Any, State]:
    fixed = model_state.get(CONST, {}).get(_OWNER, {})
    whole = trees.merge(model_state.get('state', {}), fixed)
    full = {**model_state, 'state': whole} if whole else model_state
    (outputs, total), new = inner.apply(params, full, inputs, train=train, key=key, step=step)
    if not train:
      return outputs, model_state
    if 'state' in model_state:
      new = {**new, 'state': trees.split(new['state'], trees.paths(fixed))[1]}
    else:
      new = {name: value for name, value in new.items() if name != 'state'}
    return outputs, new if total is None else with_tap(new, LOSSES + _TERM, total)

  if all(layer.built for layer in _layers(model)):
    variables(None)  # what is wrong with its names is said at once
  return inner._replace(init=init, apply=apply)


def assign(model: Any, params: Params, model_state: State | None = None) -> None:
  """Writes trained values back into the Keras model that they came from.

  Args:
    model: what `from_keras` was given.
    params: its trained values. Where the recipe holds hooks, give what `train.model.export` returns, with their
      entries merged in.
    model_state: its other values (batch statistics); entries of hooks are left out, constants have not changed.

  Raises:
    TypeError: not an instance of a Keras layer.
    ValueError: Keras runs on another backend, or the values are not exactly those of the model.

  >>> import os
  >>> os.environ['KERAS_BACKEND'] = 'jax'
  >>> import keras, jax
  >>> net = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
  >>> params, model_state = from_keras(net).init(jax.random.key(0), jnp.ones((1, 3)))
  >>> assign(net, jax.tree.map(jnp.ones_like, params), model_state)
  >>> net(jnp.ones((1, 3))).tolist()
  [[4.0, 4.0]]
  """
  _backend(model, 'assign')
  known = _read(model)
  given = trees.by_path(params)
  extra = sorted(name for name in given if name not in known.trained)
  absent = sorted(name for name in known.trained if name not in given)
  if extra or absent:
    what = f'does not know {extra[0]!r}' if extra else f'needs {absent[0]!r}, too'
    raise ValueError(f'assign takes the params of the model as its init gives them; it {what}: export them first')
  state = trees.by_path((model_state or {}).get('state', {}))
  unknown = [name for name in state if name not in known.others]
  if unknown:
    raise ValueError(f'assign takes the model_state of the model; it does not know {unknown[0]!r}')
  wrong = [name for name, value in given.items() if jnp.shape(value) != tuple(known.trained[name].shape)]
  if wrong:
    raise ValueError(f'assign: {wrong[0]!r} has another shape in the model: give it the params of this model')
  for name, value in {**given, **state}.items():
    (known.trained | known.others)[name].assign(jnp.array(value))  # a copy: a step may take the original over


def _backend(model: Any, asker: str) -> Any:
  """Returns the keras package where `model` is of it and runs on JAX."""
  errors.need(asker, 'keras')
  keras = sys.modules.get('keras')  # never imported here: no model would be of it, and an import picks a backend
  if keras is None or not isinstance(model, keras.Layer):
    raise TypeError(f'{asker} takes an instance of keras.Model or keras.Layer, got {common.kind_of(model)}')
  if keras.backend.backend() != 'jax':
    raise ValueError(
      f'{asker} takes a model that runs on JAX; Keras runs on {keras.backend.backend()} in this process: '
      "set os.environ['KERAS_BACKEND'] = 'jax' before keras is first imported"
    )
  return keras


def _scopes(keras: Any) -> Any:
  """Returns a class of scopes in which a network's variables have given values and never change."""

  class Scope(keras.StatelessScope):
    """One forward. A variable that it does not know would be a constant of the program, and never trained."""

    def __init__(self, model: Any, values: Any) -> None:
      super().__init__(values, collect_losses=True, initialize_variables=False)
      self.model, self.changed, self.wrong = model, set(), ''

    def check(self, variable: Any) -> None:
      if id(variable) in self.state_mapping or any(variable is one for one in self.model.metrics_variables):
        return
      self.wrong = (
        f'a forward uses variables that the model held when it was built; it did not hold {variable.path!r}, which '
        'would never change: make its owner an attribute of a layer, and create it in __init__ or build'
      )
      raise ValueError(self.wrong)

    def brought(self) -> list[Any]:
      """Losses of this forward. Layers count theirs by the ids of past values: two threads would count some twice."""
      added, self.losses = self.losses, []
      return [*added, *self.model.losses]  # what is left there are regularizers of weights

    def get_current_value(self, variable: Any) -> Any:
      self.check(variable)
      return super().get_current_value(variable)

    def add_update(self, update: Any) -> None:
      self.check(update[0])
      self.changed.add(id(update[0]))
      super().add_update(update)

  return Scope


def _read(model: Any) -> _Variables:
  """Sorts a built network's variables."""
  weights = {id(one) for one in model.weights}  # without seeds, which have the same order in every process
  seeds = tuple(one for one in model.variables if id(one) not in weights)
  trained = {id(one) for one in model.trainable_variables}
  counts = collections.Counter(one.path for one in model.weights)
  nested = _places(model) if max(counts.values(), default=1) > 1 else {}
  groups: tuple[dict[str, Any], dict[str, Any]] = {}, {}
  for variable in model.weights:
    path = variable.path if counts[variable.path] == 1 else nested.get(id(variable), variable.path)
    if path in groups[0] or path in groups[1]:
      raise ValueError(f'every variable needs a path of its own; {path!r} names two: name their layers differently')
    groups[id(variable) not in trained][path] = variable
  names = trees.nest({**groups[0], **groups[1]})  # a path that is a leaf and a group is told here
  taken = [name for name in names if trees.is_extra(name)]
  if taken:
    raise ValueError(f"names that begin with 'jl.' belong to hooks; a network holds {taken[0]!r}: rename it")
  return _Variables(*groups, seeds)


def _places(layer: Any, above: tuple[str, ...] = ()) -> dict[int, str]:
  """Where each variable stands in the tree of layers: Keras's own paths leave out the models around a nested one."""
  children = _layers(layer, include_self=False, recursive=False)
  found = {id(one): '/'.join((*above, one.name)) for one in layer.weights}
  for child in children:
    found.update(_places(child, (*above, child.name)))
  return found


def _build(keras: Any, model: Any, inputs: Any) -> None:
  """Creates a network's variables. Within a trace, too, their values are arrays."""
  with jax.ensure_compile_time_eval():
    try:
      with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # what Keras could not build so, it builds below or says then
        model(jax.tree.map(lambda x: _symbol(keras, x), inputs))
    except Exception:  # a layer that cannot tell its shapes, or needs to know the size of the batch
      model(jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), x.dtype), inputs))


def _layers(model: Any, **which: bool) -> list[Any]:
  return model._flatten_layers(**which)  # in public Keras tells only the layers of models, not those of layers


def _symbol(keras: Any, x: Any) -> Any:
  return keras.KerasTensor((None, *jnp.shape(x)[1:]), dtype=keras.backend.standardize_dtype(x.dtype))


def _shape(variable: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(tuple(variable.shape), variable.dtype)
