"""What a restore holds beside the state that it gives back."""

import gc
import weakref

import jax
import jax.numpy as jnp

from jaxlite.checkpoint import Checkpoints, leaves, storage


def test_a_restore_leaves_no_copy_for_the_collector(tmp_path, monkeypatch):
  state = {f'w{number}': jnp.full(1 << 20, number, jnp.float32) for number in range(6)}
  read, real, most = [], leaves.restored, []

  def restored(leaf, found, want=None):
    most.append(sum(one() is not None for one in read))  # copies that are still there when the next one is
    read.extend(weakref.ref(array) for array in found.values())
    return real(leaf, found, want)

  monkeypatch.setattr(leaves, 'restored', restored)
  monkeypatch.setattr(storage, '_AT_ONCE', 8 << 20)  # two leaves at a time
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state, {}, wait=True)
    gc.collect()
    gc.disable()
    try:
      back = checkpoints.restore(jax.eval_shape(lambda: state))
      left = [array() for array in read if array() is not None]
    finally:
      gc.enable()
  assert len(read) == 6
  assert not left
  assert max(most) <= 2
  assert all((back.state[name] == state[name]).all() for name in state)
