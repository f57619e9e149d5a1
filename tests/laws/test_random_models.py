"""Every part on random networks: right by what their author knows of them, or refused in a line; nothing silent."""

import collections
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
import random_models
from jaxlite import trees
from jaxlite.graph.layouts import LeafLayout
from jaxlite.pruning import (
  block,
  channel,
  element,
  erk,
  gather_statistics,
  n_m,
  per_output,
  sparsegpt,
  sparsify,
  uniform,
)
from jaxlite.pruning.scores import wanda
from random_case import KEY, Case
from random_expected import (
  SPARSITY,
  as_leaf,
  best,
  by_layer,
  by_ranges,
  by_steps,
  erk_shares,
  expected_block,
  expected_channel,
  expected_element,
  expected_n_m,
  expected_wanda,
  float64,
  in_leaf,
  layers,
  matrices,
  on_grid,
  pruned_row_by_row,
  rms,
  stacks,
)
from random_models import Records

pytestmark = pytest.mark.unoptimized


def refused(call, *words):
  """The one line in which something is refused."""
  with pytest.raises(ValueError) as error:
    call()
  assert '\n' not in str(error.value)
  assert all(word in str(error.value) for word in words), str(error.value)


def check_weights(case):
  known = {path: fact.summed and LeafLayout(fact.summed, fact.outputs) for path, fact in case.facts.items()}
  assert case.weights == known


def check_coverage(case):
  rows = jl.coverage(case.net.apply)(case.params, case.net.inputs)
  found, expected = collections.Counter(), collections.Counter()
  for row in rows:
    found[row.name, row.quantized] += row.flops
    assert bool(row.why) != row.quantized, row
  for (name, kind), flops in case.records.flops.items():
    expected[name, kind == 'quantized'] += flops
  assert found == expected
  assert sum(row.share for row in rows) == pytest.approx(1)


STRUCTURES = {
  'uniform': (element, uniform, SPARSITY),
  'erk': (element, erk, SPARSITY),
  'channel': (channel(), uniform, SPARSITY),
  'block': (block(2, 2), uniform, SPARSITY),
  'n_m': (n_m(2, 4), uniform, 0.5),
}


def parts_of(case):
  """Update parts, where a structure cannot lie in a leaf with a rule for that leaf, and that it is refused without."""
  parts = {}
  for name, (structure, allocate, sparsity) in STRUCTURES.items():
    cannot = set()
    for path, fact in case.masked.items():
      ndim = case.leaves[path].ndim
      if name in ('channel', 'n_m') and path not in case.clear:
        cannot.add(path)
      if name == 'block' and (ndim < 2 or {ndim - 1, ndim - 2} & {*stacks(fact, ndim)}):
        cannot.add(path)
    part = jl.prune(sparsity, structure=structure, allocate=allocate)
    if cannot:
      refused(lambda part=part: updated(part, case), name.replace('n_m', '2:4'))
      rules = {f'^{path}$': element for path in sorted(cannot)} | {'.': structure}
      if not {*case.masked} - cannot:
        continue
      part = jl.prune(sparsity, structure=rules, allocate=allocate)
    parts[name] = part, cannot
  return parts


def updated(part, case):
  return part.update(case.params, part.init(case.params, case.weights), case.params)


def check_masks(case):
  if not case.says(lambda: updated(jl.prune(SPARSITY), case)):
    return
  with warnings.catch_warnings():
    warnings.filterwarnings('ignore', '.*not masked: a zero')
    check_masked(case)


def check_masked(case):
  parts = parts_of(case)
  grown = jax.tree.map(
    lambda leaf: jnp.sin(jnp.arange(leaf.size).reshape(leaf.shape) * 1.7).astype(leaf.dtype), case.params
  )
  rigl = jl.rigl(optax.sgd(0.1), SPARSITY, end=10, every=1, fraction=0.5)

  @jax.jit
  def everything(params):
    found = {name: part.update(params, part.init(params, case.weights), params)[0] for name, (part, _) in parts.items()}
    state = rigl.init(params, case.weights)
    updates, one = rigl.update(grown, state, params)
    at = optax.apply_updates(params, updates)
    moved, two = rigl.update(grown, one, at)
    decayed = jl.optim.l2(0.25)
    return (
      found,
      (state.masks.masks, at, two.masks.masks, optax.apply_updates(at, moved)),
      decayed.update(jax.tree.map(jnp.zeros_like, params), decayed.init(params, case.weights), params)[0],
    )

  found, of_rigl, decay = everything(case.params)
  shares = erk_shares({path: case.leaves[path] for path in case.masked}, case.masked)
  before = trees.by_path(case.params)
  for name, (_, cannot) in parts.items():
    after = trees.by_path(optax.apply_updates(case.params, found[name]))
    for path, leaf in before.items():
      if path not in case.masked:
        assert float64(after[path]) == pytest.approx(2 * float64(leaf)), (name, path)
        continue
      fact, values = case.masked[path], case.leaves[path]
      live = float64(after[path]) != 0
      if name in ('uniform', 'erk') or path in cannot:
        share = shares[path] if name == 'erk' else 0.5 if name == 'n_m' else SPARSITY
        expected, got = expected_element(values, fact, share), layers(live, fact)
      elif name == 'channel':
        expected, got = expected_channel(values, fact, SPARSITY), matrices(live, fact)
        assert (got == got[..., :1]).all(), path
        got = got[..., 0]
      elif name == 'n_m':
        expected, got = expected_n_m(values, fact, 2, 4), matrices(live, fact)
      else:
        units, shape = expected_block(values, fact, SPARSITY, 2, 2), layers(live, fact).shape
        expected = np.repeat(np.repeat(units, 2, -2), 2, -1)[..., : shape[-2], : shape[-1]]
        got = layers(live, fact)
      np.testing.assert_array_equal(got, expected.reshape(got.shape), err_msg=f'{name} {path}')
  check_rigl(case, shares, grown, *of_rigl)
  for path, update in trees.by_path(decay).items():
    expected = 0.25 * float64(before[path]) if path in case.facts else np.zeros(before[path].shape)
    np.testing.assert_allclose(float64(update), expected, rtol=1e-2 if case.low else 1e-6, err_msg=path)


def check_rigl(case, shares, gradients, first, weights, second, after):
  start, end = trees.by_path(first), trees.by_path(second)
  assert {*start} == {*case.masked}
  for path, fact in case.masked.items():
    old, new = (layers(np.asarray(masks[path]), fact) for masks in (start, end))
    values = layers(np.abs(float64(trees.by_path(weights)[path])), fact)
    slopes = layers(np.abs(float64(trees.by_path(gradients)[path])), fact)
    alive = old[0].size - by_layer(case.leaves[path], fact, shares[path])
    assert (old.reshape(len(old), -1).sum(1) == alive).all(), path
    share = np.float32(0.25) * (1 + np.cos(np.float32(np.pi) * np.float32(1) / 10))
    moving = min(int(np.floor(alive * share)), old[0].size - alive)
    for i in range(len(old)):
      kept = best(np.where(old[i], values[i] + 1, 0), alive - moving)
      grown = best(np.where(kept, -1, slopes[i]), moving)
      np.testing.assert_array_equal(new[i], kept | grown, err_msg=path)
    dead = ~layers(np.asarray(end[path]), fact)
    assert not layers(float64(trees.by_path(after)[path]), fact)[dead].any(), path


def check_quantized(case):
  net, quantized = case.net, Records(on_grid)
  expected = random_models.run(net, quantized)
  lsq, fake = jl.lsq().model(case.model), jl.fake_quant().model(case.model)

  @jax.jit
  def everything(params, inputs):
    own, ranges = fake.init(KEY, inputs)
    fake_out, ranges = fake.apply(own, ranges, inputs, train=True, key=KEY, step=0)
    later, _ = fake.apply(own, ranges, inputs, train=False, key=None)
    steps, zeros = lsq.init(KEY, inputs)
    return (
      net.apply(params, inputs),
      jl.quantize(net.apply)(params, inputs),
      fake_out,
      later,
      ranges['jl.fake_quant'],
      steps['jl.lsq'],
      zeros['jl.lsq'],
      lsq.apply(steps, zeros, inputs, train=True, key=KEY)[0],
    )

  plain, out, fake_out, later, ranges, steps, zeros, learned = jax.tree.map(
    float64, everything(case.params, net.inputs)
  )
  size = max(rms(case.outputs), 1e-6)
  assert rms(plain - case.outputs) < (0.03 if case.low else 1e-4) * size

  def near(got, expected):
    """A value half way between two integers may fall to either side (in bfloat16 many are), so bits are not asked for,
    but far less than what rounding to integers changes."""
    noise = rms(expected - case.outputs)
    assert rms(got - expected) < (noise + 0.02 * size if case.low else 0.2 * noise + 1e-5 * size), (noise, size)

  near(out, expected)
  near(fake_out, expected)
  check_ranges(quantized, ranges, 0.03 if case.low else 1e-3)
  near(later, random_models.run(net, by_ranges(ranges)))
  check_steps(case.records, steps, 0.03 if case.low else 1e-4)
  near(learned, random_models.run(net, by_steps(steps, zeros)))


def check_ranges(quantized, ranges, close):
  assert {*ranges} == {name for name, _ in quantized.seen}
  for (name, index), seen in quantized.seen.items():
    low, high = min(one.min() for one in seen), max(one.max() for one in seen)
    got = [float(end[index]) for end in ranges[name]]
    np.testing.assert_allclose(got, [low, high], atol=close * max(high - low, 1e-3), err_msg=name)


def check_steps(records, steps, close):
  """2 * mean|v| / sqrt(the largest integer), of each output and of what is seen; an output whose weights are all zero
  has the step of weights that keep the variance."""
  assert {*steps} == {name for name, _ in records.seen}
  for (name, index), seen in records.seen.items():
    sizes = [(np.abs(w).mean(0), np.sqrt(2 / np.pi / len(w))) for w in records.operands[name, index]]
    size = np.concatenate([np.where(mean > 0, mean, usual) for mean, usual in sizes])
    np.testing.assert_allclose(steps[name]['weight'][index], 2 * size / np.sqrt(127), rtol=close, err_msg=name)
    low, high = min(*(one.min() for one in seen), 0), max(*(one.max() for one in seen), 0)
    top = 255 - np.clip(np.round(-low / max(high - low, 1e-30) * 255), 0, 255)
    mean = sum(np.abs(one).sum() for one in seen) / sum(one.size for one in seen)
    # Where the zero point lies half way between two integers it may be either.
    low_step, high_step = (2 * mean / np.sqrt(max(top + by, 1)) for by in (1, -1))
    assert low_step * (1 - close) <= steps[name]['activation'][index] <= high_step * (1 + close), name


def check_statistics(case):
  net = case.net
  seen = {path for path, fact in case.facts.items() if fact.inputs}
  context = gather_statistics(net.apply, case.params, batches=[{'inputs': net.inputs}])
  assert {*context.grams} == seen
  assert {path for path, why in context.layouts.skipped if why} == {*case.facts} - seen
  close = {'rtol': 0.1, 'atol': 0.1} if case.low else {'rtol': 1e-3, 'atol': 1e-3}
  for path in seen:
    np.testing.assert_allclose(np.asarray(context.grams[path]), random_models.gram(case.records, path), **close)
  refuse = {path for path, fact in case.facts.items() if fact.bent or fact.filled}
  for path in refuse & seen:
    refused(lambda path=path: sparsegpt(case.params, context, SPARSITY, select=f'^{path}$'), path)
  seen -= refuse
  for path in {*case.facts} - seen - refuse:
    refused(lambda path=path: sparsegpt(case.params, context, SPARSITY, select=f'^{path}$'), 'sparsegpt', path)
    kind = {'score': wanda, 'context': context, 'select': f'^{path}$'}
    refused(lambda kind=kind: sparsify(case.params, SPARSITY, **kind), 'wanda', path)
  if not seen:
    return
  select = [f'^{path}$' for path in sorted(seen)]
  pruned, masks = sparsegpt(case.params, context, SPARSITY, select=select, allocate=uniform)
  patterned, patterns = sparsegpt(case.params, context, 0.5, structure=n_m(2, 4), select=select)
  by_norm = sparsify(
    case.params, SPARSITY, score=wanda, context=context, structure=per_output(), select=select, allocate=uniform
  )[1]
  for path in seen:
    fact, leaf, grams = case.facts[path], case.leaves[path], np.asarray(context.grams[path], np.float64)
    whole = matrices(leaf, fact)
    parts = whole.reshape(len(grams), -1, whole.shape[-1])
    norms = np.repeat(np.sqrt(grams.diagonal(0, 1, 2))[:, None], parts.shape[1], 1).reshape(whole.shape)
    np.testing.assert_allclose(np.broadcast_to(context.norms[path], leaf.shape), as_leaf(norms, leaf, fact), rtol=1e-3)
    mask = matrices(np.asarray(trees.by_path(by_norm)[path]), fact)
    norms32 = matrices(np.broadcast_to(np.asarray(context.norms[path]), leaf.shape), fact)
    np.testing.assert_array_equal(mask, expected_wanda(leaf, fact, norms32, SPARSITY), err_msg=path)
    for values, of, by_size in (
      (pruned, masks, in_leaf(expected_element(leaf, fact, SPARSITY), leaf, fact)),
      (patterned, patterns, as_leaf(expected_n_m(leaf, fact, 2, 4), leaf, fact)),
    ):
      live = matrices(np.asarray(trees.by_path(of)[path]), fact).reshape(parts.shape)
      got = matrices(float64(trees.by_path(values)[path]), fact).reshape(parts.shape)
      plain = np.where(matrices(by_size, fact).reshape(parts.shape), parts, 0)
      error = lambda new, grams=grams, parts=parts: np.einsum('sok,skl,sol->', new - parts, grams, new - parts)  # noqa: E731
      assert error(got) <= error(plain) * (1.1 if case.low else 1.001) + 1e-6, path
      if of is masks:
        assert (~live).sum() == (~by_size).sum() or len(parts) > len(whole), path  # groups are rounded each by itself
      else:
        groups = np.add.reduceat(live, range(0, live.shape[-1], 4), axis=-1)
        assert (groups <= 2).all(), path
      for i, gram in enumerate(grams):
        own = pruned_row_by_row(parts[i], gram, live[i])
        close = 2e-3 * rms(parts) + case.low * np.abs(own) / 256  # of what was kept in bfloat16
        assert (np.abs(got[i] - own) <= close).all() or np.array_equal(got[i], plain[i]), path


READ, HEAVY = (check_weights, check_coverage), (check_masks, check_quantized, check_statistics)


@pytest.mark.sampled(5)
@pytest.mark.parametrize('seed', range(12))
def test_random_models(seed):
  """The short form: what is read of each, and one group of parts; of 0 and 9, which take longest to compile, none."""
  case = Case(seed)
  for check in READ if seed in (0, 9) else (*READ, HEAVY[seed % 3]):
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(240))
def test_200_random_models(seed):
  case = Case(seed)
  for check in (*READ, *HEAVY):
    check(case)
