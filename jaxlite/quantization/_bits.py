"""Training for bits: weights are whole numbers times a learned step, and the loss counts what coding them costs.

Sparsity, bit width and their share among layers are not chosen: all come of one number, what a bit is worth.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import trees
from jaxlite.contract import Account, Context, Hook, Loss, Model, Params, State, Terms, reparam
from jaxlite.errors import arrays, check_dict, number
from jaxlite.graph import alike
from jaxlite.graph.model import _layouts

_LEAST, _MOST = 0.002, 0.9  # of a share that is not zero, as the prior sees it
_STEPS = (0.3, 3.0)  # bits of each further step of a magnitude


class Prior(NamedTuple):
  """What a bit costs where, by the weights as they were when it was fitted.

  Attributes:
    along: of each axis, float32[size]: logits of the share that is not zero there.
    mean: float32[], the logit of all.
    first: float32[], bits of a magnitude of 1.
    further: float32[], bits of each step beyond.
  """

  along: tuple[jax.Array, ...]
  mean: jax.Array
  first: jax.Array
  further: jax.Array


class BitsState(NamedTuple):
  """What `few_bits` keeps.

  Attributes:
    priors: by path.
    bits: float32[], what all weights cost when priors were last fitted.
    alive: float32[], how many were not zero.
  """

  priors: dict[str, Prior]
  bits: jax.Array
  alive: jax.Array

  def account(self, params: Params) -> Account:
    """Tells what the weights cost."""
    leaves = trees.by_path(params)
    size = sum(np.size(leaves.get(path, 0)) for path in self.priors)
    alive, total = float(np.sum(self.alive)), float(np.sum(self.bits)) / 8
    told = f'{alive:,.0f} of {size:,} weights are not zero, about {total:,.0f} bytes in all'
    return Account('', f'{arrays(self.priors)}; {told}')


def few_bits(
  worth: float,
  *,
  ramp: int = 0,
  every: int = 200,
  step: float = 2.0,
  offset: bool = False,
  select: trees.Rule = None,
  name: str = 'few_bits',
) -> Hook:
  """Trains weights that cost few bits: w = s * (q + d * sign(q)), with q a whole number that most often is 0.

  The forward sees w; what learns are the weights before rounding (straight through), one step s and, if asked, one
  offset d for each array: `params['jl.<name>'] = {path: {'step': float32[], 'offset': float32[]}}`, the step by its
  logarithm. Of an array that stacks layers (scan) each layer has its own, float32[layers, 1, ...].

  Within the hook weights are counted in steps: `init` divides them by s, `export` gives them back. So a learning rate
  says how many steps a weight moves, in every array alike: 0.02 for Adam works well, with 2e-3 for s and 5e-3 for d,
  by `optax.partition`.

  The loss gains a term 'bits' ('<name>/bits' beside another such hook): `worth` times the bits that an entropy coder
  would take, by a prior that knows how many weights are alive along each axis (rows, columns, channels) and how large
  they are. The prior is fitted anew each `every` steps, on the device; it lives in `model_state['jl.<name>']`, so
  nothing is compiled twice.

  `deployment.packed` codes the exported weights near that cost. Biases and norms stay as they are.

  Args:
    worth: loss for each bit, 1e-6 or so: the higher, the smaller the file.
    ramp: steps over which it rises from 0 to its full size; about 40 % of the training works well.
    every: steps between two fits of the prior; about an epoch.
    step: the first step of an array, in deviations of its weights; where all are alike they begin at one step.
    offset: learn d >= 0, too; without it d is 0, and weights are whole numbers times a scale.
    select: a rule on paths; None takes the weights that the model's program shows.
    name: of the hook.

  Returns:
    A Hook on model and loss.

  Raises:
    ValueError: an argument outside its range; at init, no weight selected.

  References:
    Bengio et al., Estimating or Propagating Gradients Through Stochastic Neurons, 2013,
    https://arxiv.org/abs/1308.3432
    Wiedemann et al., Entropy-Constrained Training of Deep Neural Networks, 2018, https://arxiv.org/abs/1812.07520

  >>> def apply(p, s, x, *, train, key, step=None):
  ...   return x @ p['w'], s
  >>> base = Model(lambda key, x: ({'w': jnp.array([[1.0, -0.1], [3.2, 2.0]])}, {}), apply)
  >>> model = few_bits(1e-6, step=1.0).model(base)
  >>> params, state = model.init(jax.random.key(0), jnp.ones((1, 2)))
  >>> exported = model.export(params, state)[0]['w']
  >>> (exported / jnp.exp(params['jl.few_bits']['w']['step'])).round().tolist()
  [[1.0, 0.0], [3.0, 2.0]]
  """
  worth, ramp, every, step = (
    number(value, f'{name}: {what}')
    for what, value in (('worth', worth), ('ramp', ramp), ('every', every), ('step', step))
  )
  for what, value, fine in (
    ('worth', worth, worth >= 0),
    ('ramp', ramp, ramp >= 0),
    ('every', every, every >= 1),
    ('step', step, step > 0),
  ):
    if not fine:
      raise ValueError(f'{name}: {what} is {"at least 1" if what == "every" else "not below 0"}; got {value}')
  if worth >= 1:
    raise ValueError(
      f'{name}: worth is the loss for each bit of each weight, 1e-6 or so; got {worth}: weights of so many bits are '
      'fake_quant(bits=...)'
    )
  slot = f'jl.{name}'

  def model(inner: Model) -> Model:
    def init(key: Any, inputs: Any) -> tuple[Params, State]:
      params, state = inner.init(key, inputs)
      check_dict(params, name)
      layouts = _layouts(inner, params, state, inputs, key)
      chosen = trees.weight_paths(params, select, layouts, what=name)
      leaves = {path: leaf for path, leaf in trees.by_path(params).items() if path in chosen}
      known = {path: layout for path, layout in layouts.items() if layout is not None}
      stacks = {path: known[path].stack(leaf.ndim) if path in known else () for path, leaf in leaves.items()}
      grids = {path: _first_grid(leaf, step, offset, stacks[path]) for path, leaf in leaves.items()}
      counted = {path: (leaf / jnp.exp(grids[path]['step'])).astype(leaf.dtype) for path, leaf in leaves.items()}
      params = trees.map_with_path(lambda path, leaf: counted.get(path, leaf), params)
      return {**params, slot: grids}, {**state, slot: _fitted(counted)}

    def view(params: Params, state: State, **_: Any) -> Params:
      grids = params[slot]
      seen = trees.map_with_path(lambda path, leaf: on_grid(leaf, grids[path]) if path in grids else leaf, params)
      return {**seen, slot: grids}

    wrapped = reparam(inner, name, lambda key, params, state: (params, state), view)

    def after(params: Params, state: State, step: Any) -> State:
      own = state[slot]
      leaves = {path: leaf for path, leaf in trees.by_path(params).items() if path in own.priors}
      _, own = alike.once(step % every == 0, lambda _: _fitted(leaves), own)
      return wrapped.after(params, {**state, slot: own}, step)

    return wrapped._replace(init=init, after=after)

  def loss(inner: Loss) -> Loss:
    def total(context: Context) -> Terms:
      leaves = trees.by_path(context.params)
      cost = sum(bits_of(leaves[path], prior) for path, prior in context.model_state[slot].priors.items())
      share = jnp.minimum(1.0, (context.step + 1) / max(ramp, 1))
      terms = inner(context)
      return {**terms, f'{name}/bits' if 'bits' in terms else 'bits': worth * share * cost}

    return total

  return Hook(name, model=model, loss=loss)


def _first_grid(leaf: jax.Array, step: float, offset: bool, stack: tuple[int, ...]) -> dict[str, jax.Array]:
  """A step for each layer that a leaf stacks, with axes of size 1 for the rest; without a stack, one number."""
  others = tuple(axis for axis in range(leaf.ndim) if axis not in stack)
  wide = leaf.astype(jnp.float32)
  deviation = jnp.std(wide, others, keepdims=bool(stack))
  most = jnp.max(jnp.abs(wide), others, keepdims=bool(stack), initial=0.0)
  # What is all alike deviates by rounding alone, and in steps of that would count millions: it begins at one step.
  varies = deviation > np.float32(1e-6) * most
  grid = {'step': jnp.log(jnp.where(varies, step * deviation, jnp.where(most > 0, most, step)))}
  return {**grid, 'offset': jnp.zeros_like(grid['step'])} if offset else grid


def on_grid(leaf: jax.Array, grid: Mapping[str, jax.Array]) -> jax.Array:
  """Returns the weights as the forward sees them: s * (q + d * sign(q)), in their own dtype.

  Args:
    leaf: float[...], weights before rounding, in steps; their gradient is s times that of what the forward sees.
    grid: {'step': float32[], log s, 'offset': float32[], d, or none}.

  >>> grid = {'step': jnp.log(0.5), 'offset': jnp.float32(0.25)}
  >>> on_grid(jnp.array([0.2, 1.2, -2.2]), grid).tolist()
  [0.0, 0.625, -1.125]
  """
  place = leaf.astype(jnp.float32)
  whole = jax.lax.stop_gradient(jnp.round(place))
  seen = place + jax.lax.stop_gradient(whole - place)
  if 'offset' in grid:
    seen = seen + jnp.maximum(grid['offset'], 0) * jnp.sign(whole)
  # A product of two floats alone, so that what is exported is a whole number times a scale to the last bit.
  return (jnp.exp(grid['step']) * jnp.where(whole == 0, place - jax.lax.stop_gradient(place), seen)).astype(leaf.dtype)


def bits_of(leaf: jax.Array, prior: Prior) -> jax.Array:
  """Returns what weights cost, in bits beyond those of all zeros: float32[], with a slope between whole numbers.

  Args:
    leaf: float[...], before rounding, in steps.
    prior: of this array.
  """
  size = jnp.abs(leaf.astype(jnp.float32))
  cost = jnp.maximum(0.0, 1 + prior.first - _chance(prior) / np.float32(np.log(2)))
  each = cost * jnp.minimum(size, 1) + prior.further * jnp.maximum(size - 1, 0)
  # XLA:CPU adds up an array one entry after the other; a product with ones is twice as fast.
  rows = each.reshape(-1, each.shape[-1]) if each.ndim > 1 else each[:, None]
  return jnp.sum(jnp.matmul(jnp.ones(len(rows)), rows, precision='highest'))


def _chance(prior: Prior) -> jax.Array:
  """The logit of each weight's being not zero: what its place along each axis says, put together."""
  rank = len(prior.along)
  logits = prior.mean
  for axis, along in enumerate(prior.along):
    logits = logits + (along - prior.mean).reshape([-1 if index == axis else 1 for index in range(rank)])
  return jnp.clip(logits, float(np.log(_LEAST / (1 - _LEAST))), float(np.log(_MOST / (1 - _MOST))))


def _fitted(leaves: Mapping[str, jax.Array]) -> BitsState:
  """Priors of weights as they are, and their cost."""
  priors, bits, alive = {}, jnp.float32(0), jnp.float32(0)
  for path, leaf in leaves.items():
    size = jnp.abs(jnp.round(leaf.astype(jnp.float32)))
    there = (size > 0).astype(jnp.float32)
    count = jnp.sum(there)
    share = (count + 1) / (leaf.size + 2)
    along = tuple(_logit(_shares(there, axis, share)) for axis in range(leaf.ndim))
    more = (jnp.sum(size) - count + 1) / (count + 2)  # steps beyond the first, a geometric law
    first, further = jnp.log2(1 + more), jnp.clip(jnp.log2(1 + 1 / more), *_STEPS)
    prior = priors[path] = Prior(along, _logit(share), first, further)
    logits = _chance(prior)
    zeros = jnp.sum(jax.nn.softplus(jnp.where(there > 0, -logits, logits))) / np.float32(np.log(2))
    bits = bits + zeros + count * (1 + first) + further * (jnp.sum(size) - count)
    alive = alive + count
  return BitsState(priors, bits, alive)


def _shares(there: jax.Array, axis: int, share: jax.Array) -> jax.Array:
  """How many are alive at each place of an axis; of few, more like all."""
  others = tuple(index for index in range(there.ndim) if index != axis)
  many = there.size // there.shape[axis]
  return (jnp.sum(there, others) + 2 * share) / (many + 2)


def _logit(share: jax.Array) -> jax.Array:
  return jnp.log(share) - jnp.log1p(-share)
