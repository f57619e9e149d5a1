"""Keras on JAX in the table of peers, started by `peers`, never by hand.

Keras has neither pruning nor training in 8 bits: in their place stands `quantize('int8')` after training. It distills
by `keras.distillation`, whose teacher runs beside the student in each step.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ['KERAS_BACKEND'] = 'jax'

import keras
import numpy as np
import peers_course
from peers_course import Course, File, Side

_AT_ONCE = 32  # steps an execution


def network(widths: tuple[int, ...], weights: Any) -> Any:
  layers = [keras.layers.Dense(width, activation='relu') for width in widths[1:-1]]
  model = keras.Sequential([keras.Input((widths[0],)), *layers, keras.layers.Dense(widths[-1])])
  model.set_weights([one for pair in weights for one in pair])
  return model


def trained(course: Course, seed: int) -> Any:
  """An epoch a call of `fit`, in the order that all have."""
  keras.utils.set_random_seed(seed)
  model = network(course.widths, course.weights(seed))
  learner = model
  if course.distills():
    sizes = (course.widths[0], *(len(bias) for _, bias in course.teacher))
    learner = keras.distillation.Distiller(
      teacher=network(sizes, course.teacher),
      student=model,
      # An instance: of the default, the name 'kl_divergence', Keras 3.15.1 makes a function and takes no softmax.
      distillation_losses=keras.distillation.LogitsDistillation(
        temperature=course.temperature, loss=keras.losses.KLDivergence()
      ),
      distillation_loss_weights=[1.0],
      student_loss_weight=1 - course.alpha,
    )
  rate = keras.optimizers.schedules.CosineDecay(course.rate, course.steps)
  learner.compile(
    optimizer=keras.optimizers.Adam(rate, epsilon=1e-8),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    steps_per_execution=min(_AT_ONCE, course.each),
  )
  x, y = course.train
  for rows in course.order(seed).reshape(course.epochs, -1):
    learner.fit(x[rows], y[rows], batch_size=course.batch, shuffle=False, verbose=0)
  return model


def exported(course: Course, model: Any, folder: Path, first: bool) -> list[File]:
  """Its own file; LiteRT's it writes from other backends only."""
  path = folder / 'network.keras'
  arrays = model.get_weights()
  model = network(course.widths, zip(arrays[::2], arrays[1::2], strict=True))  # without the optimizer and its state
  if course.quantizes():
    model.quantize('int8')
  model.save(path)

  def opened(size: int) -> Any:
    return keras.models.load_model(path).predict_on_batch

  return [File('keras', path, opened)]


def zeros(model: Any) -> float:
  return peers_course.zeros_of([one for one in model.get_weights() if np.ndim(one) == 2])


def how(course: Course) -> str:
  return {
    'int8': 'quantize("int8") after training',
    'distilled': 'keras.distillation',
    'all': 'keras.distillation, then quantize("int8"); no pruning',
  }.get(course.work, f'fit, {_AT_ONCE} steps an execution')


if __name__ == '__main__':
  peers_course.serve({'keras': Side(trained, exported, zeros, how, ('keras', 'jax'))})
