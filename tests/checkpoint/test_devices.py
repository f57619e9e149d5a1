"""A state over several devices: saved shard by shard, restored under another split, on one device, and back."""

import os
import subprocess
import sys
from pathlib import Path

_FOUR = """
import pathlib, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxlite.checkpoint import CheckpointError, Checkpoints, fingerprint
folder, mode = sys.argv[1:]
count = jax.device_count()
mesh = jax.make_mesh((min(count, 2), count // min(count, 2)), ('x', 'y'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
place = lambda *spec: NamedSharding(mesh, P(*spec))
state = {
  'w': jnp.arange(4096.0).reshape(64, 64), 'half': -jnp.arange(4096.0).reshape(64, 64), 'b': jnp.ones(3),
  'bf': jnp.arange(64.0).astype(jnp.bfloat16), 'int4': jnp.arange(8).astype(jnp.int4), 'empty': jnp.ones((0, 4)),
  'key': jax.random.key(1), 'keys': jax.random.split(jax.random.key(2), 4), 'const': {'t': jnp.arange(512.0)},
}
specs = {
  'w': place('x', 'y'), 'half': place(None, 'y'), 'b': place(), 'bf': place(('x', 'y')), 'int4': place('x'),
  'empty': place(), 'key': place(), 'keys': place('x'), 'const': {'t': place('x')},
}
state = jax.tree.map(jax.device_put, state, specs)
digest = fingerprint(state)
template = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, specs)

def check(checkpoints):
  back = checkpoints.restore(template).state
  for new, spec in zip(jax.tree.leaves(back), jax.tree.leaves(specs)):
    assert new.sharding.is_equivalent_to(spec, new.ndim)
  assert fingerprint(back) == digest
  elsewhere = {**template, 'w': jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=place('y'))}
  assert fingerprint(checkpoints.restore(elsewhere).state) == digest
  assert fingerprint(checkpoints.restore(jax.eval_shape(lambda: state)).state) == digest
  return back

with Checkpoints(folder) as checkpoints:
  if mode == 'restore':
    with Checkpoints(folder + '-again') as again:
      again.save(1, check(checkpoints), {})
  else:
    checkpoints.save(1, state, {})
    for name in ('w', 'half', 'bf'):  # a shard is copied before the array may be donated
      jax.jit(lambda x: x + 1, donate_argnums=0)(state[name])
    check(checkpoints)
    from orbax.checkpoint import v1 as ocp
    found = ocp.load_checkpointables(folder + '/00000001')['state']
    assert found['w'].sharding == specs['w'] and found['bf'].sharding == specs['bf']
    values = np.arange(4096.0, dtype=np.float32).reshape(64, 64)
    assert np.array_equal(found['w'], values)
    needle = values[32:, 32:].tobytes()  # one shard as it lies on disk
    [path] = [path for path in pathlib.Path(folder).rglob('d/*') if needle in path.read_bytes()]
    clean = path.read_bytes()
    path.write_bytes(clean.replace(needle, needle[::-1]))
    try:
      checkpoints.restore(template)
    except CheckpointError as error:
      assert "1 of 8 leaves are damaged, first 'w' has another hash" in str(error), error
    else:
      raise AssertionError
    path.write_bytes(clean)
print(count, digest)
"""


def test_a_state_of_four_devices_restores_on_one_and_back(tmp_path: Path):
  def on(devices: int, folder: Path, mode: str) -> str:
    flags = {'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}', 'JAX_PLATFORMS': 'cpu'}
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
      [sys.executable, '-c', _FOUR, str(folder), mode],
      env={**os.environ, **flags, 'PYTHONPATH': root},
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == 0, done.stderr
    count, digest = done.stdout.splitlines()[-1].split()
    assert int(count) == devices
    return digest

  four = on(4, tmp_path / 'a', 'save')
  assert on(1, tmp_path / 'a', 'restore') == four  # and saves it again
  assert on(4, tmp_path / 'a-again', 'restore') == four
