"""Quantization to 2 to 8 bits by rewriting the program: fake in training, real integers from the same ranges.

Any JAX function, whatever wrote it: its jaxpr is read, each contraction of a weight with an activation is done in
integers (`_product.py`), all else stays. Nothing is patched, so a float trace before or after changes
nothing. What could not be quantized is told by `coverage`, never passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from jaxlite import trees
from jaxlite.contract import Network
from jaxlite.errors import misplaced
from jaxlite.graph import walk
from jaxlite.graph.effects import is_array, without_effects
from jaxlite.graph.model import model_tags
from jaxlite.graph.provenance import DATA, weight
from jaxlite.quantization import _numerics as numerics
from jaxlite.quantization import _program as quant_program
from jaxlite.quantization._numerics import Bits, BitsLike, check_bits
from jaxlite.quantization._points import Points
from jaxlite.quantization._program import Ranges, Rules
from jaxlite.quantization._ranges import check_ranges


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
  fn: Callable[..., Any] | Network,
  *,
  bits: BitsLike = 8,
  weights: int | Sequence[int] = 0,
  real: bool = False,
  rules: Rules | None = None,
  ranges: Ranges | None = None,
  attention: bool = False,
  every: bool = False,
) -> Callable[..., Any]:
  """Returns the function with its contractions of weights and activations done in integers.

  Weights are symmetric per output channel, activations affine per tensor over the range of the call, or over
  given ranges. A weight is what depends on the weight arguments and constants only: a masked, transposed or
  normalized weight is one. Gradients pass straight through, zero where an activation was clipped: take
  `jax.grad` of the result, not the other way round. Second derivatives (Hessians, a gradient of a gradient) do not:
  they see the rounding, whose slope is zero, so take those of the float function.

  Args:
    fn: any function of pytrees of arrays; leaves that are no arrays are passed as they are. Or a Network, such as
      `jaxlite.load` gives: the result is then a function of its inputs.
    bits: 2 to 8, of weights and activations, or a pair of theirs; (4, None) leaves activations float.
    weights: position(s) of the arguments that hold the weights.
    real: execute int8 operands into int32 instead of integer-valued float32. Bit-equal while
      K * max|a| * max|w| <= 2^24, K being the length of the sum.
    rules: {regular expression on a site's name: bits, as above, or None to keep it float}; the first match decides.
    ranges: {site: (lowest, highest)}, as `observe` or `model_state['jl.fake_quant']` (of a run, of `ptq`)
      gives them; a site that it lacks takes the range of the call.
    attention: also quantize products of two activations, both per tensor, named `<activations>`.
    every: also quantize sums of activations, and compute by the rule of deployment, see `fake_quant`.

  Returns:
    A function of the same arguments.

  Raises:
    TypeError: no function.
    ValueError: ranges whose ends are not finite or the wrong way round; when called, if nothing could be quantized, or
      a rule matches nothing; if the function changes what it is given (batch statistics of a module in training) and
      does not return it.

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
  _check_function(fn, 'quantize')
  check_ranges(ranges or {}, 'quantize')

  def quantized(*args: Any, **kwargs: Any) -> Any:
    program, leaves = _program(fn, weights, args, kwargs, attention, 'quantize', every)
    walk.refuse_sealed(program.jaxpr, 'quantize')
    chosen = _chosen(program, number, rules, 'quantize')
    unknown = sorted(set(ranges or {}) - set(chosen))
    if unknown:
      raise ValueError(
        f'quantize: ranges name {unknown[0]!r}, which is no site; nearest: {trees.nearest(unknown[0], chosen)}'
      )
    visit = quant_program.in_integers(chosen, quant_program.stored_or, real=real)
    points = None
    if program.reading is not None:
      points = Points(chosen, quant_program.stored_or, {}, real, live=program.reading.live)
    return quant_program.run(program, leaves, chosen, visit, quant_program.RANGES, ranges, points)[0]

  return quantized


def observe(
  fn: Callable[..., Any] | Network,
  *,
  weights: int | Sequence[int] = 0,
  rules: Rules | None = None,
  attention: bool = False,
  every: bool = False,
) -> Callable[..., tuple[Any, dict[str, numerics.Range]]]:
  """Returns the function in float, giving also the ranges of its activations, for `quantize(ranges=)`.

  Args:
    fn: as in `quantize`.
    weights: position(s) of the arguments that hold the weights.
    rules: as in `quantize`; sites kept float are not observed.
    attention: as in `quantize`.
    every: as in `quantize`.

  Returns:
    A function of the same arguments, to (outputs, {site: (lowest, highest)}). Ranges of several batches merge
    by minimum and maximum.

  >>> import jax.numpy as jnp
  >>> _, ranges = observe(lambda p, x: x @ p['w'])({'w': jnp.ones((2, 2))}, jnp.array([[0.0, 3.0]]))
  >>> {name: [float(end) for end in span] for name, span in ranges.items()}
  {'w': [0.0, 3.0]}
  """
  _check_function(fn, 'observe')

  def observed(*args: Any, **kwargs: Any) -> tuple[Any, dict[str, numerics.Range]]:
    program, leaves = _program(fn, weights, args, kwargs, attention, 'observe', every)
    walk.refuse_sealed(program.jaxpr, 'observe')
    chosen = _chosen(program, check_bits(numerics.MAX_BITS, 'observe'), rules, 'observe')
    return quant_program.run(program, leaves, chosen, quant_program.observing, quant_program.RANGES)

  return observed


def coverage(
  fn: Callable[..., Any] | Network,
  *,
  bits: BitsLike = 8,
  weights: int | Sequence[int] = 0,
  rules: Rules | None = None,
  attention: bool = False,
) -> Callable[..., list[Coverage]]:
  """Tells what `quantize` with the same arguments would do to a function: every contraction, and why not.

  Args:
    fn: as in `quantize`.
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
  _check_function(fn, 'coverage')
  number = check_bits(bits, 'coverage')

  def covered(*args: Any, **kwargs: Any) -> list[Coverage]:
    program, _ = _program(fn, weights, args, kwargs, attention, 'coverage')
    walk.refuse_sealed(program.jaxpr, 'coverage')
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


def _check_function(fn: Any, what: str) -> None:
  if isinstance(fn, Network):
    return
  if hasattr(fn, 'init') and hasattr(fn, 'apply'):  # Linen's module, Haiku's pair: their values are no part of them
    raise TypeError(f'{what} takes a function of pytrees of arrays; got {type(fn).__name__}: give its apply')
  if not callable(fn):
    raise TypeError(f'{what} takes a function of pytrees of arrays, or a Network; got {misplaced(fn)}')


def _chosen(program: quant_program.Program, bits: Bits, rules: Rules | None, what: str) -> quant_program.Chosen:
  chosen = quant_program.check(program.plan, bits, rules, what)
  if program.reading is None:
    return chosen
  return quant_program.reached(chosen, program.plan.weight_sites(), program.reading.names)


def _program(
  fn: Callable[..., Any] | Network,
  weights: int | Sequence[int],
  args: Sequence[Any],
  kwargs: dict[str, Any],
  attention: bool,
  what: str,
  every: bool = False,
) -> tuple[quant_program.Program, list[Any]]:
  if isinstance(fn, Network):
    return _of_network(fn, weights, args, kwargs, attention, every)
  call = without_effects(fn, what)
  positions = (weights,) if isinstance(weights, int) else weights
  if not isinstance(positions, tuple | list) or not all(type(one) is int for one in positions):
    raise ValueError(f'{what}: weights= is the position of the argument that holds them, or several; got {weights!r}')
  for position in positions:
    if not 0 <= position < len(args):
      raise ValueError(
        f'weights are looked for at position {position}, counted from 0, and {len(args)} arguments were given by '
        'position: pass them by position, or correct weights='
      )
  tags, inputs = [], []
  for position, arg in enumerate((*args, kwargs)):
    prefix = f'arg{position}/' if len(positions) > 1 else ''
    for path, leaf in trees.by_path(arg).items():
      if is_array(leaf):
        name = (prefix + path).rstrip('/') or f'arg{position}'
        is_weight = position in positions and not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        tags.append(weight(name) if is_weight else DATA)
        inputs.append(position not in positions)
  leaves, treedef = jax.tree.flatten((tuple(args), kwargs))
  arrays = [leaf for leaf in leaves if is_array(leaf)]

  def of_arrays(arrays: list[Any]) -> Any:
    rest = iter(arrays)
    args, kwargs = jax.tree.unflatten(treedef, [next(rest) if is_array(leaf) else leaf for leaf in leaves])
    return call(*args, **kwargs)

  return quant_program.trace(of_arrays, [arrays], tags, pairs=attention, inputs=inputs if every else None), arrays


def _of_network(
  network: Network,
  weights: int | Sequence[int],
  args: Sequence[Any],
  kwargs: dict[str, Any],
  attention: bool,
  every: bool,
) -> tuple[quant_program.Program, list[Any]]:
  """The program of a network, as it predicts."""
  if weights != 0 or len(args) != 1 or kwargs:
    raise ValueError('a Network brings its weights: call the result with inputs alone, and leave weights= out')
  inputs = args[0] if network.encode is None else network.encode(args[0])
  params, state = network.params, network.model_state

  def forward(params: Any, state: Any, inputs: Any) -> Any:
    return network.model.apply(params, state, inputs, train=False, key=None)[0]

  given = (params, state, inputs)
  tags = model_tags(params, state, inputs, None, None)
  held = len(jax.tree.leaves((params, state)))
  leaves = jax.tree.leaves(given)
  live = [index >= held for index in range(len(leaves))] if every else None
  return quant_program.trace(forward, given, tags, pairs=attention, inputs=live), leaves
