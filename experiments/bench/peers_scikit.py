"""scikit-learn's side of the table of peers, started by `peers`, never by hand: its Adam has no schedule."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import peers_course
import threadpoolctl
from peers_course import Course, File, Side
from sklearn.neural_network import MLPClassifier


def trained(course: Course, seed: int) -> MLPClassifier:
  """An epoch a call, in the order that all have; its own first weights."""
  model = MLPClassifier(
    course.widths[1:-1],
    learning_rate_init=course.rate,
    batch_size=course.batch,
    alpha=0.0,
    shuffle=False,
    random_state=seed,
  )
  x, y = course.train
  order = course.order(seed).reshape(course.epochs, -1)
  with peers_course.quiet(), threadpoolctl.threadpool_limits(1):  # its products are small: several only wait
    for rows in order:
      model.partial_fit(x[rows], y[rows], classes=list(range(course.widths[-1])))
  return model


def exported(course: Course, model: MLPClassifier, folder: Path, first: bool) -> list[File]:
  """A pickle: the first way of its page on model persistence."""
  path = folder / 'network.pkl'
  for name in ('_optimizer', '_best_coefs'):  # three times the weights, and of no use for answers
    if hasattr(model, name):
      delattr(model, name)
  path.write_bytes(pickle.dumps(model, protocol=5))

  def opened(size: int) -> Any:
    return pickle.loads(path.read_bytes()).predict_proba

  return [File('pickle', path, opened)]


if __name__ == '__main__':
  side = Side(
    trained,
    exported,
    lambda model: peers_course.zeros_of(model.coefs_),
    lambda course: 'MLPClassifier, constant rate, own first weights',
    ('scikit-learn',),
  )
  peers_course.serve({'scikit': side})
