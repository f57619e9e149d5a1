"""References of frameworks' own layers, in NumPy, by the names that their leaves have there: see `random_frameworks`.

Each is a generator, as `random_blocks` has them: (float64 leaves by path, name of the layer, x) -> y.
"""

from __future__ import annotations

import numpy as np

from random_blocks import pair_dot, sigmoid, softmax, windows
from random_forms import Dot

WIDE = 4  # of a recurrent state


def multiplied(p, path, x, *, turned=False, rows=slice(None), parts=((),), use=1):
  """x by a weight at a path, or by a part of its outputs."""
  w = (p[path].T if turned else p[path])[:, rows]
  (out,) = yield Dot((path,), [x.reshape(-1, w.shape[0])], [w], [x], {path: [list(parts)]}, 'quantized', use)
  return out.reshape(*x.shape[:-1], -1)


def a_dense(kernel, turned=False):
  def reference(p, name, x):
    bias = p[f'{name}/{"b" if kernel == "w" else "bias"}']
    return np.tanh((yield from multiplied(p, f'{name}/{kernel}', x, turned=turned)) + bias)

  return reference


def a_normed_dense(p, name, x):
  path = f'{name}/kernel'
  w = p[path] / np.sqrt((p[path] ** 2).sum(0) + 1e-12) * p[f'norm_of_{name}/{path}/scale']
  (out,) = yield Dot((path,), [x.reshape(-1, x.shape[-1])], [w], [x], {path: [[()]]})
  return np.tanh(out.reshape(*x.shape[:-1], -1) + p[f'{name}/bias'])


def a_convolution(kernel, axes, groups):
  """Axes of (time, input, output)."""

  def reference(p, name, x):
    w = np.transpose(p[f'{name}/{kernel}'], axes)
    rows = [part.reshape(-1, w.shape[0] * w.shape[1]) for part in np.split(windows(x, (3,), 1), groups, axis=-1)]
    where = [[((g, groups),) if groups > 1 else ()] for g in range(groups)]
    mats = np.split(w.reshape(-1, w.shape[-1]), groups, axis=1)
    path = f'{name}/{kernel}'
    out = np.concatenate((yield Dot((path,), rows, mats, [x], {path: where})), -1)
    return np.tanh(out.reshape(*x.shape[:2], -1) + p[f'{name}/{"b" if kernel == "w" else "bias"}'].ravel())

  return reference


def an_attention(paths, turned, heads=2):
  def reference(p, name, x):
    found = []
    for path in paths[:3]:
      w, full = p[f'{name}/{path}'], f'{name}/{path}'
      flat = {**p, full: w if w.ndim == 2 else w.reshape(x.shape[-1], -1)}
      y = yield from multiplied(flat, full, x, turned=turned)
      bias = p.get(full.replace('kernel', 'bias')) if 'kernel' in path else p.get(full[:-1] + 'b')
      y = y if bias is None or 'weight' in path else y + bias.ravel()
      found.append(y.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3))
    q, k, v = found
    scores = softmax((yield from pair_dot(q / np.sqrt(q.shape[-1]), k.transpose(0, 1, 3, 2))))
    mixed = (yield from pair_dot(scores, v)).transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1)
    full = f'{name}/{paths[3]}'
    w = p[full]
    flat = {**p, full: w if w.ndim == 2 else w.reshape(-1, w.shape[-1])}
    out = yield from multiplied(flat, full, mixed, turned=turned)
    bias = p.get(full.replace('kernel', 'bias')) if 'kernel' in full else p.get(full[:-1] + 'b')
    return x + (out if bias is None or 'weight' in full else out + bias)

  return reference


def a_norm(scale, bias, eps):
  def reference(p, name, x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * p[f'{name}/{scale}'] + p[f'{name}/{bias}']
    yield

  return reference


def over_time(cell):
  """A cell (p, name, h, row) as a layer."""

  def reference(p, name, x):
    h, out = np.zeros((x.shape[0], WIDE)), []
    for row in x.swapaxes(0, 1):
      h = yield from cell(p, name, h, row)
      out.append(h)
    return np.stack(out, 1)

  return reference


@over_time
def a_linen_gru(p, name, h, row):
  of = lambda gate, value: multiplied(p, f'{name}/{gate}/kernel', value)  # noqa: E731
  by_row, by_h = {}, {}
  for gate in 'rzn':
    by_row[gate] = (yield from of(f'i{gate}', row)) + p[f'{name}/i{gate}/bias']
    by_h[gate] = yield from of(f'h{gate}', h)
  z, r = sigmoid(by_row['z'] + by_h['z']), sigmoid(by_row['r'] + by_h['r'])
  return (1 - z) * np.tanh(by_row['n'] + r * (by_h['n'] + p[f'{name}/hn/bias'])) + z * h


@over_time
def a_simple_cell(p, name, h, row):
  by_row = (yield from multiplied(p, f'{name}/i/kernel', row)) + p[f'{name}/i/bias']
  return np.tanh(by_row + (yield from multiplied(p, f'{name}/h/kernel', h)))


@over_time
def an_nnx_gru(p, name, h, row):
  by_row = (yield from multiplied(p, f'{name}/cell/dense_i/kernel', row)) + p[f'{name}/cell/dense_i/bias']
  by_h = yield from multiplied(p, f'{name}/cell/dense_h/kernel', h)
  (xr, xz, xn), (hr, hz, hn) = np.split(by_row, 3, -1), np.split(by_h, 3, -1)
  z = sigmoid(xz + hz)
  return (1 - z) * np.tanh(xn + sigmoid(xr + hr) * hn) + z * h


@over_time
def an_equinox_gru(p, name, h, row):
  by_row = (yield from multiplied(p, f'{name}/weight_ih', row, turned=True)) + p[f'{name}/bias']
  by_h = yield from multiplied(p, f'{name}/weight_hh', h, turned=True)
  (xr, xz, xn), (hr, hz, hn) = np.split(by_row, 3, -1), np.split(by_h, 3, -1)
  new = np.tanh(xn + sigmoid(xr + hr) * (hn + p[f'{name}/bias_n']))
  return new + sigmoid(xz + hz) * (h - new)


@over_time
def a_haiku_gru(p, name, h, row):
  w_h, b = f'{name}/w_h', p[f'{name}/b']
  by_row = yield from multiplied(p, f'{name}/w_i', row)
  parts = [((0, 3),), ((1, 3),)]
  by_h = yield from multiplied(p, w_h, h, rows=slice(0, 2 * WIDE), parts=parts)
  z, r = np.split(sigmoid(by_row[:, : 2 * WIDE] + by_h + b[: 2 * WIDE]), 2, -1)
  last = yield from multiplied(p, w_h, r * h, rows=slice(2 * WIDE, None), parts=[((2, 3),)], use=2)
  return (1 - z) * h + z * np.tanh(by_row[:, 2 * WIDE :] + last + b[2 * WIDE :])


def a_scan(p, name, x):
  path = f'{name}/kernel'
  for i in range(3):
    w = p[path][i]
    (out,) = yield Dot((path,), [x.reshape(-1, w.shape[0])], [w], [x], {path: [[((i, 3),)]]}, index=(i,))
    x = np.tanh(out.reshape(x.shape) + p[f'{name}/bias'][i])
  return x
