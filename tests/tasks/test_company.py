"""A loss that compares examples is told where a batch is taken in parts, and no other is."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxlite as jl

X = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
BATCH = {'inputs': X, 'labels': np.arange(8) % 3, 'shared': {'prior': np.ones(4, np.float32)}, 'scale': np.ones(4)}


def contrastive(outputs, batch):
  z = outputs / jnp.linalg.norm(outputs, axis=1, keepdims=True)
  near = z @ z.T / 0.1 - 1e9 * jnp.eye(len(z))
  return optax.softmax_cross_entropy_with_integer_labels(near, jnp.roll(jnp.arange(len(z)), len(z) // 2))


def cox(outputs, batch):
  order = jnp.argsort(-batch['inputs'][:, 0])
  risk = outputs[order, 0]
  return jax.lax.cumlogsumexp(risk) - risk


def rare(outputs, batch):
  weight = jnp.abs(batch['inputs'][:, 0])
  return optax.softmax_cross_entropy_with_integer_labels(outputs, batch['labels']) * weight / weight.mean()


def own(outputs, batch):
  return optax.softmax_cross_entropy_with_integer_labels(outputs, batch['labels'], axis=-1)


def with_prior(outputs, batch):
  return own(outputs + jnp.log(batch['shared']['prior'])[:3].sum() + batch['scale'].sum(), batch)


def narrow(outputs, batch):
  return own(outputs.astype(jnp.bfloat16) ** 2, batch).astype(jnp.float32)


def picky(outputs, batch):
  """One that wants its own number of rows: nothing is known of it."""
  return own(outputs.reshape(4, 3), batch)


def stepped(loss, hook, batch=BATCH):
  model = jl.from_function(lambda p, x: x @ p['w'], {'w': jnp.ones((5, 3))})
  train = jl.train_step(model, loss, jl.chain(hook, optax.sgd(0.1)))
  return train.step(train.init(jax.random.key(0), batch), batch)[1]


@pytest.mark.parametrize('loss', [contrastive, cox, rare])
def test_a_loss_that_compares_examples_is_told_in_parts_alone(loss):
  with pytest.warns(UserWarning, match=f'accumulate: what {loss.__name__} gives for an example depends on the other'):
    stepped(loss, jl.accumulate(2))
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    stepped(loss, jl.average(0.9))


@pytest.mark.parametrize('loss', [own, with_prior, narrow, picky, jl.cross_entropy, lambda o, b: own(o, b)])
def test_a_loss_that_looks_at_each_example_by_itself_is_not(loss):
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    stepped(loss, jl.accumulate(2))


def test_a_loss_that_prints_is_not_tried(capfd):
  def printing(outputs, batch):
    jax.debug.print('{}', outputs.shape[0] * jnp.ones(()))
    return own(outputs, batch)

  more = {**BATCH, 'inputs': np.tile(X, (2, 1)), 'labels': np.arange(16) % 3}
  stepped(printing, jl.accumulate(2), more)
  jax.effects_barrier()
  assert set(capfd.readouterr().out.split()) == {'8.0'}  # rows of the micro-batches, not those of a try


class Unhashable:
  """A loss that is an object with arrays, as Equinox's modules are."""

  __hash__ = None
  __name__ = 'Unhashable'
  scale = jnp.ones(())

  def __call__(self, outputs, batch):
    return contrastive(self.scale * outputs, batch)


@pytest.mark.parametrize('loss', [Unhashable(), functools.partial(contrastive), Unhashable().__call__])
def test_whatever_is_called_is_tried(loss):
  with pytest.warns(UserWarning, match='accumulate: what'):
    stepped(loss, jl.accumulate(2))


def test_numbers_are_those_that_they_were():
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    found = stepped(contrastive, jl.accumulate(2))['loss']
  halves = [contrastive(jnp.asarray(X[at : at + 4].sum(1, keepdims=True) * jnp.ones(3)), {}).mean() for at in (0, 4)]
  np.testing.assert_allclose(found, np.mean(halves), rtol=1e-5)
