"""A call that changes what it was given is refused by whoever traces it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxlite as jl
from changing import FORMS, LOST, Dropped, Plain, Sown, X, call, net, some_slow

pytestmark = pytest.mark.unoptimized

AROUND = {
  'as it is': lambda fn: fn,
  'nnx.jit': nnx.jit,
  'nnx.value_and_grad': lambda fn: lambda m, x: nnx.value_and_grad(lambda m: jnp.sum(jax.tree.leaves(fn(m, x))[0]))(m),
}


@pytest.mark.parametrize('form', FORMS)
def test_a_module_whose_statistics_move_is_refused_and_stays_as_it_was(form):
  module = net()
  before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngState))))
  with pytest.raises(ValueError, match=LOST) as told:
    FORMS[form](call)(module, X)
  assert form.split()[0] in str(told.value)
  assert '3 arrays: dropout/rngs/count, norm/mean, norm/var of argument 0' in str(told.value)
  assert 'nnx.split' in str(told.value)
  assert 'jl.from_nnx' in str(told.value)
  assert '\n' not in str(told.value)
  after = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngState))))
  jax.tree.map(np.testing.assert_array_equal, before, after)


@pytest.mark.parametrize('around', list(AROUND)[1:])
@pytest.mark.parametrize('form', ['quantize', 'for_cpu'])
def test_it_is_refused_inside_of_the_transforms_of_nnx_and_when_they_stand_inside(around, form):
  for outer, inner in ((AROUND[around], lambda fn: fn), (lambda fn: fn, AROUND[around])):
    with pytest.raises(ValueError, match=LOST):
      outer(FORMS[form](inner(call)))(net(), X)


@pytest.mark.filterwarnings('ignore:.*sow')
@pytest.mark.parametrize('kind, changed', [(Dropped, 'dropout/rngs/count'), (Sown, 'hidden')])
def test_counts_of_random_draws_and_what_is_sown_are_changes_too(kind, changed):
  with pytest.raises(ValueError, match=changed):
    jl.quantize(call)(kind(nnx.Rngs(0)), X)


@dataclasses.dataclass
class Holder:
  module: nnx.Module
  name: str = 'holder'


jax.tree_util.register_dataclass(Holder, ['module'], ['name'])
NESTS = {
  'list': (lambda m: [m], lambda held, x: held[0](x), '0/norm/mean'),
  'dict': (lambda m: {'net': m}, lambda held, x: held['net'](x), 'net/norm/mean'),
  'tuple': (lambda m: (1.0, m), lambda held, x: held[1](x), '1/norm/mean'),
  'dataclass': (Holder, lambda held, x: held.module(x), 'module/norm/mean'),
  'keyword': (lambda m: m, call, 'norm/mean'),
}


@pytest.mark.parametrize('nest', NESTS)
@pytest.mark.parametrize('form', ['quantize', 'for_cpu'])
def test_a_module_inside_of_something_is_seen(nest, form):
  make, fn, path = NESTS[nest]
  if nest == 'keyword':
    with pytest.raises(ValueError, match='norm/mean, norm/var of argument module'):
      FORMS[form](lambda w, x, module: module(x) @ w)(jnp.ones((3, 2)), X, module=make(net()))
    return
  with pytest.raises(ValueError, match=path):
    FORMS[form](fn)(make(net()), X)


@pytest.mark.parametrize('form', some_slow([(form,) for form in FORMS], 4))
def test_a_module_in_evaluation_mode_and_one_that_changes_nothing_are_taken(form):
  module = net()
  module.eval()
  fn = FORMS[form](call)
  for one in (module, Plain(nnx.Rngs(0))):
    jax.eval_shape(lambda m, x: len(jax.tree.leaves(fn(m, x))), one, X)  # coverage gives no arrays


INSIDE = {'nnx.jit': nnx.jit, 'nnx.remat': nnx.remat, 'nnx.remat in nnx.jit': lambda fn: nnx.jit(nnx.remat(fn))}


@pytest.mark.parametrize('inside', some_slow([(inside,) for inside in INSIDE][::-1], 3))
def test_transforms_that_write_back_every_array_of_a_module_change_nothing_by_that(inside):
  module = net()
  module.eval()
  jax.eval_shape(jl.quantize(INSIDE[inside](call)), module, X)
  np.testing.assert_allclose(jl.for_cpu(INSIDE[inside](call))(module, X), jl.for_cpu(call)(module, X), rtol=1e-5)


def test_what_changes_and_is_returned_is_not_lost():
  module, other = net(), net()
  outputs, state = jl.for_cpu(lambda m, x: (m(x), nnx.state(m)))(module, X)
  np.testing.assert_allclose(outputs, other(X), rtol=1e-5, atol=1e-6)
  nnx.update(module, state)
  np.testing.assert_allclose(module.norm.mean[...], other.norm.mean[...], rtol=1e-5)
  assert int(module.dropout.rngs.count[...]) == 1
  with pytest.raises(ValueError, match='dropout/rngs/count'):  # not all of what changes
    jl.for_cpu(lambda m, x: (m(x), nnx.state(m, nnx.BatchStat)))(module, X)
  graph, state = nnx.split(module)

  def pure(state, x):  # the road that the message names
    module = nnx.merge(graph, state)
    return module(x), nnx.state(module)

  outputs, new = jax.jit(jl.quantize(pure))(state, X)
  assert outputs.shape == (4, 3)
  assert int(new['dropout']['rngs']['count'][...]) == 2


def test_plain_containers_are_arguments_like_others():
  def scales(p, x):
    p['w'] = 2 * p['w']
    return x @ p['w']

  def renames(p, x):
    p['v'] = p.pop('w')
    return x @ p['v']

  def takes(p, batch):
    labels = batch.pop('labels')
    return batch['inputs'] @ p['w'] + labels[:, None]

  def keeps(p, x):
    p['w'] = 2 * p['w']
    return x @ p['w'], p

  params = {'w': jnp.ones((6, 2))}
  for wrong in (scales, renames):
    with pytest.raises(ValueError, match=LOST):
      jl.quantize(wrong)(dict(params), X)
  batch = {'inputs': X, 'labels': np.ones(4, np.float32)}
  assert jax.eval_shape(jl.quantize(takes), params, batch).shape == (4, 2)
  assert set(batch) == {'inputs', 'labels'}
  assert jax.jit(jl.quantize(keeps))(params, X)[1]['w'][0, 0] == 2
