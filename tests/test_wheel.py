"""What a user gets who installs without a checkout: a wheel that holds every file, and works from where it lies.

An editable install hides what a wheel forgets, so the wheel is built here, installed into a folder of its own and used
by a process that sees nothing of the checkout.
"""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

import unoptimized
from jaxlite.cpu.kernels import compiler

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = 'import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])'


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
  """The folder that a wheel of this checkout was installed into; no network is asked."""
  source, made, target = (tmp_path_factory.mktemp(name) for name in ('source', 'made', 'target'))
  shutil.copytree(ROOT / 'jaxlite', source / 'jaxlite', ignore=shutil.ignore_patterns('__pycache__'))
  for name in ('pyproject.toml', 'README.md', 'LICENSE'):
    shutil.copy(ROOT / name, source)
  call('-c', BUILD, made, cwd=source)
  (wheel,) = made.glob('*.whl')
  pip = ('-m', 'pip', 'install', '--quiet', '--no-deps', '--no-index', '--no-compile', '--disable-pip-version-check')
  call(*pip, '--target', target, wheel, cwd=made)
  return target


def call(*words, cwd, **environment):
  inherited = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
  command = [sys.executable, *map(str, words)]
  done = subprocess.run(command, cwd=cwd, env={**inherited, **environment}, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


def run(installed, tmp_path, *words, **environment):
  """Runs Python where `jaxlite` is the installed one and the checkout is not in sight."""
  return call(*words, cwd=tmp_path, PYTHONPATH=str(installed), **environment)


def files(package):
  return {str(path.relative_to(package)) for path in package.rglob('*') if path.suffix not in ('', '.pyc')}


def test_a_wheel_holds_every_file_of_the_package(installed):
  held = files(installed / 'jaxlite')
  assert held == files(ROOT / 'jaxlite')
  kernels = {os.path.join('cpu', 'kernels', f'{name}.c') for name in ('handlers', 'direct')}
  assert {'py.typed', os.path.join('deployment', 'packed', 'entropy.c'), *kernels} <= held


def test_an_installed_wheel_is_what_is_imported_and_its_kernels_compile(installed, tmp_path):
  program = """
import pathlib, sys
import jaxlite
from jaxlite.cpu.kernels import compiler
print(jaxlite.__file__)
print(compiler.built('handlers', pathlib.Path('made')))
"""
  where, made = run(installed, tmp_path, '-c', program, XDG_CACHE_HOME=str(tmp_path / 'cache')).split()
  assert pathlib.Path(where).is_relative_to(installed)
  assert compiler.compiler() is None or made.endswith('.so')


def test_the_main_job_runs_from_an_installed_wheel(installed, tmp_path):
  out = run(installed, tmp_path, '-m', 'jaxlite', '--smoke', '--workdir=mine', **unoptimized.environment())
  assert '  teacher  ' in out
  assert (tmp_path / 'mine-smoke' / 'student' / 'result.json').exists()
  command = (tmp_path / 'mine-smoke' / 'report.md').read_text()
  assert '`python -m jaxlite --smoke --workdir=mine`' in command
