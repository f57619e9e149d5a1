"""Which weights are worth clipping before they are rounded: a channel's largest weight sets the step of all others.

The step of a channel is its largest weight divided by the largest integer. So clipping the weights themselves is
choosing the step: nothing that reads them later (fake or real integers, packing) has to know of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlite import trees
from jaxlite.contract import Network
from jaxlite.graph.layouts import layouts_of, read
from jaxlite.graph.model import model_tags
from jaxlite.graph.provenance import Site
from jaxlite.quantization import _numerics as numerics
from jaxlite.quantization import _program as quant_program
from jaxlite.quantization._multiply import Product
from jaxlite.quantization._numerics import Bits
from jaxlite.quantization._program import Rules

SHARES = np.arange(100, 4, -1, dtype=np.float32) / 100  # of a channel's largest weight; of equals the first is taken


def clip_weight(w: jax.Array, axes: Sequence[int], bits: int) -> jax.Array:
  """Clips each output channel where its grid then has the least mean squared error.

  Args:
    w: float[...].
    axes: those that are summed over.
    bits: 2 to 8.

  Returns:
    Like w: no value larger, and the same ones where clipping gains nothing. What is not finite stays so.

  References:
    Nahshan et al., Loss Aware Post-training Quantization, 2019, https://arxiv.org/abs/1911.07190 (there the p-norm
    of which the mean squared error is p = 2).

  >>> w = jnp.array([[0.5], [0.5], [-0.5], [2.0]])
  >>> clip_weight(w, (0,), 2).ravel().tolist()  # integers are -1, 0 and 1
  [0.5, 0.5, -0.5, 2.0]
  """
  axes = tuple(axes)
  finite = jnp.isfinite(w)
  wide = jnp.where(finite, w, 0).astype(jnp.float32)
  largest = jnp.max(jnp.abs(wide), axis=axes, keepdims=True, initial=0.0)

  def error(share: jax.Array) -> jax.Array:
    clipped = jnp.clip(wide, -share * largest, share * largest)
    scale = numerics.weight_scale(clipped, axes, bits)
    rounded = numerics.weight_steps(clipped, scale, bits) * scale
    return jnp.sum(jnp.square(rounded - wide), axis=axes, keepdims=True)

  best = jnp.take(SHARES, jnp.argmin(lax.map(error, jnp.asarray(SHARES)), axis=0))
  end = (best * largest).astype(w.dtype)
  return jnp.where((best < 1) & finite, jnp.clip(w, -end, end), w)


def clip_params(network: Network, inputs: Any, bits: Bits, rules: Rules | None = None) -> Any:
  """Clips the parameters that a network multiplies as they are; one that it changes on the way (a norm) stays.

  Args:
    network: its weights not yet quantized.
    inputs: one batch, for its shapes.
    bits: where no rule speaks.
    rules: by regular expression on the site's name.

  Returns:
    Like the network's params. A parameter that is also used where nothing is rounded is clipped there too.

  >>> from jaxlite.contract import Model
  >>> def apply(p, s, x, *, train, key, step=None):
  ...   return x @ p['w'], s
  >>> network = Network(Model(None, apply), {'w': jnp.full((41, 1), 0.5).at[0].set(2.0)}, {})
  >>> round(float(clip_params(network, jnp.ones((1, 41)), Bits(2, None))['w'][0, 0]), 2)
  0.54
  """
  args = (network.params, network.model_state, inputs, None, None)
  program, leaves = quant_program.trace_model(network.model, *args[:3], train=False, key=None, step=None)
  chosen = quant_program.check(program.plan, bits, rules, 'ptq')
  chosen = {name: own for name, own in chosen.items() if own is not None}
  layouts = layouts_of(read(program.jaxpr, program.plan, model_tags(*args)))
  seen = jax.jit(lambda leaves: quant_program.run(program, leaves, chosen, _largest, _LARGEST)[1])(leaves)
  sites = program.plan.all_sites()

  def clipped(path: str, leaf: jax.Array) -> jax.Array:
    uses = [site.name for site in sites if path in site.paths]
    if layouts.get(path) is None or not set(uses) <= set(chosen):
      return leaf
    axes = layouts[path].summed
    own = np.sort(np.asarray(_of_channels(leaf, axes)).ravel())
    if not all(np.array_equal(np.sort(np.asarray(seen[name]).ravel()), own) for name in uses):
      return leaf
    return clip_weight(leaf, axes, max(chosen[name].weight for name in uses))

  return trees.map_with_path(clipped, network.params)


def _of_channels(w: jax.Array, axes: Sequence[int]) -> jax.Array:
  """The largest size of each output channel."""
  return jnp.max(jnp.abs(w.astype(jnp.float32)), axis=tuple(axes), initial=0.0)


def _largest(site: Site, product: Product, x: Any, w: Any, read: Any, axes: tuple[str, ...]) -> Any:
  """A Visit that computes in float and records what `_of_channels` says of the weight."""
  del site, read, axes
  return product.bind(x, w), _of_channels(w, product.summed_axes(w.ndim)).reshape(-1)


_LARGEST = quant_program.Combine(
  merge=jnp.maximum,
  fold=lambda many: jnp.max(many, axis=0, initial=0),
  absent=lambda site, lengths: jnp.zeros((*lengths, site.channels), jnp.float32),
  across=lambda record, _: record,
)
