"""Layers as strangers write them in plain JAX, each with its reference in NumPy: see `random_models`.

A reference is a generator: it asks for every contraction (a `Dot`) and gets the products, so that one reference serves
the float forward, the quantized one, and whoever counts or records what reaches a weight.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from random_forms import FORMS, IN_OUT, Dot, Fact, _draw

ACTS = [
  (jnp.tanh, np.tanh),
  (jax.nn.relu, lambda x: np.maximum(x, 0)),
  (jax.nn.silu, lambda x: x / (1 + np.exp(-x))),
  (lambda x: x, lambda x: x),
]


class Block(NamedTuple):
  """A layer [B, T, D] -> [B, T, size].

  Attributes:
    name: what it is.
    leaves: its parameters, nested.
    apply: (leaves, x) -> y.
    reference: (float64 leaves, x) -> a generator that asks for Dots and returns y.
    facts: of its weights, by path.
    size: how many features come out.
  """

  name: str
  leaves: dict[str, Any]
  apply: Callable[[Any, Any], Any]
  reference: Callable[[Any, Any], Iterator[Dot]]
  facts: dict[str, Fact]
  size: int


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def softmax(x):
  x = np.exp(x - x.max(-1, keepdims=True))
  return x / x.sum(-1, keepdims=True)


def changed(asks, change):
  """The generator with another Dot for each that it asks for."""
  answer = None
  try:
    while True:
      answer = yield change(asks.send(answer))
  except StopIteration as stop:
    return stop.value


def under(prefix, asks):
  """Paths of a part of a tree, as paths of the whole."""
  return changed(
    asks,
    lambda dot: dot._replace(
      paths=tuple(f'{prefix}/{path}' for path in dot.paths), to={f'{prefix}/{p}': a for p, a in dot.to.items()}
    ),
  )


def nested(prefix, facts):
  return {f'{prefix}/{path}': fact for path, fact in facts.items()}


def within(outer, asks, *, scan=True):
  """What is asked for one layer of a stack."""
  place, _ = outer
  return changed(
    asks,
    lambda dot: dot._replace(
      to={p: [[(outer, *a) for a in each] for each in several] for p, several in dot.to.items()},
      index=(place, *dot.index) if scan else dot.index,
    ),
  )


def abreast(several):
  """Generators that run side by side, as under vmap: one Dot of all of theirs."""
  answers = [None] * len(several)
  while True:
    asked, done = [], []
    for one, answer in zip(several, answers, strict=True):
      try:
        asked.append(one.send(answer))
      except StopIteration as stop:
        done.append(stop.value)
    if done:
      return done
    flat = [[each for dot in asked for each in getattr(dot, part)] for part in ('x', 'w', 'seen')]
    to = {path: [each for dot in asked for each in dot.to[path]] for path in asked[0].to}
    found = iter((yield Dot(asked[0].paths, *flat, to, asked[0].kind, asked[0].use)))
    answers = [list(itertools.islice(found, len(dot.x))) for dot in asked]


def dense_dot(form, p, x, use=1):
  """x [..., K] by the operand of a form."""
  operand = yield from form.reference(p)
  to = {path: [addresses] for path, addresses in form.to.items()}
  rows = x.reshape(-1, x.shape[-1])
  (out,) = yield Dot(tuple(sorted(form.facts)), [rows], [operand], [x], to, 'quantized', use)
  return out.reshape(*x.shape[:-1], -1)


def pair_dot(x, y):
  """x [..., M, K] by y [..., K, N], both activations."""
  lead = x.shape[:-2]
  flat = [v.reshape(-1, *v.shape[-2:]) for v in (x, y)]
  out = yield Dot((), list(flat[0]), list(flat[1]), [x], {}, 'pair')
  return np.stack(out).reshape(*lead, x.shape[-2], y.shape[-1])


def some_form(rng, fan_in, fan_out):
  return FORMS[rng.integers(len(FORMS))](rng, fan_in, fan_out)


def dense(rng, size, form=None):
  out = int(rng.choice([4, 6, 8, 12]))
  form = (form or some_form)(rng, size, out)
  act, np_act = ACTS[rng.integers(len(ACTS))]
  leaves = {**form.leaves, 'bias': _draw(rng, out) / 9}

  def reference(p, x):
    return np_act((yield from dense_dot(form, p, x)) + p['bias'])

  name = 'dense' if not form.leaves.keys() - {'w'} else f'dense of {"+".join(form.leaves)}'
  return Block(name, leaves, lambda p, x: act(x @ form.operand(p) + p['bias']), reference, form.facts, out)


def with_bias_row(rng, size):
  """The bias as one more row, which meets a one."""
  leaves = {'w': _draw(rng, size, 6), 'row': _draw(rng, 6)}

  def apply(p, x):
    ones = jnp.ones((*x.shape[:-1], 1), x.dtype)
    return jnp.tanh(jnp.concatenate([x, ones], -1) @ jnp.concatenate([p['w'], p['row'][None]]))

  def reference(p, x):
    x = np.concatenate([x, np.ones((*x.shape[:-1], 1))], -1)
    operand = np.concatenate([p['w'], p['row'][None]])
    (out,) = yield Dot(('w',), [x.reshape(-1, size + 1)], [operand], [x], {})
    return np.tanh(out).reshape(*x.shape[:-1], 6)

  return Block('bias as a row', leaves, apply, reference, {'w': IN_OUT._replace(inputs=False)}, 6)


def gated(rng, size):
  a, b = some_form(rng, size, 6), some_form(rng, size, 6)

  def apply(p, x):
    return (x @ a.operand(p['value'])) * jax.nn.sigmoid(x @ b.operand(p['gate']))

  def reference(p, x):
    value = yield from under('value', dense_dot(a, p['value'], x))
    return value * sigmoid((yield from under('gate', dense_dot(b, p['gate'], x))))

  facts = nested('value', a.facts) | nested('gate', b.facts)
  return Block('gated', {'value': a.leaves, 'gate': b.leaves}, apply, reference, facts, 6)


def attention(rng, size):
  """Fused q, k and v, split as a weight or as outputs; heads; a merging einsum."""
  heads, wide = 2, 3
  as_weight = rng.random() < 0.5
  leaves = {'qkv': _draw(rng, size, 3 * heads * wide), 'out': _draw(rng, heads, wide, size)}

  def apply(p, x):
    if as_weight:
      parts = [x @ w for w in jnp.split(p['qkv'], 3, axis=1)]
    else:
      parts = jnp.split(x @ p['qkv'], 3, axis=-1)
    q, k, v = (part.reshape(*x.shape[:-1], heads, wide) for part in parts)
    scores = jax.nn.softmax(jnp.einsum('bthd,bshd->bhts', q, k))
    return x + jnp.einsum('bthd,hdo->bto', jnp.einsum('bhts,bshd->bthd', scores, v), p['out'])

  def reference(p, x):
    rows = x.reshape(-1, size)
    if as_weight:
      parts = []
      for i, w in enumerate(np.split(p['qkv'], 3, axis=1)):
        parts += yield Dot(('qkv',), [rows], [w], [x], {'qkv': [[((i, 3),)]]}, use=i + 1)
    else:
      (out,) = yield Dot(('qkv',), [rows], [p['qkv']], [x], {'qkv': [[()]]})
      parts = np.split(out, 3, axis=1)
    q, k, v = (part.reshape(*x.shape[:2], heads, wide).transpose(0, 2, 1, 3) for part in parts)
    scores = softmax((yield from pair_dot(q, k.transpose(0, 1, 3, 2))))
    mixed = (yield from pair_dot(scores, v)).transpose(0, 2, 1, 3)
    (out,) = yield Dot(
      ('out',), [mixed.reshape(-1, heads * wide)], [p['out'].reshape(-1, size)], [mixed], {'out': [[()]]}
    )
    return x + out.reshape(x.shape)

  facts = {'qkv': IN_OUT, 'out': Fact((0, 1), (2,))}
  return Block('attention', leaves, apply, reference, facts, size)


def convolution(rng, size):
  """Over time or over a grid; whole, grouped or depthwise; kernels in any order of axes, dilated or not."""
  spatial = [(6,), (2, 3)][rng.integers(2)]
  groups = int(rng.choice([1, 2, size]))
  out, kernel = size if groups == size else 8, (3,) if len(spatial) == 1 else (2, 3)
  dilation = int(rng.integers(1, 3))
  letters = 'HW'[: len(spatial)]
  order = [f'{letters}IO', f'OI{letters}', f'I{letters}O'][rng.integers(3)]
  lengths = dict(zip(letters, kernel, strict=True)) | {'I': size // groups, 'O': out}
  leaves = {'kernel': _draw(rng, *(lengths[letter] for letter in order)) / 2, 'bias': _draw(rng, out) / 9}
  numbers = (f'N{letters}C', order, f'N{letters}C')

  def apply(p, x):
    image = x.reshape(x.shape[0], *spatial, size)
    found = lax.conv_general_dilated(
      image,
      p['kernel'],
      (1,) * len(spatial),
      'SAME',
      rhs_dilation=(dilation,) * len(spatial),
      dimension_numbers=numbers,
      feature_group_count=groups,
    )
    return jax.nn.relu(found.reshape(x.shape[0], -1, out) + p['bias'])

  axes = tuple(order.index(letter) for letter in (*letters, 'I'))

  def reference(p, x):
    patches = windows(x.reshape(x.shape[0], *spatial, size), kernel, dilation)  # [B, T, taps, C]
    rows = [part.reshape(-1, part.shape[-2] * part.shape[-1]) for part in np.split(patches, groups, axis=-1)]
    matrix = np.transpose(p['kernel'], (*axes, order.index('O'))).reshape(-1, out)
    where = [[((g, groups),) if groups > 1 else ()] for g in range(groups)]
    found = yield Dot(('kernel',), rows, np.split(matrix, groups, axis=1), [x], {'kernel': where})
    return np.maximum(np.concatenate(found, -1).reshape(*x.shape[:2], out) + p['bias'], 0)

  facts = {'kernel': Fact(axes, (order.index('O'),))}
  return Block(f'convolution {order}, {groups} groups', leaves, apply, reference, facts, out)


def windows(image, kernel, dilation):
  """What each place of an image [B, ..., C] shows a kernel, 'SAME': [B, places, taps, C]."""
  spatial = image.shape[1:-1]
  wide = [(k - 1) * dilation for k in kernel]
  image = np.pad(image, [(0, 0), *((w // 2, w - w // 2) for w in wide), (0, 0)])
  taps = []
  for tap in itertools.product(*map(range, kernel)):
    cut = tuple(slice(i * dilation, i * dilation + n) for i, n in zip(tap, spatial, strict=True))
    taps.append(image[(slice(None), *cut)].reshape(image.shape[0], -1, image.shape[-1]))
  return np.stack(taps, -2)


def recurrent(rng, size):
  """A gated cell whose recurrent weight is fused: two thirds for the gates, one for the candidate."""
  wide = 4
  leaves = {'w_i': _draw(rng, size, 3 * wide), 'w_h': _draw(rng, wide, 3 * wide), 'bias_n': _draw(rng, 3 * wide) / 9}

  def apply(p, x):
    gates_w, candidate_w = jnp.split(p['w_h'], [2 * wide], axis=1)

    def cell(h, row):
      inputs = row @ p['w_i'] + p['bias_n']
      z, r = jnp.split(jax.nn.sigmoid(inputs[:, : 2 * wide] + h @ gates_w), 2, axis=-1)
      h = (1 - z) * h + z * jnp.tanh(inputs[:, 2 * wide :] + (r * h) @ candidate_w)
      return h, h

    _, out = lax.scan(cell, jnp.zeros((x.shape[0], wide), x.dtype), x.swapaxes(0, 1))
    return out.swapaxes(0, 1)

  def reference(p, x):
    h, out = np.zeros((x.shape[0], wide)), []
    for row in x.swapaxes(0, 1):
      (inputs,) = yield Dot(('w_i',), [row], [p['w_i']], [row], {'w_i': [[()]]})
      inputs = inputs + p['bias_n']
      parts = [((0, 3),), ((1, 3),)]
      (by_h,) = yield Dot(('w_h',), [h], [p['w_h'][:, : 2 * wide]], [h], {'w_h': [parts]})
      z, r = np.split(sigmoid(inputs[:, : 2 * wide] + by_h), 2, axis=-1)
      last = r * h
      (by_h,) = yield Dot(('w_h',), [last], [p['w_h'][:, 2 * wide :]], [last], {'w_h': [[((2, 3),)]]}, use=2)
      h = (1 - z) * h + z * np.tanh(inputs[:, 2 * wide :] + by_h)
      out.append(h)
    return np.stack(out, 1)

  return Block('recurrent', leaves, apply, reference, {'w_i': IN_OUT, 'w_h': IN_OUT}, wide)


def experts(rng, size):
  """Three experts: all of them mixed, or one for each token, by index, by branch or in groups."""
  out, way = 6, ['mixed', 'index', 'take', 'branch', 'ragged'][rng.integers(5)]
  leaves = {'router': _draw(rng, size, 3), 'w': _draw(rng, 3, size, out)}

  def apply(p, x):
    rows, scores = x.reshape(-1, size), x.reshape(-1, size) @ p['router']
    if way == 'mixed':
      each = jnp.einsum('nd,edo->neo', rows, p['w'])
      found = jnp.einsum('ne,neo->no', jax.nn.softmax(scores), each)
    elif way == 'index':
      found = jax.vmap(lambda row, i: row @ p['w'][i])(rows, jnp.argmax(scores, -1))
    elif way == 'take':
      taken = p['w'][jnp.argmax(scores, -1).reshape(x.shape[:-1])]
      found = jnp.einsum('btd,btdo->bto', x, taken)
    elif way == 'branch':
      pick = lambda i: lax.cond(i > 0, lambda: p['w'][2], lambda: p['w'][0])  # noqa: E731
      found = jax.vmap(lambda row, i: row @ pick(i))(rows, jnp.argmax(scores, -1))
    else:
      chosen = jnp.argmax(scores, -1)
      order = jnp.argsort(chosen, stable=True)
      sorted_ = lax.ragged_dot(rows[order], p['w'], jnp.bincount(chosen, length=3))
      found = jnp.zeros_like(sorted_).at[order].set(sorted_)
    return found.reshape(*x.shape[:-1], out)

  def reference(p, x):
    rows = x.reshape(-1, size)
    (scores,) = yield Dot(('router',), [rows], [p['router']], [rows], {'router': [[()]]})
    if way == 'mixed':
      wide = p['w'].transpose(1, 0, 2).reshape(size, -1)
      (each,) = yield Dot(('w',), [rows], [wide], [rows], {'w': [[()]]})
      each = each.reshape(-1, 3, out)
      found = (yield from pair_dot(softmax(scores)[:, None], each))[:, 0]
    else:
      chosen = scores.argmax(-1)
      chosen = np.where(chosen > 0, 2, 0) if way == 'branch' else chosen
      found = np.stack((yield Dot(('w',), list(rows[:, None]), list(p['w'][chosen]), [rows], {}, 'float')))
    return found.reshape(*x.shape[:-1], out)

  fact = Fact((1,), (0, 2)) if way == 'mixed' else Fact((1,), (2,), inputs=False)
  return Block(f'experts, {way}', leaves, apply, reference, {'router': IN_OUT, 'w': fact}, out)


def normalized(rng, size):
  leaves = {'scale': 1 + _draw(rng, size) / 9, 'bias': _draw(rng, size) / 9}

  def apply(p, x):
    x = x - x.mean(-1, keepdims=True)
    return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-3) * p['scale'] + p['bias']

  def reference(p, x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-3) * p['scale'] + p['bias']
    yield

  return Block('layer norm', leaves, apply, reference, {}, size)


def mixed_in_time(rng, size):
  """A constant matrix over time, a decay of each feature: no weights."""
  matrix = np.tril(np.full((6, 6), 0.4, np.float32))
  leaves = {'decay': 0.5 + _draw(rng, size) / 9}

  def apply(p, x):
    return x + p['decay'] * jnp.einsum('ts,bsd->btd', matrix.astype(x.dtype), x)

  def reference(p, x):
    wide = x.transpose(1, 0, 2).reshape(6, -1)
    (out,) = yield Dot((), [matrix.astype(float)], [wide], [x], {}, 'constant')
    return x + p['decay'] * out.reshape(6, x.shape[0], size).transpose(1, 0, 2)

  return Block('a constant over time', leaves, apply, reference, {}, size)


def complex_weight(rng, size):
  leaves = {'real': _draw(rng, size, 6), 'imaginary': _draw(rng, size, 6)}

  def apply(p, x):
    wide = [p[name].astype(jnp.float32) for name in ('real', 'imaginary')]
    return jnp.abs(x.astype(jnp.complex64) @ lax.complex(*wide)).astype(x.dtype)

  def reference(p, x):
    operand = p['real'] + 1j * p['imaginary']
    (out,) = yield Dot(('imaginary', 'real'), [x.reshape(-1, size).astype(complex)], [operand], [x], {}, 'float')
    return np.abs(out).reshape(*x.shape[:-1], 6)

  facts = dict.fromkeys(leaves, IN_OUT._replace(inputs=False))
  return Block('complex', leaves, apply, reference, facts, 6)


BLOCKS = [dense, dense, dense, dense, with_bias_row, gated, attention, convolution, convolution, recurrent, experts]
BLOCKS += [normalized, mixed_in_time, complex_weight]
