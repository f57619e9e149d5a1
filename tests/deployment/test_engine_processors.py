"""Kernels of integers on other processors than this one, and under sanitizers: alike, and within their buffers."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

from integer_networks import network, wide_network
from jaxlite.cpu.kernels import compiler, integers
from jaxlite.deployment.operations import Graph, reference
from jaxlite.deployment.operations.lowering import lower
from jaxlite.deployment.operations.patterns import recognized
from jaxlite.deployment.running import kernels as engine
from jaxlite.deployment.running.kernel_forms import formed
from jaxlite.host.machine import abilities

CC = compiler.compiler()
pytestmark = pytest.mark.skipif(bool(integers.missing()), reason='needs a C compiler')

FOLDER = Path(integers.__file__).parent
SHARED = ('-DSHARED_FROM=0', '-DPART_FROM=1')  # every step that has parts, however small
FLAGS = ('-std=gnu11', '-fno-math-errno', '-fno-trapping-math', '-pthread', '-Wall', '-Wextra', '-Werror')
WITHOUT = tuple(f'-U__{name}__' for name in ('SSE2', 'AVX2', 'AVX512F'))
# What a processor needs, and how code for it is asked for.
PROCESSORS = {
  'sse2': (('sse2',), ('-march=x86-64',)),
  'avx2': (('avx2', 'fma'), ('-march=haswell',)),
  'avx-vnni': (('avx2', 'avx_vnni'), ('-march=haswell', '-mavxvnni')),
  'avx512': (('avx512f', 'avx512bw'), ('-march=skylake-avx512',)),
  'avx512 without bytes': (('avx512f', 'avx512bw'), ('-march=skylake-avx512', '-mno-avx512bw')),
  'avx512-vnni': (('avx512f', 'avx512_vnni'), ('-march=cascadelake',)),
  'avx512-vbmi': (('avx512_vnni', 'avx512vbmi'), ('-march=icelake-server',)),
}


def _compiled(made: Path, source: Path, *flags: str) -> Path:
  command = [CC, *FLAGS, *flags, f'-I{jax.ffi.include_dir()}', f'-I{FOLDER}', str(source), '-o', str(made)]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr[-2000:]
  return made


def _alike(lib: ctypes.CDLL, graph: Graph, seed: int, members: int = 1) -> None:
  (piece,) = engine.parted(graph)
  plan, weights = engine.planned(piece.graph)
  x = np.random.default_rng(seed).normal(0, 3, (1 + seed % 20, *graph.values['input'].shape[1:])).astype(np.float32)
  x.reshape(-1)[:: max(x.size // 3, 1)] = np.nan
  wanted = reference.run(graph, x)
  wanted = dict(zip(graph.outputs, wanted if isinstance(wanted, tuple) else (wanted,), strict=True))
  found = {name: np.zeros_like(wanted[name]) for name in piece.graph.outputs}
  assert integers.run(lib, plan, weights, [x], list(found.values()), members) == 0
  for name, got in found.items():
    np.testing.assert_array_equal(got, wanted[name], err_msg=f'network {seed}')


def test_plain_c_gives_the_same_integers(tmp_path):
  lib = ctypes.CDLL(
    str(_compiled(tmp_path / 'plain.so', FOLDER / 'integers.c', '-O1', '-fPIC', '-shared', *SHARED, *WITHOUT))
  )
  assert integers._tried(lib)
  for seed in range(6):
    _alike(lib, network(seed), seed)
    _alike(lib, wide_network(seed), seed % 3)
    _alike(lib, network(seed), seed % 3, members=6)  # few examples: steps are shared
    _alike(lib, wide_network(seed + 9), 0, members=2 + seed)


@pytest.mark.slow
@pytest.mark.parametrize('name', PROCESSORS)
def test_every_processor_gives_the_same_integers(name, tmp_path):
  needs, flags = PROCESSORS[name]
  here = set(abilities().split())
  if not here.issuperset(needs):
    pytest.skip(f'this processor has no {" ".join(sorted({*needs} - here))}')
  lib = ctypes.CDLL(
    str(_compiled(tmp_path / 'made.so', FOLDER / 'integers.c', '-O3', '-fPIC', '-shared', *SHARED, *flags))
  )
  assert integers._tried(lib)
  for seed in range(100, 300):
    _alike(lib, network(seed), seed)
    _alike(lib, wide_network(seed), seed)
    _alike(lib, wide_network(seed), seed % 3, members=2 + seed % 9)


# --- plans that were damaged ----------------------------------------------------------------------------------------

DRIVER = r"""
#include "integers.c"
#include <stdio.h>
// A file of cases: numbers of a plan, examples, bytes of weights, sizes of four operands and four results, then both.
int main(int count, char **named) {
  FILE *file = count > 1 ? fopen(named[1], "rb") : NULL;
  int64_t head[11], refused = 0, run = 0;
  while (file != NULL && fread(head, 8, 11, file) == 11) {
    int64_t *plan = malloc(8 * head[0]);
    char *weights = malloc(head[2]), *given[OPERANDS] = {0}, *found[OPERANDS] = {0};
    if (fread(plan, 8, head[0], file) != (size_t)head[0] || fread(weights, 1, head[2], file) != (size_t)head[2])
      return 2;
    for (int i = 0; i < 4; i++) given[i] = calloc(head[3 + i] + 1, 1), found[i] = malloc(head[7 + i] + 1);
    int status = jaxlite_network(plan, head[0], head[1], weights, (const char **)given, found,
                                 1 + (int)(refused + run) % 9);
    refused += status == 1, run += status == 0;
    for (int i = 0; i < 4; i++) free(given[i]), free(found[i]);
    free(plan), free(weights);
  }
  printf("%d %d\n", (int)refused, (int)run);
  return 0;
}
"""
_ODD = (0, 1, 2, 3, 5, 7, 8, 15, 16, 17, 64, 255, 256, 300)
_HUGE = (-1, 1 << 20, 1 << 28, (1 << 28) + 1, 1 << 31, 1 << 62, -(1 << 62), (1 << 63) - 1, -(1 << 63))
_CODE = (-1, 0, 1, 2, 3, 5, 6, 9, 15, 16, 21, 99, 1 << 30, -(1 << 31))


def _floats(x):
  y = (x - x.mean(-1, keepdims=True)) / jax.numpy.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
  q = jax.numpy.swapaxes(jax.nn.gelu(y).reshape(-1, 6, 4, 5), 1, 2)
  return jax.nn.softmax(q @ jax.numpy.swapaxes(q, 2, 3)) @ q


def _damaged(rng, plan, weights):
  plan, weights = plan.copy(), weights.copy()
  buffers = 8 + 3 * int(plan[6])
  for _ in range(int(rng.integers(0, 4))):
    at = rng.integers(8, buffers) if rng.random() < 0.2 else rng.integers(buffers, len(plan))
    kind = rng.random()
    plan[at] = rng.choice(_ODD) if kind < 0.5 else rng.choice(_HUGE) if kind < 0.7 else plan[at] + rng.integers(-9, 9)
  if rng.random() < 0.5:
    weights.view(np.int32)[rng.integers(len(weights) // 4)] = rng.choice(_CODE)
  return plan, weights


def _case(plan, weights, batch):
  sizes = np.zeros((2, 4), np.int64)  # what operands hold is told by whoever calls: just so much
  for place, at, size in plan[8 : 8 + 3 * plan[6]].reshape(-1, 3).tolist():
    if place in (1, 2) and 1 << 22 < size <= 1 << 28:
      return b''  # may be meant, of more memory than a test has
    if place in (1, 2) and 0 <= at < 4 and 0 < size <= 1 << 22:
      sizes[place - 1, at] = max(sizes[place - 1, at], size * batch)
  head = np.array([len(plan), batch, len(weights), *sizes.reshape(-1)], np.int64)
  return head.tobytes() + plan.tobytes() + weights.tobytes()


def _sanitized(tmp_path, count, seed, *flags):
  rng = np.random.default_rng(seed)
  graphs = [*map(network, range(8)), *map(wide_network, range(4))]
  graphs.append(formed(recognized(lower(lambda p, x: _floats(x), {}, np.zeros((1, 6, 20))))))
  plans = [engine.planned(engine.parted(graph)[0].graph) for graph in graphs]
  with open(tmp_path / 'cases', 'wb') as file:
    written = 0
    while written < count:
      case = _case(*_damaged(rng, *plans[rng.integers(len(plans))]), int(rng.integers(0, 5)))
      written += len(case) > 0
      file.write(case)
  (tmp_path / 'driver.c').write_text(DRIVER)
  watched = ('-g', '-fsanitize=address,undefined', '-fno-sanitize-recover=all')
  try:
    program = _compiled(tmp_path / 'driver', tmp_path / 'driver.c', *watched, *SHARED, *flags)
  except AssertionError as error:
    if 'asan' in str(error) or 'ubsan' in str(error):
      pytest.skip('this compiler has no sanitizers')
    raise
  done = subprocess.run([program, tmp_path / 'cases'], capture_output=True, text=True, check=False, timeout=500)
  assert done.returncode == 0, done.stderr[:3000]
  refused, run = map(int, done.stdout.split())
  assert refused + run == count
  assert min(refused, run) > count // 5


def test_damaged_plans_stay_within_their_buffers(tmp_path):
  _sanitized(tmp_path, 400, 0, '-O0', *WITHOUT)


@pytest.mark.slow
@pytest.mark.parametrize('flags', [('-march=native',), ('-march=x86-64',), WITHOUT], ids=' '.join)
def test_many_damaged_plans_stay_within_their_buffers(flags, tmp_path):
  _sanitized(tmp_path, 6_000, 1, '-O1', *flags)
