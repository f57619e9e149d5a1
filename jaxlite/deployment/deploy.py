"""One call that writes a network in every format asked for, tries each file where it will run, and says what it costs.

A file is declared written when its own runtime, in another process, has answered real examples from it as the network
does; one that does not is deleted, and the report says why.
"""

from __future__ import annotations

import json
import numbers
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlite import errors
from jaxlite.contract import Network, Recipe
from jaxlite.deployment import formats, place, sheet, smaller, subject
from jaxlite.deployment.accounting import Costs, costs
from jaxlite.deployment.formats import Format
from jaxlite.deployment.integers.conversion import quantized
from jaxlite.deployment.integers.points import whole_numbers
from jaxlite.deployment.operations import Graph
from jaxlite.deployment.operations.patterns import recognized
from jaxlite.deployment.sheet import Report, Written
from jaxlite.deployment.subject import Subject
from jaxlite.deployment.trying import score_of, tried, wanted_of
from jaxlite.host.files import write_text
from jaxlite.tasks.task import Task

PAGE, REPORT = 'deployed.txt', 'deployed.json'  # beside the files
_BUDGETS = ('bytes', 'parameters', 'macs', 'flops', 'latency')


def deploy(
  source: str | os.PathLike[str] | Network,
  formats: Iterable[str] | str | None = None,
  *,
  out: str | os.PathLike[str] | None = None,
  which: str | int = 'best',
  model: Any = None,
  recipe: Recipe | None = None,
  task: Task | None = None,
  examples: Any = None,
  every: bool = False,
  budget: Mapping[str, float] | str | None = None,
  deadline: float | None = None,
  batches: tuple[int, ...] = (1, 32),
  seconds: float = 0.5,
  say: Callable[[str], None] = print,
) -> Report:
  """Writes a trained network for other runtimes, each file tried in a process of its own before it counts.

  Args:
    source: a run's folder, or a Network with the model that it was made of.
    formats: 'onnx', 'litert' (TensorFlow Lite's), 'stablehlo' (any platform of JAX, without jaxlite), 'safetensors'
      (values alone), 'pack' (one small file) and 'c' (one C99 file); several in a tuple, or one text with commas. None
      for all whose packages are here.
    out: the folder of the files; None for 'deployed' in the run's.
    which: a checkpoint, as for `jl.load`.
    model, recipe, task: as for `jl.load`, of a run whose network is one of your own and that an older version made.
    examples: raw inputs [N, ...] as they will be met, (inputs, labels), or a Dataset; None for the test split of a run
      whose data jaxlite finds by name.
    every: of a network that trained in few bits, also quantize where training saw no ranges (before additions, means
      and norms), by the ranges of the examples: faster, and no longer exactly what was trained.
    budget: at most so many 'bytes' of each file that `formats` names (without names, of the pack), 'parameters',
      'macs' (multiplications with an addition, of an example) or 'flops' (twice as many), or milliseconds of 'latency'
      (the median call with one example in JAX, measured here): a dict, {'bytes': 20_000}, or text, 'bytes:20000'. A
      network that does not meet it is cut: whole neurons, channels and heads go, those of the smallest weights first,
      as by `jl.shrink`, and the report says which, and the score before and after. Nothing trains in between;
      `jl.pruning.prune_groups` trains toward it.
    deadline: milliseconds within which 99 of 100 calls with one example are to be answered; whether each file keeps it
      is told.
    batches: sizes whose latency is measured.
    seconds: of measuring, for each size.
    say: prints a line.

  Returns:
    The Report; `print(report)` shows its table. It lies beside the files too, with how each is loaded.

  Raises:
    TypeError: something of another kind than is said here.
    FileNotFoundError: no run, or no checkpoint, is there.
    ImportError: a format that was asked for lacks its packages, or a C compiler.
    ValueError: an unknown format; an unfinished run; no examples; a folder that cannot be written; a budget that cannot
      be met (the nearest is named); no file could be written. What lay in the folder is then as it was.
  """
  if isinstance(formats, Iterable) and not isinstance(formats, str):
    formats = tuple(formats)  # read twice
  _check_kinds(source, formats, out, budget, deadline, batches, seconds)
  wanted, lacking = _asked(formats)
  limits = _limits(budget, deadline)
  asked = {errors.whole(size, 'a batch size', least=1) for size in batches}
  sizes = tuple(sorted(asked | {1} if deadline else asked))
  folder = place.writable(_out(source, out))
  if isinstance(source, Network):
    one = subject.of_network(source, task=task, examples=examples)
  else:
    one = subject.of_run(source, which, model=model, recipe=recipe, task=task, examples=examples)
  one, fewer = subject.few_enough(one)
  cut = None
  if limits:
    whole, (one, cut) = one, smaller.within(one, limits, _measure(limits, wanted, every, formats is not None), say)
    cut = cut and cut._replace(score=score_of(whole, _outputs(whole)))
  integers, notes = _integers(one, every)
  counted = _costs(one, integers)
  outputs = _outputs(one)
  score = score_of(one, outputs)
  want = wanted_of(one, integers, outputs, sizes, seconds, limits.get('bytes'), deadline)
  if one.labels is not None and one.task is None:
    notes = (*notes, 'no file is scored, since nobody says what the labels mean: give task=')
  notes = (
    *notes,
    *filter(None, [fewer]),
    *_not_finite(outputs),
    *(f'{name}: not written: {why}' for name, why in lacking.items()),
  )
  metric = one.task.score if one.task is not None and score is not None else ''
  count = len(jax.tree.leaves(one.inputs)[0])
  rows: list[Written] = []
  files = (PAGE, REPORT, *(kind.file for kind in wanted.values()))
  with place.alone(folder), place.replacing(folder, files) as new:  # an older one is not this network's
    notes = (*notes, *_older(folder, wanted))
    for name, kind in wanted.items():
      say(f'{name}: writing and trying {folder / kind.file}')
      row = tried(name, kind, want, new)
      rows.append(row if row.why else row._replace(path=str(folder / kind.file)))
    if all(row.why for row in rows):
      raise ValueError(f'no file was written: {_reasons(rows)}')
    report = Report(str(folder), tuple(rows), counted, metric, score, count, deadline, notes, cut)
    snippets = {kind.file: kind.snippet for name, kind in wanted.items() if not _row(rows, name).why}
    write_text(new / PAGE, sheet.page(report, one.about, snippets))
    write_text(new / REPORT, json.dumps(sheet.plain(report), indent=1) + '\n')
  return report


def _reasons(rows: list[Written]) -> str:
  """Why there are no files, each reason once."""
  named = {
    why: ', '.join(row.format for row in rows if row.why == why) for why in dict.fromkeys(row.why for row in rows)
  }
  return '; '.join(f'{which}: {why}' for why, which in named.items())


def _row(rows: list[Written], name: str) -> Written:
  return next(row for row in rows if row.format == name)


def _not_finite(outputs: Any) -> list[str]:
  leaves = [leaf for leaf in jax.tree.leaves(outputs) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
  bad = [~np.isfinite(leaf).reshape(len(leaf), -1).all(1) for leaf in leaves]
  count = int(np.any(bad, axis=0).sum()) if bad else 0
  return [f'the network itself answers {count:,} of the examples with values that are not finite'] if count else []


def _older(folder: Path, wanted: Mapping[str, Format]) -> list[str]:
  """Files of other formats that lie there: of an earlier deployment, perhaps of another network."""
  others = [kind.file for name, kind in formats.FORMATS.items() if name not in wanted]
  found = [name for name in others if (folder / name).exists()]
  return [f'of an earlier deployment, and not tried now: {", ".join(found)}'] if found else []


def _check_kinds(source: Any, formats: Any, out: Any, budget: Any, deadline: Any, batches: Any, seconds: Any) -> None:
  """Raises TypeError where something is given that no rule of `deploy` could be about."""

  def number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)

  several = isinstance(formats, str | tuple) and all(isinstance(one, str) for one in formats)
  for value, fits, what in (
    (source, isinstance(source, str | os.PathLike | Network), "a run's folder or a Network is deployed"),
    (formats, formats is None or several, 'formats are names, several in a tuple'),
    (
      out,
      out is None or isinstance(out, os.PathLike) or (isinstance(out, str) and out),
      'out= names a folder',
    ),
    (budget, budget is None or isinstance(budget, Mapping | str), 'a budget is a dict, {"bytes": 20_000}, or its text'),
    (deadline, deadline is None or number(deadline), 'a deadline is a number of milliseconds'),
    (batches, isinstance(batches, Iterable), 'batches are sizes, (1, 32)'),
    (seconds, number(seconds) and seconds >= 0, 'what is measured takes a number of seconds, 0 or more'),
  ):
    if not fits:
      shown = repr(value)
      raise TypeError(f'{what}; got {shown if len(shown) < 60 else f"a {type(value).__name__}"}')


def _asked(names: Iterable[str] | str | None) -> tuple[dict[str, Format], dict[str, str]]:
  """The formats to write, and of those that are left out what they lack here."""
  known = formats.FORMATS
  if names is None:
    lacking = {name: why for name in known if (why := formats.missing(name))}
    return {name: kind for name, kind in known.items() if name not in lacking}, lacking
  chosen = [one.strip() for one in (names.split(',') if isinstance(names, str) else names)]
  if unknown := [one for one in chosen if one not in known]:
    raise ValueError(
      f'a network is written as {", ".join(known)}; got {unknown[0]!r}, nearest: {errors.nearest(unknown[0], known, 1)}'
    )
  if not chosen:
    raise ValueError(f'formats names at least one of {", ".join(known)}; got none')
  for one in chosen:
    if why := formats.missing(one):
      raise ImportError(why)
  return {one: known[one] for one in chosen}, {}


def _limits(budget: Mapping[str, float] | str | None, deadline: float | None) -> dict[str, float]:
  found = {}
  for name, value in (_of_text(budget) if isinstance(budget, str) else budget or {}).items():
    if name not in _BUDGETS:
      near = errors.nearest(str(name), _BUDGETS, 1)
      raise ValueError(f'a budget is of {", ".join(_BUDGETS)}; got {name!r}, nearest: {near}')
    if name in ('flops', 'latency'):
      if not isinstance(value, numbers.Real) or isinstance(value, bool) or not 0 < value < float('inf'):
        raise ValueError(f'the budget of {name} is a number above 0; got {value!r}')
    else:
      value = errors.whole(
        int(value) if isinstance(value, float) and value.is_integer() else value, f'the budget of {name}', least=1
      )
    found[name] = value
  if deadline is not None and not 0 < deadline < float('inf'):
    raise ValueError(f'a deadline is a number of milliseconds above 0; got {deadline!r}')
  return found


def _of_text(text: str) -> dict[str, Any]:
  """A budget as a person types it: 'bytes:20000,latency:5'."""
  found = {}
  for one in text.split(','):
    name, _, number = (part.strip() for part in one.partition(':'))
    try:
      found[name] = float(number)
    except ValueError:
      raise ValueError(f"a budget is typed as name:number, 'bytes:20000,latency:5'; got {one!r}") from None
  return found


def _out(source: Any, out: Any) -> Any:
  if out is not None:
    return out
  if isinstance(source, Network):
    raise ValueError('a network has no folder of its own: give out=, the folder of the files')
  folder = Path(source).expanduser()
  if not folder.is_dir():
    raise FileNotFoundError(f'{folder} holds no run: give the folder of a finished run')
  return folder / 'deployed'


def _integers(one: Subject, every: bool) -> tuple[Graph | None, tuple[str, ...]]:
  """The network in integers, where it trained in few bits."""
  if one.graph is None:
    return None, (f'there is no list of operations: {one.why}',)
  if not any(each.kind == 'round' for each in one.graph.operations):
    told = 'every=True goes on from what training quantized, and no activation was, so files compute in floats'
    notes = (f'{told}: quantize them first, by jl.ptq or by training with fake_quant',) if every else ()
    return _of_weights(one.graph), notes
  try:
    named = one.named()
    few = {name: array[:512] for name, array in named.items()}
    return quantized(one.graph, few, every=every), _no_numbers(one.graph)
  except ValueError as error:
    return None, (f'its files compute in floats what it trained in few bits: {error}',)


def _of_weights(graph: Graph) -> Graph | None:
  """The network with its weights as whole numbers, where training rounded all of them, and nothing else."""
  if all(array.ndim < 2 or whole_numbers(array) is None for array in graph.constants.values()):
    return None  # as of most, and soon seen
  try:
    found = quantized(graph)
  except ValueError:
    return None
  made = {one.outputs[0]: one.kind for one in found.operations}
  weights = [one.inputs[1] for one in found.operations if one.kind in ('dense', 'conv')]
  return found if all(made.get(name) == 'dequantize' for name in weights) else None


def _no_numbers(graph: Graph) -> tuple[str, ...]:
  """What a person should know who gives integers an input that is no number."""
  floats = any(graph.values[name].dtype.kind in 'fV' for name in graph.inputs)
  return ('integers hold no NaN: an input that is none is read as a number, by pack and C as 0',) if floats else ()


def _measure(
  limits: Mapping[str, float], wanted: Mapping[str, Format], every: bool, named: bool
) -> Callable[[Subject], dict[str, float]]:
  """What a budget limits, of a network."""
  kinds = list(wanted.values()) if named or 'pack' not in wanted else [wanted['pack']]

  def measure(one: Subject) -> dict[str, float]:
    integers, _ = _integers(one, every)
    found: dict[str, float] = {}
    if {*limits} & {'parameters', 'macs', 'flops'}:
      counted = _costs(one, integers)
      if counted is None:
        what = ' and '.join(name for name in limits if name not in ('bytes', 'latency'))
        raise ValueError(f'the budget of {what} is counted in the list of operations, and there is none: {one.why}')
      found = {'parameters': counted.parameters, 'macs': counted.macs, 'flops': 2 * counted.macs}
    if 'latency' in limits:
      found['latency'] = smaller.seconds(one) * 1e3
    if 'bytes' in limits:
      able = [kind for kind in kinds if one.graph is not None or not kind.listed]
      sizes = [smaller.file_bytes(lambda path, kind=kind: kind.write(one, integers, path)) for kind in able]
      found['bytes'] = max((size for size in sizes if size is not None), default=0)
    return found

  return measure


def _outputs(one: Subject) -> Any:
  return jax.tree.map(np.asarray, jax.device_get(one.network._replace(encode=None).predict(one.inputs)))


def _costs(one: Subject, integers: Graph | None) -> Costs | None:
  return None if one.graph is None else _counted(one, costs(integers or recognized(one.graph)))


def _counted(one: Subject, counted: Costs) -> Costs:
  """With the parameters of the network itself: not what its inputs are standardized by, nor scales of integers."""
  params = [np.asarray(value) for name, value in formats.plain(one).items() if name.startswith('params/')]
  if not params:
    return counted
  nonzero = sum(int(np.count_nonzero(value)) for value in params)
  return counted._replace(parameters=sum(value.size for value in params), nonzero=nonzero)
