"""Laws of the first hour: what people get wrong is told in one line that blames what is wrong, and says the fix."""

import dataclasses
import functools
import re

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxlite as jl
from jaxlite import errors
from jaxlite.run import experiment
from jaxlite.run.identity import identify
from jaxlite.run.setup import prepare
from loops import X, Y, adam, config_of, linear, run

pytestmark = pytest.mark.unoptimized

PICTURES = np.random.default_rng(0).random((90, 12, 12)).astype(np.float32)
AMOUNT = (X @ np.arange(6)).astype(np.float32)


class CNN(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(4, (3, 3))(x))
    x = nn.avg_pool(x, (2, 2), (2, 2))
    return nn.Dense(3)(x.reshape(x.shape[0], -1))


class Single(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(3)(x.reshape(-1))


class Noisy(nnx.Module):
  def __init__(self):
    rngs = nnx.Rngs(0)
    self.linear, self.dropout = nnx.Linear(6, 3, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

  def __call__(self, x):
    return self.dropout(self.linear(x))


def prepared(folder, recipe=adam, *, model=None, made=None, data=(X, Y), **fields):
  """All of a run that comes before its first step; `made` is config.model."""
  config = config_of(recipe, machine__rewrites=False, **fields)
  if made is not None:
    config.model = made
  return prepare(config, folder, None if made is not None else model or linear(), data)


def taught(make):
  return lambda config, total: jl.chain(jl.distill(make()), optax.adam(0.05))


def attached():
  data = jl.data.from_arrays((X, Y))
  return jl.data.attach(data, income=np.ones(len(data.train.labels), np.float32))


integer = optax.softmax_cross_entropy_with_integer_labels
regression = {'task': jl.tasks.regression, 'data': (X, AMOUNT), 'model': linear(1)}
MISTAKES = {
  'no channels': (
    {'model': CNN(), 'data': (PICTURES, Y)},
    r'returns float32\[8, 3\] .*axis of channels.*: inputs\[\.\.\., N',
  ),
  'channels first': ({'model': CNN(), 'data': (PICTURES[:, None], Y)}, r'inputs\.transpose\(0, 2, 3, 1\)'),
  'one example at a time': ({'model': Single()}, r'returns float32\[3\] for .*jax\.vmap'),
  'labels from one': ({'data': (X, Y + 1)}, r'3\] .*; there are 4 classes.*no label is 0.*\(labels - 1\)'),
  'too few outputs': ({'data': (X, 2 * Y)}, 'give its last layer 5 outputs$'),
  'too many outputs': ({'model': linear(5)}, r'task=lambda: jl\.tasks\.classification\(5\)'),
  'one logit for two classes': ({'model': linear(1), 'data': (X, Y // 2)}, r'is task=jl\.tasks\.binary'),
  'a loss of Optax': (
    {'loss': integer},
    r"optax\.softmax_cross_entropy_with_integer_labels\(outputs, batch\['labels'\]\)",
  ),
  'a partial of one': (
    {'loss': functools.partial(optax.sigmoid_focal_loss, alpha=0.5)},
    r'optax\.sigmoid_focal_loss\(',
  ),
  'a loss of logits and labels': (
    {'loss': lambda logits, labels: integer(logits, labels)},
    r'takes \(outputs, labels\)',
  ),
  'a loss of batch and outputs': ({'loss': lambda batch, outputs: integer(outputs, batch['labels'])}, 'exchange them'),
  'a loss that returns nothing': ({'loss': lambda outputs, batch: None}, 'does it end with return?'),
  'a column nobody has': ({'loss': lambda o, b: integer(o, b['label'])}, r"batch\['label'\].*nearest: labels\)$"),
  'a column of training alone': (
    {'loss': lambda o, b: jl.cross_entropy(o, b) * b['income'], 'data': attached()},
    r"batch\['income'\].*in training batches only: .*if 'income' in batch",
  ),
  'every output against every label': (
    {**regression, 'loss': lambda o, b: (o - b['labels']) ** 2},
    r'which makes \[B, B\]: take outputs\[:, 0\]',
  ),
  'a value for each class': ({'loss': lambda o, b: (o - 1) ** 2}, 'mean over all axes but the first'),
  'few examples': (
    {'data': (X[:12], Y[:12])},
    r'data\.batch_size is at most the 10 training .*\(2 more .*got 16: lower data',
  ),
  'a metric of another task': ({'eval__metric': 'auc'}, r"jl\.tasks\.binary \('roc_auc'\)"),
  'a metric of Keras': ({'eval__metric': 'val_loss'}, r"those of the validation split: 'loss'"),
  'quantities as classes': ({'data': (X, np.arange(90))}, r'every class has one example .* task=jl\.tasks\.regression'),
  'a model that returns nothing': ({'made': lambda config: None}, 'config.model returns a network; .*return?'),
  'a model of no argument': (
    {'made': lambda: linear()},
    r'config\.model is called with \(config\); <lambda> takes \(\)',
  ),
  'a function for a model': ({'model': lambda x: x}, r'\(function, params\)'),
  'a recipe of one argument': (
    {'recipe': lambda config: adam(config, 3)},
    r'with \(config, total_steps\); <lambda> takes',
  ),
  'a recipe that returns nothing': ({'recipe': lambda config, total: None}, r'got NoneType: does it end with return\?'),
  'a chain of Optax': ({'recipe': lambda config, total: optax.chain(optax.adam(1.0))}, 'write jl.chain'),
  'a teacher that still trains': ({'recipe': taught(Noisy)}, r'in evaluation mode; Noisy .*\.eval\(\) first'),
  'a teacher without weights': (
    {'recipe': taught(lambda: nn.Dense(3))},
    r'no weights of its own: lambda x: module\.apply',
  ),
  'a Model for a teacher': (
    {'recipe': taught(lambda: jl.adapt(linear()))},
    r'jaxlite\.Network\(model, params, model_state\)',
  ),
  'a folder for a teacher': ({'recipe': taught(lambda: 'runs/teacher')}, r'for the folder of a run: jaxlite\.load\('),
}


@pytest.mark.parametrize('mistake', list(MISTAKES))
def test_a_mistake_is_told_in_one_line_that_names_it_and_the_fix(mistake, tmp_path):
  fields, words = MISTAKES[mistake]
  with pytest.raises((ValueError, TypeError)) as caught:
    identify(prepared(tmp_path, **fields))  # which traces the step: a teacher runs in training alone
  assert re.search(words, str(caught.value)), str(caught.value)
  assert '\n' not in str(caught.value)
  assert errors.one_line(caught.value) == str(caught.value)


FIELDS = {
  'recipe': (optax.adam(0.1), r'got a GradientTransformation\w*: recipe=lambda config, total_steps: jl\.chain'),
  'train': (5, r'got 5: train=jl\.Duration\(epochs=5\)'),
  'task': (jl.tasks.regression(), r'got a Task: task=jl\.tasks\.regression'),
  'loss': ('cross_entropy', r"got 'cross_entropy': loss=jl\.cross_entropy"),
  'model': (CNN(), r'jl\.train\(\.\.\., model=network\)'),
}


@pytest.mark.parametrize('field', list(FIELDS))
def test_a_field_that_holds_the_thing_in_place_of_its_function_is_told_short(field, tmp_path):
  value, words = FIELDS[field]
  with pytest.raises(errors.ConfigError, match=words) as caught:
    jl.train(config_of(**{field: value}), tmp_path, model=linear(), data=(X, Y), say=lambda line: None)
  assert len(str(caught.value)) < 200


def test_a_network_of_any_framework_in_place_of_its_function_is_told(tmp_path):
  for network in (CNN(), nnx.Linear(4, 3, rngs=nnx.Rngs(0)), eqx.nn.Linear(4, 3, key=jax.random.key(0))):
    words = rf'model is a function.*; got a {type(network).__name__}: model=lambda config: network; a network itself is'
    with pytest.raises(errors.ConfigError, match=words):
      jl.train(config_of(model=network), tmp_path, data=(X, Y), say=lambda line: None)

  def broken(config):
    raise ZeroDivisionError('of my own')

  with pytest.raises(ZeroDivisionError, match='of my own'):
    jl.train(config_of(model=broken), tmp_path, data=(X, Y), say=lambda line: None)


def test_what_is_no_config_no_workdir_and_no_model_is_told(tmp_path):
  with pytest.raises(errors.ConfigError, match=r"jl\.Config\(name=\.\.\.\); got \{'lr': 1\}"):
    jl.train({'lr': 1}, tmp_path)
  with pytest.raises(TypeError, match='a str or a Path; got NoneType'):
    jl.train(config_of(), None)
  for model in (None, CNN()):
    with pytest.raises(TypeError, match=r'train_step takes a Model; .*jaxlite\.adapt'):
      jl.train_step(model, jl.cross_entropy, adam(None, 1))
  train = jl.train_step(jl.adapt(linear()), jl.cross_entropy, adam(None, 1))
  with pytest.raises(TypeError, match=r"a batch is a dict, such as \{'inputs': x, 'labels': y\}; got tuple"):
    train.init(jax.random.key(0), (X, Y))


def test_a_fault_in_somebodys_own_code_keeps_its_traceback_and_says_what_it_was_given(tmp_path):
  def faulty(outputs, batch):
    return outputs.undefined

  with pytest.raises(AttributeError) as caught:
    prepared(tmp_path, loss=faulty)
  assert errors.one_line(caught.value) is None
  assert re.search(
    r"from the loss, .* float32\[16, 3\] and a batch of 'inputs' float32\[16, 6\]", caught.value.__notes__[0]
  )

  def begins(params):
    return [params].nothing

  part = optax.GradientTransformation(begins, lambda updates, state, params=None: (updates, state))
  with pytest.raises(AttributeError) as caught:  # in a part of the recipe: the model is not blamed
    prepared(tmp_path, lambda config, total: jl.chain(part))
  assert 'from the model' not in ' '.join(getattr(caught.value, '__notes__', ()))
  with pytest.raises(NameError) as caught:
    prepared(tmp_path, model=(lambda params, x: nobody(x), linear()[1]))  # noqa: F821
  assert 'called with a batch of inputs float32[16, 6]' in ' '.join(caught.value.__notes__)
  with pytest.raises(ValueError, match='broadcast') as caught:  # of Flax itself: a table into a convolution
    prepared(tmp_path, model=CNN())
  assert 'called with a batch of inputs float32[16, 6]' in ' '.join(caught.value.__notes__)


# --- what runs and is hardly meant is a line, and what is right draws none ---------------------------------------


def ending(last, outputs=3):
  return nn.Sequential([nn.Dense(outputs), last])


RARE = (X[:, 0] > 1.2).astype(int)  # one in six
binary = {'task': jl.tasks.binary, 'data': (X, Y // 2)}
DOUBTS = {
  'a softmax into cross-entropy': ({'model': ending(nn.softmax)}, 'ends in a softmax'),
  'a sigmoid into a loss of logits': ({**binary, 'model': ending(nn.sigmoid, 1)}, 'ends in a sigmoid'),
  'log-probabilities': ({'model': ending(nn.log_softmax)}, None),
  'a sigmoid for a share': ({**regression, 'model': ending(nn.sigmoid, 1)}, None),
  'a softmax and a loss for it': (
    {'model': ending(nn.softmax), 'loss': lambda o, b: -jnp.log(o[jnp.arange(len(o)), b['labels']])},
    None,
  ),
  'every output against the mean of all': (
    {**regression, 'loss': lambda o, b: ((o - b['labels']) ** 2).mean(1)},
    r'makes \[B, B\] of outputs \[B, 1\] and labels \[B\]',
  ),
  'outputs and labels of one shape': ({**regression, 'loss': lambda o, b: (o[:, 0] - b['labels']) ** 2}, None),
  'rare classes and accuracy': (
    {'data': (X, RARE), 'model': linear(2)},
    r'1[67]\.. % are 1\), and accuracy .*f1_macro',
  ),
  'rare classes and F1': ({'data': (X, RARE), 'model': linear(2), 'eval__metric': 'f1_macro'}, None),
  'rare classes and nothing to pick by': ({'data': (X, RARE), 'model': linear(2), 'data__validation': 0.0}, None),
  'a rare class, looked for': ({'task': jl.tasks.binary, 'data': (X, RARE), 'model': linear(1)}, None),
  'a rare class by accuracy': (
    {'task': jl.tasks.binary, 'data': (X, RARE), 'model': linear(1), 'eval__metric': 'accuracy'},
    "eval.metric='average_precision'",
  ),
  'rare positions by accuracy': (
    {
      'task': jl.tasks.sequence_labels,
      'data': (X[..., None], (X > 1.2).astype(int)),
      'model': nn.Dense(2),
      'eval__metric': 'accuracy',
    },
    "of the tokens .*eval.metric='f1_macro'",
  ),
  'a dropout that is always on': (
    {'model': nn.Sequential([nn.Dense(3), nn.Dropout(0.5, deterministic=False)])},
    'draws random numbers in evaluation too, the same ones each time: where that is a dropout',
  ),
  'keys that are only split': (
    {'model': (lambda p, x, key: (jax.random.split(key), linear()[0](p, x))[1], linear()[1])},
    None,
  ),
  'patience without validation': (
    {'eval__patience': 2, 'data__validation': 0.0},
    'eval.patience is set to 2 and does noth',
  ),
}


@pytest.mark.parametrize('name', list(DOUBTS))
def test_what_is_hardly_meant_is_a_line_and_what_is_right_is_none(name, tmp_path):
  fields, words = DOUBTS[name]
  setup = prepared(tmp_path, **fields)
  own = [note for note in setup.notes if note not in setup.data.notes]
  assert bool(own) == (words is not None), own
  if words:
    assert len(own) == 1
    assert re.search(words, own[0]), own


def test_a_field_that_nobody_reads_is_told_in_the_terminal_and_in_the_report(tmp_path):
  def reads(config, total):
    return jl.chain(optax.adam(config.optim.lr))

  said = []
  result = run(tmp_path / 'unread', steps=2, optim__lr=500.0, teacher='../nobody', say=said.append)
  told = [line for line in said if line.startswith('warning: ')]
  assert ['optim.lr' in told[0], 'teacher' in told[1], len(told)] == [True, True, 2]
  assert 'optim.lr is set to 500.0, and nothing reads it' in result.notes[0]
  assert result.notes[0] in (tmp_path / 'unread' / 'report.md').read_text()
  data = jl.data.from_arrays((X, Y))
  setup = prepared(tmp_path, reads, data=data, data__validation=0.4, optim__lr=0.5)
  assert 'optim.lr' in setup.reads.paths
  assert 'data.validation' not in setup.reads.paths
  assert 'data.validation' in prepared(tmp_path, data__validation=0.4).reads.paths


@dataclasses.dataclass(kw_only=True)
class Wide(jl.Config):
  width: int = 3
  depth: int = 1


def test_what_a_variation_is_made_from_is_read_and_folds_read_the_share_of_validation(tmp_path, capsys):
  base = config_of(steps=2)
  config = Wide(**{field.name: getattr(base, field.name) for field in dataclasses.fields(base)}, width=4, depth=2)
  config.recipe = lambda config, total: jl.chain(optax.adam(config.optim.lr))
  config.model = lambda config: linear()
  config.data.load = lambda config: jl.data.from_arrays((X, Y))
  config.optim.lr, config.optim.clip = 0.5, 9.0
  config.runs = {'a.1': lambda config: dataclasses.replace(config, seed=config.width), 'b': lambda config: config}
  experiment.run(config, tmp_path / 'runs')
  first, second = capsys.readouterr().out.split('== b')
  told = [re.findall(r'warning: (\S+) is set', part) for part in (first, second)]
  assert told == [['optim.clip', 'depth'], ['optim.clip', 'width', 'depth']]
  said = []
  jl.cross_validate(
    config_of(steps=2, data__validation=0.2), tmp_path / 'folds', data=(X, Y), model=linear, folds=2, say=said.append
  )
  assert not [line for line in said if line.startswith('warning: ')]


def test_what_a_loaded_network_cannot_take_is_told_with_the_fix(tmp_path):
  run(tmp_path)
  network = jl.load(tmp_path)
  with pytest.raises(
    ValueError, match=r'^this model takes float32\[B, 6\]; got an array of shape \[6\]: .*inputs\[None\]'
  ):
    network.predict(X[0])
  with pytest.raises(ValueError, match=r'^a network takes numbers; got an array of <U1: encode the inputs as for '):
    network.predict(np.full((2, 6), 'a'))
  with pytest.raises(ValueError, match=r'^folds is a whole number, at least 2; got 1$'):
    jl.cross_validate(config_of(adam), tmp_path / 'folds', data=(X, Y), folds=1)
  for model in (nn.Dense(3), nn.Sequential([nn.Dense(3)]), linear(), lambda config: linear()):
    with pytest.raises(TypeError, match=r'^every fold trains a network of its own, made by a function .* model=lambda'):
      jl.cross_validate(config_of(adam), tmp_path / 'folds', data=(X, Y), model=model)


def test_one_class_is_told_as_what_it_is(tmp_path):
  with pytest.raises(ValueError, match=r"^classification tells two classes apart at least; every label is '0'"):
    prepared(tmp_path, data=(X, 0 * Y), model=linear(1))
