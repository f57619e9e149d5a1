"""The public names: each where the house says, none hidden by a module, old ones with a warning that names the new."""

import ast
import importlib
import inspect
import json
import pathlib
import subprocess
import sys
import textwrap
import types
import typing

import pytest

import jaxlite

ROOT = pathlib.Path(__file__).resolve().parent.parent / 'jaxlite'
ROOMS = (
  'finetuning',
  'pruning',
  'quantization',
  'distillation',
  'diagnosis',
  'optim',
  'tasks',
  'data',
  'models',
  'step',
  'config',
  'checkpoint',
  'report',
  'tuning',
)
TOP = [
  'train',
  'load',
  'unpack',
  'deploy',
  'train_step',
  'cross_validate',
  'diagnose',
  'chain',
  'reparam',
  'Hook',
  'Model',
  'Network',
  'Recipe',
  'Config',
  'Duration',
  'cross_entropy',
  'adapt',
  'from_linen',
  'from_nnx',
  'from_equinox',
  'from_haiku',
  'from_function',
  'from_keras',
  'give_back',
  'prune',
  'rigl',
  'hold',
  'fake_quant',
  'lsq',
  'ptq',
  'quantize',
  'coverage',
  'distill',
  'hint',
  'freeze',
  'accumulate',
  'average',
  'augment',
  'for_cpu',
  'shrink',
  'plan',
  'finetune',
  'FineTune',
  'tune',
  'lr_range',
  'batch_size',
]


def test_the_top_has_the_names_of_the_house_and_the_rooms():
  rooms = {name for name in jaxlite.__all__ if (ROOT / name).is_dir()} | {'contract'}
  assert set(jaxlite.__all__) - rooms == {*TOP, '__version__'}
  assert rooms == set(jaxlite._ROOMS)
  assert set(jaxlite.__all__) == {*jaxlite._MODULE, *jaxlite._ROOMS, '__version__'}


def test_what_type_checkers_read_is_what_runs():
  block = next(node for node in ast.parse((ROOT / '__init__.py').read_text()).body if isinstance(node, ast.If))
  told = {alias.name: node.module.removeprefix('jaxlite.') for node in block.body for alias in node.names}
  assert told == {**jaxlite._MODULE, **dict.fromkeys(jaxlite._ROOMS, 'jaxlite')}


@pytest.mark.parametrize('room', ROOMS)
def test_no_public_name_is_hidden_by_a_module_beside_it(room):
  package = importlib.import_module(f'jaxlite.{room}')
  modules = {path.stem for path in (ROOT / room).glob('*.py')}
  for name in package.__all__:
    if name in modules:  # a family of small functions, such as scores: the module is the public name
      assert isinstance(getattr(package, name), types.ModuleType), f'jaxlite.{room}.{name} is a function and a file'


@pytest.mark.sampled(1)
@pytest.mark.parametrize('seed', range(4))
def test_every_name_is_found_whatever_was_imported_before_and_by_either_road(seed):
  code = """
    import importlib, json, random, sys, warnings
    warnings.simplefilter('error')
    seed, modules, rooms = json.loads(sys.argv[1])
    random.Random(seed).shuffle(modules)
    for module in modules:
      importlib.import_module(module)
    import jaxlite
    for room in rooms:
      package = importlib.import_module(f'jaxlite.{room}')
      assert getattr(jaxlite, room) is package if room in jaxlite._ROOMS else True, room
      for name in package.__all__:
        scope = {}
        exec(f'from jaxlite.{room} import {name}', scope)
        assert scope[name] is getattr(package, name), (room, name)
        family = type(scope[name]).__name__ == 'module'
        assert not family or name in ('scores', 'sparsity_schedules', 'schedules'), (room, name)
    for name in jaxlite._MODULE:
      assert callable(getattr(jaxlite, name)), name
  """
  files = [path for path in ROOT.rglob('*.py') if path.name != '__main__.py']
  modules = ['.'.join(path.relative_to(ROOT.parent).with_suffix('').parts).removesuffix('.__init__') for path in files]
  words = json.dumps([seed, sorted(modules), ROOMS])
  done = subprocess.run([sys.executable, '-c', textwrap.dedent(code), words], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('old', sorted(jaxlite._OLD))
def test_an_old_flat_name_works_and_names_its_new_place(old):
  room, new = jaxlite._OLD[old]
  with pytest.warns(DeprecationWarning, match=rf'jaxlite\.{old} is now jaxlite\.{room}\.{new}$'):
    found = getattr(jaxlite, old)
  assert found is getattr(importlib.import_module(f'jaxlite.{room}'), new)


@pytest.mark.parametrize('room', ROOMS)
def test_every_public_name_is_documented(room):
  package = importlib.import_module(f'jaxlite.{room}')
  for name in package.__all__:
    value = getattr(package, name)
    alias = typing.get_origin(value) is not None  # a type by name, which can carry none
    assert alias or inspect.getdoc(value), f'jaxlite.{room}.{name} has no docstring'
