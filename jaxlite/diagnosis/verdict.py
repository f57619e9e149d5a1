"""What a diagnosis is: findings with their evidence, a verdict, one action, and what could not be told."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

VERDICTS = ('healthy', 'underfitting', 'overfitting', 'broken', 'unknown')


class Finding(NamedTuple):
  """One thing that was looked at.

  Attributes:
    name: what it is called, such as 'vanishing gradient'.
    evidence: one sentence with the numbers.
    value: what was measured.
    threshold: from where on it is taken to be there; NaN where it only informs.
    present: whether it is there.
  """

  name: str
  evidence: str
  value: float
  threshold: float
  present: bool


class Action(NamedTuple):
  """What to try next.

  Attributes:
    overrides: fields of the config by path, JSON values: `{'optim.lr': 0.001}`.
    sentence: what it does, and why.
    start: 'beginning', or 'checkpoint' where the run goes on from its last good one.
    command: the command line that runs it; '' where it is not known how the run was begun.
  """

  overrides: dict[str, Any]
  sentence: str
  start: str
  command: str = ''


class Diagnosis(NamedTuple):
  """A verdict on a run, and what it rests on.

  Attributes:
    verdict: 'healthy', 'underfitting', 'overfitting', 'broken' or 'unknown'.
    cause: the name of the finding that decides, the root of the others; '' where there is none.
    findings: all that was looked at, those that are there first.
    action: the one thing to try next; None where nothing is to be done, or nothing that a config could say.
    certainty: in words, how far the evidence reaches.
    unknown: what cannot be told, and why, a line each.
  """

  verdict: str
  cause: str
  findings: tuple[Finding, ...]
  action: Action | None
  certainty: str
  unknown: tuple[str, ...]

  def line(self) -> str:
    """Returns the verdict in one line."""
    found = next((one.evidence for one in self.findings if one.name == self.cause), '')
    head = self.verdict if self.cause in ('', self.verdict) else f'{self.verdict}: {self.cause}'
    return f'{head} ({found})' if found else head

  def to_json(self) -> dict[str, Any]:
    """Returns it as JSON takes it: NaN and infinity become None. `from_json` reads it."""
    findings = [{**one._asdict(), 'value': _finite(one.value), 'threshold': _finite(one.threshold)}
                for one in self.findings]  # fmt: skip
    action = None if self.action is None else self.action._asdict()
    return {**self._asdict(), 'findings': findings, 'action': action, 'unknown': list(self.unknown)}

  def __str__(self) -> str:
    lines = [f'verdict: {self.line()}', f'certainty: {self.certainty}']
    present = [one for one in self.findings if one.present and one.name != self.cause]
    lines += [f'also: {one.name}: {one.evidence}' for one in present]
    if self.action is not None:
      lines.append(f'next: {self.action.sentence}')
      lines += [f'  {self.action.command}'] if self.action.command else [f'  {flags(self.action.overrides)}']
    absent = [one for one in self.findings if not one.present]
    lines += [f'looked at: {one.name}: {one.evidence}' for one in absent]
    return '\n'.join([*lines, *(f'not told: {line}' for line in self.unknown)])


def flags(overrides: Mapping[str, Any]) -> str:
  """Returns overrides as a command line has them.

  >>> flags({'optim.lr': 0.01, 'repair.start': True})
  '--config.optim.lr=0.01 --config.repair.start=true'
  >>> flags({'net.widths': (300, 100)})
  "'--config.net.widths=(300, 100)'"
  """
  return shlex.join(f'--config.{path}={written(value)}' for path, value in overrides.items())


def written(value: Any) -> str:
  """Returns a value as a command line has it.

  >>> written(True), written(None), written(0.00025)
  ('true', 'none', '0.00025')
  """
  if value is None:
    return 'none'
  return str(value).lower() if isinstance(value, bool) else f'{value:.6g}' if isinstance(value, float) else str(value)


def from_json(plain: Mapping[str, Any]) -> Diagnosis:
  """Reads what `Diagnosis.to_json` gave, through JSON or not.

  Raises:
    ValueError: it is none.

  >>> one = Diagnosis('healthy', '', (Finding('leak', 'no twins', 0.0, 0.02, False),), None, 'from records', ())
  >>> from_json(one.to_json()) == one
  True
  """
  try:
    findings = [
      Finding(
        **{**one, **{name: math.nan if one[name] is None else float(one[name]) for name in ('value', 'threshold')}}
      )
      for one in plain['findings']
    ]
    action = None if plain['action'] is None else Action(**plain['action'])
    known = {name: plain[name] for name in Diagnosis._fields}
    return Diagnosis(**{**known, 'findings': tuple(findings), 'action': action, 'unknown': tuple(plain['unknown'])})
  except (KeyError, TypeError, AttributeError):
    raise ValueError('it holds no diagnosis') from None


def _finite(value: float) -> float | None:
  return float(value) if math.isfinite(value) else None
