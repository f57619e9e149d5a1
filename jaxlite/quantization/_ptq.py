"""Post-training quantization: a trained network to integers in one call, its ranges calibrated on a few batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlite.contract import Network, Params, State
from jaxlite.graph import walk
from jaxlite.graph.provenance import Site
from jaxlite.quantization import _calibration as calibration
from jaxlite.quantization import _numerics as numerics
from jaxlite.quantization import _program as quant_program
from jaxlite.quantization._calibration import BINS, Calibrate, Histogram
from jaxlite.quantization._clip_weights import clip_params
from jaxlite.quantization._multiply import Product
from jaxlite.quantization._numerics import BitsLike, check_bits
from jaxlite.quantization._program import Rules
from jaxlite.quantization._qat import fake_quant
from jaxlite.quantization._ranges import dynamic_ranges, frozen_ranges


def ptq(
  network: Network,
  batches: Iterable[Any],
  *,
  bits: BitsLike = 8,
  calibrate: Calibrate | None = None,
  clip: bool = False,
  rules: Rules | None = None,
  attention: bool = False,
  every: bool = False,
  real: bool = False,
) -> Network:
  """Quantizes a trained network without training it.

  The network runs over the batches once, in float and as in evaluation, and each activation's histogram decides its
  range. The result multiplies integers as `fake_quant` does, from those ranges, for good.

  Args:
    network: a float network: a Model with its params and state.
    batches: a few batches of data such as will be met: dicts with 'inputs' (examples of 'weight' 0 do not count), or
      bare inputs, [B, ...]; what the network's `encode` takes (rows, texts) is encoded. One pass is made.
    bits: 2 to 8, of weights and activations, or a pair of theirs; (4, None) leaves activations float.
    calibrate: `by_min_max()`, `by_percentile(percent)` or `by_mse()`; None is `by_percentile(99.9)`.
    clip: clip the largest weights of each output channel where that lessens the mean squared error of all (see
      `_clip_weights.py`). It gains most at 4 bits and below, where one large weight takes the others' steps.
    rules: {regular expression on a site's name, the path of its weight: bits, as above, or None to keep it float};
      the first match decides.
    attention: also quantize products of two activations, named `<activations>`.
    every: also quantize sums of activations, see `fake_quant`.
    real: execute int8 operands into int32 instead of integer-valued float32.

  Returns:
    The Network with the same params (clipped, where asked), encoding and answering as before; its ranges stand in
    `model_state['jl.fake_quant']`, where training can go on from with `fake_quant`.

  Raises:
    ValueError: no batches; nothing to quantize, or a network that is quantized already; an activation that no
      batch reaches; a rule of `calibrate` that answers with no range.

  References:
    Krishnamoorthi, Quantizing deep convolutional networks for efficient inference: A whitepaper, 2018,
    https://arxiv.org/abs/1806.08342
    Wu et al., Integer Quantization for Deep Learning Inference: Principles and Empirical Evaluation, 2020,
    https://arxiv.org/abs/2004.09602

  >>> import jax.numpy as jnp
  >>> from jaxlite.contract import Model
  >>> def apply(p, s, x, *, train, key, step=None):
  ...   return x @ p['w'], s
  >>> dense = Network(Model(init=None, apply=apply), {'w': jnp.array([[0.5], [-1.0]])}, {})
  >>> integers = ptq(dense, [jnp.array([[0.0, 1.0], [2.0, 0.5]])], calibrate=calibration.by_min_max())
  >>> [float(end) for end in integers.model_state['jl.fake_quant']['w']]
  [0.0, 2.0]
  """
  if not isinstance(network, Network):
    raise TypeError(
      f'ptq takes a Network, a model with its values: jl.load(workdir, model=...) or jl.Network(model, params, '
      f'model_state); got {type(network).__name__}'
    )
  number = check_bits(bits, 'ptq')
  calibrate = calibrate or calibration.by_percentile()
  if not callable(calibrate):
    raise TypeError(f'ptq: calibrate is by_min_max(), by_percentile(percent) or by_mse(), got {calibrate!r}')

  def histograms(params: Params, state: State, inputs: Any) -> dict[str, Histogram]:
    program, leaves = quant_program.trace_model(
      network.model, params, state, inputs, train=False, key=None, step=None, pairs=attention, every=every
    )
    walk.refuse_sealed(program.jaxpr, 'ptq')
    chosen = quant_program.check(program.plan, number, rules, 'ptq')
    if program.reading is not None:
      chosen = quant_program.reached(chosen, program.plan.weight_sites(), program.reading.names)
    wanted = {site: own for site, own in chosen.items() if own is not None and own.activation is not None}
    bits_of.update({site: own.activation for site, own in wanted.items()})
    return quant_program.run(program, leaves, wanted, _counting, _HISTOGRAMS)[1]

  seen: dict[str, Histogram] = {}
  bits_of: dict[str, Any] = {}
  collect, any_batch = jax.jit(histograms), False
  if isinstance(batches, Mapping):
    raise TypeError('ptq takes several batches; got one: give [batch]')
  for batch in batches:
    any_batch, inputs = True, _inputs(network, batch)
    for site, new in collect(network.params, network.model_state, inputs).items():
      new = jax.tree.map(np.asarray, new)._replace(counts=np.asarray(new.counts, np.int64))
      seen[site] = calibration.merge(seen[site], new) if site in seen else new
  if not any_batch:
    raise ValueError('ptq got no calibration batches: give a few hundred examples of such data as will be met')
  ranges = {site: _range(one, bits_of[site], calibrate) for site, one in seen.items()}
  activations = frozen_ranges(ranges) if ranges else dynamic_ranges()
  hook = fake_quant(number, rules=rules, activations=activations, attention=attention, every=every, real=real)
  params = clip_params(network, inputs, number, rules) if clip else network.params
  state = {**network.model_state, f'jl.{hook.name}': ranges}
  return network._replace(model=hook.model(network.model), params=params, model_state=state)


def _range(seen: Histogram, bits: int, calibrate: Calibrate) -> numerics.Range:
  """Calibrates every slice of a histogram with leading axes (one per layer of a scan)."""
  low, high = (np.array(end, np.float32) for end in seen.span)
  for index in np.ndindex(low.shape):
    if low[index] <= high[index]:
      one = Histogram((low[index], high[index]), seen.counts[index])
      low[index], high[index] = _ends(calibrate(one, bits))
  return jnp.asarray(low), jnp.asarray(high)


def _ends(found: Any) -> tuple[float, float]:
  """What a rule of the user's own answered; of an activation that was seen it is a range."""
  try:
    low, high = (float(end) for end in found)
  except (TypeError, ValueError):
    low = high = math.nan
  if not -math.inf < low <= high < math.inf:
    shown = ' '.join(repr(found).split())[:80]
    raise ValueError(f'ptq: calibrate answers with (lowest, highest), both finite and in this order; got {shown}')
  return low, high


def _counting(site: Site, product: Product, x: Any, w: Any, read: Any, axes: tuple[str, ...]) -> Any:
  """A Visit that computes in float and records the activation's histogram, or both."""
  del read
  new = calibration.histogram(x)
  if site.paired:
    new = jax.tree.map(lambda *both: jnp.stack(both), new, calibration.histogram(w))
  return product.bind(x, w), _across(new, axes) if axes else new


def _across(one: Histogram, axes: tuple[str, ...]) -> Histogram:
  return Histogram(quant_program.RANGES.across(one.span, axes), lax.psum(one.counts, axes))


_HISTOGRAMS = quant_program.Combine(
  merge=calibration.merge,
  fold=lambda many: Histogram(quant_program.RANGES.fold(many.span), jnp.sum(many.counts, axis=0)),
  absent=lambda site, lengths: Histogram(
    numerics.unseen(quant_program.range_shape(site, lengths)),
    jnp.zeros((*quant_program.range_shape(site, lengths), BINS), jnp.int32),
  ),
  across=_across,
)


def _inputs(network: Network, batch: Any) -> Any:
  named = isinstance(batch, Mapping) and 'inputs' in batch
  inputs = batch['inputs'] if named else batch
  inputs = inputs if network.encode is None else network.encode(inputs)
  weight = batch.get('weight') if named else None
  if weight is None or np.all(np.asarray(weight) > 0):
    return inputs
  kept = np.flatnonzero(np.asarray(weight) > 0)
  return jax.tree.map(lambda leaf: leaf[kept], inputs)
