"""Quantization to 2 to 8 bits by rewriting the program: fake in training, real integers from the same ranges.

Any JAX function, whatever wrote it: its jaxpr is read, each contraction of a weight with an activation is done in
integers (`quant_product.py`), all else stays. Nothing is patched, so a float trace before or after changes
nothing. What could not be quantized is told by `coverage`, never passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import trees
from jaxlite.contract import Hook, Model, Params, State, drop_extras
from jaxlite.graph.provenance import DATA, weight
from jaxlite.transforms import quant_numerics as numerics
from jaxlite.transforms import quant_program
from jaxlite.transforms.activations import Activations, check_step, ema_ranges, given_ranges
from jaxlite.transforms.quant_numerics import BitsLike, check_bits
from jaxlite.transforms.quant_program import Ranges, Rules


class Coverage(NamedTuple):
  """One contraction of a function, and what quantization does with it.

  Attributes:
    name: the path of its weight, `#2` on a second use; '' where it has none.
    kind: dot_general, conv_general_dilated, ...
    bits: of its weight; None where it stays float.
    activation_bits: of its activation; None where that stays float.
    why: why it stays float, or what to know; '' where there is nothing to say.
    flops: floating-point operations of one call; of branches that share a weight the first is counted, of a
      while loop one iteration.
    share: of all contractions' flops, from 0 to 1.
  """

  name: str
  kind: str
  bits: int | None
  activation_bits: int | None
  why: str
  flops: int
  share: float

  @property
  def quantized(self) -> bool:
    return self.bits is not None


def quantize(
  fn: Callable[..., Any],
  *,
  bits: BitsLike = 8,
  weights: int | Sequence[int] = 0,
  real: bool = False,
  rules: Rules | None = None,
  ranges: Ranges | None = None,
  attention: bool = False,
) -> Callable[..., Any]:
  """Returns the function with its contractions of weights and activations done in integers.

  Weights are symmetric per output channel, activations affine per tensor over the range of the call, or over
  given ranges. A weight is what depends on the weight arguments and constants only: a masked, transposed or
  normalised weight is one. Gradients pass straight through, zero where an activation was clipped: take
  `jax.grad` of the result, not the other way round.

  Args:
    fn: any function of pytrees of arrays; leaves that are no arrays are passed as they are.
    bits: 2 to 8, of weights and activations, or a pair of theirs; (4, None) leaves activations float.
    weights: position(s) of the arguments that hold the weights.
    real: execute int8 operands into int32 instead of integer-valued float32. Bit-equal while
      K * max|a| * max|w| <= 2^24, K being the length of the sum.
    rules: {regular expression on a site's name: bits, as above, or None to keep it float}; the first match decides.
    ranges: {site: (lowest, highest)}, as `observe`, `calibrate` or `model_state['jl.fake_quant']` gives them; a
      site that it lacks takes the range of the call.
    attention: also quantize products of two activations, both per tensor, named `<activations>`.

  Returns:
    A function of the same arguments.

  Raises:
    ValueError: when called, if nothing could be quantized, or a rule matches nothing.

  References:
    Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
    2018, https://arxiv.org/abs/1712.05877

  >>> import jax.numpy as jnp
  >>> w, x = jnp.array([[0.5], [-1.0]]), jnp.array([[0.1, 0.7], [1.0, 0.0]])
  >>> dense = lambda w, x: x @ w
  >>> fake, real = quantize(dense)(w, x), quantize(dense, real=True)(w, x)
  >>> bool((fake == real).all()), bool((abs(fake - dense(w, x)) < 0.01).all())
  (True, True)
  """
  number = check_bits(bits, 'quantize')

  def quantized(*args: Any, **kwargs: Any) -> Any:
    program, leaves = _program(fn, weights, args, kwargs, attention)
    chosen = quant_program.check(program.plan, number, rules, 'quantize')
    unknown = sorted(set(ranges or {}) - set(chosen))
    if unknown:
      raise ValueError(
        f'quantize: ranges name {unknown[0]!r}, which is no site; nearest: {trees.nearest(unknown[0], chosen)}'
      )
    visit = quant_program.in_integers(chosen, quant_program.stored_or, real=real)
    return quant_program.run(program, leaves, chosen, visit, quant_program.RANGES, ranges)[0]

  return quantized


def observe(
  fn: Callable[..., Any], *, weights: int | Sequence[int] = 0, rules: Rules | None = None, attention: bool = False
) -> Callable[..., tuple[Any, dict[str, numerics.Range]]]:
  """Returns the function in float, giving also the ranges of its activations, for `quantize(ranges=)`.

  Args:
    fn: any function of pytrees of arrays.
    weights: position(s) of the arguments that hold the weights.
    rules: as in `quantize`; sites kept float are not observed.
    attention: as in `quantize`.

  Returns:
    A function of the same arguments, to (outputs, {site: (lowest, highest)}). Ranges of several batches merge
    by minimum and maximum.

  >>> import jax.numpy as jnp
  >>> _, ranges = observe(lambda p, x: x @ p['w'])({'w': jnp.ones((2, 2))}, jnp.array([[0.0, 3.0]]))
  >>> {name: [float(end) for end in span] for name, span in ranges.items()}
  {'w': [0.0, 3.0]}
  """

  def observed(*args: Any, **kwargs: Any) -> tuple[Any, dict[str, numerics.Range]]:
    program, leaves = _program(fn, weights, args, kwargs, attention)
    chosen = quant_program.check(program.plan, check_bits(numerics.MAX_BITS, 'observe'), rules, 'observe')
    return quant_program.run(program, leaves, chosen, quant_program.observing, quant_program.RANGES)

  return observed


def coverage(
  fn: Callable[..., Any],
  *,
  bits: BitsLike = 8,
  weights: int | Sequence[int] = 0,
  rules: Rules | None = None,
  attention: bool = False,
) -> Callable[..., list[Coverage]]:
  """Tells what `quantize` with the same arguments would do to a function: every contraction, and why not.

  Args:
    fn: any function of pytrees of arrays.
    bits: as in `quantize`.
    weights: as in `quantize`.
    rules: as in `quantize`.
    attention: as in `quantize`.

  Returns:
    A function of the same arguments (arrays or ShapeDtypeStructs) to a list of Coverage, in program order.

  >>> import jax.numpy as jnp
  >>> attend = lambda p, x: (x @ p['q']) @ (x @ p['k']).T
  >>> for row in coverage(attend)({'q': jnp.ones((4, 2)), 'k': jnp.ones((4, 2))}, jnp.ones((3, 4))):
  ...   print(row.name, row.bits, row.why, round(row.share, 2))
  q 8  0.36
  k 8  0.36
   None both operands are activations 0.27
  """

  number = check_bits(bits, 'coverage')

  def covered(*args: Any, **kwargs: Any) -> list[Coverage]:
    program, _ = _program(fn, weights, args, kwargs, attention)
    sites = program.plan.all_sites()
    decide = quant_program.check if rules else quant_program.bits_by_site
    chosen = decide(program.plan, number, rules, 'coverage')
    total = sum(site.flops for site in sites) or 1
    rows = []
    for site in sites:
      kept = None if site.why_not else chosen[site.name]
      why = site.why_not or ('kept float by rule' if kept is None else '')
      if kept is not None and site.custom:
        why = 'its gradient is its own derivative rule'
      weight_bits, activation_bits = kept or (None, None)
      weight_bits = activation_bits if site.paired else weight_bits
      share = site.flops / total
      rows.append(Coverage(site.name, site.kind, weight_bits, activation_bits, why, site.flops, share))
    return rows

  return covered


def _program(
  fn: Callable[..., Any], weights: int | Sequence[int], args: Sequence[Any], kwargs: dict[str, Any], attention: bool
) -> tuple[quant_program.Program, list[Any]]:
  positions = (weights,) if isinstance(weights, int) else tuple(weights)
  for position in positions:
    if not 0 <= position < len(args):
      raise ValueError(
        f'weights are looked for at position {position}, and {len(args)} arguments were given by position: pass'
        ' them by position, or correct weights='
      )
  tags = []
  for position, arg in enumerate((*args, kwargs)):
    prefix = f'arg{position}/' if len(positions) > 1 else ''
    for path, leaf in zip(*trees.flatten(arg)[:2], strict=True):
      if _is_array(leaf):
        name = (prefix + path).rstrip('/') or f'arg{position}'
        is_weight = position in positions and not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        tags.append(weight(name) if is_weight else DATA)
  leaves, treedef = jax.tree.flatten((tuple(args), kwargs))
  arrays = [leaf for leaf in leaves if _is_array(leaf)]

  def of_arrays(arrays: list[Any]) -> Any:
    rest = iter(arrays)
    args, kwargs = jax.tree.unflatten(treedef, [next(rest) if _is_array(leaf) else leaf for leaf in leaves])
    return fn(*args, **kwargs)

  return quant_program.trace(of_arrays, [arrays], tags, pairs=attention), arrays


def _is_array(leaf: Any) -> bool:
  return isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def fake_quant(
  bits: BitsLike = 8,
  *,
  rules: Rules | None = None,
  activations: Activations | None = None,
  decay: float | None = None,
  begin: int = 0,
  attention: bool = False,
  real: bool = False,
  name: str = 'fake_quant',
) -> Hook:
  """Trains the model as it will run in integers (quantization-aware training).

  Every contraction of a weight with an activation is quantized, as in `quantize`. Activation ranges are moving
  averages in `model_state['jl.<name>'] = {site: (lowest, highest)}`: a train step adopts the first range that it
  sees and then moves by 1 - decay; evaluation takes them as they stand. Evaluation always shows the integers,
  also before `begin`. On export the ranges go and the weights stay float: rounding them is deployment's.

  A batch norm is trained as it will be deployed, whether or not it is folded into its contraction: a factor per
  output channel changes no integer but its sign, see `quant_numerics.py`.

  Args:
    bits: 2 to 8, of weights and activations, or a pair of theirs; (4, None) leaves activations float.
    rules: {regular expression on a site's name, the path of its weight: bits, as above, or None to keep it float};
      the first match decides.
    activations: where their ranges come from: `ema_ranges(decay, freeze=)`, `dynamic_ranges()` or
      `frozen_ranges(ranges)`; None is `ema_ranges()`.
    decay: short for `activations=ema_ranges(decay)`.
    begin: optimizer steps before which training is float; ranges are collected all the same.
    attention: also quantize products of two activations, named `<activations>`; each end of their range is
      float32[2], one for either operand.
    real: execute int8 operands into int32 instead of integer-valued float32; for evaluation and deployment, on the
      params and state that the fake model was trained to.
    name: of the hook.

  Returns:
    The Hook. Its model's `init` raises ValueError where nothing can be quantized or a rule matches nothing.

  References:
    Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
    2018, https://arxiv.org/abs/1712.05877

  >>> import jax, jax.numpy as jnp
  >>> def apply(p, s, x, *, train, key, step=None):
  ...   return x @ p['dense']['kernel'], s
  >>> base = Model(init=lambda key, x: ({'dense': {'kernel': jnp.ones((2, 2))}}, {}), apply=apply)
  >>> model = fake_quant(bits=8).model(base)
  >>> params, state = model.init(jax.random.key(0), jnp.ones((1, 2)))
  >>> _, state = model.apply(params, state, jnp.array([[0.0, 2.0]]), train=True, key=None, step=0)
  >>> [float(end) for end in state['jl.fake_quant']['dense/kernel']]
  [0.0, 2.0]
  """
  number = check_bits(bits, name)
  for pattern, value in (rules or {}).items():
    if value is not None:
      check_bits(value, f'{name}: rule {pattern!r}')
  if activations is not None and decay is not None:
    raise ValueError(f'{name}: decay is short for activations=ema_ranges(decay): give one of them')
  source = activations or ema_ranges(0.99 if decay is None else decay)
  check_step(begin, f'{name}: begin')
  entry = f'jl.{name}'

  def wrap(model: Model) -> Model:
    def init(key: Any, inputs: Any) -> tuple[Params, State]:
      params, state = model.init(key, inputs)
      program, _ = quant_program.trace_model(
        model, params, state, inputs, train=True, key=key, step=jnp.zeros((), jnp.int32), pairs=attention
      )
      chosen = quant_program.check(program.plan, number, rules, name)
      sites = program.plan.weight_sites()
      ranged = [n for n, own in chosen.items() if own is not None and own.activation is not None]
      shapes = {n: quant_program.range_shape(sites[n]) for n in ranged}
      if source.ranges is not None:
        return params, {**state, entry: given_ranges(source.ranges, shapes, name)}
      return params, {**state, entry: {n: numerics.unseen(shapes[n]) for n in shapes if source.kept}}

    def apply(params: Params, state: State, inputs: Any, *, train: bool, key: Any, step: Any = None) -> Any:
      if entry not in state:
        raise ValueError(f'{name} needs its ranges, model_state[{entry!r}]: init with the model that this recipe wraps')
      inner, ranges = _without(state, entry), state[entry]
      program, leaves = quant_program.trace_model(
        model, params, inner, inputs, train=train, key=key, step=step, pairs=attention
      )
      chosen = quant_program.bits_by_site(program.plan, number, rules, name)
      sites = program.plan.weight_sites()
      # A second use that only this kind of pass has is quantized by what it sees.
      shapes = {n: quant_program.range_shape(site) for n, site in sites.items()}
      known = {n: span for n, span in ranges.items() if n in sites and span[0].shape == shapes[n]}
      active = jnp.asarray(step) >= begin if train and begin and step is not None else None

      def moved(stored: numerics.Range | None, seen: numerics.Range) -> numerics.Range:
        return source.used(stored, seen, step)

      choose = moved if train else quant_program.stored_or
      observe = source.ranges is None
      visit = quant_program.in_integers(chosen, choose, real=real, active=active, observe=observe)
      combine = quant_program.RANGES if observe else quant_program.NOTHING
      (outputs, inner), seen = quant_program.run(program, leaves, chosen, visit, combine, known)
      if train and observe:
        ranges = {n: moved(span, seen[n]) if n in known else span for n, span in ranges.items()}
      return outputs, {**inner, entry: ranges}

    def after(params: Params, state: State, step: Any) -> State:
      new = model.after(params, _without(state, entry), step)
      return {**new, entry: state[entry]} if entry in state else new

    def export(params: Params, state: State) -> tuple[Params, State]:
      return model.export(params, drop_extras(state, name))

    return Model(init, apply, after, export)

  return Hook(name, model=wrap)


def weight_bits(model: Model, params: Params, model_state: State, inputs: Any) -> dict[str, int]:
  """Tells the bits of every weight that a model multiplies in integers, read off the program that it runs.

  Args:
    model: as the recipe wrapped it.
    params: its params.
    model_state: its state.
    inputs: one batch, arrays or ShapeDtypeStructs.

  Returns:
    {path: bits}; a weight that is not listed is float. Used at several sites, the most bits.
  """
  program, _ = quant_program.trace_model(model, params, model_state, inputs, train=False, key=None, step=None)
  found: dict[str, int] = {}
  for mark, paths in quant_program.marks(program.plan):
    if mark.startswith(numerics.MARK):
      bits = int(mark.removeprefix(numerics.MARK))
      found.update({path: max(bits, found.get(path, 0)) for path in paths if not trees.is_extra(path)})
  return found


def _without(state: State, entry: str) -> State:
  return {key: value for key, value in state.items() if key != entry}
