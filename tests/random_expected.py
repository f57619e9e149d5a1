"""What each part has to make of a weight, in NumPy, from what is known of it: see `random_models`."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

import random_models

SPARSITY = 0.6


def float64(leaf):
  return np.asarray(jnp.asarray(leaf).astype(jnp.float32)).astype(np.float64)


def rms(value):
  return float(np.sqrt(np.mean(np.square(value)))) if np.size(value) else 0.0


# --- what each part has to do, from what is known of a leaf -------------------------------------------------------


def stacks(fact, ndim):
  """The axes that stack layers; of a leaf whose axes cannot be told none."""
  return () if fact.summed is None else tuple(a for a in range(ndim) if a not in fact.summed + fact.outputs)


def layers(leaf, fact):
  """[layers, ...]: each layer with its axes in the leaf's own order."""
  axes = stacks(fact, leaf.ndim)
  rest = [axis for axis in range(leaf.ndim) if axis not in axes]
  moved = np.transpose(leaf, (*axes, *rest))
  return moved.reshape(-1, *(leaf.shape[axis] for axis in rest))


def matrices(leaf, fact):
  """[layers, outputs, K]: what a layer multiplies its inputs by."""
  moved = np.transpose(leaf, (*stacks(fact, leaf.ndim), *fact.outputs, *fact.summed))
  size = [math.prod(leaf.shape[axis] for axis in axes) for axes in (stacks(fact, leaf.ndim), fact.outputs, fact.summed)]
  return moved.reshape(size)


def best(scores, keep):
  """Marks the largest, of equal ones the first."""
  live = np.zeros(scores.size, bool)
  live[np.argsort(-scores.ravel(), kind='stable')[:keep]] = True
  return live.reshape(scores.shape)


def erk_shares(leaves, facts):
  """Density in proportion to sum / product of a layer's lengths, at most 1, so that the whole meets the sparsity."""
  sizes = {path: leaf.size for path, leaf in leaves.items()}
  raw = {}
  for path, leaf in leaves.items():
    lengths = [n for axis, n in enumerate(leaf.shape) if axis not in stacks(facts[path], leaf.ndim)]
    raw[path] = sum(lengths) / math.prod(lengths)
  low, high = 0.0, max(1 / one for one in raw.values())
  for _ in range(200):
    scale = (low + high) / 2
    alive = sum(min(1, scale * raw[path]) * sizes[path] for path in raw)
    low, high = (scale, high) if alive < (1 - SPARSITY) * sum(sizes.values()) else (low, scale)
  return {path: 1 - min(1, scale * raw[path]) for path in raw}


def by_layer(leaf, fact, share):
  """How many weights of each layer are zero."""
  each = layers(np.zeros(leaf.shape), fact)[0].size
  return round(each * share)


def expected_element(leaf, fact, share):
  return np.stack([best(one, one.size - round(one.size * share)) for one in layers(np.abs(leaf), fact)])


def expected_channel(leaf, fact, share):
  size = np.sqrt((matrices(leaf, fact) ** 2).sum(-1))
  return np.stack([best(one, max(one.size - round(one.size * share), 1)) for one in size])


def expected_n_m(leaf, fact, n, m):
  found = np.zeros(matrices(leaf, fact).shape, bool)
  for (layer, row), weights in np.ndenumerate(np.empty(found.shape[:2])):
    del weights
    values = np.abs(matrices(leaf, fact)[layer, row])
    for start in range(0, len(values), m):
      group = values[start : start + m]
      found[layer, row, start : start + m] = best(group, -(-len(group) * n // m))
  return found


def expected_block(leaf, fact, share, rows, columns):
  *lead, height, width = leaf.shape
  size = np.abs(leaf).reshape(-1, height, width)
  means = np.stack(
    [
      [[one[i : i + rows, j : j + columns].mean() for j in range(0, width, columns)] for i in range(0, height, rows)]
      for one in size
    ]
  ).reshape(*lead, -(-height // rows), -(-width // columns))
  return np.stack([best(one, max(one.size - round(one.size * share), 1)) for one in layers(means, fact)])


def expected_wanda(leaf, fact, norms, share):
  found = []
  for one, norm in zip(matrices(np.abs(leaf), fact), norms, strict=True):
    found.append([best(a * b, a.size - round(a.size * share)) for a, b in zip(one, norm, strict=True)])
  return np.array(found)


# --- quantized, in NumPy ------------------------------------------------------------------------------------------


def on_grid(dot):
  """A Dot in int8: weights symmetric per output, activations affine over what is seen."""
  if dot.kind != 'quantized':
    return random_models.exact(dot)
  low, high = min(*(s.min() for s in dot.seen), 0.0), max(*(s.max() for s in dot.seen), 0.0)
  return integers(dot, max(high - low, 1e-30) / 255, low, [np.abs(w).max(0) / 127 for w in dot.w])


def integers(dot, scale, low, w_scales):
  zero = np.clip(-128 + np.round(-low / scale), -128, 127)
  out = []
  for x, w, w_scale in zip(dot.x, dot.w, w_scales, strict=True):
    w_scale = np.where(w_scale > 0, w_scale, 1)
    q = np.clip(np.round(x / scale), -128 - zero, 127 - zero)
    out.append(q @ np.clip(np.round(w / w_scale), -127, 127) * scale * w_scale)
  return out


def pruned_row_by_row(weight, gram, live, damping=0.01):
  """SparseGPT as its paper states it, for given masks: float64[outputs, K], an inverse for every column."""
  gram = gram.copy()
  silent = np.diag(gram) == 0
  gram[silent, silent] = 1
  gram[np.diag_indices(len(gram))] += damping * np.mean(np.diag(gram))
  weight = weight.copy()
  for column in range(len(gram)):
    inverse = np.linalg.inv(gram[column:, column:])
    error = np.where(live[:, column], 0, weight[:, column]) / inverse[0, 0]
    weight[:, column:] -= np.outer(error, inverse[0])
  return np.where(live, weight, 0)


def in_leaf(stacked, leaf, fact):
  """The inverse of `layers`."""
  axes = stacks(fact, leaf.ndim)
  order = (*axes, *(axis for axis in range(leaf.ndim) if axis not in axes))
  return np.transpose(stacked.reshape([leaf.shape[axis] for axis in order]), np.argsort(order))


def as_leaf(stacked, leaf, fact):
  """The inverse of `matrices`."""
  order = (*stacks(fact, leaf.ndim), *fact.outputs, *fact.summed)
  return np.transpose(stacked.reshape([leaf.shape[axis] for axis in order]), np.argsort(order))


def by_ranges(ranges):
  """Arithmetic on kept ranges."""

  def multiply(dot):
    if dot.kind != 'quantized':
      return random_models.exact(dot)
    low, high = (end[dot.index] for end in ranges[random_models.site(dot)])
    low, high = min(low, 0), max(high, 0)
    return integers(dot, max(high - low, 1e-30) / 255, low, [np.abs(w).max(0) / 127 for w in dot.w])

  return multiply


def by_steps(steps, zeros):
  """Arithmetic on learned steps."""

  def multiply(dot):
    if dot.kind != 'quantized':
      return random_models.exact(dot)
    own = steps[random_models.site(dot)]
    step, zero = own['activation'][dot.index], zeros[random_models.site(dot)][dot.index]
    w_steps, out, start = own['weight'][dot.index], [], 0
    for x, w in zip(dot.x, dot.w, strict=True):
      w_step = w_steps[start : start + w.shape[1]]
      q = np.clip(np.round(x / step), -128 - zero, 127 - zero)
      out.append(q @ np.clip(np.round(w / w_step), -127, 127) * step * w_step)
      start += w.shape[1]
    return out

  return multiply
