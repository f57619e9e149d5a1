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
    'class_names': json.dumps(list(facts.get('class_names') or ())),
    'preprocessing': f'inside: takes raw inputs as in training{f", encoded{told}" if encoder is not None else ""}',
  }


def packed_about(about: Mapping[str, str]) -> dict[str, Any]:
  """Returns metadata as a packed file holds it."""
  return {**about, 'class_names': json.loads(about['class_names'])}
