"""Several operations that are one to any runtime are found, whoever wrote them; what only looks like one is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlite as jl
from jaxlite import models
from jaxlite.deployment.operations import reference
from jaxlite.deployment.operations.lowering import lower
from jaxlite.deployment.operations.patterns import recognized
from lists import agree, floats, program

pytestmark = pytest.mark.unoptimized
RNG = np.random.default_rng(0)


def test_a_scale_and_a_shift_are_folded_into_the_contraction_before_them():
  scale, shift, kernel = floats(4), floats(4), floats(3, 3, 2, 4)

  def fn(p, x):
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    return jax.nn.relu6((y - shift) * scale / 2 + shift)

  x = floats(2, 5, 5, 2)
  graph = recognized(lower(fn, {}, x))
  assert [one.kind for one in graph.operations] == ['conv', 'clip']
  agree(reference.run(graph, x), fn({}, x))


def test_a_weight_that_is_one_number_everywhere_takes_a_scale_and_a_shift_too():
  x, many = floats(4, 3), np.array([2.0, 3.0], np.float32)
  for fn in (
    lambda p, x: x @ jnp.ones((3, 2)) * 2,
    lambda p, x: x @ jnp.ones((3, 2)) * many + 1,
    lambda p, x: x @ jnp.ones((3, 2)) + many,
  ):
    graph = recognized(lower(fn, {}, x))
    assert [one.kind for one in graph.operations] == ['dense']
    agree(reference.run(graph, x), fn({}, x))


def test_a_value_that_two_read_is_not_folded():
  w, b = floats(3, 4), floats(4)
  fn = lambda p, x: (x @ w + b) * (x @ w)  # noqa: E731

  def shared(p, x):
    y = x @ w
    return (y + b) * y

  for one in (fn, shared):
    agree(
      reference.run(recognized(lower(one, {}, floats(4, 3))), np.ones((4, 3), 'float32')),
      one({}, np.ones((4, 3), 'float32')),
    )


def test_a_pool_is_one_however_it_is_written_and_a_bias_behind_it_is_the_convolutions():
  x = floats(2, 8, 8, 1)
  fn, known = program(jl.adapt(models.SmallCNN()), x)
  kinds = [one.kind for one in recognized(lower(fn, known, x)).operations]
  assert kinds == ['conv', 'max_pool', 'relu'] * 2 + ['reshape', 'dense', 'relu', 'dense']

  def slices(p, x):  # a window of 2 by 3, then one that is no whole window
    rows = [x[:, i : x.shape[1] - 1 + i : 2, j : x.shape[2] - 2 + j : 2] for i in range(2) for j in range(3)]
    return jax.tree.reduce(jnp.maximum, rows) if p else jax.tree.reduce(jnp.maximum, rows[:-1])

  x = floats(2, 7, 8, 3)
  for whole in (1, 0):
    graph = recognized(lower(lambda p, x, whole=whole: slices(whole, x), {}, x))
    assert ('max_pool' in [one.kind for one in graph.operations]) == bool(whole)
    np.testing.assert_array_equal(reference.run(graph, x), slices(whole, x))


def test_what_only_looks_like_a_pattern_is_none():
  x = floats(3, 4, 4)

  def across(p, x):  # the largest and the sum of other rows than those that they stand beside
    risen = jnp.exp(x - x.max(2)[:, None, :])
    return risen / risen.sum(2)[:, None, :]

  def whole(p, x):
    return x.sum(-1) // 4

  for fn, inputs in ((across, x), (whole, np.array([[-7, 2, 1, 1]], np.int32))):
    graph = recognized(lower(fn, {}, inputs))
    assert not {'softmax', 'mean'} & {one.kind for one in graph.operations}
    np.testing.assert_allclose(reference.run(graph, inputs), fn({}, inputs), rtol=1e-5)


def test_forms_of_known_operations_that_the_list_lacks_are_refused():
  groups = lambda p, x: jax.lax.conv_general_dilated(  # noqa: E731
    x, jnp.ones((2, 3, 3)), (1,), 'SAME', dimension_numbers=('NWC', 'WIO', 'NWC'), batch_group_count=1
  )
  assert lower(groups, {}, floats(4, 5, 3)).operations

  def pair(row):
    return jax.lax.dynamic_slice(row, (row[0, 0].astype(int), 0), (2, 3))

  refused = {
    'for each example': lambda p, x: jax.vmap(pair)(x),
    'sorted by another': lambda p, x: jax.lax.sort((x, -x), num_keys=2)[1],
  }
  for match, fn in refused.items():
    with pytest.raises(ValueError, match=match):
      lower(fn, {}, floats(4, 5, 3))


def test_a_loop_of_no_iterations_and_a_reshape_that_turns():
  none = lambda p, x: jax.lax.scan(lambda c, row: (c + row, c), x, jnp.zeros((0, 3)))[0]  # noqa: E731
  turned = lambda p, x: jax.lax.reshape(x, (x.shape[0], 6), dimensions=(0, 2, 1))  # noqa: E731
  for fn, x in ((none, floats(4, 3)), (turned, floats(4, 2, 3))):
    np.testing.assert_array_equal(reference.run(recognized(lower(fn, {}, x)), x), fn({}, x))


def test_a_bias_of_heads_is_part_of_the_layer_before_them():
  w, b, s, places = floats(6, 2, 4), floats(2, 4), floats(2, 1), floats(5, 1, 1)

  def heads(p, x):
    return jnp.einsum('btk,khd->bthd', x, w) * s + b

  def whole(p, x):  # the number varies over the places too: no bias
    return jnp.einsum('btk,khd->bthd', x, w) + places

  def read_twice(p, x):
    y = jnp.einsum('btk,khd->bthd', x, w)
    return (y + b) * y

  x = floats(3, 5, 6)
  for fn, kinds in ((heads, ['dense', 'reshape']), (whole, ['dense', 'reshape', 'add']), (read_twice, None)):
    short = recognized(lower(fn, {}, x))
    assert kinds is None or [one.kind for one in short.operations] == kinds
    if fn is not whole:
      agree(reference.run(short, x), fn({}, x))


def attention(q, *, equation='bhts,bshd->bthd', swapped=(0, 2, 1), other=False, times=False):
  """As `jl.models` has it: what was risen is mixed first and divided then."""
  scores = jnp.einsum('bthd,bshd->bhts', q, q)
  risen = jnp.exp(scores - scores.max(-1, keepdims=True))
  total = risen.sum(-1)  # [B, H, T]
  total = (total[:, :, ::-1] if other else total).transpose(swapped)[..., None]
  mixed = jnp.einsum(equation, risen, q)
  return mixed * total if times else mixed / total


ATTENTIONS = {
  'turned': ({}, 1),
  'as the product has it': ({'equation': 'bhts,bshd->bhtd', 'swapped': (0, 1, 2)}, 1),
  'by the sums of other rows': ({'other': True}, 0),
  'multiplied': ({'times': True}, 0),
  'by the sums of heads for those of places': ({'swapped': (0, 1, 2)}, 0),
}


@pytest.mark.parametrize('name', ATTENTIONS)
def test_attention_that_divides_behind_the_second_product_has_a_softmax(name):
  options, found = ATTENTIONS[name]
  x = floats(2, 3, 3, 4)  # as many heads as places, so that shapes alone tell nothing
  short = recognized(lower(lambda p, q: attention(q, **options), {}, x))
  assert sum(one.kind == 'softmax' for one in short.operations) == found
  agree(reference.run(short, x), attention(x, **options))
  assert not found or not {one.kind for one in short.operations} & {'exp', 'reduce_sum', 'div'}
