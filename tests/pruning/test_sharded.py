"""Masks of parameters that are sharded over a mesh are those of the whole arrays."""

from simulated import sound_on

SOURCE = """
  import jax, jax.numpy as jnp, numpy as np, optax
  from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
  import jaxlite as jl
  from jaxlite.pruning import block, channel, hold, n_m, global_

  rng = np.random.default_rng(0)
  shapes = {'w': (8, 16), 'v': (16, 8), 'b': (16,)}
  whole = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
  grads = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
  places = {'w': P('a', 'b'), 'v': P('b', None), 'b': P('b')}
  pruned = lambda sparsity, **how: optax.chain(optax.adam(0.1), jl.prune(sparsity, begin=0, end=2, every=1, **how))
  parts = {
    'prune': pruned(0.75),
    'packed': pruned(0.75, packed=True),
    'global': pruned(0.75, allocate=global_()),
    'n_m': pruned(0.5, structure=n_m(2, 4)),
    'channel': pruned(0.5, structure=channel()),
    'block': pruned(0.5, structure=block(4, 4)),
    'rigl': jl.rigl(optax.adam(0.1), sparsity=0.75, every=1, end=4),
    'hold': optax.chain(optax.adam(0.1), hold({name: whole[name] > 0 for name in 'wv'})),
  }

  def trained(tx, params, grads, init):
    state = init(params)
    @jax.jit
    def step(params, state):
      updates, state = tx.update(grads, state, params)
      return optax.apply_updates(params, updates), state
    for _ in range(3):
      params, state = step(params, state)
    return params, state

  mesh = jax.make_mesh((2, 2), ('a', 'b'), axis_types=(AxisType.Explicit,) * 2)
  for name, tx in parts.items():
    want, kept = trained(tx, whole, grads, tx.init)
    for ambient in (True, False) if name in ('prune', 'rigl') else (True,):
      with jax.set_mesh(mesh):
        own, theirs = (jax.tree.map(lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec)), tree, places)
                       for tree in (whole, grads))
        if ambient:
          # Operation by operation it takes seconds, so that is done where it is asked: without a mesh around it.
          got, state = trained(tx, own, theirs, jax.jit(tx.init))
      if not ambient:
        got, state = trained(tx, own, theirs, tx.init)
      for path in whole:
        np.testing.assert_allclose(jax.device_get(got[path]), want[path], atol=1e-6, err_msg=f'{name} {path}')
        assert got[path].sharding.spec == places[path], (name, path)
      for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(kept), strict=True):
        np.testing.assert_allclose(jax.device_get(one), other, atol=1e-6, err_msg=name)

  lying = {name: jax.device_put(whole[name] > 0, NamedSharding(mesh, places[name])) for name in 'wv'}
  assert hold(lying).init(own).masks['w'].sharding.spec == places['w']

  flat = jax.sharding.Mesh(np.array(jax.devices()), ('d',))
  cut = jax.shard_map(lambda p: parts['prune'].init(p)[1].count + jnp.int32(p['w'][0, 0] > 0), mesh=flat,
                      in_specs=({'w': P('d'), 'v': P(), 'b': P()},), out_specs=P('d'))
  try:
    cut(whole)
  except ValueError as error:
    assert 'prune chooses among whole weights' in str(error) and 'w is [2, 16]' in str(error), error
  else:
    raise AssertionError('a shard was pruned')
  print('sound', jax.device_count())
"""


def test_masks_are_chosen_among_whole_arrays_on_an_explicit_mesh():
  sound_on(4, SOURCE)
