"""A part of jaxlite in somebody else's loop needs jax and optax, nothing more; what else is missing has a name."""

import os
import pathlib
import shutil
import subprocess
import sys
import venv

import jax
import optax
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# What `pip install jax optax` brings.
ONLY = """
import sys
from importlib.machinery import PathFinder

class Only(PathFinder):
  there = {'jax', 'jaxlib', 'optax', 'numpy', 'scipy', 'absl', 'ml_dtypes', 'opt_einsum', 'jaxlite'}
  @classmethod
  def find_spec(cls, name, path=None, target=None):
    if path is not None or name in cls.there or name in sys.stdlib_module_names or name.startswith('_'):
      return PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Only
"""

SCRIPT = """
import os, sys
import jaxlite as jl
assert 'jax' not in sys.modules
import jax, jax.numpy as jnp, numpy as np, optax

rng = np.random.default_rng(0)
inputs = jnp.asarray(rng.normal(size=(32, 6)), jnp.float32)
labels = jnp.asarray(rng.integers(0, 3, 32))
params = {'w': jnp.asarray(rng.normal(size=(6, 3)), jnp.float32), 'b': jnp.zeros(3)}
apply = lambda params, inputs: inputs @ params['w'] + params['b']
teacher = inputs @ jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)

# Parts alone, in a loop by hand.
quantized = jl.quantize(apply)
tx = optax.chain(optax.adam(0.1), jl.prune(0.5, begin=1, end=3, every=1))
def loss(params):
  return jl.distillation.kd(quantized(params, inputs), teacher).mean()
state, losses = tx.init(params), []
for _ in range(6):
  value, grads = jax.value_and_grad(loss)(params)
  updates, state = tx.update(grads, state, params)
  params = optax.apply_updates(params, updates)
  losses.append(float(value))
assert losses[-1] < losses[0]
assert np.count_nonzero(params['w']) == 9

# The hooks, in a step by jaxlite.
side = jl.Network(jl.from_function(apply, params), params, {})
recipe = jl.chain(jl.fake_quant(), jl.distill(side), optax.sgd(0.1), jl.prune(0.5))
train = jl.train_step(jl.from_function(apply, params), jl.cross_entropy, recipe)
batch = {'inputs': inputs, 'labels': labels}
state = train.init(jax.random.key(0), batch)
for _ in range(2):
  state, metrics = train.step(state, batch)
assert np.isfinite(float(metrics['loss'])) and np.count_nonzero(state.params['w']) == 9
assert jl.tasks.classification_metrics(3).init() is not None

config = jl.Config(name='x', recipe=lambda config, total: jl.chain(optax.sgd(0.1)))
pair = np.zeros((20, 6), np.float32), np.arange(20) % 2
from jaxlite.data import from_arrays, load
assert from_arrays(pair).classes == 2

def named(what, *words):
  try:
    what()
  except ImportError as error:
    text = str(error)
    assert chr(10) not in text and 'pip install ' in text and all(word in text for word in words), text
    return
  raise AssertionError(f'{words} were not missed')

named(lambda: jl.from_linen(None), 'flax')
named(lambda: jl.from_nnx(None), 'flax')
named(lambda: jl.from_haiku(None), 'haiku', 'jaxlite[haiku]')
named(lambda: jl.from_keras(None), 'keras', 'jaxlite[keras]')
named(lambda: jl.from_equinox(None), 'equinox', 'jaxlite[equinox]')
named(lambda: jl.train(config, 'run', model=(apply, params), data=pair), 'orbax-checkpoint', 'flatbuffers')
named(lambda: jl.load('run'), 'orbax-checkpoint')
named(lambda: __import__('jaxlite.models'), 'flax')
named(lambda: load('digits', directory='empty'), 'tensorflow-datasets', 'scikit-learn')
assert not os.path.exists('run') and not os.path.exists('empty')
print('all is well')
"""


def run(python, folder, script, **environment):
  done = subprocess.run(
    [str(python), '-W', 'error', '-c', script],
    cwd=folder,
    env={**os.environ, **environment},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines()[-1] == 'all is well'


def test_parts_work_with_jax_and_optax_alone_and_what_is_missing_is_named(tmp_path):
  run(sys.executable, tmp_path, ONLY + SCRIPT, PYTHONPATH=str(ROOT))


@pytest.mark.slow
def test_in_a_real_environment_of_jax_and_optax(tmp_path):
  source = tmp_path / 'source'  # a build leaves files beside what it builds
  shutil.copytree(ROOT / 'jaxlite', source / 'jaxlite')
  for name in ('pyproject.toml', 'README.md', 'LICENSE'):
    shutil.copy(ROOT / name, source)
  venv.create(tmp_path / 'env', with_pip=True)
  python = tmp_path / 'env' / 'bin' / 'python'
  install = [python, '-m', 'pip', 'install', '-q']
  subprocess.run([*install, f'jax=={jax.__version__}', f'optax=={optax.__version__}'], check=True)
  subprocess.run([*install, '--no-deps', str(source)], check=True)
  run(python, tmp_path, SCRIPT, PYTHONPATH='')
