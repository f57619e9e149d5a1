"""What a classifier is told to have said of single examples is the softmax of its logits, whatever is among them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlite.run.answered import worst
from jaxlite.tasks import classification
from jaxlite.tasks.metrics import classification_metrics

FACTS = {'classes': 7, 'class_names': list('abcdefg')}


def answers(logits, labels, classes=7):
  metric = classification_metrics(classes)
  kept = jax.device_get(metric.keep(logits, {'labels': jnp.asarray(labels)}))
  return classification(classes).answers(kept, {**FACTS, 'classes': classes})


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16, jnp.float16])
def test_shares_are_the_softmax(dtype):
  random = np.random.default_rng(0)
  logits, labels = jnp.asarray(random.normal(size=(60, 7)) * 5, dtype), random.integers(0, 7, 60)
  found, expected = answers(logits, labels), np.asarray(jax.nn.softmax(logits.astype(jnp.float32), axis=1))
  assert np.allclose(found.sure, expected.max(axis=1), rtol=1e-5)
  assert found.right.tolist() == (expected.argmax(axis=1) == labels).tolist()
  assert np.allclose(found.wrong, np.where(found.right, 0, 1 - expected[np.arange(60), labels]), atol=1e-6)
  least = worst(found)[0]
  assert found.wrong[least] == found.wrong.max()


def test_what_is_not_finite_is_wrong_and_not_sure():
  rows = [[np.nan, 0, 0, 0, 0, 0, 0], [np.inf, np.inf, 0, 0, 0, 0, 0], [-np.inf] * 7, [1e38, -1e38, 0, 0, 0, 0, 0]]
  found = answers(jnp.array(rows), [0, 1, 2, 1])
  assert not found.right.any()
  assert np.isnan(found.sure[:3]).all()
  assert worst(found).tolist() == [0, 1, 2, 3]
  assert found.told(0) == {'true': 'a', 'predicted': 'no class: NaN', 'told': ''}
  assert found.told(3)['told'] == '100 % sure, 0 % for the true class'


def test_of_many_classes_single_examples_are_not_kept():
  assert answers(jnp.zeros((3, 300)), [0, 1, 2], classes=300) is None
