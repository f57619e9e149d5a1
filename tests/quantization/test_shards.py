"""What is computed inside a `shard_map` is what the whole arrays give, or it is refused."""

from simulated import sound_on

SOURCE = """
  import jax, jax.numpy as jnp, numpy as np
  from jax import lax
  from jax.sharding import Mesh, PartitionSpec as P
  import jaxlite as jl
  from jaxlite.quantization import observe, quantize

  mesh = Mesh(np.array(jax.devices()), ('d',))
  rng = np.random.default_rng(0)
  p = {name: rng.normal(size=shape).astype('f') for name, shape in {'w': (8, 16), 'v': (16, 4)}.items()}
  x = rng.normal(size=(8, 8)).astype('f')
  COLUMNS = {'w': P(None, 'd'), 'v': P('d')}

  def plain(p, x):
    return jnp.tanh(x @ p['w']) @ p['v']

  def tensors(p, x):  # column by column, then row by row
    return lax.psum(plain(p, x), 'd')

  def gathered(p, x):
    return plain({name: lax.all_gather(p[name], 'd', axis=name == 'w', tiled=True) for name in p}, x)

  def by_index(p, x):  # cut by hand
    at = lax.axis_index('d')
    return lax.psum(plain({'w': lax.dynamic_slice_in_dim(p['w'], 4 * at, 4, 1),
                           'v': lax.dynamic_slice_in_dim(p['v'], 4 * at, 4, 0)}, x), 'd')

  def spread(fn, specs, data, out, check=True):
    return jax.shard_map(fn, mesh=mesh, in_specs=(specs, data), out_specs=out, check_vma=check)

  def refused(fn, *words):
    try:
      fn()
    except ValueError as error:
      assert all(word in str(error) for word in words) and '\\n' not in str(error), error
    else:
      raise AssertionError(words)

  want, rows = jax.jit(quantize(plain))(p, x), jl.coverage(plain)(p, x)
  figures = [(row.name, row.flops, row.share) for row in rows]
  for check in (True, False):
    right = {
      'data': spread(plain, P(), P('d'), P('d'), check),
      'replicas': spread(plain, P(), P(), P(), check),
      'gathered': spread(gathered, COLUMNS, P('d'), P('d'), check),
    }
    for name, fn in right.items():
      np.testing.assert_allclose(jax.jit(quantize(fn))(p, x), want, atol=1e-6, err_msg=name)
      assert [(row.name, row.flops, row.share) for row in jl.coverage(fn)(p, x)] == figures, name
    for fn in (spread(tensors, COLUMNS, P(), P(), check), spread(by_index, P(), P(), P(), check)):
      refused(lambda: quantize(fn)(p, x), 'whole weight', 'shard along d', "rules={'^w$': None}")
      refused(lambda: observe(fn)(p, x), 'whole weight')
      told = jl.coverage(fn)(p, x)
      assert [(row.name, row.flops, row.share) for row in told] == figures
      assert all('one shard of several' in row.why and not row.quantized for row in told)
      np.testing.assert_allclose(  # what is kept float is not in the way of the rest
        jax.jit(quantize(lambda p, x: fn({'w': p['w'], 'v': p['v']}, x) @ p['o'], rules={'^[wv]$': None}))(
          {**p, 'o': np.eye(4, dtype='f')}, x),
        plain(p, x), atol=0.05)

  # the other way round: quantized inside
  inside = jax.shard_map(quantize(plain), mesh=mesh, in_specs=(P(), P('d')), out_specs=P('d'))
  np.testing.assert_allclose(jax.jit(inside)(p, x), want, atol=1e-6)
  gather = jax.shard_map(quantize(gathered), mesh=mesh, in_specs=(COLUMNS, P('d')), out_specs=P('d'))
  np.testing.assert_allclose(jax.jit(gather)(p, x), want, atol=1e-6)
  cut = jax.shard_map(quantize(tensors), mesh=mesh, in_specs=(COLUMNS, P()), out_specs=P())
  refused(lambda: cut(p, x), 'whole weight', 'shard along d')
  blind = jax.shard_map(quantize(tensors), mesh=mesh, in_specs=(COLUMNS, P()), out_specs=P(), check_vma=False)
  refused(lambda: blind(p, x), 'check_vma')

  def apply(q, s, x, *, train, key, step=None):
    return model_fn(q, x), s

  base = jl.Model(init=lambda key, x: (p, {}), apply=apply)
  for hook in (jl.fake_quant(), jl.lsq()):
    model_fn = spread(tensors, COLUMNS, P(), P())
    refused(lambda: hook.model(base).init(jax.random.key(0), x), hook.name, 'shard along d')
    found = []
    for model_fn in (plain, spread(plain, P(), P('d'), P('d'))):  # steps of 16 channels, on 4 devices
      model = hook.model(base)
      params, state = jax.jit(model.init)(jax.random.key(0), x)
      step = jax.jit(lambda params, state: model.apply(params, state, x, train=True, key=None, step=0))
      found.append((params, *step(params, state)))
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
      np.testing.assert_allclose(one, other, atol=1e-6, err_msg=hook.name)
  print('sound', jax.device_count())
"""


def test_shards_are_never_taken_for_whole_weights():
  sound_on(4, SOURCE)
