"""One file, written aside and tried by its own runtime in another process: in its place it stands only if right."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite.cpu.kernels.compiler import compiler
from jaxlite.deployment import agreement, formats, place, sheet, trial
from jaxlite.deployment.accounting import costs
from jaxlite.deployment.formats import Format
from jaxlite.deployment.litert.file import layers as litert_layers
from jaxlite.deployment.operations import Graph, reference
from jaxlite.deployment.packed.file import read_pack
from jaxlite.deployment.running.runner import runner
from jaxlite.deployment.scoring import scores
from jaxlite.deployment.sheet import Written
from jaxlite.deployment.subject import Subject
from jaxlite.host.safetensors_file import read_safetensors

_ROUNDED = 0.01  # of the outputs' spread: how far answers lie apart on average where values are rounded to grids
_FIRST = 8  # examples of which the integers are compared with their rules, in NumPy
_BY_NUMPY = 2  # likewise of a packed file of floats
_FEW_STEPS = 15  # of a grid, as 4 bits have them
_AT_ONCE = 256  # examples that are computed at once
_NARROW = {'onnx': 'ONNX Runtime', 'litert': 'LiteRT'}
_OURS = ('pack', 'c')  # what follows the rules of the integers to the last bit; other runtimes have rules of their own


class Wanted(NamedTuple):
  """What a file has to give.

  Attributes:
    subject: what is deployed.
    integers: its list in integers, None where it has none.
    outputs: the network's, a tree of [N, ...].
    first: () -> the outputs of the first examples by the rules of the integers.
    all: () -> those of every example, as this machine computes them.
    sizes: batches that are timed.
    seconds: for each.
    most: bytes of a file, None for any.
    deadline: milliseconds, or None.
  """

  subject: Subject
  integers: Graph | None
  outputs: Any
  first: Callable[[], tuple[np.ndarray, ...]]
  all: Callable[[], tuple[np.ndarray, ...]]
  sizes: tuple[int, ...]
  seconds: float
  most: int | None
  deadline: float | None


def wanted_of(subject: Subject, integers: Graph | None, outputs: Any, *rest: Any) -> Wanted:
  """Returns a Wanted; `rest` are its last four fields."""
  named = subject.named()
  count = len(next(iter(named.values())))

  @functools.cache
  def first() -> tuple[np.ndarray, ...]:
    assert integers is not None
    found = reference.run(integers, {name: array[:_FIRST] for name, array in named.items()})
    return found if isinstance(found, tuple) else (found,)

  @functools.cache
  def all_of_them() -> tuple[np.ndarray, ...]:
    assert integers is not None
    run = jax.jit(runner(integers))
    parts = []
    for start in range(0, count, _AT_ONCE):
      found = run({name: array[start : start + _AT_ONCE] for name, array in named.items()})
      parts.append([np.asarray(one) for one in (found if isinstance(found, tuple) else (found,))])
    return tuple(np.concatenate(each) for each in zip(*parts, strict=True))

  return Wanted(subject, integers, outputs, first, all_of_them, *rest)


def score_of(subject: Subject, outputs: Any) -> float | None:
  """Returns the task's metric of outputs; None where there are no labels, or nobody knows the task."""
  if subject.task is None or subject.labels is None:
    return None
  return scores(subject.task, subject.facts, outputs, subject.labels, subject.weight).get(subject.task.score)


def tried(name: str, kind: Format, want: Wanted, folder: Path) -> Written:
  """Writes one file and tries it.

  Args:
    name: of the format.
    kind: it.
    want: what the file has to give.
    folder: of the file.

  Returns:
    Its row of the report, which says why where there is no file.
  """
  path = folder / kind.file
  if kind.listed and want.subject.graph is None:
    return Written(name, why=f'there is no list of operations: {want.subject.why}')
  with tempfile.TemporaryDirectory(prefix=place.ASIDE, dir=folder) as aside:
    part = Path(aside, kind.file)
    try:
      kind.write(want.subject, want.integers, part)
      row = _answered(name, kind, want, part)._replace(bytes=os.path.getsize(part))
    except (ValueError, ImportError) as error:
      return Written(name, why=' '.join(str(error).split()) + _of_narrow(name, want.subject))
    if not row.why and want.most is not None and row.bytes > want.most:
      row = Written(name, why=f'it has {row.bytes:,} bytes where the budget is {want.most:,}')
    if row.why:
      return row._replace(why=row.why + _of_narrow(name, want.subject))
    os.replace(part, path)
  if row.latency and want.deadline is not None:
    row = row._replace(met=row.latency[1][1] <= want.deadline)
  return row._replace(path=str(path))


def _answered(name: str, kind: Format, want: Wanted, path: Path) -> Written:
  if not kind.runtime:
    return _read_back(name, want.subject, path)
  leaves, treedef = jax.tree.flatten(want.outputs)
  more: dict[str, Any] = {}
  if kind.runtime == 'c':
    more = {'command': [compiler() or 'cc'], 'ends': [leaf[:1] for leaf in leaves]}
  named = want.subject.named()
  found = trial.ask(kind.runtime, path, named, batches=want.sizes, seconds=want.seconds, **more)
  answers = [found.outputs[str(index)] for index in range(len(found.outputs))]
  whole = kind.listed and want.integers is not None and agreement.has_integers(want.integers)
  graph = want.subject.graph
  rounded = whole or (graph is not None and any(one.kind == 'round' for one in graph.operations))
  apart, why = agreement.apart(answers, leaves, [None] * len(leaves) if rounded else None)
  if not why and rounded:
    why = agreement.far(answers, leaves, _ROUNDED)
  if not why and whole:
    assert want.integers is not None
    steps = [agreement.step_of(want.integers, one) for one in want.integers.outputs]
    first = [answer[:_FIRST] for answer in answers]
    if name in _OURS and agreement.in_integers(want.integers):
      why = agreement.unequal(first, want.first()) or agreement.unequal(answers, want.all())
    else:  # between integers it computes floats (a norm, a softmax), whose last bits turn a rounding now and then
      _, why = agreement.apart(first, want.first(), steps)
      why = why or agreement.argmax_apart(answers, want.all(), agreement.share_of(want.integers))
  narrow = graph is not None and any(value.dtype.name in ('bfloat16', 'float16') for value in graph.values.values())
  if (
    not why and name == 'pack' and not whole and not narrow
  ):  # who loads it computes in NumPy, and compiled it is JAX's
    few = read_pack(path).predict({each: array[:_BY_NUMPY] for each, array in named.items()})
    few = few if isinstance(few, tuple) else (few,)
    _, why = agreement.apart(few, [leaf[:_BY_NUMPY] for leaf in leaves], [None] * len(leaves) if rounded else None)
  if why:
    return Written(name, why=f'its runtime answers otherwise than the network, {why}{_fewer(want) if whole else ""}')
  same = min(agreement.same_largest(answer, leaf) for answer, leaf in zip(answers, leaves, strict=True))
  return Written(
    name,
    arithmetic=_multiplies(name, want.integers if kind.listed and want.integers else graph, leaves, path),
    apart=apart,
    same=same,
    score=score_of(want.subject, treedef.unflatten(answers)),
    latency=sheet.percentiles(found.seconds),
    memory=found.memory,
  )


def _multiplies(name: str, graph: Graph | None, leaves: list[np.ndarray], path: Path) -> str:
  """What a file multiplies: the dtypes of its contractions, the narrowest first."""
  found: set[str] = set()
  if name == 'litert':  # whose converter leaves in floats what has no grid on both sides
    found = {kind.rpartition(' ')[2] for kind in litert_layers(path.read_bytes())}
  elif graph is not None:
    found = {one.dtype for one in costs(graph).layers if one.macs}
  floats = [leaf.dtype for leaf in leaves if not leaf.dtype.isbuiltin or leaf.dtype.kind in 'fc']
  found = found or {str((floats or [np.dtype(np.float32)])[0])}
  return '/'.join(sorted(found, key=lambda one: (np.dtype(jnp.dtype(one)).itemsize, one)))


def _of_narrow(name: str, subject: Subject) -> str:
  """What helps where a runtime of others has hardly an operation of bfloat16, and says so of one by its own name."""
  values = subject.graph.values.values() if subject.graph is not None else ()
  if name not in _NARROW or not any(value.dtype.name == 'bfloat16' for value in values):
    return ''
  return f'; {_NARROW[name]} has few operations of bfloat16: cast params and inputs to float32 in a model of their own'


def _fewer(want: Wanted) -> str:
  """What helps where values have few steps: each that is rounded to the one beside it weighs much."""
  assert want.integers is not None
  grids = [one.attributes for one in want.integers.operations if {'low', 'high'} <= one.attributes.keys()]
  if all(of['high'] - of['low'] > _FEW_STEPS for of in grids):
    return ''
  return ': in so few bits one step weighs much; trained with fake_quant(every=True) it is what integers compute'


def _read_back(name: str, subject: Subject, path: Path) -> Written:
  """A file of values: every bit as it was."""
  found = trial.ask('safetensors', path, {}).outputs
  ours, _ = read_safetensors(path)
  wanted = {each.replace('/', '.'): np.asarray(value) for each, value in formats.plain(subject).items()}
  if {*found} != {*wanted} or {*ours} != {*wanted}:
    return Written(name, why='its reader finds other names than were written')
  for each, value in wanted.items():
    theirs = value.astype(found[each].dtype)  # float32 of bfloat16, which is no change
    if ours[each].tobytes() != value.tobytes() or theirs.tobytes() != found[each].tobytes():
      return Written(name, why=f'its reader gives other values for {each!r}')
  return Written(name, arithmetic='values')
