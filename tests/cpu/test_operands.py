"""A kernel is never run on other arrays than its description says: a program that others wrote may say anything."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxlite.cpu.kernels import compiler, direct
from jaxlite.cpu.kernels.match import ConvGeometry

X, W, Y = (2, 5, 5, 3), (3, 3, 3, 18), (2, 3, 3, 18)
GEOMETRY = ConvGeometry(
  *(2, 3, 18, 1, (5, 5), (3, 3), (3, 3), (2, 2), (1, 1), (1, 1), (1, 1)),
  *((75, 1, 15, 3), (1, 18, 162, 54), (162, 1, 54, 18)),
)
ORDER = {'forward': (X, W, Y), 'input': (Y, W, X), 'weight': (X, Y, W)}


def needed():
  if compiler.compiler() is None:
    pytest.skip('this machine has no C compiler')
  assert direct.missing() == ''


def called(spec, one, other, out, dtype=np.float32):
  call = jax.jit(
    lambda one, other: jax.ffi.ffi_call(direct.TARGET, jax.ShapeDtypeStruct(out, dtype))(one, other, spec=spec)
  )
  return np.asarray(call(np.ones(one, dtype), np.ones(other, dtype)))


def refused(*arguments, **more):
  with pytest.raises(jax.errors.JaxRuntimeError, match='a product of other sizes than it says'):
    called(*arguments, **more)


@pytest.mark.parametrize('kind', ORDER)
def test_each_operand_has_the_size_that_the_description_says(kind):
  needed()
  spec, shapes = direct.spec(kind, GEOMETRY, 2), ORDER[kind]
  assert called(spec, *shapes).shape == shapes[2]
  for wrong in range(3):
    for change in (lambda s: (s[0] - 1, *s[1:]), lambda s: (*s[:3], s[3] + 1), lambda s: (1,)):
      refused(spec, *(change(shape) if at == wrong else shape for at, shape in enumerate(shapes)))
  refused(spec, *shapes, dtype=np.int32)


_HOSTILE = """
import itertools, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
import jax
import test_operands as here
from jaxlite.cpu.kernels import direct
assert direct.missing() == ''
rng = np.random.default_rng(int(sys.argv[2]))
ran = 0
for _ in range(int(sys.argv[3])):
  kind = list(here.ORDER)[rng.integers(3)]
  spec = direct.spec(kind, here.GEOMETRY, 2).copy()
  for at in rng.integers(0, len(spec), rng.integers(1, 4)):
    spec[at] = rng.choice([0, 1, 2, 3, 4, 5, 7, 15, 54, 75, 162, -1, 2**20, 2**31, 2**40, 2**62, -2**63, spec[at] + 1])
  try:
    here.called(spec, *here.ORDER[kind])
    ran += 1
  except jax.errors.JaxRuntimeError as error:
    assert 'other sizes' in str(error) or 'no memory' in str(error), error
print(ran)
"""


def hostile(seed, count):
  needed()
  done = subprocess.run(
    [sys.executable, '-c', _HOSTILE, os.path.dirname(__file__), str(seed), str(count)],
    env={**os.environ, 'MALLOC_PERTURB_': '85'},
    capture_output=True,
    text=True,
    check=False,
    timeout=500,
  )
  assert done.returncode == 0, (done.returncode, done.stderr[-600:])
  assert json.loads(done.stdout) < count


def test_no_description_ends_the_process():
  hostile(0, 60)


@pytest.mark.slow
def test_no_description_of_2000_ends_the_process():
  hostile(1, 2000)
