"""Random networks as strangers write them, each with all that its author knows of it.

`network(seed)` draws one: a chain of layers, some of them scanned, vmapped, unrolled, shared, recomputed or residual,
in float32 or bfloat16, in plain JAX or in a framework. What is known of it stands beside it: which leaves are weights,
what is done with their axes, which of them stack layers, and the forward, unrolled in NumPy. `run` runs that forward
with other arithmetic at its contractions, and `Records` says what they saw.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import random_frameworks
from random_blocks import BLOCKS, Block, abreast, changed, dense, dense_dot, nested, under, within
from random_forms import FORMS, Dot, Fact, _draw, heads_first, in_heads, of_heads, plain, transposed
from random_more import more

SHAPE = (6, 6)  # B, T


class Network(NamedTuple):
  """A network and what its author knows of it.

  Attributes:
    name: its layers.
    params: arrays, nested.
    apply: (params, inputs) -> float[B, classes].
    inputs: one batch.
    reference: (float64 params, inputs) -> a generator of Dots that returns the outputs.
    facts: of its weights, by path.
    model: how a framework has it as a Model; None where it is a plain function.
  """

  name: str
  params: Any
  apply: Callable[[Any, Any], Any]
  inputs: np.ndarray
  reference: Callable[[Any, Any], Any]
  facts: dict[str, Fact]
  model: Any = None


def network(seed: int) -> Network:
  """Draws a network; the same for the same seed."""
  rng = np.random.default_rng(seed)
  if seed % 4 == 3 and seed < 200:
    return Network(*random_frameworks.network(rng))
  size = int(rng.choice([4, 6, 8]))
  tokens = rng.random() < 0.3
  blocks, wide = [], size
  for place in range(rng.integers(1, 4)):
    if seed >= 200 and place == 0:
      block = AROUND_MORE[rng.integers(len(AROUND_MORE))](rng, wide, more)
    else:
      block = WRAPPERS[rng.integers(len(WRAPPERS))](rng, wide)
    blocks.append(block)
    wide = block.size
  head = tied if tokens and wide == size else dense_head
  parts = {f'layer{i}': block for i, block in enumerate(blocks)}
  leaves = {name: block.leaves for name, block in parts.items()}
  facts: dict[str, Fact] = {}
  for name, block in parts.items():
    facts |= nested(name, block.facts)
  top, top_apply, top_reference, top_facts = head(rng, wide)
  if tokens:
    inputs = rng.integers(0, 9, SHAPE).astype(np.int32)
    leaves['embed'] = {'table': _draw(rng, 9, size), 'position': _draw(rng, SHAPE[1], size) / 4}
  else:
    inputs = rng.normal(size=(*SHAPE, size)).astype(np.float32)
  leaves = leaves | top

  def apply(p, x):
    x = p['embed']['table'][x] + p['embed']['position'] if tokens else x
    for name, block in parts.items():
      x = block.apply(p[name], x)
    return top_apply(p, x.mean(1))

  def reference(p, x):
    x = p['embed']['table'][x] + p['embed']['position'] if tokens else x
    for name, block in parts.items():
      x = yield from under(name, block.reference(p[name], x))
    return (yield from top_reference(p, x.mean(1)))

  low = rng.random() < 0.2
  params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16 if low else jnp.float32), leaves)
  if low and not tokens:
    inputs = jnp.asarray(inputs, jnp.bfloat16)
  title = ', '.join(block.name for block in blocks) + (', tied' if head is tied else '')
  title += ' from tokens' if tokens else ''
  return Network(title + (' in bfloat16' if low else ''), params, apply, inputs, reference, facts | top_facts)


def dense_head(rng, size):
  block = dense(rng, size, plain)
  return (
    {'head': block.leaves},
    lambda p, x: block.apply(p['head'], x),
    lambda p, x: under('head', block.reference(p['head'], x)),
    nested('head', block.facts),
  )


def tied(rng, size):
  """The embedding, turned: it is looked up below and a weight here."""

  def reference(p, x):
    (out,) = yield Dot(('embed/table',), [x], [p['embed']['table'].T], [x], {'embed/table': [[()]]})
    return out

  return {}, lambda p, x: x @ p['embed']['table'].T, reference, {'embed/table': Fact((1,), (0,))}


# --- layers in layers ---------------------------------------------------------------------------------------------


def alone(rng, size, draw=None):
  if draw is not None:
    return draw(rng, size)
  return BLOCKS[rng.integers(len(BLOCKS))](rng, size)


def _square(rng, size, draw=None):
  """A layer that keeps its size."""
  while True:
    block = alone(rng, size, draw)
    if block.size == size:
      return block


def _same_shapes(rng, block, many):
  """Leaves of several layers, stacked; gains stay near one."""
  noise = lambda leaf: leaf * np.float32(rng.uniform(0.5, 1.5)) + _draw(rng, *leaf.shape) * np.std(leaf)  # noqa: E731
  return jax.tree.map(lambda leaf: np.stack([noise(leaf) for _ in range(many)]).astype(np.float32), block.leaves)


def _of(p, place):
  return jax.tree.map(lambda leaf: leaf[place], p)


def _stacked(facts):
  up = lambda axes: axes and tuple(axis + 1 for axis in axes)  # noqa: E731
  return {path: fact._replace(summed=up(fact.summed), outputs=up(fact.outputs)) for path, fact in facts.items()}


def scanned(rng, size, draw=None):
  block, many = _square(rng, size, draw), 3

  def apply(p, x):
    return lax.scan(lambda x, q: (block.apply(q, x), None), x, p)[0]

  def reference(p, x):
    for i in range(many):
      x = yield from within((i, many), block.reference(_of(p, i), x))
    return x

  name = f'a scan over {many} of {block.name}'
  return Block(name, _same_shapes(rng, block, many), apply, reference, _stacked(block.facts), size)


def ensemble(rng, size, draw=None):
  """Members that see examples of their own."""
  block, many = alone(rng, size, draw), 2

  def apply(p, x):
    return jax.vmap(block.apply)(p, x.reshape(many, -1, *x.shape[1:])).reshape(*x.shape[:-1], block.size)

  def reference(p, x):
    parts = x.reshape(many, -1, *x.shape[1:])
    members = [within((i, many), block.reference(_of(p, i), parts[i]), scan=False) for i in range(many)]
    return np.concatenate((yield from abreast(members)))

  name = f'a vmap of {many} of {block.name}'
  return Block(name, _same_shapes(rng, block, many), apply, reference, _stacked(block.facts), block.size)


def wide_ensemble(rng, size):
  """Members that see the same examples: to any reader of the program one wide layer."""
  leaves = {'w': _draw(rng, 2, size, 6)}

  def apply(p, x):
    return jnp.tanh(jax.vmap(lambda w: x @ w)(p['w'])).mean(0)

  def reference(p, x):
    rows = x.reshape(-1, size)
    (out,) = yield Dot(('w',), [rows], [p['w'].transpose(1, 0, 2).reshape(size, -1)], [x], {'w': [[()]]})
    return np.tanh(out.reshape(*x.shape[:-1], 2, 6)).mean(-2)

  return Block('an ensemble over one input', leaves, apply, reference, {'w': Fact((1,), (0, 2))}, 6)


_SIMPLE = [form for form in FORMS if form in (plain, transposed, in_heads, heads_first, of_heads)]


def unrolled(rng, size):
  """A stack of dense layers, taken one by one."""
  form, many = _SIMPLE[rng.integers(len(_SIMPLE))](rng, size, size), 3
  block = Block('dense', form.leaves, None, None, form.facts, size)
  looped = rng.random() < 0.3

  def apply(p, x):
    step = lambda i, x: jnp.tanh(x @ form.operand(_of(p, i)))  # noqa: E731
    if looped:
      return lax.fori_loop(0, many, step, x)
    for i in range(many):
      x = step(i, x)
    return x

  def reference(p, x):
    for i in range(many):
      asks = within((i, many), dense_dot(form, _of(p, i), x, use=1 if looped else i + 1), scan=looped)
      x = np.tanh((yield from asks))
    return x

  facts = _stacked(form.facts)
  if looped:
    facts = {path: fact._replace(inputs=False) for path, fact in facts.items()}
    asks = reference
    reference = lambda p, x: changed(asks(p, x), lambda dot: dot._replace(to={}))  # noqa: E731
  name = f'{many} of a stack, {"in a loop" if looped else "one by one"}'
  return Block(name, _same_shapes(rng, block, many), apply, reference, facts, size)


def shared(rng, size):
  """One layer, twice in a row."""
  form = _SIMPLE[rng.integers(len(_SIMPLE))](rng, size, size)

  def apply(p, x):
    return jnp.tanh(jnp.tanh(x @ form.operand(p)) @ form.operand(p))

  def reference(p, x):
    x = np.tanh((yield from dense_dot(form, p, x)))
    return np.tanh((yield from dense_dot(form, p, x, use=2)))

  return Block('one layer twice', form.leaves, apply, reference, form.facts, size)


def there_and_back(rng, size):
  """An autoencoder's weight, used both ways round."""

  def apply(p, x):
    return jnp.tanh(jnp.tanh(x @ p['w']) @ p['w'].T)

  def reference(p, x):
    for use, w in enumerate((p['w'], p['w'].T)):
      (out,) = yield Dot(('w',), [x.reshape(-1, w.shape[0])], [w], [x], {}, use=use + 1)
      x = np.tanh(out).reshape(*x.shape[:-1], -1)
    return x

  leaves = {'w': _draw(rng, size, 10)}
  return Block('there and back', leaves, apply, reference, {'w': Fact(None, inputs=False)}, size)


def residual(rng, size, draw=None):
  block = _square(rng, size, draw)

  def reference(p, x):
    return x + (yield from block.reference(p, x))

  return block._replace(name=f'residual {block.name}', apply=lambda p, x: x + block.apply(p, x), reference=reference)


def recomputed(rng, size, draw=None):
  block = alone(rng, size, draw)
  return block._replace(name=f'{block.name}, recomputed', apply=jax.checkpoint(block.apply))


def compiled(rng, size, draw=None):
  block = alone(rng, size, draw)
  return block._replace(name=f'{block.name}, compiled', apply=jax.jit(block.apply))


WRAPPERS = [alone, alone, alone, scanned, scanned, ensemble, wide_ensemble, unrolled, shared, there_and_back, residual]
WRAPPERS += [recomputed, compiled]
AROUND_MORE = [alone, alone, scanned, ensemble, residual, recomputed]


# --- a reference, run ---------------------------------------------------------------------------------------------


def run(net: Network, multiply: Callable[[Dot], list], params: Any = None) -> Any:
  """Runs the reference with `multiply` at every contraction; returns the outputs."""
  params = net.params if params is None else params
  wide = jax.tree.map(lambda leaf: np.asarray(leaf.astype(jnp.float32)).astype(np.float64), params)
  inputs = net.inputs
  if not np.issubdtype(inputs.dtype, np.integer):
    inputs = np.asarray(inputs.astype(jnp.float32)).astype(np.float64)
  asks, answer = net.reference(wide, inputs), None
  try:
    while True:
      answer = multiply(asks.send(answer))
  except StopIteration as stop:
    return stop.value


def exact(dot: Dot) -> list:
  """The products themselves."""
  return [x @ w for x, w in zip(dot.x, dot.w, strict=True)]


def site(dot: Dot) -> str:
  """The name of a contraction."""
  return '+'.join(sorted(dot.paths)) + (f'#{dot.use}' if dot.use > 1 and dot.kind == 'quantized' else '')


class Records:
  """Multiplies, and keeps what each contraction saw.

  Attributes:
    flops: by (name, kind).
    seen: of quantized ones, by name and index, every activation.
    operands: their weights, by name and index: those that stand side by side, [K, O] each.
    grams: by path and address, float64[K, K].
  """

  def __init__(self, multiply=exact):
    self.multiply, self.flops, self.seen, self.operands, self.grams = multiply, {}, {}, {}, {}

  def __call__(self, dot: Dot) -> list:
    key = (site(dot), dot.kind)
    self.flops[key] = self.flops.get(key, 0) + sum(
      2 * 2 ** (np.iscomplexobj(x) + np.iscomplexobj(w)) * x.shape[0] * w.size
      for x, w in zip(dot.x, dot.w, strict=True)
    )
    if dot.kind == 'quantized':
      self.seen.setdefault((site(dot), dot.index), []).extend(dot.seen)
      self.operands[site(dot), dot.index] = dot.w
    for path, several in dot.to.items():
      for x, addresses in zip(dot.x, several, strict=True):
        for address in addresses:
          grams = self.grams.setdefault(path, {})
          grams[address] = grams.get(address, 0) + x.T @ x
    return self.multiply(dot)


def gram(records: Records, path: str) -> np.ndarray:
  """The Gram matrices of a leaf, [S, K, K]: zero where nothing was seen."""
  grams = records.grams[path]
  address, one = next(iter(grams.items()))
  found = np.zeros((*(size for _, size in address), *one.shape))
  for address, one in grams.items():
    found[tuple(place for place, _ in address)] = one
  return found.reshape(-1, *one.shape)
