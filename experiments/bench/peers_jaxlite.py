"""jaxlite in the table of peers, started by `peers`, never by hand: `train_step` and `deploy`, as README has them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import peers_course
from peers_course import Course, File

import jaxlite as jl
from jaxlite.deployment import formats
from jaxlite.models import MLP

_AT_ONCE = 32  # steps a dispatch


def trained(course: Course, seed: int) -> jl.Network:
  """Everything in one chain."""
  hooks: list[Any] = []
  if course.quantizes():
    hooks.append(jl.fake_quant(8, begin=course.half))
  if course.distills():
    hooks.append(jl.distill('logits', temperature=course.temperature, alpha=course.alpha))
  begin, end, every = course.pruning
  last = [jl.prune(course.sparsity, begin=begin, end=end, every=every)] if course.prunes() else []
  recipe = jl.chain(*hooks, optax.adam(optax.cosine_decay_schedule(course.rate, course.steps)), *last)
  model = jl.from_linen(MLP(course.widths[1:-1], classes=course.widths[-1]))
  train = jl.train_step(model, jl.cross_entropy, recipe)
  (x, y), order = course.train, course.order(seed)

  def batch(rows: np.ndarray) -> dict[str, np.ndarray]:
    found = {'inputs': x[rows], 'labels': y[rows]}
    return {**found, 'logits': course.logits[rows]} if course.distills() else found

  params = {f'dense{i}': {'kernel': w, 'bias': b} for i, (w, b) in enumerate(course.weights(seed), 1)}
  state = train.init(jax.random.key(seed), batch(order[0]), params=params)
  for at in range(0, len(order), _AT_ONCE):
    state, _ = train.steps(state, batch(order[at : at + _AT_ONCE]))
  jax.block_until_ready(state)
  return jl.Network(train.model, state.params, jl.contract.join_const(state.model_state, state.const))


def zeros(network: jl.Network) -> float:
  params = network.model.export(network.params, network.model_state)[0]
  return peers_course.zeros_of([leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 2])


def exported(course: Course, network: jl.Network, folder: Path, first: bool) -> list[File]:
  """The packed file; of the first seed also what ONNX Runtime and LiteRT read, where they are here."""
  ways = {'pack': opened_pack, 'onnx': opened_onnx, 'litert': opened_litert}
  wanted = [name for name in ways if not formats.missing(name)] if first else ['pack']
  written = jl.deploy(
    network, tuple(wanted), out=folder, examples=course.test[:256], seconds=0.0, say=lambda line: None
  )
  found = {row.format: folder / formats.FORMATS[row.format].file for row in written.written if not row.why}
  return [File(name, found[name], functools.partial(ways[name], found[name])) for name in wanted if name in found]


def opened_pack(path: Path, size: int) -> Any:
  answer = formats.packed(str(path))
  return lambda rows: answer(rows)[0]


def opened_onnx(path: Path, size: int) -> Any:
  import onnxruntime

  session = onnxruntime.InferenceSession(str(path))
  name = session.get_inputs()[0].name
  return lambda rows: session.run(None, {name: rows})[0]


def opened_litert(path: Path, size: int) -> Any:
  from ai_edge_litert.interpreter import Interpreter

  run = Interpreter(str(path)).get_signature_runner()
  (name,) = run.get_input_details()
  return lambda rows: run(**{name: rows})['output']


def how(course: Course) -> str:
  """The parts of the chain."""
  parts = [
    *(['fake_quant'] if course.quantizes() else []),
    *(['distill'] if course.distills() else []),
    'adam',
    *(['prune'] if course.prunes() else []),
  ]
  return f'one chain: {", ".join(parts)}'


def taught(course: Course, seed: int) -> Any:
  """The teacher of all sides: a wider network, twice as long; its weights and what it says of the training split."""
  course = course._replace(widths=course.teacher_widths, epochs=2 * course.epochs)
  network = trained(course, seed)
  pairs = [network.params[f'dense{i}'] for i in range(1, len(course.widths))]
  found = {f'{name}{i}': np.asarray(pair[name]) for i, pair in enumerate(pairs) for name in ('kernel', 'bias')}
  np.savez(course.folder / 'teacher.npz', logits=network.predict(course.train[0]), **found)
  return network


def itself(course: Course, network: jl.Network, folder: Path, first: bool) -> list[File]:
  """The teacher is scored as it is: its weights lie in `teacher.npz`."""
  return [File('network', course.folder / 'teacher.npz', lambda size: network.predict)]


if __name__ == '__main__':
  versions = ('jaxlite', 'jax')
  peers_course.serve(
    {
      'jaxlite': peers_course.Side(trained, exported, zeros, how, versions),
      'teacher': peers_course.Side(taught, itself, zeros, how, versions, weighed=False),
    }
  )
