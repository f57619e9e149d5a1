"""Learned step sizes: the grids of weights and activations are parameters, and train with the rest (LSQ).

The rewriting is `fake_quant`'s, site by site; here is what differs: where a step comes from, and its gradient.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxlite import trees
from jaxlite.contract import CONST, Hook, Model, Params, State, drop_extras, with_const
from jaxlite.errors import check_dict
from jaxlite.graph import provenance, walk
from jaxlite.quantization import _numerics as numerics
from jaxlite.quantization import _product as products
from jaxlite.quantization import _program as quant_program
from jaxlite.quantization._account import account_of
from jaxlite.quantization._multiply import Product, traced_once
from jaxlite.quantization._numerics import Bits, BitsLike, check_bits
from jaxlite.quantization._program import Rules


def lsq(
  bits: BitsLike = 8,
  *,
  rules: Rules | None = None,
  per_channel: bool = True,
  fixed: str | Sequence[str] = (),
  real: bool = False,
  name: str = 'lsq',
) -> Hook:
  """Trains the model as it will run in integers, and the steps of its grids with it.

  The steps are `params['jl.<name>'] = {site: {'weight': float32[channels], 'activation': float32[]}}`, with the
  lengths of enclosing scans as leading axes. They begin at 2 * mean|v| / sqrt(Qp), Qp being the largest integer, as
  measured on the batch that `init` is given, and their gradient is scaled by 1 / sqrt(N * Qp), N being the number of
  values that share a step. How an activation's integers lie about its zero (0 to 255 after a ReLU, about -128 to 127
  where both signs are alike) is fixed on that batch too: `model_state['jl.<name>'] = {site: zero point}`.

  A step is the size of its parameter, so it is above zero whatever an optimizer does to it. Zero is on every grid:
  pruned weights stay zero. Weights use the narrow range, so that folding a batch norm changes no integer but its
  sign; that holds for a step per tensor too, where deployment then keeps a scale per channel.

  First derivatives are the published ones; second ones see the rounding, whose slope is zero, as with `fake_quant`.

  Weight decay on a step has no meaning: mask it out. An optimizer that divides by the gradient's size (Adam) does not
  see its scale; where steps jitter, give them a rate of their own, by `optax.partition` on the top-level name.

  Args:
    bits: 2 to 8, of weights and activations, or a pair of theirs; (4, None) leaves activations float.
    rules: {regular expression on a site's name, the path of its weight: bits, as above, or None to keep it float};
      the first match decides.
    per_channel: a step for each output channel of a weight, or one for the whole.
    fixed: regular expressions on sites whose activation keeps a grid over the range that `init`'s batch shows, in
      `jl.const`. For the first layer: its inputs do not change, so their step has little to learn, and learning it
      takes a contraction that float training has no need of, a fifth of all on the MLP of
      `experiments/bench/quantization.py`.
    real: execute int8 operands into int32 instead of integer-valued float32; for evaluation and deployment, on the
      params and state that the fake model was trained to.
    name: of the hook.

  Returns:
    The Hook. Its model's `init` raises ValueError where nothing can be quantized, a rule matches nothing, the batch
    shows nothing but zeros at a site, or the uses of a weight cannot be told apart, as in `fake_quant`.

  References:
    Esser et al., Learned Step Size Quantization, 2020, https://arxiv.org/abs/1902.08153

  >>> import jax, jax.numpy as jnp
  >>> def apply(p, s, x, *, train, key, step=None):
  ...   return x @ p['dense'], s
  >>> base = Model(init=lambda key, x: ({'dense': jnp.ones((2, 3))}, {}), apply=apply)
  >>> params, state = lsq(bits=3).model(base).init(jax.random.key(0), jnp.array([[0.0, 2.0]]))
  >>> [round(float(step), 3) for step in params['jl.lsq']['dense']['weight']]  # 2 * 1 / sqrt(3)
  [1.155, 1.155, 1.155]
  """
  number = check_bits(bits, name)
  for pattern, value in (rules or {}).items():
    if value is not None:
      check_bits(value, f'{name}: rule {pattern!r}')
  entry = f'jl.{name}'

  def wrap(model: Model) -> Model:
    def init(key: Any, inputs: Any) -> tuple[Params, State]:
      params, state = model.init(key, inputs)
      check_dict(params, name)
      passes = quant_program.trace_training(
        model, params, state, inputs, key=key, step=jnp.zeros((), jnp.int32), bits=number, rules=rules, what=name
      )
      program, leaves = passes.program, passes.leaves
      walk.refuse_sealed(program.jaxpr, name)
      chosen = quant_program.check(program.plan, number, rules, name, passes.alone)
      quant_program.whole(program.plan, chosen, name)
      sites = program.plan.weight_sites()
      ranged = [n for n, own in chosen.items() if own is not None and own.activation is not None]
      still = trees.select(ranged, fixed, what=f'{name}: fixed') if fixed else frozenset()

      @jax.jit
      def begin(leaves: list[Any]) -> Any:
        _, measured = quant_program.run(program, leaves, chosen, _measuring, _MEASURES)
        steps = {n: first_steps(one, chosen[n], sites[n], per_channel=per_channel) for n, one in measured.items()}
        grids = {n: numerics.activation_grid(measured[n].span, chosen[n].activation) for n in ranged}
        held = {n: grids[n].scale for n in still}
        for n in still:
          del steps[n]['activation']
        zeros = {n: grid.zero for n, grid in grids.items()}
        return steps, zeros, held, {n: jnp.all(measured[n].total > 0) for n in ranged}

      steps, zeros, held, seen = begin(leaves)
      for site in ranged:
        if not isinstance(seen[site], jax.core.Tracer) and not seen[site]:
          raise ValueError(
            f'{name}: the batch given to init shows no activation but zeros at {site}, so no step can be measured: init'
            f' with real data that reaches it, or keep it float, rules={{{site!r}: None}}'
          )
      state = with_const(state, name, held) if held else state
      return {**params, entry: steps}, {**state, entry: zeros}

    def apply(params: Params, state: State, inputs: Any, *, train: bool, key: Any, step: Any = None) -> Any:
      if entry not in params or entry not in state:
        raise ValueError(f'{name} needs its steps, params[{entry!r}]: init with the model that this recipe wraps')
      held, zeros = state.get(CONST, {}).get(name, {}), state[entry]
      steps = {n: {**own, 'activation': held[n]} if n in held else own for n, own in params[entry].items()}
      inner = _without(params, entry), _without(state, entry)
      if train:
        program, leaves, *_ = quant_program.trace_training(
          model, *inner, inputs, key=key, step=step, bits=number, rules=rules, what=name, known=steps
        )
      else:
        program, leaves = quant_program.trace_model(model, *inner, inputs, train=False, key=key, step=step)
      chosen = quant_program.bits_by_site(program.plan, number, rules, name)
      reads = {site: (own, zeros.get(site)) for site, own in steps.items() if site in chosen}
      visit = _learned(chosen, real)
      (outputs, rest), _ = quant_program.run(program, leaves, chosen, visit, quant_program.NOTHING, reads)
      return outputs, {**rest, entry: zeros}

    def after(params: Params, state: State, step: Any) -> State:
      new = model.after(_without(params, entry), _without(state, entry), step)
      return {**new, entry: state[entry]} if entry in state else new

    def export(params: Params, state: State) -> tuple[Params, State]:
      return model.export(_without(params, entry), drop_extras(state, name))

    return Model(init, apply, after, export)

  return Hook(name, model=wrap, account=account_of(wrap, entry, number, rules), reads=True)


class Measured(NamedTuple):
  """What a site shows of its operands; merged over iterations, branches and shards.

  Attributes:
    span: the activation's range.
    total: float32[], sum of its magnitudes.
    count: float32[], of its finite values.
    weight: float32[channels], mean magnitude of the weight by output channel; 0 is not seen.
  """

  span: numerics.Range
  total: jax.Array
  count: jax.Array  # type: ignore[assignment]  # tuples have a method of this name
  weight: jax.Array


def first_steps(measured: Measured, bits: Bits, site: provenance.Site, *, per_channel: bool) -> dict[str, jax.Array]:
  """Returns the steps that learning begins with: 2 * mean|v| / sqrt(Qp).

  Args:
    measured: of a site, with or without leading axes.
    bits: of weight and activation.
    site: whose they are.
    per_channel: a weight step for each output channel, or one for all.

  Returns:
    {'weight': float32[..., channels] or [...], 'activation': float32[...]}, the latter where it has bits. Where
    every weight is zero, as a last layer often begins, the step is that of weights which keep the variance.
  """
  size = measured.weight if per_channel else jnp.mean(measured.weight, axis=-1)
  summed = math.prod(site.shape) // max(site.channels, 1)
  usual = np.float32(math.sqrt(2 / math.pi / max(summed, 1)))  # mean|w| of a normal weight of variance 1 / summed
  most = 2 ** (bits.weight - 1) - 1
  steps = {'weight': 2 * jnp.where(size > 0, size, usual) * np.float32(1 / math.sqrt(most))}
  if bits.activation is not None:
    high = numerics.activation_grid(measured.span, bits.activation).high
    steps['activation'] = 2 * measured.total / jnp.maximum(measured.count, 1) / jnp.sqrt(jnp.maximum(high, 1))
  return steps


def _measuring(site: Any, product: Product, x: Any, w: Any, read: Any, axes: tuple[str, ...]) -> Any:
  del site, read
  size = jnp.abs(x.astype(jnp.float32))
  finite = jnp.isfinite(size)
  total, count = jnp.sum(size, where=finite), jnp.sum(finite, dtype=jnp.float32)
  weight = jnp.mean(jnp.abs(w.astype(jnp.float32)), axis=product.summed_axes(w.ndim)).reshape(-1)
  measured = Measured(numerics.observe(x), total, count, weight)
  return product.bind(x, w), _measured_across(measured, axes) if axes else measured


def _measured_across(measured: Measured, axes: tuple[str, ...]) -> Measured:
  return Measured(
    quant_program.RANGES.across(measured.span, axes),
    lax.psum(measured.total, axes),
    lax.psum(measured.count, axes),
    lax.pmax(measured.weight, axes),
  )


def _no_measure(site: provenance.Site, lengths: tuple[int, ...]) -> Measured:
  nothing = jnp.zeros(lengths, jnp.float32)
  return Measured(numerics.unseen(lengths), nothing, nothing, jnp.zeros((*lengths, site.channels), jnp.float32))


_MEASURES = quant_program.Combine(
  merge=lambda one, other: Measured(
    numerics.merge(one.span, other.span),
    one.total + other.total,
    one.count + other.count,
    jnp.maximum(one.weight, other.weight),
  ),
  fold=lambda many: Measured(
    quant_program.RANGES.fold(many.span),
    jnp.sum(many.total, axis=0),
    jnp.sum(many.count, axis=0),
    jnp.max(many.weight, axis=0, initial=0),
  ),
  absent=_no_measure,
  across=_measured_across,
)


def _learned(bits: Mapping[str, Bits | None], real: bool) -> Callable[..., Any]:
  """Returns the Visit that quantizes by learned steps."""

  def visit(site: provenance.Site, product: Product, x: Any, w: Any, read: Any, axes: Any) -> Any:
    own = bits[site.name]
    if read is None:  # a second use that only this kind of pass has: by what it sees
      if own.activation is None:
        return products.weight_quantized(product, x, w, bits=own), ()
      span = quant_program.seen(site, x, w, axes)
      return products.quantized(product, x, w, span, bits=own, real=real), ()
    steps, zero = read
    shards = lax.psum(1, axes) if axes else 1
    return learned(product, x, w, steps, zero, bits=own, real=real, count=x.size * shards), ()

  return visit


def learned(
  product: Product,
  x: jax.Array,
  w: jax.Array,
  steps: Mapping[str, jax.Array],
  zero: jax.Array | None,
  *,
  bits: Bits,
  real: bool,
  count: int,
) -> jax.Array:
  """Contracts in integers of learned steps.

  Args:
    product: the contraction.
    x: the activation, float[...].
    w: the weight, float[...].
    steps: {'weight': float32[channels] or float32[], 'activation': float32[]}.
    zero: float32[], how a real 0 of the activation is stored; None where that is float.
    bits: of weight and activation.
    real: whether to execute int8 operands into int32.
    count: the number of activations that share their step.

  Returns:
    The result in the original's dtype. Values pass their gradient straight through within the grid, none beyond; a
    step gets round(v / s) - v / s within the grid, its end beyond, times 1 / sqrt(N * Qp).
  """
  axes = product.summed_axes(w.ndim)
  shape = tuple(1 if axis in axes else size for axis, size in enumerate(w.shape))
  w_rate = 1 / math.sqrt(max(w.size // max(steps['weight'].size, 1), 1) * (2.0 ** (bits.weight - 1) - 1))
  contract = _learning(product, bits, real, count, w_rate)
  w_step = _positive(steps['weight'])
  w_step = w_step.reshape(shape) if w_step.ndim else jnp.broadcast_to(w_step, shape)
  if bits.activation is None:
    return contract(x, w, None, w_step, None)
  return contract(x, w, _positive(steps['activation']), w_step, lax.stop_gradient(zero))


@traced_once
def _learning(product: Product, bits: Bits, real: bool, count: int, w_rate: float) -> Callable[..., jax.Array]:
  most = 2.0 ** (bits.weight - 1) - 1

  @jax.custom_jvp
  def contract(x: jax.Array, w: jax.Array, x_step: Any, w_step: jax.Array, zero: Any) -> jax.Array:
    return forward(x, w, x_step, w_step, zero)[0]

  def forward(x: jax.Array, w: jax.Array, x_step: Any, w_step: jax.Array, zero: Any) -> Any:
    on_w = _on_grid(w, w_step, -most, most)
    w_steps = products.marked(on_w.steps, bits.weight)
    if x_step is None:
      return products.scaled_by_weight(product, x, w_steps, w_step), (None, on_w)
    lowest = -(2.0 ** (bits.activation - 1)) - zero
    on_x = _on_grid(x, x_step, lowest, lowest + 2.0**bits.activation - 1)
    return products.scaled(product, on_x.steps, x_step, w_steps, w_step, zero, real=real), (on_x, on_w)

  @functools.partial(contract.defjvp, symbolic_zeros=True)
  def _(primals: Any, tangents: Any) -> Any:
    x, w, x_step, w_step, zero = primals
    dx, dw, dx_step, dw_step, _ = [_moving(one) for one in tangents]
    out, (on_x, on_w) = forward(*primals)
    dw = on_w.pulled(
      dw, None if dw_step is None else _spread(dw_step * w_rate, w.shape, product.summed_axes(w.ndim)), w.dtype
    )
    dw = jnp.zeros_like(w) if dw is None else dw
    if on_x is None:
      return out, products.tangent(product, x, None, on_w.steps, w_step, dx, dw, out)
    highest = 2.0 ** (bits.activation - 1) - 1 - zero
    dx_step = None if dx_step is None else dx_step / jnp.sqrt(count * jnp.maximum(highest, 1))
    by_step: Any = 0
    if dx is None and dx_step is not None and product.is_conv:
      # Of what nothing learned comes before, only the step moves: a forward convolution tells by how much, and takes
      # XLA:CPU less than half the time of the transposed one.
      seen = product.bind(on_x.slope.astype(x.dtype), (on_w.steps * w_step).astype(w.dtype))
      dx_step, by_step = None, (seen.astype(jnp.float32) * dx_step).astype(product.dtype)
    dx = on_x.pulled(dx, dx_step, x.dtype)
    return out, products.tangent(product, on_x.steps, x_step, on_w.steps, w_step, dx, dw, out) + by_step

  return contract


class _OnGrid(NamedTuple):
  """Values on a grid of steps, and what a small change of value and step does to what they stand for."""

  steps: jax.Array  # integers
  inside: jax.Array  # bool: within the grid
  slope: jax.Array  # of the quantized value by its step

  def pulled(self, dv: jax.Array | None, dstep: jax.Array | None, dtype: Any) -> jax.Array | None:
    by_step = None if dstep is None else (self.slope * dstep).astype(dtype)
    if dv is None:
      return by_step
    through = jnp.where(self.inside, dv, 0)
    return through if by_step is None else through + by_step


def _spread(per_channel: jax.Array, shape: tuple[int, ...], axes: tuple[int, ...]) -> jax.Array:
  """Broadcasts by a product with ones, whose transpose, a product too, sums on XLA:CPU faster than its reductions."""
  ones = jnp.ones([shape[axis] for axis in axes], per_channel.dtype)
  outer = lax.dot_general(ones, jnp.squeeze(per_channel, axes), (((), ()), ((), ())), precision=lax.Precision.HIGHEST)
  return jnp.moveaxis(outer, range(len(axes)), axes)


def _moving(tangent: Any) -> Any:
  """Returns a tangent, None where there is none."""
  return None if isinstance(tangent, SymbolicZero) else tangent


def _on_grid(v: jax.Array, step: jax.Array, low: Any, high: Any) -> _OnGrid:
  place = v.astype(jnp.float32) * (1.0 / step)
  steps = jnp.clip(jnp.round(place), low, high)
  inside = (low < place) & (place < high)
  return _OnGrid(steps, inside, jnp.where(inside, steps - place, steps))


def _positive(step: jax.Array) -> jax.Array:
  """The size of a parameter; the least that is added changes no step, and keeps a gradient at 0."""
  return jnp.where(step < 0, -step, step).astype(jnp.float32) + numerics.SMALLEST


def _without(tree: Mapping[str, Any], entry: str) -> dict[str, Any]:
  return {key: value for key, value in tree.items() if key != entry}
