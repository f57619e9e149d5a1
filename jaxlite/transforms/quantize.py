"""Quantization to 2 to 8 bits by rewriting the program: fake in training, real integers from the same ranges.

Any JAX function, whatever wrote it: its jaxpr is read, each contraction of a weight with an activation is done in
integers (`quant_numerics.py`), all else stays. Nothing is patched, so a float trace before or after changes
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
from jaxlite.graph.sources import model_tags
from jaxlite.transforms import quant_numerics as numerics
from jaxlite.transforms import quant_program
from jaxlite.transforms.quant_program import Ranges, Rules


class Coverage(NamedTuple):
  """One contraction of a function, and what quantization does with it.

  Attributes:
    name: the path of its weight, `#2` on a second use; '' where it has none.
    kind: dot_general, conv_general_dilated, ...
    bits: of weight and activation; None where it stays float.
    why: why it stays float, or what to know; '' where there is nothing to say.
    flops: floating-point operations of one call; of branches that share a weight the first is counted, of a
      while loop one iteration.
    share: of all contractions' flops, from 0 to 1.
  """

  name: str
  kind: str
  bits: int | None
  why: str
  flops: int
  share: float

  @property
  def quantized(self) -> bool:
    return self.bits is not None


def quantize(
  fn: Callable[..., Any],
  *,
  bits: int = 8,
  weights: int | Sequence[int] = 0,
  real: bool = False,
  rules: Rules | None = None,
  ranges: Ranges | None = None,
) -> Callable[..., Any]:
  """Returns the function with its contractions of weights and activations done in integers.

  Weights are symmetric per output channel, activations affine per tensor over the range of the call, or over
  given ranges. A weight is what depends on the weight arguments and constants only: a masked, transposed or
  normalised weight is one. Gradients pass straight through, zero where an activation was clipped: take
  `jax.grad` of the result, not the other way round.

  Args:
    fn: any function of pytrees of arrays; leaves that are no arrays are passed as they are.
    bits: 2 to 8, of weights and activations.
    weights: position(s) of the arguments that hold the weights.
    real: execute int8 operands into int32 instead of integer-valued float32. Bit-equal while
      K * max|a| * max|w| <= 2^24, K being the length of the sum.
    rules: {regular expression on a site's name: bits, or None to keep it float}; the first match decides.
    ranges: {site: (lowest, highest)}, as `observe` or `model_state['jl.fake_quant']` gives them; a site that
      it lacks takes the range of the call.

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
  numerics.check_bits(bits, 'quantize')

  def quantized(*args: Any, **kwargs: Any) -> Any:
    program, leaves = _program(fn, weights, args, kwargs)
    quant_program.check(program.plan, rules, 'quantize')
    chosen = quant_program.bits_by_site(program.plan, bits, rules)
    unknown = sorted(set(ranges or {}) - set(chosen))
    if unknown:
      raise ValueError(
        f'quantize: ranges name {unknown[0]!r}, which is no site; nearest: {trees.nearest(unknown[0], chosen)}'
      )
    return quant_program.run(program, leaves, chosen, _frozen, ranges=ranges, real=real)[0]

  return quantized


def observe(
  fn: Callable[..., Any], *, weights: int | Sequence[int] = 0, rules: Rules | None = None
) -> Callable[..., tuple[Any, dict[str, numerics.Range]]]:
  """Returns the function in float, giving also the ranges of its activations, for `quantize(ranges=)`.

  Args:
    fn: any function of pytrees of arrays.
    weights: position(s) of the arguments that hold the weights.
    rules: as in `quantize`; sites kept float are not observed.

  Returns:
    A function of the same arguments, to (outputs, {site: (lowest, highest)}). Ranges of several batches merge
    by minimum and maximum.

  >>> import jax.numpy as jnp
  >>> _, ranges = observe(lambda p, x: x @ p['w'])({'w': jnp.ones((2, 2))}, jnp.array([[0.0, 3.0]]))
  >>> {name: [float(end) for end in span] for name, span in ranges.items()}
  {'w': [0.0, 3.0]}
  """

  def observed(*args: Any, **kwargs: Any) -> tuple[Any, dict[str, numerics.Range]]:
    program, leaves = _program(fn, weights, args, kwargs)
    quant_program.check(program.plan, rules, 'observe')
    chosen = quant_program.bits_by_site(program.plan, numerics.MAX_BITS, rules)
    return quant_program.run(program, leaves, chosen, _frozen, floating=True)

  return observed


def coverage(
  fn: Callable[..., Any], *, bits: int = 8, weights: int | Sequence[int] = 0, rules: Rules | None = None
) -> Callable[..., list[Coverage]]:
  """Tells what `quantize` with the same arguments would do to a function: every contraction, and why not.

  Args:
    fn: any function of pytrees of arrays.
    bits: as in `quantize`.
    weights: as in `quantize`.
    rules: as in `quantize`.

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

  def covered(*args: Any, **kwargs: Any) -> list[Coverage]:
    program, _ = _program(fn, weights, args, kwargs)
    sites = program.plan.all_sites()
    if rules:
      quant_program.check(program.plan, rules, 'coverage')
    chosen = quant_program.bits_by_site(program.plan, bits, rules)
    total = sum(site.flops for site in sites) or 1
    rows = []
    for site in sites:
      kept = None if site.why_not else chosen[site.name]
      why = site.why_not or ('kept float by rule' if kept is None else '')
      if kept is not None and site.custom:
        why = 'its gradient is its own derivative rule'
      rows.append(Coverage(site.name, site.kind, kept, why, site.flops, site.flops / total))
    return rows

  return covered


def _frozen(stored: numerics.Range | None, seen: numerics.Range) -> numerics.Range:
  """Takes the stored range where there is one, else that of the call."""
  if stored is None:
    return seen
  known = numerics.is_seen(stored)
  return jnp.where(known, stored[0], seen[0]), jnp.where(known, stored[1], seen[1])


def _program(
  fn: Callable[..., Any], weights: int | Sequence[int], args: Sequence[Any], kwargs: dict[str, Any]
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

  return quant_program.trace(of_arrays, [arrays], tags), arrays


def _is_array(leaf: Any) -> bool:
  return isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def fake_quant(
  bits: int = 8,
  *,
  rules: Rules | None = None,
  decay: float = 0.99,
  begin: int = 0,
  name: str = 'fake_quant',
) -> Hook:
  """Trains the model as it will run in integers (quantization-aware training).

  Every contraction of a weight with an activation is quantized, as in `quantize`. Activation ranges are moving
  averages in `model_state['jl.<name>'] = {site: (lowest, highest)}`: a train step adopts the first range that it
  sees and then moves by 1 - decay; evaluation takes them as they stand. Evaluation always shows the integers,
  also before `begin`. On export the ranges go and the weights stay float: rounding them is deployment's.

  Args:
    bits: 2 to 8, of weights and activations.
    rules: {regular expression on a site's name, the path of its weight: bits, or None to keep it float}; the
      first match decides.
    decay: of the ranges, a step; from 0 (the last batch's) to below 1.
    begin: optimizer steps before which training is float; ranges are collected all the same.
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
  numerics.check_bits(bits, name)
  for pattern, value in (rules or {}).items():
    if value is not None:
      numerics.check_bits(value, f'{name}: rule {pattern!r}')
  if not 0 <= decay < 1:
    raise ValueError(f'{name}: decay is from 0 to below 1, got {decay!r}')
  if isinstance(begin, bool) or not isinstance(begin, int | np.integer) or begin < 0:
    raise ValueError(f'{name}: begin is a whole number of optimizer steps, got {begin!r}')
  entry = f'jl.{name}'

  def average(stored: numerics.Range | None, seen: numerics.Range) -> numerics.Range:
    return seen if stored is None else numerics.blend(stored, seen, decay)

  def wrap(model: Model) -> Model:
    def init(key: Any, inputs: Any) -> tuple[Params, State]:
      params, state = model.init(key, inputs)
      program, _ = _model_program(model, params, state, inputs, train=True, key=key, step=jnp.zeros((), jnp.int32))
      quant_program.check(program.plan, rules, name)
      chosen = quant_program.bits_by_site(program.plan, bits, rules)
      sites = program.plan.weight_sites()
      return params, {**state, entry: {n: numerics.unseen(sites[n].lengths) for n in chosen if chosen[n] is not None}}

    def apply(params: Params, state: State, inputs: Any, *, train: bool, key: Any, step: Any = None) -> Any:
      if entry not in state:
        raise ValueError(f'{name} needs its ranges, model_state[{entry!r}]: init with the model that this recipe wraps')
      inner, ranges = _without(state, entry), state[entry]
      program, leaves = _model_program(model, params, inner, inputs, train=train, key=key, step=step)
      chosen = quant_program.bits_by_site(program.plan, bits, rules)
      sites = program.plan.weight_sites()
      # A second use that only this kind of pass has is quantized by what it sees.
      known = {n: span for n, span in ranges.items() if n in sites and span[0].shape == sites[n].lengths}
      active = jnp.asarray(step) >= begin if train and begin and step is not None else None
      (outputs, inner), seen = quant_program.run(
        program, leaves, chosen, average if train else _frozen, ranges=known, active=active
      )
      if train:
        ranges = {n: numerics.blend(span, seen[n], decay) if n in known else span for n, span in ranges.items()}
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
  program, _ = _model_program(model, params, model_state, inputs, train=False, key=None, step=None)
  found: dict[str, int] = {}
  for plan in program.plan.walk():
    for mark, paths in plan.marks:
      if mark.startswith(numerics.MARK):
        bits = int(mark.removeprefix(numerics.MARK))
        found.update({path: max(bits, found.get(path, 0)) for path in paths if not trees.is_extra(path)})
  return found


def _without(state: State, entry: str) -> State:
  return {key: value for key, value in state.items() if key != entry}


def _model_program(
  model: Model, params: Params, state: State, inputs: Any, *, train: bool, key: Any, step: Any
) -> tuple[quant_program.Program, list[Any]]:
  """Traces a model's apply."""

  def fn(params: Params, state: State, inputs: Any, key: Any, step: Any) -> Any:
    return model.apply(params, state, inputs, train=train, key=key, step=step)

  args = (params, state, inputs, key, step)
  return quant_program.trace(fn, args, model_tags(*args)), jax.tree.leaves(args)
