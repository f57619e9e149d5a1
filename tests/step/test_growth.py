"""A deeper network of equal layers is traced once and has no more loops, branches and bodies to compile."""

from __future__ import annotations

import collections
import functools
import importlib
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite.graph.walk import bodies, equations, opened

BENCH = pathlib.Path(__file__).resolve().parent.parent.parent / 'experiments' / 'bench'
WIDTH = 8
BATCH = {'inputs': np.ones((4, WIDTH), np.float32), 'labels': np.arange(4)}


def mlp(layers, seen=None):
  params = {
    f'layer{i:02}': {'w': np.eye(WIDTH, dtype=np.float32), 'b': np.zeros(WIDTH, np.float32)} for i in range(layers)
  }

  def apply(params, x):
    if seen is not None:
      seen.append(layers)
    for name in sorted(params):
      x = jax.nn.relu(x @ params[name]['w'] + params[name]['b'])
    return x

  return jl.from_function(apply, params)


PARTS = {
  'fake_quant': lambda: [jl.fake_quant(), optax.sgd(0.1)],
  'fake_quant of weights alone': lambda: [jl.fake_quant((4, None)), optax.sgd(0.1)],
  'fake_quant from a later step': lambda: [jl.fake_quant(begin=3), optax.sgd(0.1)],
  'lsq': lambda: [jl.lsq(), optax.sgd(0.1)],
  'prune': lambda: [optax.sgd(0.1), jl.prune(0.5, end=4, every=2)],
  'prune to 2:4': lambda: [optax.sgd(0.1), jl.prune(0.5, end=4, structure=jl.pruning.n_m(2, 4))],
  'straight_through': lambda: [jl.pruning.straight_through(0.5, end=4), optax.sgd(0.1)],
}


def traced(parts, layers):
  train = jl.train_step(mlp(layers), jl.cross_entropy, jl.chain(*parts))
  state = jax.eval_shape(train.init, jax.random.key(0), BATCH)
  return train.programs.jaxpr(state, BATCH)[0]


def distinct(jaxpr, seen=None):
  """The equations of a program, those of a body that several calls share counted once: what is traced and lowered."""
  seen = {} if seen is None else seen
  for eqn in opened(jaxpr)[0].eqns:
    yield eqn
    for body in bodies(eqn):
      if id(body) not in seen:
        seen[id(body)] = body
        yield from distinct(body, seen)


@pytest.mark.sampled(2)
@pytest.mark.parametrize('name', PARTS)
def test_loops_and_branches_do_not_grow_with_equal_layers(name):
  def control(layers):
    names = (eqn.primitive.name for eqn in equations(traced(PARTS[name](), layers)))
    return collections.Counter(name for name in names if name in ('cond', 'while', 'scan'))

  assert control(3) == control(9)


def test_masks_pass_through_no_conditional_which_would_copy_each_at_every_step():
  branches = [eqn for eqn in equations(traced(PARTS['prune'](), 3)) if eqn.primitive.name == 'cond']
  assert not [var for eqn in branches for var in eqn.outvars if var.aval.dtype == bool and var.aval.ndim]


def test_a_range_is_moved_once_at_each_site():
  moves = [eqn for eqn in equations(traced(PARTS['fake_quant'](), 3)) if eqn.params.get('name') == 'blend']
  assert len(moves) == 3


@pytest.mark.sampled(1)
@pytest.mark.parametrize('name', ['fake_quant', 'lsq'])
def test_equal_sites_share_what_is_traced(name):
  few, many = (len(list(distinct(traced(parts, layers)))) for parts, layers in ((PARTS[name](), 3), (PARTS[name](), 9)))
  plain = [len(list(distinct(traced([optax.sgd(0.1)], layers)))) for layers in (3, 9)]
  assert many - few <= (plain[1] - plain[0]) + 6 * 45


def test_of_an_equal_leaf_more_prune_writes_down_little():
  """Its own sum, its place in what is joined and its slice: no search, no loop and no count of its own."""

  def added(layers):
    parts = [optax.sgd(0.1), jl.prune(0.5, end=4, every=2)]
    return len(list(distinct(traced(parts, layers)))) - len(list(distinct(traced([optax.sgd(0.1)], layers))))

  assert added(9) - added(3) <= 6 * 12


def test_of_a_leaf_more_the_watch_over_bad_numbers_writes_down_its_place_in_what_is_joined():
  def plain(layers):
    train = jl.train_step(mlp(layers), jl.cross_entropy, jl.chain(optax.sgd(0.1)))
    state = jax.eval_shape(train.init, jax.random.key(0), BATCH)

    def step(params, batch):
      outputs = lambda params: train.model.apply(params, {}, batch['inputs'], train=True, key=None)[0]  # noqa: E731
      grads = jax.grad(lambda params: jl.cross_entropy(outputs(params), batch).mean())(params)
      return optax.apply_updates(params, optax.sgd(0.1).update(grads, optax.sgd(0.1).init(params))[0])

    return jax.make_jaxpr(step)(state.params, BATCH)

  added = [len(list(distinct(traced([optax.sgd(0.1)], n)))) - len(list(distinct(plain(n)))) for n in (3, 9)]
  assert added[1] - added[0] <= 6  # the flat form of a matrix; a vector is flat


def test_programs_do_not_grow_in_number_with_equal_layers():
  def compiled(layers):
    seen: list[str] = []

    def hear(event, duration, **kwargs):
      seen.append(event)

    train = jl.train_step(mlp(layers), jl.cross_entropy, jl.chain(*PARTS['fake_quant'](), jl.prune(0.5, end=4)))
    key = jax.random.key(0)
    jax.monitoring.register_event_duration_secs_listener(hear)
    try:
      state = train.init(key, BATCH)
      for _ in range(2):
        state, _ = train.step(state, BATCH)
    finally:
      jax.monitoring.unregister_event_duration_listener(hear)
    return sum(event.endswith('backend_compile_duration') for event in seen)

  compiled(2)  # what every program shares
  assert compiled(3) == compiled(5) == 1, (compiled(3), compiled(5))


def test_the_model_is_traced_once_to_train():
  seen: list[int] = []
  parts = [*PARTS['fake_quant'](), jl.prune(0.5, end=4, every=2)]
  train = jl.train_step(mlp(3, seen), jl.cross_entropy, jl.chain(*parts))
  state = train.init(jax.random.key(0), BATCH)
  seen.clear()
  train.programs.jaxpr(state, BATCH)
  evaluated = len(seen) - 1
  state, _ = train.step(state, BATCH)
  train.step(state, BATCH)
  assert len(seen) - evaluated == 1
  assert evaluated <= 1


def test_a_bench_without_one_of_its_parts_prints_the_rows_of_the_other(monkeypatch, capsys):
  monkeypatch.syspath_prepend(str(BENCH))
  growth = importlib.import_module('growth')
  monkeypatch.setattr(growth, 'PARTS', ('no_such_part',))
  assert list(growth.rows(True)) == []
  assert 'no_such_part.py is not there' in capsys.readouterr().out
  programs = importlib.import_module('growth_programs')
  monkeypatch.setattr(programs, '_seconds', lambda kind, size: {'by hand': 2.0, 'plain run': 2.0}.get(kind, 3.0))
  whats = [(row['what'], row['size'], row.get('ratio')) for row in programs.rows(True)]
  assert {('depth', 2, 1.5), ('leaves', 20, 1.5), ('prune', 50, None)} <= set(whats)


def test_masks_of_equal_leaves_are_those_of_each_alone():
  rng = np.random.default_rng(0)
  leaves = {f'w{i}': jnp.asarray(rng.integers(0, 4, (6, 5)) * 0.5, jnp.float32) for i in range(5)}  # many ties
  tx = jl.prune(0.7, end=0)
  together = tx.update(jax.tree.map(jnp.zeros_like, leaves), tx.init(leaves), leaves)[1].masks
  for name, leaf in leaves.items():
    alone = tx.update({name: jnp.zeros_like(leaf)}, tx.init({name: leaf}), {name: leaf})[1].masks
    np.testing.assert_array_equal(together[name], alone[name])
    kept = np.argsort(-np.abs(np.asarray(leaf)).ravel(), kind='stable')[: 30 - 21]
    assert sorted(np.flatnonzero(np.asarray(together[name]))) == sorted(kept)


COPYING = {
  'adam': lambda: [optax.adam(0.1)],
  'fake_quant': lambda: [jl.fake_quant(), optax.sgd(0.1)],
  'prune': lambda: [optax.sgd(0.1), jl.prune(0.5, end=4, every=2)],
  'straight_through': lambda: [jl.pruning.straight_through(0.5, end=4), optax.sgd(0.1)],
  'swa': lambda: [jl.optim.swa(begin=2, every=2), optax.sgd(0.1)],
}


def copies(program):
  """How many arrays a compiled step copies each time: in itself, and in what its conditionals choose from."""
  entry = program.split('ENTRY ')[1].split('\n}')[0]
  names = re.findall(r'branch_computations=\{(.*?)\}|(?:true|false)_computation=(%[\w.-]+)', program)
  branches = [one.strip() for pair in names for one in ','.join(pair).split(',') if one.strip()]
  bodies = [program.split(f'\n{branch} ')[1].split('\n}')[0] for branch in branches]
  return sum(body.count(' copy(') for body in (entry, *bodies))


@functools.cache
def compiled_step(name, layers):
  train = jl.train_step(mlp(layers), jl.cross_entropy, jl.chain(*COPYING[name]()))
  state = jax.eval_shape(train.init, jax.random.key(0), BATCH)
  return jax.jit(train.step, donate_argnums=0).lower(state, BATCH).compile().as_text()


@functools.cache
def compiled_plainly(layers):
  def step(params, batch):
    def loss(params):
      x = batch['inputs']
      for name in sorted(params):
        x = jax.nn.relu(x @ params[name]['w'] + params[name]['b'])
      return jl.cross_entropy(x, batch).mean()

    return jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params))

  shape = {'w': jax.ShapeDtypeStruct((WIDTH, WIDTH), 'float32'), 'b': jax.ShapeDtypeStruct((WIDTH,), 'float32')}
  return jax.jit(step, donate_argnums=0).lower({f'layer{i}': shape for i in range(layers)}, BATCH).compile().as_text()


@pytest.mark.sampled(2)
@pytest.mark.parametrize('name', COPYING)
@pytest.mark.unoptimized(False)
def test_no_leaf_is_copied_at_every_step_that_plain_jax_does_not_copy(name):
  """What happens rarely (a look at bad numbers, new masks, an average) reads and writes the state where it lies. XLA
  itself copies a weight that the gradient of its inputs reads, since its update may come before."""
  grown = copies(compiled_step(name, 4)) - copies(compiled_step(name, 2))
  assert grown <= copies(compiled_plainly(4)) - copies(compiled_plainly(2))


@pytest.mark.parametrize('name', ['adam', 'prune'])
@pytest.mark.unoptimized(False)
def test_what_happens_rarely_is_not_made_ahead_of_its_loop(name):
  program = compiled_step(name, 4)
  assert ' concatenate(' in program  # of the leaves that are looked through
  entry = program.split('ENTRY ')[1].split('\n}')[0]
  assert not re.findall(r'= \w+\[\d{3,}\]\S* (?:concatenate|fusion)\(', entry)
