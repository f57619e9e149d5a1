"""TensorFlow's Model Optimization Toolkit in the table of peers, started by `peers`, never by hand.

Pruning, training in 8 bits and both in one (which it calls PQAT), each from a float network as its guides begin; its
files are those of TensorFlow Lite. It has no distillation.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ['TF_USE_LEGACY_KERAS'] = '1'
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')

import numpy as np
import peers_course
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras as keras
from peers_course import Course, File, Side


class Cosine(keras.optimizers.schedules.LearningRateSchedule):
  """The cosine, some steps in: a network that is wrapped anew gets an optimizer that counts from 0."""

  def __init__(self, course: Course, done: int) -> None:
    self.rate, self.steps, self.done = course.rate, course.steps, done

  def __call__(self, step: Any) -> Any:
    gone = (tf.cast(step, tf.float32) + self.done) / self.steps
    return 0.5 * self.rate * (1 + tf.cos(np.pi * gone))

  def get_config(self) -> dict[str, Any]:
    return {}


def network(course: Course, seed: int) -> Any:
  layers = [keras.layers.Dense(width, activation='relu') for width in course.widths[1:-1]]
  model = keras.Sequential(
    [keras.layers.InputLayer(input_shape=(course.widths[0],)), *layers, keras.layers.Dense(course.widths[-1])]
  )
  model.set_weights([one for pair in course.weights(seed) for one in pair])
  return model


def fitted(course: Course, model: Any, seed: int, begin: int, end: int, callbacks: Any = ()) -> Any:
  """Trains from one step to another, in the order that all have."""
  model.compile(
    optimizer=keras.optimizers.Adam(Cosine(course, begin), epsilon=1e-8),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    steps_per_execution=1 if callbacks else 32,  # the callback prunes between executions
  )
  (x, y), rows = course.train, course.order(seed)[begin:end].reshape(-1)
  model.fit(x[rows], y[rows], batch_size=course.batch, shuffle=False, verbose=0, callbacks=list(callbacks))
  return model


def pruned(course: Course, model: Any, seed: int, begin: int, end: int) -> Any:
  """Wrapped, trained and stripped, as its guide does; counts of its schedule begin with the wrapping."""
  first, last, every = course.pruning
  last = min(last, end)
  schedule = tfmot.sparsity.keras.PolynomialDecay(
    initial_sparsity=0.0,
    final_sparsity=course.sparsity,
    begin_step=max(first - begin, 0),
    end_step=last - begin - (last - max(first, begin)) % every,  # masks are drawn each `frequency` steps
    frequency=every,
  )
  model = tfmot.sparsity.keras.prune_low_magnitude(model, pruning_schedule=schedule)
  fitted(course, model, seed, begin, end, [tfmot.sparsity.keras.UpdatePruningStep()])
  return tfmot.sparsity.keras.strip_pruning(model)


def trained(course: Course, seed: int) -> Any:
  keras.utils.set_random_seed(seed)
  model, half = network(course, seed), course.half
  if not course.quantizes():
    return (
      pruned(course, model, seed, 0, course.steps) if course.prunes() else fitted(course, model, seed, 0, course.steps)
    )
  if not course.prunes():
    model = tfmot.quantization.keras.quantize_model(fitted(course, model, seed, 0, half))
  else:
    model = tfmot.quantization.keras.quantize_apply(
      tfmot.quantization.keras.quantize_annotate_model(pruned(course, model, seed, 0, half)),
      tfmot.experimental.combine.Default8BitPrunePreserveQuantizeScheme(),
    )
  return fitted(course, model, seed, half, course.steps)


def exported(course: Course, model: Any, folder: Path, first: bool) -> list[File]:
  """TensorFlow Lite's file."""
  path = folder / 'network.tflite'
  converter = tf.lite.TFLiteConverter.from_keras_model(model)
  if course.quantizes():
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
  path.write_bytes(converter.convert())

  def opened(size: int) -> Any:
    with peers_course.quiet():
      interpreter = tf.lite.Interpreter(str(path))
    (given,), (answer,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(given['index'], (size, course.widths[0]))
    interpreter.allocate_tensors()

    def call(rows: np.ndarray) -> np.ndarray:
      interpreter.set_tensor(given['index'], rows)
      interpreter.invoke()
      return interpreter.get_tensor(answer['index'])

    return call

  return [File('LiteRT', path, opened)]


def zeros(model: Any) -> float:
  return peers_course.zeros_of([one.numpy() for one in model.weights if 'kernel' in one.name and one.shape.rank == 2])


def how(course: Course) -> str:
  return {
    'pruned': 'prune_low_magnitude, the same share of each layer',
    'int8': 'quantize_model',
    'all': 'prune_low_magnitude, then PQAT; no distillation',
  }.get(course.work, 'fit, 32 steps an execution')


if __name__ == '__main__':
  side = Side(trained, exported, zeros, how, ('tensorflow', 'tensorflow-model-optimization'))
  peers_course.serve({'tfmot': side})
