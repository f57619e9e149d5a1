"""Runs with a fault that was put in are told by its name: the constructed runs of `experiments/bench/diagnosis.py`, of
which two are trained each time. How often this holds the bench counts."""

import importlib
import pathlib

import pytest

BENCH = pathlib.Path(__file__).resolve().parents[2] / 'experiments' / 'bench'
pytestmark = pytest.mark.unoptimized
CAUSES = (
  'healthy',
  'vanishing gradient',
  'exploding gradient',
  'unstable loss',
  'dying ReLU',
  'slow convergence',
  'wrong output activation',
  'wrong loss',
  'abnormal data',
  'overfitting',
  'underfitting',
  'label noise',
  'leak',
  'class imbalance',
)


@pytest.mark.sampled(2)
@pytest.mark.parametrize('cause', CAUSES)
def test_a_fault_is_named(cause, monkeypatch):
  monkeypatch.syspath_prepend(str(BENCH))
  cases, runs = (importlib.import_module(name) for name in ('diagnosis_cases', 'diagnosis_runs'))
  found, line = runs.judged(cases.case(cause, 0))
  runs.family.cache_clear()
  assert line['found'] == cause, str(found)
  assert cause == 'healthy' or found.action is not None
