"""Laws of what a run runs: the code of now makes the program that the run began with, or it is another run."""

import contextlib
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite.run import identity
from loops import X, Y, leaves, run

pytestmark = pytest.mark.unoptimized

ROOT = pathlib.Path(__file__).resolve().parents[2]


def at(rate):
  """A recipe whose body alone tells its rate."""

  def recipe(config, total):
    return jl.chain(optax.adam(rate))

  return recipe


def mlp(hidden, scale=0.1, act=jnp.tanh):
  rng = np.random.default_rng(0)
  params = {
    'one': (scale * rng.normal(size=(6, hidden))).astype(np.float32),
    'two': (scale * rng.normal(size=(hidden, 3))).astype(np.float32),
  }
  return lambda p, x: act(x @ p['one']) @ p['two'], params


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp('finished') / 'run'
  first = run(folder, at(0.01), model=mlp(8))
  return folder, first


def contents(folder):
  return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file() and path.name != '.lock'}


OTHERS = {  # the same names, other programs
  'a rate in the body of the recipe': (at(5.0), mlp(8), {}, r'`.*mul -0\.0099.*` is now `.*mul -5\.0'),
  'a wider layer': (at(0.01), mlp(32), {}, r'float32\[6,8\].* is now .*float32\[6,32\]'),
  'another activation': (at(0.01), mlp(8, act=jnp.sin), {}, r'`.*tanh.* is now `.*sin'),
  'a longer run of another rate': (at(5.0), mlp(8), {'steps': 20}, r'mul -5\.0'),
  'another loss': (at(0.01), mlp(8), {'loss': lambda outputs, batch: jl.cross_entropy(outputs, batch)}, 'loss: saved'),
  'fewer examples': (at(0.01), mlp(8), {'data': (X[:60], Y[:60])}, r'data differ .*examples: \[\d+, \d+, \d+\], now'),
  'other labels': (at(0.01), mlp(8), {'data': (X, Y[::-1])}, 'data differ .*fingerprint'),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize('what', list(OTHERS))
def test_a_run_does_not_answer_for_another_program(what, finished):
  folder, _ = finished
  recipe, model, fields, words = OTHERS[what]
  before = contents(folder)
  with pytest.raises(ValueError, match=f'^[^\n]*{words}[^\n]*another workdir[^\n]*fresh=True[^\n]*$'):
    run(folder, recipe, model=model, **fields)
  assert contents(folder) == before


def test_the_same_code_under_other_names_is_the_same_run_and_reporting_is_said(finished):
  folder, first = finished
  before, said = contents(folder), []
  assert run(folder, at(0.01), model=mlp(8), say=said.append, log__every=jl.Duration(steps=3)) == first
  assert any(line.startswith('this run is finished: reported from') for line in said)
  assert contents(folder) == before
  said.clear()
  assert run(folder, at(0.01), model=mlp(8, scale=0.2), say=said.append) == first
  assert any(line.startswith('note: what this run started from') for line in said)  # other values, the same program
  for rate, same in ((0.01, True), (5.0, False)):  # the experiment's folder was renamed, or taken to another machine
    moved = at(rate)
    moved.__module__ = 'content.experiment'
    with contextlib.nullcontext() if same else pytest.raises(ValueError, match=r'of another program: .*mul -5'):
      assert run(folder, moved, model=mlp(8)) == first


def test_fresh_moves_the_old_run_aside(finished, tmp_path):
  run(tmp_path / 'run', at(0.01), model=mlp(8), steps=2)
  old = leaves(tmp_path / 'run')
  said = []
  run(tmp_path / 'run', at(0.1), model=mlp(4), steps=2, fresh=True, say=said.append)
  assert leaves(tmp_path / 'run.old1') == old
  assert said[0] == f'moved the old run to {tmp_path / "run.old1"}'


def test_a_schedule_over_the_run_is_traced_with_the_length_that_the_run_began_with(tmp_path):
  def recipe(config, total):
    return jl.chain(optax.sgd(optax.linear_schedule(0.1, 0.0, total)))

  def other(config, total):
    return jl.chain(optax.sgd(optax.linear_schedule(0.2, 0.0, total)))

  other.__qualname__ = recipe.__qualname__
  run(tmp_path, recipe, steps=4)
  with pytest.raises(ValueError, match='another program'):
    run(tmp_path, other, steps=8)
  said = []
  run(tmp_path, recipe, steps=8, say=said.append)
  assert 'resumed at step 4 of 8' in said
  run(tmp_path, recipe, steps=8)  # and is known by its new length


def test_other_versions_are_a_note_and_the_program_is_recorded_anew(tmp_path, monkeypatch):
  run(tmp_path, at(0.01), steps=4)
  versions = identity.machine.versions()
  with monkeypatch.context() as patch:
    patch.setattr(identity.machine, 'versions', lambda: {**versions, 'optax': '99'})
    said = []
    run(tmp_path, at(0.02), steps=6, say=said.append)
    assert any('other versions (optax' in line and 'recorded anew' in line for line in said)
    with pytest.raises(ValueError, match=r'another program: .*-0\.0199'):
      run(tmp_path, at(0.01), steps=6)


@pytest.mark.parametrize('flag, value', [('jax_enable_x64', True), ('jax_default_prng_impl', 'rbg')])
def test_a_flag_of_jax_that_was_turned_is_named(finished, flag, value):
  folder, _ = finished
  before = getattr(jax.config, flag)
  jax.config.update(flag, value)
  try:
    with pytest.raises(ValueError, match=f"{flag} was {before}, now {value}: set JAX's flags as they were"):
      run(folder, at(0.01), model=mlp(8), steps=16)
  finally:
    jax.config.update(flag, before)


PROGRAM = """
import sys; sys.path.insert(0, 'tests')
import hashlib, pathlib, optax, jaxlite as jl
from jaxlite.run import identity
from jaxlite.run.setup import prepare
from loops import X, Y, config_of, linear
def recipe(config, total):
  return jl.chain(jl.fake_quant(), jl.average(0.9), optax.adamw(0.01), jl.prune(0.5, begin=1, end=4))
setup = prepare(config_of(recipe), pathlib.Path('x'), linear(), (X, Y))
print(hashlib.sha256(identity.identify(setup).text.encode()).hexdigest())
"""


def test_the_text_is_the_same_in_every_process():
  hashes = {
    subprocess.run(
      [sys.executable, '-c', PROGRAM],
      cwd=ROOT,
      env={**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHONHASHSEED': seed},
      capture_output=True,
      text=True,
      check=True,
    ).stdout
    for seed in ('1', '2')
  }
  assert len(hashes) == 1


def test_the_text_says_no_name_and_no_address(finished):
  folder, _ = finished
  text = (folder / identity.FILE).read_text()
  assert ' 0x' not in text
  for name in ('recipe', 'loops', 'lambda', 'one', 'function'):
    assert not re.search(rf'\b{name}\b', text.split('== ')[1])  # a primitive may be called one_minus_square
