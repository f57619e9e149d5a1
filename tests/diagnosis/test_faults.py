"""Runs with a fault that was put in are told by its name: the constructed runs of `experiments/bench/diagnosis.py`, of
which two are trained each time. How often this holds the bench counts."""

import importlib
import pathlib
import sys

import pytest

BENCH = pathlib.Path(__file__).resolve().parents[2] / 'experiments' / 'bench'
sys.path.insert(0, str(BENCH))
cases, runs = (importlib.import_module(name) for name in ('diagnosis_cases', 'diagnosis_runs'))
sys.path.remove(str(BENCH))
pytestmark = pytest.mark.unoptimized


@pytest.mark.sampled(2)
@pytest.mark.parametrize('cause', cases.CAUSES)
def test_a_fault_is_named(cause):
  found, line = runs.judged(cases.case(cause, 0))
  runs.family.cache_clear()
  assert line['found'] == cause, str(found)
  assert cause == 'healthy' or found.action is not None
