"""Laws of one-shot pruning: the inputs that reach each weight, and what SNIP, Wanda and SparseGPT make of them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxlite as jl
from jaxlite.pruning._allocate import uniform
from jaxlite.pruning._one_shot import sparsify
from jaxlite.pruning._sparsegpt import sparsegpt
from jaxlite.pruning._statistics import gather_statistics
from jaxlite.pruning._structure import channel, element, n_m, per_output
from jaxlite.pruning.scores import snip, wanda
from networks import first_values

pytestmark = pytest.mark.unoptimized

RNG = np.random.default_rng(0)


def batches(shape, count=2):
  """Inputs whose features go together, as a network's do."""
  mix = RNG.normal(size=(shape[-1], shape[-1])) * (0.8 ** np.arange(shape[-1]))
  return [{'inputs': (RNG.normal(size=shape) @ mix).astype(np.float32)} for _ in range(count)]


def by_obs(weight, gram, dead, damping):
  """The same optimum without a Cholesky factor: the inverse is downdated by hand, one input at a time, unblocked.

  Args:
    weight: float64[outputs, K].
    gram: float64[K, K].
    dead: (column, weights, diagonal of the inverse of what is left) -> bool[outputs]: what dies there.
    damping: as given.
  """
  weight, size = weight.copy(), len(gram)
  inverse = np.linalg.inv(gram + damping * np.mean(np.diag(gram)) * np.eye(size))
  for column in range(size):
    gone = dead(column, weight, inverse)
    error = np.where(gone, weight[:, column], 0) / inverse[column, column]
    weight[:, column:] -= np.outer(error, inverse[column, column:])
    weight[gone, column] = 0
    inverse = inverse - np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
  return weight


def choose(share, block=128):
  """What dies in a block: the cheapest of it, chosen at its first column."""
  chosen = {}

  def dead(column, weight, inverse):
    start = column // block * block
    if column == start:
      stop = min(start + block, weight.shape[1])
      left, diagonal = inverse.copy(), []
      for one in range(start, stop):  # what the diagonal will be when each column's turn comes
        diagonal.append(left[one, one])
        left = left - np.outer(left[:, one], left[one]) / left[one, one]
      cost = weight[:, start:stop] ** 2 / np.array(diagonal)
      count = round(weight.shape[0] * stop * share) - sum(int(mask.sum()) for mask in chosen.values())
      mask = np.zeros(cost.size, bool)
      mask[np.argsort(-cost.ravel(), kind='stable')[cost.size - count :]] = True
      chosen[start] = mask.reshape(cost.shape)
    return chosen[start][:, column - start]

  return dead


def test_gram_matrices_are_sums_over_batches_and_positions():
  given = batches((3, 4, 5))
  found = gather_statistics(lambda p, x: jnp.tanh(x @ p['a']) @ p['b'].T, WEIGHTS := weights(5, 6, 7), batches=given)
  rows = np.concatenate([one['inputs'].reshape(-1, 5) for one in given]).astype(np.float64)
  hidden = np.tanh(rows @ WEIGHTS['a'])
  np.testing.assert_allclose(found.grams['a'][0], rows.T @ rows, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(found.grams['b'][0], hidden.T @ hidden, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(found.norms['a'][:, 0], np.linalg.norm(rows, axis=0), rtol=1e-5)
  np.testing.assert_allclose(found.norms['b'][0], np.linalg.norm(hidden, axis=0), rtol=1e-5)


def weights(*sizes):
  first, second, third = sizes
  return {
    'a': RNG.normal(size=(first, second)).astype(np.float32),
    'b': RNG.normal(size=(third, second)).astype(np.float32),
  }


CONVS = {
  'HWIO': (('NHWC', 'HWIO', 'NHWC'), (3, 2, 4, 6), 1, {}),
  'OIHW': (('NCHW', 'OIHW', 'NCHW'), (6, 4, 3, 2), 1, {}),
  'grouped': (('NHWC', 'HWIO', 'NHWC'), (3, 2, 2, 6), 2, {}),
  'depthwise': (('NHWC', 'HWIO', 'NHWC'), (3, 3, 1, 8), 4, {}),
  'strides': (('NHWC', 'HWIO', 'NHWC'), (3, 3, 4, 6), 1, {'window_strides': (2, 1), 'rhs_dilation': (1, 2)}),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize('name', CONVS)
def test_a_convolution_is_its_weights_times_what_was_recorded(name):
  """y^T y of the convolution itself, against w G w^T: one identity for every layout, group and stride."""
  numbers, shape, groups, more = CONVS[name]
  x = RNG.normal(size=(2, 5, 6, 4)).astype(np.float32)
  x = x.transpose(0, 3, 1, 2) if numbers[0] == 'NCHW' else x
  settings = {'window_strides': (1, 1), 'padding': 'SAME', 'dimension_numbers': numbers, **more}

  def forward(params, x):
    return lax.conv_general_dilated(x, params['w'], feature_group_count=groups, **settings)

  params = {'w': RNG.normal(size=shape).astype(np.float32)}
  found = gather_statistics(forward, params, batches=[{'inputs': x}])
  y = np.asarray(forward(params, x), np.float64)
  features = numbers[2].index('C')
  y = np.moveaxis(y, features, -1).reshape(-1, y.shape[features])
  layout = found.layouts.by_path()['w']
  matrix = np.transpose(params['w'], (*layout.outputs, *layout.summed)).reshape(groups, y.shape[1] // groups, -1)
  for group, gram in enumerate(np.asarray(found.grams['w'], np.float64)):
    own = y[:, group * len(matrix[0]) : (group + 1) * len(matrix[0])]
    np.testing.assert_allclose(matrix[group] @ gram @ matrix[group].T, own.T @ own, rtol=1e-4, atol=1e-2)
  assert found.norms['w'].ndim == 4
  wide = np.transpose(np.broadcast_to(found.norms['w'], shape), (*layout.outputs, *layout.summed)).reshape(matrix.shape)
  own = np.sqrt(np.diagonal(found.grams['w'], axis1=1, axis2=2))
  np.testing.assert_allclose(wide, np.broadcast_to(own[:, None], matrix.shape), rtol=1e-5)


def test_layers_in_a_scan_each_have_their_own():
  params = {'w': RNG.normal(size=(3, 5, 5)).astype(np.float32) / 2}
  forward = lambda p, x: lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, p['w'])[0]  # noqa: E731
  (batch,) = batches((4, 5), 1)
  found = gather_statistics(forward, params, batches=[batch])
  hidden = batch['inputs'].astype(np.float64)
  for layer, gram in enumerate(found.grams['w']):
    np.testing.assert_allclose(gram, hidden.T @ hidden, rtol=1e-3, atol=1e-3)
    hidden = np.tanh(hidden @ params['w'][layer])
  assert found.norms['w'].shape == (3, 5, 1)


def test_what_stands_in_a_branch_is_skipped_and_said():
  params = {'w': jnp.ones((3, 3)), 'v': jnp.ones((3, 2))}

  def forward(p, x):
    return lax.cond(x[0, 0] > 0, lambda x: x @ p['w'], lambda x: x, x) @ p['v']

  found = gather_statistics(forward, params, batches=[{'inputs': jnp.ones((2, 3))}])
  assert found.layouts.skipped == (('w', 'it stands in a branch or a while'),)
  with pytest.raises(ValueError, match="'w': it stands in a branch"):
    sparsegpt(params, found, 0.5, select='^w$')
  with pytest.raises(ValueError, match="'w': it stands in a branch"):  # never left dense in silence
    sparsegpt(params, found, 0.5)
  pruned, masks = sparsegpt(params, found, 0.5, select='^v$')
  assert masks['w'] is None
  np.testing.assert_array_equal(pruned['w'], params['w'])


def setting(inputs=24, outputs=10):
  params = {'w': RNG.normal(size=(inputs, outputs)).astype(np.float32), 'bias': np.ones(outputs, np.float32)}
  given = batches((64, inputs))
  found = gather_statistics(lambda p, x: x @ p['w'] + p['bias'], params, batches=given)
  return params, np.concatenate([one['inputs'] for one in given]).astype(np.float64), found


@pytest.mark.sampled(3)
@pytest.mark.parametrize('block', [128, 5])
@pytest.mark.parametrize('share', [0.3, 0.5, 0.8])
def test_sparsegpt_is_optimal_brain_surgery_column_by_column(share, block):
  params, _, found = setting()
  pruned, masks = sparsegpt(params, found, share, block=block)
  gram = np.asarray(found.grams['w'][0], np.float64)
  expected = by_obs(params['w'].T.astype(np.float64), gram, choose(share, block), 0.01)
  np.testing.assert_allclose(pruned['w'], expected.T, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(np.asarray(pruned['w']) != 0, masks['w'])
  assert int(masks['w'].sum()) == 240 - round(240 * share)
  assert masks['bias'] is None
  np.testing.assert_array_equal(pruned['bias'], params['bias'])


def test_sparsegpt_reconstructs_outputs_better_than_magnitude():
  for _ in range(3):
    params, rows, found = setting(32, 16)

    def error(pruned, params=params, rows=rows):
      return np.linalg.norm(rows @ (np.asarray(pruned['w'], np.float64) - params['w']))

    for structure in (element, n_m(2, 4)):
      pruned, masks = sparsegpt(params, found, 0.5, structure=structure)
      assert error(pruned) < error(sparsify(params, 0.5, structure=structure, context=found)[0])
    assert (np.asarray(masks['w']).reshape(8, 4, 16).sum(1) == 2).all()


def test_inputs_that_are_always_zero_lose_their_weights_first():
  params = {'w': np.full((6, 3), 5, np.float32)}
  x = RNG.normal(size=(16, 6)).astype(np.float32)
  x[:, [1, 4]] = 0
  found = gather_statistics(lambda p, x: x @ p['w'], params, batches=[{'inputs': x}])
  _, masks = sparsegpt(params, found, 1 / 3)
  assert np.asarray(masks['w']).all(1).tolist() == [True, False, True, True, False, True]


class Net(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(8, (3, 3))(x))
    return nn.Dense(4)(x.reshape(len(x), -1))


def test_a_model_s_kernels_are_pruned_and_its_convolution_better_than_by_magnitude():
  model = jl.from_linen(Net())
  given = batches((8, 6, 6, 3))
  params, state = first_values(model, given[0]['inputs'])
  found = gather_statistics(model, params, state, given)
  assert set(found.grams) == {'Conv_0/kernel', 'Dense_0/kernel'}
  x = np.concatenate([one['inputs'] for one in given])
  conv = lambda kernel: np.asarray(  # noqa: E731
    lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  )
  pruned, masks = sparsegpt(params, found, 0.5, allocate=uniform)
  plain, _ = sparsify(params, 0.5, context=found, allocate=uniform)
  dense = conv(params['Conv_0']['kernel'])
  assert int(masks['Conv_0']['kernel'].sum()) == 108
  errors = [np.linalg.norm(conv(one['Conv_0']['kernel']) - dense) for one in (pruned, plain)]
  assert errors[0] <= errors[1]


def test_where_inputs_do_not_go_together_it_is_never_worse_than_magnitude():
  for _ in range(3):
    params = {'w': RNG.normal(size=(9, 4)).astype(np.float32)}
    x = RNG.normal(size=(64, 9)).astype(np.float32)
    found = gather_statistics(lambda p, x: x @ p['w'], params, batches=[{'inputs': x}])
    for structure in (element, n_m(1, 2)):
      made = [
        sparsegpt(params, found, 0.5, structure=structure)[0],
        sparsify(params, 0.5, structure=structure, context=found)[0],
      ]
      errors = [np.linalg.norm(x.astype(np.float64) @ (np.asarray(one['w'], np.float64) - params['w'])) for one in made]
      assert errors[0] <= errors[1] * (1 + 1e-6)


def test_wanda_is_the_weight_times_the_norm_of_its_input():
  params, rows, found = setting()
  expected = np.abs(params['w']) * np.linalg.norm(rows, axis=0)[:, None]
  np.testing.assert_allclose(wanda(params, found)['w'], expected, rtol=1e-5)
  _, masks = sparsify(params, 0.75, score=wanda, context=found, structure=per_output())
  np.testing.assert_array_equal(masks['w'], np.argsort(np.argsort(-expected, axis=0), axis=0) < 6)
  np.testing.assert_array_equal(wanda(params, found)['bias'], 1)


def test_snip_is_the_weight_times_the_gradient_of_the_loss():
  params, rows, _ = setting()
  given = [{'inputs': one.astype(np.float32), 'labels': np.zeros(len(one), np.int32)} for one in np.split(rows, 2)]
  apply = lambda p, x: x @ p['w'] + p['bias']  # noqa: E731
  found = gather_statistics(apply, params, batches=given, loss=jl.cross_entropy, grams=False)
  together = {'labels': np.zeros(128, np.int32)}
  whole = jax.grad(lambda p: jnp.mean(jl.cross_entropy(apply(p, rows.astype(np.float32)), together)))
  expected = jax.tree.map(lambda w, g: np.abs(w * g), params, whole(params))
  np.testing.assert_allclose(snip(params, found)['w'], expected['w'], rtol=1e-3, atol=1e-6)
  assert not found.grams
  with pytest.raises(ValueError, match='holds none'):
    sparsegpt(params, found, 0.5)


@pytest.mark.parametrize(
  'make, message',
  [
    (lambda p, c: gather_statistics(lambda p, x: x @ p['w'], p), 'at least one batch'),
    (
      lambda p, c: gather_statistics(lambda p, x: x + p['bias'], p, batches=[{'inputs': np.ones((2, 10))}]),
      'no contraction',
    ),
    (lambda p, c: snip(p, c), r'gather_statistics\(..., loss=...\)'),
    (lambda p, c: wanda(p, None), 'pass context=gather_statistics'),
    (lambda p, c: sparsegpt(p, c, 1.0), r'in \[0, 1\)'),
    (lambda p, c: sparsegpt(p, c, 0.5, structure=channel()), 'asks for channel'),
    (lambda p, c: sparsegpt(p, c, 0.5, damping=0), 'damping=0'),
  ],
)
def test_bad_input_is_told_in_one_line(make, message):
  params, _, found = setting()
  with pytest.raises(ValueError, match=message) as error:
    make(params, found)
  assert '\n' not in str(error.value)


def test_what_reaches_a_factor_alone_is_not_known():
  """The inputs of a Kronecker product meet both factors together; each is shorter than they are."""
  params = {'a': jnp.ones((2, 2)), 'b': jnp.arange(6.0).reshape(3, 2)}
  batch = {'inputs': np.ones((4, 6), np.float32)}
  found = gather_statistics(lambda p, x: x @ jnp.kron(p['a'], p['b']), params, batches=[batch])
  assert not found.grams
  assert dict(found.layouts.skipped).keys() == {'a', 'b'}
  with pytest.raises(ValueError, match='put together with others'):
    sparsify(params, 0.5, score=wanda, context=found)
