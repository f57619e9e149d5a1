"""Calls of LAPACK are run on arrays that fit each other, as all that JAX writes do: other ones end the process."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxlite.deployment import linalg

SHAPE = jax.ShapeDtypeStruct
HONEST = {
  'cholesky': jnp.linalg.cholesky,
  'solve': lambda a: jnp.linalg.solve(a, a[..., :2]),
  'inverse': jnp.linalg.inv,
  'determinant': jnp.linalg.det,
  'triangular, left': lambda a: lax.linalg.triangular_solve(a, a[..., :2], left_side=True),
  'triangular, right': lambda a: lax.linalg.triangular_solve(a, a[..., :2, :], left_side=False),
  'qr': lambda a: jnp.linalg.qr(a[..., :3]),
  'full qr': lambda a: jnp.linalg.qr(a[..., :3], mode='complete'),
  'wide qr': lambda a: jnp.linalg.qr(a[..., :3, :]),
  'eigh': jnp.linalg.eigh,
  'eig': jnp.linalg.eig,
  'svd': lambda a: jnp.linalg.svd(a[..., :3], full_matrices=False),
  'full svd': lambda a: jnp.linalg.svd(a[..., :3]),
  'wide svd': lambda a: jnp.linalg.svd(a[..., :3, :]),
  'singular values': lambda a: jnp.linalg.svd(a[..., :3], compute_uv=False),
  'schur': jax.scipy.linalg.schur,
  'hessenberg': lambda a: lax.linalg.hessenberg(a),
  'tridiagonal': lambda a: lax.linalg.tridiagonal(a),
  'bands': lambda a: lax.linalg.tridiagonal_solve(a[..., 0], a[..., 1], a[..., 2], a),
}


KINDS = ('potrf', 'getrf', 'geqrf', 'gesdd', 'geev', 'gees', 'gehrd', 'gtsv')  # and those that differ by dtype


@pytest.mark.unoptimized
@pytest.mark.parametrize(
  'dtype, shape, others',
  [('float32', (4, 4), ('syevd', 'sytrd', 'orgqr')), ('complex64', (2, 4, 4), ('heevd', 'hetrd', 'ungqr'))],
)
def test_what_jax_writes_fits(dtype, shape, others):
  def all_of_it(a):
    return [fn(a[0] if name == 'schur' and a.ndim > 2 else a) for name, fn in HONEST.items()]

  text = jax.jit(all_of_it).lower(SHAPE(shape, dtype)).compile().as_text()
  assert [kind for kind in (*KINDS, *others) if f'{kind}_ffi"' not in text] == []  # else nothing is looked at
  assert linalg.other_sizes(text) == '', text


def byte(letter):
  return np.uint8(ord(letter))


A, SMALL, ONE = SHAPE((9, 9), 'float32'), SHAPE((2, 2), 'float32'), SHAPE((), 'int32')
TRIANGULAR = {'side': byte('L'), 'uplo': byte('L'), 'trans_x': byte('N'), 'diag': byte('N')}
HOSTILE = {
  'a small result': ('lapack_sgetrf_ffi', (SMALL, SHAPE((9,), 'int32'), ONE), (A,), {}),
  'few pivots': ('lapack_sgetrf_ffi', (A, SHAPE((2,), 'int32'), ONE), (A,), {}),
  'a small factor': ('lapack_spotrf_ffi', (SMALL, ONE), (A,), {'uplo': byte('L')}),
  'a small qr': ('lapack_sgeqrf_ffi', (SMALL, SHAPE((2,), 'float32')), (A,), {}),
  'a small solution': ('lapack_strsm_ffi', (SMALL,), (A, A), TRIANGULAR),
  'a small triangle': ('lapack_strsm_ffi', (A,), (SMALL, A), TRIANGULAR),
  'another side': (
    'lapack_strsm_ffi',
    (SHAPE((9, 2), 'float32'),),
    (A, SHAPE((9, 2), 'float32')),
    {**TRIANGULAR, 'side': byte('R')},
  ),
  'few eigenvalues': (
    'lapack_ssyevd_ffi',
    (A, SHAPE((2,), 'float32'), ONE),
    (A,),
    {'mode': byte('V'), 'uplo': byte('L')},
  ),
  'one result': ('lapack_sgetrf_ffi', (A,), (A,), {}),
  'no matrix': ('lapack_sgetrf_ffi', (ONE, ONE, ONE), (SHAPE((9,), 'float32'),), {}),
}


@pytest.mark.parametrize('name', HOSTILE)
def test_what_does_not_fit_is_told(name):
  target, results, operands, attributes = HOSTILE[name]
  call = lambda *arrays: jax.ffi.ffi_call(target, results)(*arrays, **attributes)  # noqa: E731
  text = jax.jit(call).lower(*operands).compile().as_text()
  assert linalg.other_sizes(text) == target
  with pytest.raises(ValueError, match=rf'^it calls {target} with arrays of other sizes[^\n]*$'):
    linalg.check_sizes(jax.jit(call).lower(*operands))
