"""How strangers write the weight of a dense layer: whole, turned, cut, joined, scaled, factored, mixed.

A form makes a float[fan_in, fan_out] operand of leaves of its own. Its author knows which of them are weights and where
their axes lie, and makes the same operand once more in NumPy; what `jaxlite` reads off the program is judged by that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax


class Dot(NamedTuple):
  """A contraction, asked of whoever runs a reference: products whose operands are quantized together.

  Attributes:
    paths: the weights that its operand is made of; what it is listed by.
    x: float64[N, K] of each product.
    w: float64[K, O] of each.
    seen: the activations as the program holds them, whose range and mean size are those of the site.
    to: by path, for each product the addresses of its inputs' Gram matrix among those of the leaf: pairs of (place, of
      how many), outermost first; () is the only one.
    kind: 'quantized', 'float' where it is a weight that stays float, 'folded' and 'pair' where none meets data.
    use: which use of its weights it is.
    index: which iteration of the scans that give it weights of their own.
  """

  paths: tuple[str, ...]
  x: list
  w: list
  seen: list
  to: dict
  kind: str = 'quantized'
  use: int = 1
  index: tuple = ()


class Fact(NamedTuple):
  """What is known of a weight: its axes as in a LeafLayout, None where none can be told; whether its inputs are; and
  whether what is multiplied is a curve of it, or no zero where it is zero."""

  summed: tuple[int, ...] | None
  outputs: tuple[int, ...] | None = None
  inputs: bool = True
  bent: bool = False
  filled: bool = False


class Form(NamedTuple):
  """A dense weight.

  Attributes:
    leaves: float32[...] by name.
    operand: leaves -> float[fan_in, fan_out], in JAX.
    reference: the same of float64 leaves, in NumPy; a generator that asks for what it contracts.
    facts: of those leaves that are weights.
    to: by weight, the addresses of its inputs' Gram matrix.
  """

  leaves: dict[str, np.ndarray]
  operand: Callable[[Any], Any]
  reference: Callable[[Any], Any]
  facts: dict[str, Fact]
  to: dict[str, list[tuple[tuple[int, int], ...]]]


def _draw(rng, *shape):
  return (rng.normal(size=shape) / np.sqrt(max(shape[-2] if len(shape) > 1 else 1, 1))).astype(np.float32)


def _form(leaves, operand, reference, facts, to=None):
  """A form without contractions of its own."""

  def asks(p):
    return reference(p)
    yield

  where = {path: [()] for path, fact in facts.items() if fact.inputs} if to is None else to
  return Form(leaves, operand, asks, facts, where)


IN_OUT, OUT_IN = Fact((0,), (1,)), Fact((1,), (0,))


def _unseen(fact):
  return fact._replace(inputs=False)


def _both(make):
  """One expression for JAX and NumPy."""
  return (lambda p: make(p, jnp)), (lambda p: make(p, np))


def plain(rng, fan_in, fan_out):
  return _form({'w': _draw(rng, fan_in, fan_out)}, *_both(lambda p, _: p['w']), {'w': IN_OUT})


def transposed(rng, fan_in, fan_out):
  return _form({'w': _draw(rng, fan_out, fan_in)}, *_both(lambda p, _: p['w'].T), {'w': OUT_IN})


def in_heads(rng, fan_in, fan_out):
  return _form(
    {'w': _draw(rng, fan_in, 2, fan_out // 2)},
    *_both(lambda p, _: p['w'].reshape(fan_in, fan_out)),
    {'w': Fact((0,), (1, 2))},
  )


def heads_first(rng, fan_in, fan_out):
  merged = lambda p, np_: np_.transpose(p['w'], (1, 0, 2)).reshape(fan_in, fan_out)  # noqa: E731
  return _form({'w': _draw(rng, 2, fan_in, fan_out // 2)}, *_both(merged), {'w': Fact((1,), (0, 2))})


def of_heads(rng, fan_in, fan_out):
  return _form(
    {'w': _draw(rng, 2, fan_in // 2, fan_out)},
    *_both(lambda p, _: p['w'].reshape(fan_in, fan_out)),
    {'w': Fact((0, 1), (2,))},
  )


def weight_norm(rng, fan_in, fan_out):
  # With an epsilon: masks may take a whole column, whose norm is then 0.
  make = lambda p, np_: p['v'] * (p['g'] / np_.sqrt((p['v'] ** 2).sum(0) + 1e-6))  # noqa: E731
  return _form({'v': _draw(rng, fan_in, fan_out), 'g': 1 + _draw(rng, fan_out) / 9}, *_both(make), {'v': IN_OUT})


def scaled(rng, fan_in, fan_out):
  leaves = {'v': _draw(rng, fan_in, fan_out), 'alpha': np.float32(1e-1)}
  return _form(leaves, *_both(lambda p, _: 10 * p['alpha'] * p['v']), {'v': IN_OUT})


def gained(rng, fan_in, fan_out):
  leaves = {'v': _draw(rng, fan_in, fan_out), 'g': 1 + _draw(rng, fan_in, 1) / 9, 'b': _draw(rng, fan_out) / 9}
  return _form(leaves, *_both(lambda p, _: p['v'] * p['g'] + p['b']), {'v': IN_OUT})


def columns(rng, fan_in, fan_out):
  return _form(
    {'w': _draw(rng, fan_in, 3 * fan_out)},
    *_both(lambda p, _: p['w'][:, fan_out : 2 * fan_out]),
    {'w': IN_OUT},
    {'w': [((1, 3),)]},
  )


def rows(rng, fan_in, fan_out):
  return _form(
    {'w': _draw(rng, fan_in + 3, fan_out)}, *_both(lambda p, _: p['w'][1 : fan_in + 1]), {'w': _unseen(IN_OUT)}
  )


def one_of_a_stack(rng, fan_in, fan_out):
  return _form(
    {'w': _draw(rng, 3, fan_in, fan_out)}, *_both(lambda p, _: p['w'][2]), {'w': Fact((1,), (2,))}, {'w': [((2, 3),)]}
  )


def side_by_side(rng, fan_in, fan_out):
  make = lambda p, np_: np_.concatenate([p['a'], p['b'].T], 1)  # noqa: E731
  facts = {'a': _unseen(IN_OUT), 'b': _unseen(OUT_IN)}
  return _form({'a': _draw(rng, fan_in, 2), 'b': _draw(rng, fan_out - 2, fan_in)}, *_both(make), facts)


def one_above_the_other(rng, fan_in, fan_out):
  make = lambda p, np_: np_.concatenate([p['a'], p['b']])  # noqa: E731
  facts = {'a': _unseen(IN_OUT), 'b': _unseen(IN_OUT)}
  return _form({'a': _draw(rng, 2, fan_out), 'b': _draw(rng, fan_in - 2, fan_out)}, *_both(make), facts)


def padded(rng, fan_in, fan_out):
  make = lambda p, np_: np_.pad(p['w'], [(1, 0), (0, 0)])  # noqa: E731
  return _form({'w': _draw(rng, fan_in - 1, fan_out)}, *_both(make), {'w': _unseen(IN_OUT)})


def flat(rng, fan_in, fan_out):
  facts = {'w': Fact(None, inputs=False)}
  return _form(
    {'w': _draw(rng, fan_in * fan_out) / np.float32(2)}, *_both(lambda p, _: p['w'].reshape(fan_in, fan_out)), facts
  )


def symmetric(rng, fan_in, fan_out):
  if fan_in != fan_out:
    return masked(rng, fan_in, fan_out)
  return _form(
    {'w': _draw(rng, fan_in, fan_out)}, *_both(lambda p, _: p['w'] + p['w'].T), {'w': Fact(None, inputs=False)}
  )


def masked(rng, fan_in, fan_out):
  mask = rng.random((fan_in, fan_out)) < 0.7
  return _form({'w': _draw(rng, fan_in, fan_out)}, *_both(lambda p, _: p['w'] * mask), {'w': IN_OUT})


def squashed(rng, fan_in, fan_out):
  return _form(
    {'w': _draw(rng, fan_in, fan_out)}, *_both(lambda p, np_: np_.tanh(p['w'])), {'w': IN_OUT._replace(bent=True)}
  )


def standardized(rng, fan_in, fan_out):
  make = lambda p, np_: (p['w'] - p['w'].mean(0)) / np_.sqrt(p['w'].var(0) + 1e-2)  # noqa: E731
  return _form({'w': _draw(rng, fan_in, fan_out)}, *_both(make), {'w': IN_OUT._replace(filled=True)})


def mixture(rng, fan_in, fan_out):
  """Kernels of which a learned mixture is taken: each is a layer of its own, and the mixture no weight."""
  leaves = {'w': _draw(rng, 3, fan_in, fan_out), 'm': np.float32([0.5, -0.2, 0.3])}
  operand = lambda p: jnp.einsum('k,kio->io', p['m'], p['w'])  # noqa: E731

  def reference(p):
    (out,) = yield Dot(('m', 'w'), [p['m'][None]], [p['w'].reshape(3, -1)], [p['m']], {}, 'folded')
    return out.reshape(fan_in, fan_out)

  return Form(leaves, operand, reference, {'w': Fact((1,), (2,), inputs=False)}, {})


def low_rank(rng, fan_in, fan_out):
  leaves = {'a': _draw(rng, fan_in, 4), 'b': _draw(rng, 4, fan_out)}

  def reference(p):
    (out,) = yield Dot(('a', 'b'), [p['a']], [p['b']], [p['a']], {}, 'folded')
    return out

  facts = {'a': _unseen(IN_OUT), 'b': _unseen(IN_OUT)}
  return Form(leaves, lambda p: p['a'] @ p['b'], reference, facts, {})


def adapted(rng, fan_in, fan_out):
  """Low rank beside the weight, as LoRA has it."""
  leaves = {
    'w': _draw(rng, fan_in, fan_out),
    'a': _draw(rng, fan_in, 2),
    'b': _draw(rng, fan_out, 2),
    's': np.float32(0.5),
  }

  def reference(p):
    (out,) = yield Dot(('a', 'b'), [p['a']], [p['b'].T], [p['a']], {}, 'folded')
    return p['w'] + p['s'] * out

  facts = {'w': _unseen(IN_OUT), 'a': _unseen(IN_OUT), 'b': _unseen(OUT_IN)}
  return Form(leaves, lambda p: p['w'] + p['s'] * (p['a'] @ p['b'].T), reference, facts, {})


def singular(rng, fan_in, fan_out):
  """Three factors, of which the middle one is a diagonal: it only scales."""
  leaves = {'u': _draw(rng, fan_in, 4), 's': 1 + _draw(rng, 4) / 9, 'v': _draw(rng, 4, fan_out)}

  def reference(p):
    (out,) = yield Dot(('s', 'u', 'v'), [p['u'] * p['s']], [p['v']], [p['u']], {}, 'folded')
    return out

  facts = {'u': _unseen(IN_OUT), 'v': _unseen(IN_OUT)}
  return Form(leaves, lambda p: (p['u'] * p['s']) @ p['v'], reference, facts, {})


def three_factors(rng, fan_in, fan_out):
  leaves = {'a': _draw(rng, fan_in, 4), 'c': _draw(rng, 4, 2), 'b': _draw(rng, 2, fan_out)}

  def reference(p):
    (half,) = yield Dot(('a', 'c'), [p['a']], [p['c']], [p['a']], {}, 'folded')
    (out,) = yield Dot(('a', 'b', 'c'), [half], [p['b']], [half], {}, 'folded')
    return out

  facts = dict.fromkeys('acb', _unseen(IN_OUT))
  return Form(leaves, lambda p: p['a'] @ p['c'] @ p['b'], reference, facts, {})


def by_a_loop(rng, fan_in, fan_out):
  """Rows written one by one into an empty matrix."""
  make = lambda p: lax.dynamic_update_slice(jnp.zeros((fan_in, fan_out), p['w'].dtype), p['w'], (0, 0))  # noqa: E731
  return _form({'w': _draw(rng, fan_in, fan_out)}, make, lambda p: p['w'], {'w': _unseen(IN_OUT)})


FORMS = [plain, transposed, in_heads, heads_first, of_heads, weight_norm, scaled, gained, columns, rows, one_of_a_stack]
FORMS += [side_by_side, one_above_the_other, padded, flat, symmetric, masked, squashed, standardized, mixture, low_rank]
FORMS += [adapted, singular, three_factors, by_a_loop]
