"""Taking a network's head off and putting another on, whatever framework it was written in.

The head is found in the program: the last weight that is multiplied, where what comes out of it are the outputs but
for a bias (or a softmax of them). What goes into it are the features. Everything else of the network stays what it is,
under its own paths; the new head is `head/kernel` and `head/bias`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval

from jaxlite import trees
from jaxlite.adapters import adapt
from jaxlite.contract import Model, Network, Params, State
from jaxlite.errors import whole
from jaxlite.graph import provenance, rewrite, walk
from jaxlite.graph.effects import without_effects
from jaxlite.graph.model import model_tags

HEAD = 'head'  # the name of the new head among the params
OUTPUTS = 'outputs'  # what `head=` says of a network that gives features itself

Extra = Callable[[State, Any], jax.Array]  # (model_state, raw inputs) -> float[B, E]


class Backbone(NamedTuple):
  """A network without its head.

  Attributes:
    model: inputs [B, ...] -> features float32[B, width]; its init gives the values below.
    params: of the network, without those of its head.
    model_state: its other arrays.
    width: features an example.
    dropped: paths of the head's own parameters, with their shapes.
    order: paths of the weights in the order in which the program uses them.
    encode: of the network: raw inputs -> the model's; None where they are arrays.
    told: what was taken off, in one line.
  """

  model: Model
  params: Params
  model_state: State
  width: int
  dropped: dict[str, tuple[int, ...]]
  order: tuple[str, ...]
  encode: Any
  told: str


def backbone(network: Any, inputs: Any, *, head: str | None = None, key: Any = None) -> Backbone:
  """Takes the head off a network.

  Args:
    network: a Network, such as `jl.load(workdir, model=...)` gives; or what `jl.adapt` takes, with values: an NNX or
      Equinox module, (function, params), a Keras model, a Linen module only as a Network.
    inputs: a batch of inputs as the network takes them, [B, ...]; two examples are used.
    head: None finds it; else a rule on the path of the weight whose input is the features, or 'outputs' where what the
      network gives are features already (an encoder of sentences). Features with more axes than two are averaged over
      those between, where the inputs have a mask of the same shape over what it marks.
    key: the root key; None takes key 0, for what an init draws.

  Returns:
    The Backbone.

  Raises:
    ValueError: nothing is multiplied by a weight, the rule picks none or several, the network is sealed, or it has no
      values but draws them.

  >>> import jaxlite as jl
  >>> net = (lambda p, x: jnp.tanh(x @ p['a']) @ p['b'] + p['c'], {'a': jnp.ones((3, 4)), 'b': jnp.ones((4, 2)),
  ...   'c': jnp.zeros(2)})
  >>> found = backbone(net, jnp.ones((2, 3)))
  >>> found.width, sorted(found.params), found.told
  (4, ['a'], "the head, 'b' [4, 2], is taken off: 4 features")
  """
  encode = network.encode if isinstance(network, Network) else None
  model = adapt(network)
  two = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf[:2])), inputs)
  count = len(jax.tree.leaves(two)[0])
  if count < 2:
    raise ValueError('a backbone is looked at with two examples; got one: give a batch')
  params, state = model.init(jax.random.key(0) if key is None else key, two)
  if not isinstance(network, Network) and _draws(model, params, two):
    raise ValueError(
      'fine-tuning begins with values that were learned; this network has none and would draw them at random: give a '
      'Network (jl.load(workdir, model=...), jl.finetuning.pretrained(...).network, jl.Network(jl.adapt(model), '
      'params, state)) or (function, params); jl.train trains from nothing'
    )
  read = _read(model, params, state, two, train=False)
  sites = [site for site in read.plan.all_sites() if not site.why_not and site.paths]
  order = tuple(dict.fromkeys(path for site in sites for path in sorted(site.weights or site.paths)))
  if not sites:
    walk.refuse_sealed(read.jaxpr, 'finetune')
    raise ValueError('a backbone multiplies inputs by weights; this network has no such place: give another')
  given = None if head == OUTPUTS else _chosen(sites, head) if head is not None else _found(read, sites[-1], count)
  if given is None:
    outputs = jax.eval_shape(lambda: model.apply(params, state, two, train=False, key=None)[0])
    if not hasattr(outputs, 'shape') or outputs.ndim < 2 or outputs.shape[0] != count:
      raise ValueError(
        f'features are one array [B, ...]; the network gives {_kinds(outputs)}: give a function that picks one, '
        '(function, params), or name the weight behind the features, head='
      )
    bare, told = model, 'its outputs are the features'
    dropped: dict[str, tuple[int, ...]] = {}
  else:
    bare, dropped = _headless(model, params, state, two, given.name, flat=head is None)
    told = f'the head, {given.name!r} {list(given.shape)}, is taken off'
    params = trees.split(params, dropped)[1]
  pooled = _pooled(bare)
  width = jax.eval_shape(lambda: pooled.apply(params, state, two, train=False, key=None)[0]).shape[-1]
  order = tuple(path for path in order if path not in dropped)
  ready = pooled._replace(init=lambda key, inputs: (params, state))
  return Backbone(ready, params, state, width, dropped, order, encode, f'{told}: {width:,} features')


def _draws(model: Model, params: Params, inputs: Any) -> bool:
  """Whether another key gives other first parameters."""
  others = jax.tree.leaves(model.init(jax.random.key(1_000_003), inputs)[0])
  pairs = zip(jax.tree.leaves(params), others, strict=True)
  return any(one is not other and np.asarray(one).tobytes() != np.asarray(other).tobytes() for one, other in pairs)


class _Program(NamedTuple):
  jaxpr: Any
  plan: provenance.Plan
  leaves: list[Any]
  out_tree: Any


def _read(
  model: Model, params: Params, state: State, inputs: Any, *, train: bool, key: Any = None, step: Any = None
) -> _Program:
  """Traces a forward and reads where its weights are multiplied."""

  def forward(params: Params, state: State, inputs: Any, key: Any, step: Any) -> Any:
    return model.apply(params, state, inputs, train=train, key=key, step=step)

  args = (params, state, inputs, key, step)
  jaxpr, shapes = jax.make_jaxpr(without_effects(forward, 'finetune'), return_shape=True)(*args)
  plan = provenance.read(jaxpr, model_tags(*args))
  return _Program(jaxpr, plan, jax.tree.leaves(args), jax.tree.structure(shapes))


def _chosen(sites: list[provenance.Site], rule: str) -> provenance.Site:
  names = [site.name for site in sites]
  picked = trees.select(names, rule, what='head: rule')
  if len(picked) != 1:
    raise ValueError(f'head names one weight; {rule!r} picks {len(picked)}: {", ".join(sorted(picked)[:4])}; narrow it')
  return next(site for site in sites if site.name in picked)


def _found(read: _Program, site: provenance.Site, count: int) -> provenance.Site | None:
  """The last weight, if outputs are what comes out of it, but for a bias, or a softmax of that."""

  @jax.jit
  def at(leaves: list[Any], scale: Any) -> tuple[Any, Any]:
    results, records = _run(read._replace(leaves=leaves), site.name, scale)
    outputs = jax.tree.unflatten(read.out_tree, results)[0]
    return outputs, records[site.name]

  full, (features, product) = at(read.leaves, 1.0)
  none, _ = at(read.leaves, 0.0)
  if not hasattr(full, 'shape') or full.ndim != 2 or features.shape[0] != count or full.size != product.size:
    return None
  if math.prod(features.shape[1:]) != math.prod(site.shape[axis] for axis in site.summed) or site.lengths:
    return None  # each example has several rows of features: positions, layers
  if site.kind == 'dot_general' and site.side == 0:  # the weight comes first, and its outputs before the examples
    product = product.reshape(-1, count).T
  full, none, product = (np.asarray(one, np.float64).reshape(count, -1) for one in (full, none, product))
  grown = 10 / max(1e-6, float(np.abs(product).max()))  # near 0 everything is linear
  more = np.asarray(at(read.leaves, grown)[0], np.float64).reshape(count, -1)
  if np.abs(more - none - grown * product).max() <= 0.1 and np.abs(full - none - product).max() <= 0.1 / grown + 1e-6:
    return site
  softmax = np.abs(full.sum(1) - 1).max() < 1e-2 and (full >= 0).all() and full.shape[1] > 1
  return site if softmax and np.abs(none.sum(1) - 1).max() < 1e-2 else None


def _run(read: _Program, name: str, scale: Any = None) -> tuple[list[Any], Mapping[str, Any]]:
  """Runs a program again, and hands out what goes into one product and what comes out."""

  def visit(site: Any, eqn: Any, operands: Any, given: Any, axes: Any) -> tuple[Any, Any]:
    del given, axes
    out = rewrite.bind(eqn, operands)[0]
    return (out if scale is None else (out * scale).astype(out.dtype)), (operands[1 - site.side], out)

  rules = rewrite.Rules(
    visit=visit, wanted=lambda site: site.name == name, merge=_never, fold=lambda one: one, absent=_never, across=_never
  )
  return rewrite.run(read.jaxpr, read.plan, read.leaves, rules, {})


def _never(*_: Any) -> Any:
  raise ValueError('a head stands once in a program, in no loop or branch: name the weight behind the features, head=')


def _headless(
  model: Model, params: Params, state: State, inputs: Any, name: str, *, flat: bool
) -> tuple[Model, dict[str, tuple[int, ...]]]:
  """Returns a Model that gives what goes into a weight, and what only stood behind it."""
  paths, leaves, treedef = trees.flatten(params)
  shapes = dict(zip(paths, [jax.ShapeDtypeStruct(jnp.shape(one), one.dtype) for one in leaves], strict=True))

  def features(params: Params, state: State, inputs: Any, key: Any, step: Any, *, train: bool) -> Any:
    read = _read(model, params, state, inputs, train=train, key=key, step=step)
    results, records = _run(read, name)
    if name not in records:
      raise ValueError(f'the weight {name!r} is multiplied in evaluation and not in training: name another, head=')
    value = records[name][0]
    value = value.reshape(len(value), -1) if flat else value  # what a convolution of one position multiplies
    return value, jax.tree.unflatten(read.out_tree, results)[1]

  def slim(train: bool, *args: Any) -> tuple[Any, Any, list[bool], Any]:
    """The program of the features alone, and which leaves it reads."""
    run = functools.partial(features, train=train)
    closed, out = jax.make_jaxpr(run, return_shape=True)(*args)
    bare, used = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return core.ClosedJaxpr(bare, closed.consts), out, used, None

  key = jax.random.key(0)
  used: set[str] = set()
  for train in (False, True):
    reads = slim(train, params, state, inputs, key, jnp.int32(0))[2]
    used |= {path for path, one in zip(paths, reads[: len(paths)], strict=True) if one}
  dropped = {path: tuple(shape.shape) for path, shape in shapes.items() if path not in used}
  if len(dropped) == len(paths):
    raise ValueError(f'no weight stands before {name!r}, so its features are the inputs: name another, head=')

  def filled(params: Params) -> Params:
    """With zeros where the head was: the program reads them nowhere."""
    own = trees.by_path({one: value for one, value in params.items() if not trees.is_extra(one)})
    zeros = {path: jnp.zeros(shapes[path].shape, shapes[path].dtype) for path in dropped}
    known = {**zeros, **own}
    return treedef.unflatten([known[path] for path in paths])

  def apply(params: Params, state: State, inputs: Any, *, train: bool, key: Any, step: Any = None) -> Any:
    args = (filled(params), state, inputs, key, step)
    closed, out, reads, _ = slim(train, *args)
    given = [leaf for leaf, one in zip(jax.tree.leaves(args), reads, strict=True) if one]
    results = core.jaxpr_as_fun(closed)(*given)
    return jax.tree.unflatten(jax.tree.structure(out), results)

  return Model(model.init, apply), dropped


def _pooled(model: Model) -> Model:
  """Features float32 [B, D] of what a model gives: the mean over positions, where there are some."""

  def apply(params: Params, state: State, inputs: Any, *, train: bool, key: Any, step: Any = None) -> Any:
    own = {name: value for name, value in params.items() if name != HEAD and not trees.is_extra(name)}
    values, state = model.apply(own, state, inputs, train=train, key=key, step=step)
    values = jnp.asarray(values, jnp.float32)
    mask = inputs.get('mask') if isinstance(inputs, Mapping) else None
    if values.ndim > 2 and mask is not None and mask.shape == values.shape[: mask.ndim] and mask.ndim > 1:
      share = mask.reshape(*mask.shape, *(1,) * (values.ndim - mask.ndim)).astype(jnp.float32)
      values = jnp.sum(values * share, axis=1) / jnp.maximum(jnp.sum(share, axis=1), 1.0)
    elif values.ndim > 2 and math.prod(values.shape[1:-1]) == 1:
      values = values.reshape(len(values), -1)
    elif values.ndim > 2:
      values = values.mean(axis=tuple(range(1, values.ndim - 1)))
    return values, state

  return Model(model.init, apply)


def with_head(
  found: Backbone,
  classes: int,
  *,
  kernel: Any = None,
  bias: Any = None,
  extra: Extra | None = None,
  state: Mapping[str, Any] | None = None,
) -> Network:
  """Puts a new linear head on a backbone.

  Args:
    found: what `backbone` gave.
    classes: outputs of the head.
    kernel: float[width, classes], its start; None is 0, so that every class begins alike.
    bias: float[classes]; None is 0.
    extra: further features of the raw inputs, which stand behind the backbone's own.
    state: what `extra` reads, among the model_state.

  Returns:
    A Network, whose params are the backbone's and `head/kernel`, `head/bias`: what `jl.train(model=...)` begins with.

  Raises:
    ValueError: a kernel or bias of another shape, or not finite.
  """
  classes = whole(classes, 'classes', least=1)
  if HEAD in found.params:
    raise ValueError(
      f'the new head is called {HEAD!r}, and so is a part of this backbone: rename that, or name it head='
    )
  width = found.width
  if kernel is None:
    kernel = np.zeros((width, classes), np.float32)
  kernel = np.asarray(kernel, np.float32)
  bias = np.zeros(classes, np.float32) if bias is None else np.asarray(bias, np.float32)
  if (
    kernel.ndim != 2
    or (extra is None and kernel.shape[0] != width)
    or kernel.shape[1] != classes
    or bias.shape != (classes,)
  ):
    raise ValueError(
      f'a head of {classes} classes on {width} features has a kernel [{width}, {classes}] and a bias [{classes}]; got '
      f'{list(kernel.shape)} and {list(bias.shape)}'
    )
  if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
    raise ValueError('a head begins with finite values; got NaN or infinity')
  inner = found.model
  params = {**found.params, HEAD: {'bias': jnp.asarray(bias), 'kernel': jnp.asarray(kernel)}}
  model_state = {**found.model_state, **(state or {})}

  def init(key: Any, inputs: Any) -> tuple[Params, State]:
    del key, inputs
    return params, model_state

  def apply(params: Params, state: State, inputs: Any, *, train: bool, key: Any, step: Any = None) -> Any:
    features, new = inner.apply(params, state, inputs, train=train, key=key, step=step)
    if extra is not None:
      features = jnp.concatenate([features, extra(state, inputs)], axis=1)
    return features @ params[HEAD]['kernel'] + params[HEAD]['bias'], new

  return Network(Model(init, apply), params, model_state, encode=found.encode)


def _kinds(outputs: Any) -> str:
  if isinstance(outputs, Mapping):
    return f'a dict of {", ".join(map(str, outputs))}'
  if hasattr(outputs, 'shape'):
    return f'an array {list(outputs.shape)}'
  return f'a {type(outputs).__name__}'
