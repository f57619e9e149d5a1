"""What the files of a deployed run say of themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jaxlite.tasks.task import Facts
from jaxlite.version import __version__


def about_of(run: str, step: int, task: str, facts: Facts, *, encoder: Any) -> dict[str, str]:
  """Returns the metadata of a run's files.

  Args:
    run: its id.
    step: of the checkpoint.
    task: its name, '' where nobody knows.
    facts: what is known of it.
    encoder: what raw inputs pass first, None for nothing; what it does is told where it can tell (`about`).
  """
  told = f' ({encoder.about})' if hasattr(encoder, 'about') else ''
  return {
    'producer': f'jaxlite {__version__}',
    'run': run,
    'step': str(step),
    'task': task,
    **meaning_of(facts),
    'preprocessing': f'inside: takes raw inputs as in training{f", encoded{told}" if encoder is not None else ""}',
  }


def meaning_of(facts: Facts) -> dict[str, str]:
  """Returns what outputs mean: names, and where there are thresholds, those.

  >>> meaning_of({'class_names': ['ham', 'spam'], 'positive': 1, 'threshold': 0.25})
  {'class_names': '["ham", "spam"]', 'positive': 'spam', 'threshold': '0.25'}
  """
  names = [str(name) for name in facts.get('class_names') or facts.get('names') or ()]
  told = {'class_names': json.dumps(names)}
  if 'positive' in facts and names:
    told |= {'positive': names[facts['positive']], 'threshold': repr(float(facts.get('threshold', 0.5)))}
  if 'thresholds' in facts:
    told['thresholds'] = json.dumps([float(one) for one in facts['thresholds']])
  return told


def packed_about(about: Mapping[str, str]) -> dict[str, Any]:
  """Returns metadata as a packed file holds it."""
  read = ('class_names', 'threshold', 'thresholds')
  return {name: json.loads(value) if name in read else value for name, value in about.items()}
