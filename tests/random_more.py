"""More layers and weights as strangers write them: see `random_models`, which draws them from seed 200 on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from random_blocks import Block, dense, dense_dot, sigmoid
from random_forms import IN_OUT, OUT_IN, Dot, Form, _both, _draw, _form, _unseen


def kronecker(rng, fan_in, fan_out):
  facts = dict.fromkeys('ab', _unseen(IN_OUT))
  leaves = {'a': _draw(rng, 2, 2), 'b': _draw(rng, fan_in // 2, fan_out // 2)}
  return _form(leaves, *_both(lambda p, np_: np_.kron(p['a'], p['b'])), facts)


def resized(rng, fan_in, fan_out):
  """Between a few rows, by a constant."""
  between = np.linspace(0, 1, 2 * fan_in, dtype=np.float32).reshape(fan_in, 2)
  rows = np.stack([between[:, 0], 1 - between[:, 0], between[:, 1]], 1)

  def reference(p):
    (out,) = yield Dot(('w',), [rows.astype(float)], [p['w']], [p['w']], {}, 'folded')
    return out

  leaves = {'w': _draw(rng, 3, fan_out)}
  return Form(leaves, lambda p: jnp.asarray(rows, p['w'].dtype) @ p['w'], reference, {'w': _unseen(IN_OUT)}, {})


def written(rng, fan_in, fan_out):
  """Its columns at places of their own, others zero."""
  places = np.sort(rng.permutation(fan_out)[: fan_out - 1])

  def reference(p):
    out = np.zeros((fan_in, fan_out))
    out[:, places] = p['w']
    return out

  make = lambda p: jnp.zeros((fan_in, fan_out), p['w'].dtype).at[:, places].set(p['w'])  # noqa: E731
  return _form({'w': _draw(rng, fan_in, fan_out - 1)}, make, reference, {'w': _unseen(IN_OUT)})


def rounded(rng, fan_in, fan_out):
  """A stranger's own quantization, straight through."""
  grid = lambda w, np_: np_.round(w * 8) / 8  # noqa: E731
  make = lambda p: p['w'] + lax.stop_gradient(grid(p['w'], jnp) - p['w'])  # noqa: E731
  return _form({'w': _draw(rng, fan_in, fan_out)}, make, lambda p: grid(p['w'], np), {'w': IN_OUT})


def patched(rng, fan_in, fan_out):
  """Low rank added to a part of its outputs."""
  half = fan_out // 2

  def reference(p):
    (out,) = yield Dot(('a', 'b'), [p['a']], [p['b']], [p['a']], {}, 'folded')
    return np.concatenate([p['w'][:, :half] + out, p['w'][:, half:]], 1)

  leaves = {'w': _draw(rng, fan_in, fan_out), 'a': _draw(rng, fan_in, 2), 'b': _draw(rng, 2, half)}
  make = lambda p: p['w'].at[:, :half].add(p['a'] @ p['b'])  # noqa: E731
  return Form(leaves, make, reference, dict.fromkeys('wab', _unseen(IN_OUT)), {})


MORE_FORMS = [kronecker, resized, written, rounded, patched]


def dense_of_more(rng, size):
  return dense(rng, size, MORE_FORMS[rng.integers(len(MORE_FORMS))])


def by_hand(rng, size):
  """A product and a sum in place of a contraction."""
  turned = rng.random() < 0.5
  leaves = {'w': _draw(rng, 6, size) if turned else _draw(rng, size, 6)}

  def apply(p, x):
    if turned:
      return jnp.tanh((x[:, :, None] * p['w']).sum(-1))
    return jnp.tanh((p['w'] * x[..., None]).sum(-2))

  def reference(p, x):
    operand = p['w'].T if turned else p['w']
    (out,) = yield Dot(('w',), [x.reshape(-1, size)], [operand], [x], {}, 'float')
    return np.tanh(out.reshape(*x.shape[:-1], 6))

  return Block('summed by hand', leaves, apply, reference, {'w': _unseen(OUT_IN if turned else IN_OUT)}, 6)


def batch_normalized(rng, size):
  """Over the batch and time, as in training."""
  leaves = {'scale': 1 + _draw(rng, size) / 9, 'bias': _draw(rng, size) / 9}

  def make(p, x, np_):
    x = x - x.mean((0, 1))
    return x / np_.sqrt((x**2).mean((0, 1)) + 1e-2) * p['scale'] + p['bias']

  def reference(p, x):
    return make(p, x, np)
    yield

  return Block('batch norm', leaves, lambda p, x: make(p, x, jnp), reference, {}, size)


def glu(rng, size):
  """One fused weight whose outputs are split: a value and its gate."""
  leaves = {'w': _draw(rng, size, 12)}

  def apply(p, x):
    value, gate = jnp.split(x @ p['w'], 2, axis=-1)
    return value * jax.nn.sigmoid(gate)

  def reference(p, x):
    (out,) = yield Dot(('w',), [x.reshape(-1, size)], [p['w']], [x], {'w': [[()]]})
    value, gate = np.split(out.reshape(*x.shape[:-1], 12), 2, axis=-1)
    return value * sigmoid(gate)

  return Block('glu', leaves, apply, reference, {'w': IN_OUT}, 6)


def token_mixing(rng, size):
  leaves = {'w': _draw(rng, 6, 6)}

  def reference(p, x):
    rows = x.transpose(0, 2, 1).reshape(-1, 6)
    (out,) = yield Dot(('w',), [rows], [p['w'].T], [x], {'w': [[()]]})
    return x + out.reshape(x.shape[0], size, 6).transpose(0, 2, 1)

  apply = lambda p, x: x + jnp.einsum('ts,bsd->btd', p['w'], x)  # noqa: E731
  return Block('token mixing', leaves, apply, reference, {'w': OUT_IN}, size)


def lstm(rng, size):
  """Four gates of one product of inputs and state side by side."""
  wide = 4
  leaves = {'w': _draw(rng, size + wide, 4 * wide), 'b': _draw(rng, 4 * wide) / 9}

  def apply(p, x):
    def cell(carry, row):
      h, c = carry
      i, f, g, o = jnp.split(jnp.concatenate([row, h], -1) @ p['w'] + p['b'], 4, axis=-1)
      c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
      h = jax.nn.sigmoid(o) * jnp.tanh(c)
      return (h, c), h

    zero = jnp.zeros((x.shape[0], wide), x.dtype)
    return lax.scan(cell, (zero, zero), x.swapaxes(0, 1))[1].swapaxes(0, 1)

  def reference(p, x):
    h = c = np.zeros((x.shape[0], wide))
    out = []
    for row in x.swapaxes(0, 1):
      both = np.concatenate([row, h], -1)
      (found,) = yield Dot(('w',), [both], [p['w']], [both], {'w': [[()]]})
      i, f, g, o = np.split(found + p['b'], 4, axis=-1)
      c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
      h = sigmoid(o) * np.tanh(c)
      out.append(h)
    return np.stack(out, 1)

  return Block('lstm', leaves, apply, reference, {'w': IN_OUT}, wide)


def shared_by_members(rng, size):
  """One weight under a vmap over the examples, one by one."""
  out, form = 6, _form({'w': _draw(rng, 6, size)}, *_both(lambda p, _: p['w'].T), {'w': OUT_IN})

  def reference(p, x):
    return np.tanh((yield from dense_dot(form, p, x)))

  apply = lambda p, x: jnp.tanh(jax.vmap(jax.vmap(lambda row: p['w'] @ row))(x))  # noqa: E731
  return Block('a weight by a row', form.leaves, apply, reference, form.facts, out)


MORE = [dense_of_more, dense_of_more, dense_of_more, by_hand, by_hand, batch_normalized, glu, token_mixing, lstm]
MORE += [shared_by_members]


def more(rng, size):
  return MORE[rng.integers(len(MORE))](rng, size)
