"""The sections of a page: of one run, and of several side by side.

Each is a function of `Run`s that returns HTML, '' where there is nothing to tell. What a folder holds may have been
written by anybody: a section that cannot be made says so, and the others stand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from jaxlite.errors import counted
from jaxlite.report import charts, svg
from jaxlite.report.comparing import compare, differing
from jaxlite.report.found import EMPTY, FINISHED, STOPPED, UNDER_WAY, Run
from jaxlite.report.markup import Cell, escaped, inline, notes, section, table
from jaxlite.report.tables import PACKED, foreseen, listed, rows, written

DETAILED = 8  # runs whose details stand in one page; of more there is a line each
_PLAN = ('steps', 'epochs', 'examples')


def attempted(what: str, make: Callable[..., str], *args: Any) -> str:
  """Returns what a section says; where it cannot be made, that and why."""
  try:
    return make(*args)
  except Exception as error:  # whatever a damaged file holds: the rest of the page stands
    told = f'{type(error).__name__}: {str(error)[:160]}'
    return section(
      f'lost-{what}', what, f'<p class="bad">This cannot be shown; its data are damaged ({escaped(told)}).</p>'
    )


def heading(runs: Sequence[Run], title: str, verdict: str = '') -> str:
  """Returns the title, what state the runs are in, and the verdict."""
  said = [f'<h1>{escaped(title)}</h1>']
  if len(runs) == 1:
    said.append(f'<p>{state(runs[0])}</p>')
    total, at = planned(runs[0]), runs[0].points.step
    if runs[0].state == UNDER_WAY and total:
      said.append(f'<progress aria-label="Steps" max="{total}" value="{min(at, total)}">{at} of {total}</progress>')
  elif runs:
    counts = {word: sum(run.state == word for run in runs) for word in (FINISHED, UNDER_WAY, STOPPED, EMPTY)}
    told = ', '.join(
      f'{count} {word.replace(" its ", " their ") if count > 1 else word}' for word, count in counts.items() if count
    )
    said.append(f'<p>{counted(len(runs), "run")}: {escaped(told)}.</p>')
  if len(runs) == 1 and runs[0].state == FINISHED:
    said.append(attempted('Key numbers', key_numbers, runs[0]))
  return '\n'.join(filter(None, [*said, verdict]))


_KEYS = ('bytes packed', 'times smaller than float32')


def key_numbers(run: Run) -> str:
  """Returns what a reader asks for first, in large letters: the first metric, and the size."""
  cells = rows([run.result])[1:]
  if not run.result.metrics or not cells:
    return ''
  label, value = cells[0]
  within = f'{label}, {cells[1][1]}' if len(cells) > 1 and cells[1][0].strip() == '95 % interval' else label
  found = [(value, within), *((value, name) for name, value in cells[1:] if name in _KEYS)]
  items = ''.join(f'<div><dt>{escaped(name)}</dt><dd>{escaped(value)}</dd></div>' for value, name in found)
  return f'<dl class="key">{items}</dl>'


def state(run: Run) -> str:
  """Returns in words how far a run is."""
  total = planned(run)
  of = f' of {total:,}' if total else ''
  kind = {FINISHED: ' good', STOPPED: ' bad'}.get(run.state, '')
  word = f'<span class="state{kind}">{escaped(run.state.capitalize())}</span>'
  if run.state == EMPTY:
    return f'{word}: nothing was recorded yet.'
  if run.state == FINISHED:
    tested = f', tested at step {run.result.best_step:,}' if run.result.best_step is not None else ''
    return f'{word} in {run.result.seconds:,.1f} s{tested}.'
  again = ' The same command goes on from its last checkpoint.' if run.state == STOPPED else ''
  return f'{word} at step {run.points.step:,}{of}.{again}'


def planned(run: Run) -> int:
  """Returns the steps a run is to take, 0 where its config does not say it in steps."""
  train = run.config.get('train')
  steps = train.get('steps') if isinstance(train, dict) else None
  return steps if type(steps) is int and steps > 0 else 0


def numbers(runs: Sequence[Run], *, with_best: bool = True) -> str:
  """Returns the table of what was measured: a run a column, or of many runs a line."""
  shown = [run for run in runs if run.result.metrics or run.result.layers]
  if not shown:
    return ''
  cells = [_counted(row) for row in rows([run.result for run in shown])]
  said = ''
  if len(shown) <= DETAILED:
    made = table('Test split, size and time', cells)
  else:
    same = [row for row in cells[1:] if len(set(row[1:])) == 1]
    turned = [list(column) for column in zip(*(row for row in cells if row not in same), strict=True)]
    made = table('Test split, size and time', turned).replace('<table>', '<table class="many">')
    best = _best(shown) if with_best else ''
    made = f'<p>{best}</p>{made}' if best else made  # not behind a hundred lines
    told = '; '.join(f'{row[0].strip()} {row[1]}' for row in same)
    said = f'<p class="soft">The same for all: {escaped(told)}.</p>' if told else ''
  sized = any(run.result.layers for run in shown)
  packed = f'<p class="soft">{inline(f"`bytes packed`: {PACKED}.")}</p>' if sized else ''
  lines = dict.fromkeys(line for run in shown for line in run.result.notes)
  told_by = {line: [run.name for run in shown if line in run.result.notes] for line in lines}
  told_of = [
    line if len(names) == len(shown) else f'{", ".join(names[:3])}{" and others" if len(names) > 3 else ""}: {line}'
    for line, names in told_by.items()
  ]
  return made + said + packed + notes(told_of[:60])


def _counted(row: list[str]) -> list[str]:
  """A row whose cells all say that they are by a plain count, said once."""
  words = ' by a plain count'
  if len(row) > 1 and all(cell.endswith(words) for cell in row[1:]):
    return [f'{row[0]},{words}', *(cell.removesuffix(words) for cell in row[1:])]
  return row


def _best(runs: Sequence[Run]) -> str:
  """Which of many runs is best, and what that is worth."""
  scored = [(value * better, run) for run in runs for value, better in [charts.headline(run)] if math.isfinite(value)]
  if not scored:
    return ''
  run = max(scored, key=lambda one: one[0])[1]
  label, name, form = run.result.rows[0]
  told = f'Best {label}: {run.name}, {written(form, run.result.metrics[name])}.'
  return escaped(f'{told} The best of {len(scored)} is also lucky: trained again, it is expected to be a little worse.')


def unfinished(runs: Sequence[Run]) -> str:
  """Returns the table of runs without a result: how far they are, and their last validation."""
  left = [run for run in runs if run.state != FINISHED]
  if not left or len(runs) == 1:
    return ''
  body: list[list[str]] = []
  for run in left:
    total = planned(run)
    seen = [(name, run.points.last('validation', name)) for name in run.points.names('validation')][:2]
    last = ', '.join(f'{name.replace("_", " ")} {value:.4g}' for name, value in seen)
    body.append([run.name, run.state, f'{run.points.step:,}{f" of {total:,}" if total else ""}', last or '-'])
  return table('Runs without a result', [['run', 'state', 'step', 'last validation'], *body])


def comparison(runs: Sequence[Run]) -> str:
  """Returns what a comparison found, or why there is none."""
  found = compare(runs)
  fields = differing(runs) if len(runs) > 1 else []
  made = ''
  if fields and len(runs) <= DETAILED:
    made = table('Fields of the configs that differ', fields)
  elif fields:
    turned = [list(column) for column in zip(*fields, strict=True)]
    made = table('Fields of the configs that differ', turned).replace('<table>', '<table class="many">')
    made = f'<details><summary>Fields of the configs that differ</summary>{made}</details>'
  return made + ''.join(table(caption, cells) for caption, cells in found.tables) + notes(found.notes)


def trade(runs: Sequence[Run]) -> str:
  """Returns the picture of the first metric over the size, of three runs or more."""
  points, which = [], []
  for run in runs:
    value, better = charts.headline(run)
    if run.state == FINISHED and run.result.layers and math.isfinite(value):
      points.append((run.name, float(run.result.bytes), value, 0))
      which.append(better)
  if len(points) < 3 or len({(size, value) for _, size, value, _ in points}) < 3:
    return ''
  front = [
    i
    for i, (_, size, value, _) in enumerate(points)
    if not any(
      a <= size and (b - value) * better >= 0 and (a, b) != (size, value)
      for (_, a, b, _), better in zip(points, which, strict=True)
    )
  ]
  label, _, form = next(run for run in runs if run.state == FINISHED and run.result.rows).result.rows[0]
  scale = 100 if form == 'percent' else 1
  shown = [(name, size, scale * value, int(i in front)) for i, (name, size, value, _) in enumerate(points)]
  words = 'On the line: runs that no other run beats in both'
  drawn = svg.scatter(
    f'{label}{", %" if scale == 100 else ""}, over bytes', shown, 'bytes', '', front=front,
    description=f'{words}: {", ".join(points[i][0] for i in front[:12])}.',
  )  # fmt: skip
  names = '; '.join(f'{points[i][0]} ({points[i][1]:,.0f} bytes, {written(form, points[i][2])})' for i in front[:12])
  return f'<div class="charts">{svg.figure(drawn, f"{words}: {names}.")}</div>'


def evidence(run: Run) -> str:
  """Returns what the task shows of a run: curves, confusion, tables."""
  result = run.result
  names = next((result.facts[key] for key in ('class_names', 'names', 'target_names') if result.facts.get(key)), ())
  names = [str(name) for name in names] if isinstance(names, list | tuple) else []
  if result.task == 'binary' and len(names) == 2 and result.facts.get('positive') == 0:
    names = names[::-1]  # the other class first, as the confusion matrix has it
  parts = [
    charts.ranked(result.evidence, result.metrics, run.name),
    charts.against_truth(result.evidence, names, run.name),
    charts.confusion(result.evidence.get('confusion', ()), names, f'Confusion matrix of {run.name} on the test split'),
  ]
  captions = {'class': 'By class', 'label': 'By label', 'target': 'By target', '': 'By kind of mean'}
  beside = []
  for cells in result.tables:
    if cells and cells[0]:
      first = cells[0][0]
      beside.append(table(captions.get(first.split(' ')[0], first or 'Table'), cells))
  return ''.join(filter(None, [*parts, f'<div class="beside">{"".join(beside)}</div>' if any(beside) else '']))


def mistakes(run: Run) -> str:
  """Returns the test examples that were answered worst, with their pictures."""
  items = []
  for one in run.result.mistakes[:24]:
    source = one.get('picture', '')
    shown = ''
    if source.startswith('data:image/png;base64,') and all(
      letter.isalnum() or letter in '+/=' for letter in source[22:]
    ):
      told = f'Test example {one.get("example", "?")}: {one.get("true", "")}'
      shown = f'<img alt="{escaped(told)}" src="{source}">'
    elif one.get('inputs'):
      shown = f'<p><code>{escaped(one["inputs"])}</code></p>'
    named = [(label, one[label]) for label in ('true', 'predicted') if one.get(label)]
    lines = [f'{label}: <strong>{escaped(said)}</strong>' for label, said in named]
    more = escaped(one.get('told', ''))
    number = f'<span class="soft">example {escaped(one.get("example", "?"))}{f", {more}" if more else ""}</span>'
    items.append(f'<li>{shown}<p>{"<br>".join([*lines, number])}</p></li>')
  return f'<ul class="worst">{"".join(items)}</ul>' if items else ''


def parts(run: Run) -> str:
  """Returns what each part of the recipe did."""
  head = ['part', 'when', 'what it touched', 'what it could not']
  cells = [row for row in run.result.parts if len(row) == len(head)]
  return (
    table('The ledger: read off what the run left, not off what was asked', [head, *cells], wide=True) if cells else ''
  )


def expected(run: Run) -> str:
  """Returns what the run was said to need, beside what it took."""
  found = run.result.forecast
  told = foreseen(found)
  if not told:
    return ''
  pictures = []
  if time := found.get('time'):
    words = f'{time["actual"]:,.1f} s took place between {time["low"]:,.1f} and {time["high"]:,.1f}'
    pictures.append(charts.between(time['low'], time['forecast'], time['high'], time['actual'], words))
  for memory in filter(None, (found.get('memory'), found.get('memory compiled'))):
    words = f'{memory["actual"] / 2**20:,.0f} MiB came, at most {memory["upper"] / 2**20:,.0f} were expected'
    pictures.append(charts.between(memory['forecast'], memory['forecast'], memory['upper'], memory['actual'], words))
  pictures += [''] * (len(told) - len(pictures))
  head = ['', 'forecast', 'bounds', 'actual', 'bounds (blue) and actual (orange)', 'told from']
  body = [[*row[:4], Cell(picture), row[4]] for row, picture in zip(told, pictures, strict=True)]
  return table('Told before the run, and what came', [head, *body])


def deployed(run: Run) -> str:
  """Returns the files that were written for other runtimes: bytes, score, latency and memory of each."""
  body, missing = [], []
  written = [one for one in run.deployed.get('written') or [] if not one.get('why')]
  batches = list(dict.fromkeys(str(size) for one in written for size in one.get('latency') or {}))
  for one in run.deployed.get('written') or []:
    if one.get('why'):
      missing.append(f'{one.get("format")} was not written: {one["why"]}')
      continue
    latency = {str(size): f'{p50:.3g} / {p99:.3g}' for size, (p50, p99) in (one.get('latency') or {}).items()}
    score = one.get('score')
    body.append(
      [
        str(one.get('format')),
        f'{int(one.get("bytes", 0)):,}',
        str(one.get('arithmetic', '')),
        '-' if score is None else f'{float(score):.4f}',
        *(latency.get(size, '-') for size in batches),
        f'{int(one.get("memory") or 0) / 2**20:,.0f}',
      ]
    )
  if not body:
    return notes(missing)
  metric = str(run.deployed.get('metric') or 'score')
  head = ['file', 'bytes', 'arithmetic', metric, *(f'ms at batch {size}' for size in batches), 'MiB of its process']
  caption = 'Files, each answered from by its own runtime in another process; of milliseconds the median / 99 %'
  return table(caption if batches else caption.split(';')[0], [head, *body]) + notes(missing)


def made_by(runs: Sequence[Run]) -> str:
  """Returns command, config, versions and machine: once where all runs share them."""
  done = []
  for title, facts in (
    ('Command', [run.result.command for run in runs]),
    ('Versions', [listed(run.result.versions) for run in runs]),
    ('Machine', [listed(run.result.machine) for run in runs]),
    ('Config', [json.dumps(run.config, indent=1) if run.config else '' for run in runs]),
  ):
    shared = len(set(facts)) == 1
    for run, fact in list(zip(runs, facts, strict=True))[: 1 if shared else DETAILED]:
      if not fact:
        continue
      words = f'{title}{"" if shared else f" of {run.name}"}'
      if title == 'Config':
        done.append(f'<details><summary>{escaped(words)}</summary><pre>{escaped(fact)}</pre></details>')
      elif title == 'Command':
        done.append(f'<h3>{escaped(words)}</h3><pre>{escaped(fact)}</pre>')
      else:
        done.append(f'<h3>{escaped(words)}</h3><p>{escaped(fact)}</p>')
  return ''.join(done)
