"""Machines that lack something: everything works there, and a line says what was left off."""

import os
import platform
import subprocess
import sys

import pytest

import unoptimized
from lacking import WITHOUT_EXTRA

PROGRAM = """
import os, sys, tempfile
exec(os.environ.get('FIRST', ''))
import jax, numpy as np, optax
import jaxlite as jl
from jaxlite.models import SmallCNN

rng = np.random.default_rng(0)
inputs = rng.normal(size=(96, 8, 8, 1)).astype(np.float32)
dense = jl.for_cpu(jax.grad(lambda w, x: ((x @ w) ** 2).sum()))  # a product that has a site where the extra is
assert np.isfinite(dense(np.ones((256, 128), np.float32), np.ones((64, 256), np.float32))).all()
config = jl.Config(name='bare', recipe=lambda config, total: jl.chain(jl.fake_quant(), optax.adam(1e-2)))
config.train, config.data.batch_size, config.log.tensorboard = jl.Duration(steps=6), 16, False
data = inputs, (inputs.mean((1, 2, 3)) > 0).astype(int)
result = jl.train(config, tempfile.mkdtemp(), model=SmallCNN((8, 8), hidden=8, classes=2), data=data)
assert np.isfinite(result.metrics['loss'])
"""
LACKING = {
  'mallopt': ('from jaxlite.host import allocator; allocator._glibc = lambda: None', {}, 'the allocator is not glibc'),
  'AVX-512': ('', {'XLA_FLAGS': '--xla_cpu_max_isa=AVX2', 'ONEDNN_MAX_CPU_ISA': 'AVX2'}, 'rewrites for CPU'),
  'a second core': ('os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})', {}, 'rewrites for CPU'),
  'a compiler': ('', {'PATH': '', 'CC': ''}, 'oneDNN is installed but not called: no C compiler'),
  'oneDNN': (WITHOUT_EXTRA, {}, 'kernels compiled on this machine'),
  'oneDNN and a compiler': (WITHOUT_EXTRA, {'PATH': '', 'CC': ''}, 'no convolutions in C: no C compiler was found'),
}
QUICK = ('AVX-512', 'a compiler', 'oneDNN')


@pytest.mark.sampled(2)
@pytest.mark.skipif(not hasattr(os, 'sched_setaffinity'), reason='cores are taken away by a call of Linux')
@pytest.mark.parametrize(
  'what', [pytest.param(what, marks=[] if what in QUICK else pytest.mark.slow) for what in LACKING]
)
def test_a_run_ends_well_without(what, tmp_path):
  first, environment, said = LACKING[what]
  if what == 'a compiler' and platform.machine() != 'x86_64':
    pytest.skip('oneDNN, which the handlers are for, has no wheel for this platform')
  quicker = unoptimized.environment()  # neither bits nor speed are judged
  environment = {**os.environ, **quicker, 'XDG_CACHE_HOME': str(tmp_path), 'FIRST': first, **environment}
  done = subprocess.run([sys.executable, '-c', PROGRAM], capture_output=True, text=True, env=environment, check=False)
  assert done.returncode == 0, done.stderr
  assert said in done.stdout, done.stdout
