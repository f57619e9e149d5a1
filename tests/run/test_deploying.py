"""Laws of the command that deploys: a run is deployed as it was trained, whatever flags, scale or folder it has."""

import dataclasses
import os
import subprocess
import sys

import optax
import pytest

import jaxlite as jl
from jaxlite.config import command_line
from jaxlite.config.serialize import as_trained, to_dict
from jaxlite.report import tables
from jaxlite.run import experiment
from loops import X, Y, adam, config_of, linear, run

pytestmark = pytest.mark.unoptimized

FILE = 'network.safetensors'


def load(config):
  return jl.data.from_arrays((X, Y), seed=config.seed)


def model(config):
  return linear()


def config(**fields):
  made = config_of(adam, **{'steps': 4, 'model': model, **fields})
  made.data.load = load
  return made


def several():
  runs = {'one': lambda one: dataclasses.replace(one, seed=1), 'two': lambda one: dataclasses.replace(one, seed=2)}
  return dataclasses.replace(config(), runs=runs)


def test_one_run_of_an_experiment_is_tested_from_its_own_folder(tmp_path, capsys):
  jl.train(dataclasses.replace(several().runs['two'](config()), name='two'), tmp_path, say=lambda line: None)
  assert experiment.run(several(), tmp_path, mode='eval') == 0
  assert 'two' in capsys.readouterr().out


def deploy(asked, folder, **options):
  return experiment.run(asked, folder, mode='deploy', deploying={'formats': 'safetensors', **options})


def test_a_run_begun_otherwise_is_deployed_as_it_began_and_that_is_said(tmp_path, capsys):
  """Begun with flags, and as a smoke run: both are lost when the command is typed again."""
  jl.train(dataclasses.replace(config(optim__lr=0.02), seed=5), tmp_path, say=lambda line: None)
  assert deploy(config(train=jl.Duration(epochs=9)), tmp_path) == 0
  told = capsys.readouterr().out
  assert 'config: train: saved 4 steps, now 9 epochs: taken as saved' in told
  assert 'config: optim.lr: saved 0.02, now 0.001: taken as saved' in told
  assert 'config: seed: saved 5, now 0: taken as saved' in told  # else the split would be another
  assert (tmp_path / 'deployed' / FILE).exists()


def test_one_run_of_an_experiment_is_deployed_from_its_own_folder(tmp_path):
  for name in ('one', 'two'):
    jl.train(dataclasses.replace(several().runs[name](config()), name=name), tmp_path / name, say=lambda line: None)
  assert deploy(several(), tmp_path / 'two') == 0
  assert (tmp_path / 'two' / 'deployed' / FILE).exists()
  assert not (tmp_path / 'one' / 'deployed').exists()
  assert deploy(several(), tmp_path, out=str(tmp_path / 'out')) == 0
  assert [(tmp_path / 'out' / name / FILE).exists() for name in ('one', 'two')] == [True, True]
  with pytest.raises(ValueError, match='name one of the runs in it, one, two'):
    deploy(config(), tmp_path)


def test_the_config_of_another_experiment_is_refused_for_its_data(tmp_path):
  run(tmp_path, steps=2)
  other = config()
  other.data.load = lambda config: jl.data.from_arrays((X + 1, Y))
  with pytest.raises(ValueError, match=r'data differ.*give the config that it was trained with'):
    deploy(other, tmp_path)
  assert not (tmp_path / 'deployed').exists()


def test_values_come_back_through_json_and_what_does_not_fit_stays():
  @dataclasses.dataclass(kw_only=True)
  class Mine(jl.Config):
    widths: tuple[int, ...] = (3, 4)
    pairs: tuple[tuple[int, float], ...] = ()
    width: int | None = None
    act: object = None

  began = Mine(name='x', widths=(5,), pairs=((1, 0.5),), width=7, act=abs)
  saved = to_dict(began)
  back = as_trained(saved, Mine(name='y', act=max))
  assert (back.name, back.widths, back.pairs, back.width, back.act) == ('x', (5,), ((1, 0.5),), 7, max)
  assert as_trained({**saved, 'width': 'wide', 'strange': 1, 'data': 3}, Mine(name='y')).width is None


def test_the_command_names_a_checkpoint_of_an_unfinished_run_as_its_message_says(tmp_path):
  (tmp_path / 'mine.py').write_text(
    'import numpy as np, jaxlite as jl\n'
    'from jaxlite.config import Duration\n'
    'x = np.random.default_rng(0).normal(size=(90, 6)).astype("float32")\n'
    'def get_config():\n'
    '  config = jl.Config(name="mine", train=Duration(steps=2), model=lambda config: jl.models.MLP((4,), classes=2))\n'
    '  config.data.load = lambda config: jl.data.from_arrays((x, (x[:, 0] > 0).astype(int)))\n'
    '  return config\n'
  )
  config = command_line.load(str(tmp_path / 'mine.py'), [], tmp_path)
  experiment.run(config, tmp_path / 'run')
  (tmp_path / 'run' / 'result.json').unlink()
  words = [sys.executable, '-m', 'jaxlite', f'--config={tmp_path / "mine.py"}', f'--workdir={tmp_path / "run"}']
  words += ['--mode=deploy', '--formats=safetensors']
  done = subprocess.run(words, capture_output=True, text=True, check=False)
  assert done.returncode == 2
  assert 'name what is there, --which=latest' in done.stderr
  done = subprocess.run([*words, '--which=latest'], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  assert (tmp_path / 'run' / 'deployed' / FILE).exists()


@pytest.mark.parametrize('bits', [8, pytest.param(32, marks=pytest.mark.slow)])
def test_bytes_packed_of_a_report_are_those_of_the_file_that_is_deployed(bits, tmp_path, capsys):
  def recipe(config, total):
    return jl.chain(*([jl.fake_quant(bits=8)] if bits == 8 else []), optax.adam(0.05), jl.prune(0.5))

  result = run(tmp_path, recipe, model=jl.models.MLP((16,), classes=3), steps=4)
  report = jl.deploy(tmp_path, 'pack', examples=(X, Y), batches=(1,), seconds=0.01, say=lambda line: None)
  assert result.bytes == result.packed == os.path.getsize(report.written[0].path)
  assert f'{result.packed:,}' in tables.table([result])
  assert 'plain count' not in tables.table([result])
  assert 'by a plain count' in tables.table([dataclasses.replace(result, packed=0)])
