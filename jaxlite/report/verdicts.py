"""What a page says of how a run went: the diagnosis that lies in its folder, else one of its records alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxlite.diagnosis import diagnose
from jaxlite.report.found import Run
from jaxlite.report.markup import escaped, notes, section, table

_MOST = 200_000  # points that are judged
_LINES = 30  # runs that are told one by one
_READ = ('task', 'loss')  # what a judgment of records reads


def verdict_of(run: Run) -> dict[str, Any]:
  """Returns a run's diagnosis as `Diagnosis.to_json` gives it; {} where there is nothing to judge."""
  if run.diagnosis.get('verdict'):
    return dict(run.diagnosis)
  if not run.points.count:
    return {}
  if run.points.count > _MOST:
    told = f'{run.points.count:,} points are more than a page judges; --mode=diagnose does'
    return {'verdict': 'unknown', 'certainty': told}
  history = []
  for kind in ('train', 'validation'):
    columns = {name: dict(zip(*(column.tolist() for column in run.points(kind, name)), strict=True)) for name in _READ}
    for step in sorted({step for column in columns.values() for step in column}):
      values = {name: column[step] for name, column in columns.items() if step in column}
      history.append({'kind': kind, 'step': int(step), **values})
  facts = {name: value for name, value in run.result.facts.items() if name in ('classes', 'vocabulary')}
  return diagnose(history, config=run.config, facts=facts, task=run.result.task).to_json()


def shown(plain: dict[str, Any]) -> str:
  """Returns a verdict as a person reads it first: what it is, why, how sure, and the one thing to do next."""
  verdict, cause = str(plain.get('verdict', '')), str(plain.get('cause', ''))
  if not verdict:
    return ''
  said = _evidence(plain)
  kind = {'healthy': 'good', 'broken': 'bad'}.get(verdict, 'neither')
  head = f'Verdict: {verdict}' + (f', {cause}' if cause and cause != verdict else '')
  lines = [f'<p><strong class="{kind}">{escaped(head)}</strong></p>']
  lines += [f'<p>{escaped(said[:1].upper() + said[1:])}.</p>'] if said else []
  if isinstance(action := plain.get('action'), dict):
    lines.append(f'<p>Next: {escaped(action.get("sentence", ""))}</p>')
    lines += [f'<pre>{escaped(action["command"])}</pre>'] if action.get('command') else []
  if plain.get('certainty'):
    lines.append(f'<p class="soft">How sure: {escaped(plain["certainty"])}.</p>')
  return f'<div class="verdict is-{kind}" role="note" aria-label="Verdict">{"".join(lines)}</div>'


def _evidence(plain: dict[str, Any]) -> str:
  cause = plain.get('cause')
  found = [one for one in plain.get('findings') or () if isinstance(one, dict) and one.get('name') == cause]
  return str(found[0].get('evidence', '')).strip().rstrip('.') if found else ''


def side_by_side(runs: Sequence[Run], verdicts: Sequence[dict[str, Any]]) -> str:
  """Returns how many runs went how, and of those that are not healthy the evidence and what to do next."""
  words = [str(plain.get('verdict', '')) for plain in verdicts]
  counts = {word: words.count(word) for word in dict.fromkeys(words) if word}
  if not counts:
    return ''
  told = ', '.join(f'{count} {word}' for word, count in counts.items())
  rows = [['run', 'verdict', 'evidence', 'next']]
  for run, plain in zip(runs, verdicts, strict=True):
    if plain.get('verdict') in (None, '', 'healthy') or len(rows) > _LINES:
      continue
    cause, action = str(plain.get('cause', '')), plain.get('action')
    head = str(plain['verdict']) + (f', {cause}' if cause not in ('', plain['verdict']) else '')
    following = str(action.get('sentence', '')) if isinstance(action, dict) else ''
    said = _evidence(plain) or '; '.join(map(str, (plain.get('unknown') or ())[:1]))
    rows.append([run.name, head, said, following])
  if not any(row[3] for row in rows[1:]):
    rows = [row[:3] for row in rows]
  return f'<p>Verdicts: {escaped(told)}.</p>' + (table('How these runs went', rows, wide=True) if len(rows) > 1 else '')


def findings(identity: str, plain: dict[str, Any], level: int) -> str:
  """Returns the section with all that a diagnosis looked at, and what it could not tell."""
  rows = [['looked at', 'there', 'evidence']]
  for one in plain.get('findings') or ():
    rows.append([str(one.get('name', '')), 'yes' if one.get('present') else 'no', str(one.get('evidence', ''))])
  made = table('Findings', rows, wide=True) if len(rows) > 1 else ''
  told = notes(f'not told: {line}' for line in plain.get('unknown') or ())
  return section(identity, 'What the verdict rests on', made, told, level=level)
