"""Laws of what cannot be right: refused or stopped, in one line, and the folder stays good."""

import re

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl
from jaxlite import errors
from loops import X, Y, adam, linear, points, run

pytestmark = pytest.mark.unoptimized

# --- what cannot be right is refused before training, in one line, and the folder stays good ---------------------


def wide(classes):
  params = {'w': jnp.zeros((6, classes))}
  return jl.Network(jl.from_function(lambda p, x: x @ p['w'], params), params, {})


def late(make):
  """A recipe whose part is made when it is called, as in an experiment file."""
  return lambda config, total: jl.chain(optax.adam(0.05), make(config))


TALL = np.zeros((20, 4, 4, 1), np.uint8)
MISTAKES = {
  'nan in data': ({'data': (np.where(X > 2, np.nan, X), Y)}, r'inputs are finite; train has nan at \[\d+, \d\]: drop'),
  'labels below zero': ({'data': (X, Y - 1)}, 'labels are 0 .. classes - 1; train has -1 at'),
  'labels of another length': ({'data': (X, Y[:-1])}, '90 inputs and 89 labels'),
  'labels as floats': ({'data': (X, Y + 0.5)}, 'labels are integers'),
  'no examples': ({'data': (X[:0], Y[:0])}, 'train is empty: carve it'),
  'images of other shapes': ({'data': ([TALL[0], TALL[0, :2]], [0, 1])}, 'examples have one shape; .*: resize'),
  'not a pair': ({'data': X}, r'pass \(inputs, labels\)'),
  'a batch above the data': ({'data__batch_size': 600}, 'got 600: lower data.batch_size'),
  'a sparsity of one': ({'recipe': late(lambda c: jl.prune(1.0))}, r'in \[0, 1\); got 1\.0'),
  'end before begin': ({'recipe': late(lambda c: jl.prune(0.5, begin=9, end=3))}, 'end=3 lies before begin=9'),
  'a rule for nothing': (
    {'recipe': late(lambda c: jl.freeze('kernel'))},
    "'kernel' matches no parameter; nearest paths",
  ),
  'a teacher of other classes': ({'recipe': late(lambda c: jl.distill(wide(5)))}, 'need the same classes'),
  'no such teacher': (
    {'recipe': late(lambda c: jl.distill(jl.load(c.teacher))), 'teacher': '../nobody'},
    'nobody holds no checkpoints: give the folder of a run',
  ),
  'no such metric': ({'eval__metric': 'acuracy'}, "'acuracy'; nearest: accuracy"),
  'a model of other classes': ({'model': linear(2)}, 'give its last layer 3 outputs$'),
  'a recipe that is none': ({'recipe': lambda config, total: optax.adam(0.1)}, r'recipe from jl\.chain'),
  'a recipe without optimizer': ({'recipe': lambda config, total: jl.chain(jl.fake_quant())}, 'holds no optimizer'),
  'an optimizer after prune': (
    {'recipe': lambda config, total: jl.chain(jl.prune(0.5), optax.adam(0.1))},
    'move part 0 to the end',
  ),
  'more steps than are counted': ({'steps': 2**31}, r'fewer than 2\*\*31; train=2147483648 steps is 2,147,483,648'),
  'a length in percent': ({'train': jl.Duration(percent=5)}, 'train is in steps, epochs or examples'),
  'a model of nothing': ({'model': 'cnn'}, 'a model is a Model'),
}


@pytest.mark.parametrize('mistake', list(MISTAKES))
def test_a_mistake_is_told_in_one_line_before_anything_is_trained(mistake, tmp_path):
  fields, words = MISTAKES[mistake]
  with pytest.raises((ValueError, TypeError, FileNotFoundError)) as caught:
    run(tmp_path, **{'recipe': adam, **fields})
  assert re.search(words, str(caught.value))
  assert '\n' not in str(caught.value)
  assert errors.one_line(caught.value) == str(caught.value)  # so the launcher shows it as it is
  assert not list(tmp_path.glob('checkpoints/*'))


def test_after_every_mistake_the_same_folder_still_trains(tmp_path):
  for fields, _ in MISTAKES.values():
    with pytest.raises((ValueError, TypeError, FileNotFoundError)):
      run(tmp_path / 'mended', **{'recipe': adam, **fields})
  assert run(tmp_path / 'mended').metrics['accuracy'] > 0
  assert [point['step'] for point in points(tmp_path / 'mended') if point['kind'] == 'train'] == [2, 4, 6, 8, 10, 12]


# --- numbers that are not finite ----------------------------------------------------------------------------------


def test_nan_in_training_stops_with_its_step_and_leaf_and_keeps_the_last_good_checkpoint(tmp_path):
  def bursts(config, total):
    return jl.chain(optax.sgd(lambda count: jnp.where(count == 9, jnp.inf, 0.1)))

  with pytest.raises(
    ValueError, match=r'^[^\n]*not finite at step 10, first in b: [^\n]*checkpoint of step 8 is good$'
  ):
    run(tmp_path, bursts)
  assert np.isfinite(jl.load(tmp_path, 'latest').predict(X)).all()
  losses = {point['step']: point['loss'] for point in points(tmp_path) if point['kind'] == 'train'}
  assert list(losses) == [2, 4, 6, 8, 10]
  assert np.isfinite(list(losses.values())).all()


def test_what_a_finite_loss_with_an_infinite_gradient_wrote_is_never_saved(tmp_path):
  def root(params, inputs):  # at b = 0 its value is 0 and its slope infinite
    return inputs @ params['w'] + jnp.sqrt(jnp.abs(params['b']))

  with pytest.raises(ValueError, match=r'not finite at step 1, first in b: .*no checkpoint was written yet'):
    run(tmp_path, model=(root, linear()[1]), steps=1, log__every=jl.Duration(steps=1))
  assert not list((tmp_path / 'checkpoints').glob('0*'))


def test_a_norm_of_what_masks_have_emptied_is_named(tmp_path):
  def normed(params, inputs):
    return inputs @ (params['w'] / jnp.linalg.norm(params['w'], axis=0))

  def pruned(config, total):
    return jl.chain(optax.sgd(0.0), jl.prune(1 / 3, begin=3))

  start = {'w': np.ones((6, 3), np.float32) * np.array([1, 1, 1e-3], np.float32)}
  with pytest.raises(ValueError, match=r"^[^\n]*not finite at step 5, [^\n]*left 1 of 3 along axis 1 of 'w' without"):
    run(tmp_path, pruned, model=(normed, start))
