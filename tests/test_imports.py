"""The direction of imports: the house is built bottom to top, and what is heavy is loaded by whom it serves."""

import ast
import json
import pathlib
import re
import subprocess
import sys
import textwrap

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = {
  '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): path
  for path in sorted((ROOT / 'jaxlite').rglob('*.py'))
}
# Bottom to top. A room imports from rooms below it and from itself; four rooms of transforms share a floor, and no
# import runs between them.
FLOORS = (
  ('version',),
  ('errors',),
  ('picking',),
  ('trees', 'batching'),
  ('contract',),
  ('host',),
  ('config',),
  ('tasks',),
  ('graph',),
  ('cpu',),
  ('checkpoint',),
  ('pruning', 'quantization', 'distillation', 'optim'),
  ('adapters',),
  ('data',),
  ('models',),
  ('step',),
  ('deployment',),
  ('diagnosis',),
  ('report',),
  ('planning',),
  ('finetuning',),
  ('tuning',),
  ('run',),
  ('__main__', 'experiments'),
)
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
TRANSFORMS = FLOORS[11]
NETWORKS = {'flax', 'equinox', 'haiku', 'keras'}
# Inside functions: what writes a file, and what answers from one in a process of its own.
RUNTIMES = {
  'jaxlite.deployment.onnx.file': {'onnx', 'onnxruntime'},
  'jaxlite.deployment.litert.file': {'litert_converter', 'ai_edge_litert'},
  'jaxlite.deployment.litert.opened': {'flatbuffers'},
  'jaxlite.deployment.answer': {'ai_edge_litert', 'onnxruntime', 'safetensors', 'ml_dtypes'},
  'jaxlite.deployment.packed.shapes': {'ml_dtypes'},
}
HEAVY = ('jax', 'orbax', 'tensorflow_datasets', 'sklearn', 'matplotlib', 'flax', 'numpy')


def room_of(module):
  parts = module.split('.')
  return parts[1] if len(parts) > 1 else ''


def imports_of(module):
  """Every module that a file imports, inside functions too; of ours, the file that it means."""
  tree = ast.parse(FILES[module].read_text())
  found = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{module} imports by dots: name the module'
      names = {f'{node.module}.{alias.name}' for alias in node.names}
      # `from jaxlite import loop` means a module, `from jaxlite.step import Train` a name in one
      found |= {name if name in FILES else node.module for name in names}
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
      called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
      if called in ('import_module', '__import__') and node.args and isinstance(node.args[0], ast.Constant):
        found.add(node.args[0].value)
  return found


GRAPH = {module: imports_of(module) for module in FILES}


def others(module):
  """Top-level packages beyond the standard library and ourselves."""
  roots = {name.split('.')[0] for name in GRAPH[module]}
  return {name for name in roots if name not in sys.stdlib_module_names and name != 'jaxlite'}


def test_every_file_lives_in_a_room():
  assert {room_of(module) for module in FILES} - {''} == set(FLOOR)


@pytest.mark.parametrize('module', [module for module in FILES if room_of(module)])
def test_a_room_imports_only_what_lies_below_it(module):
  room = room_of(module)
  for name in GRAPH[module]:
    if name == 'jaxlite' or name.startswith('jaxlite.'):
      if not room_of(name):
        assert room == 'experiments', f'{module} imports the public names: import the module itself'
        continue
      other = room_of(name)
      assert other == room or FLOOR[other] < FLOOR[room], f'{module} imports {name}, which does not lie below it'


@pytest.mark.parametrize('module', [one for one in FILES if room_of(one) not in TRANSFORMS])
def test_no_module_knows_a_transform_by_type(module):
  """What a part did, wants and hears is asked of it (`contract.Account`, `Status`): other rooms see public names."""
  assert not [name for name in GRAPH[module] if room_of(name) in TRANSFORMS and '._' in name]


def test_no_imports_go_in_a_circle():
  state = {}

  def visit(module, path):
    assert state.get(module) != 'open', f'a circle: {" -> ".join([*path, module])}'
    if module in state:
      return
    state[module] = 'open'
    for name in GRAPH[module]:
      if name in FILES:
        visit(name, [*path, module])
    state[module] = 'done'

  for module in FILES:
    if room_of(module):
      visit(module, [])


@pytest.mark.parametrize('module', list(FILES))
def test_only_the_room_that_owns_a_package_imports_it(module):
  room, used = room_of(module), others(module)
  if room in (*TRANSFORMS, 'graph', 'cpu', 'contract', 'picking', 'trees', 'batching', 'step', 'deployment'):
    writers = RUNTIMES.get(module, set())
    assert used <= {'jax', 'optax', 'numpy'} | writers
  if room in ('version', 'errors', 'config'):
    assert used <= {'absl'}
  if room not in ('adapters', 'models'):
    assert not used & NETWORKS
  if room != 'checkpoint':
    assert not used & {'orbax', 'tensorstore'}
  if room != 'data':
    assert not used & {'tensorflow_datasets', 'array_record', 'sklearn'}
  if room != 'tuning':
    assert not used & {'optuna', 'cmaes', 'sqlalchemy'}
  assert 'tensorflow' not in used


def test_the_graph_sees_imports_inside_functions():
  assert 'tensorflow_datasets' in set().union(*(GRAPH[module] for module in FILES if room_of(module) == 'data'))
  assert 'haiku' in GRAPH['jaxlite.adapters.haiku']
  assert 'matplotlib' in {name.split('.')[0] for name in GRAPH['jaxlite.report.figures']}


@pytest.mark.parametrize(
  'path', sorted([*ROOT.glob('jaxlite/**/*.py'), *ROOT.glob('*.py')]), ids=lambda path: path.name
)
def test_no_file_is_longer_than_an_idea(path):
  assert len(path.read_text().splitlines()) <= 400


def run(code, *words):
  done = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(code), *words], cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_importing_jaxlite_loads_nothing_heavy_and_a_part_only_what_it_needs():
  out = run(
    """
    import json, sys
    def loaded(): return sorted({name.split('.')[0] for name in sys.modules})
    import jaxlite
    first = loaded()
    jaxlite.Config, jaxlite.Duration
    config = loaded()
    jaxlite.prune, jaxlite.fake_quant, jaxlite.quantize, jaxlite.distill, jaxlite.chain, jaxlite.train_step
    part = loaded()
    print(json.dumps([first, config, part]))
    """
  )
  first, config, part = map(set, json.loads(out))
  assert not first & set(HEAVY)
  assert not config & set(HEAVY)
  assert {'jax', 'optax'} <= part
  assert not part & (set(HEAVY) - {'jax', 'numpy'} | {'equinox', 'haiku'})


def test_help_of_the_launcher_loads_no_jax():
  out = run(
    """
    import runpy, sys
    sys.argv = ['launch.py', '--help']
    try:
      runpy.run_path('launch.py', run_name='__main__')
    except SystemExit as end:
      assert end.code in (0, None), end.code
    print('loaded:', *sorted({name.split('.')[0] for name in sys.modules}))
    """
  )
  shown, loaded = out.rsplit('loaded:', 1)
  assert '--config' in shown
  assert not set(loaded.split()) & set(HEAVY)


def test_a_run_needs_no_tensorflow(tmp_path):
  run(
    """
    import sys
    from importlib.machinery import PathFinder
    class Without(PathFinder):
      @classmethod
      def find_spec(cls, name, path=None, target=None):
        if name.split('.')[0] not in ('tensorflow', 'keras', 'torch'):
          return PathFinder.find_spec(name, path, target)
    sys.meta_path[sys.meta_path.index(PathFinder)] = Without
    import flax.linen as nn, jaxlite as jl, optax
    config = jl.Config(name='x', recipe=lambda config, total: jl.chain(optax.adam(1e-2)), train=jl.Duration(steps=2))
    config.eval.every = config.checkpoint.every = jl.Duration(steps=2)
    class Net(nn.Module):
      @nn.compact
      def __call__(self, x):
        return nn.Dense(10)(x.reshape(len(x), -1))
    result = jl.train(config, sys.argv[1], model=Net())
    assert 0 <= result.metrics['accuracy'] <= 1
    assert 'tensorflow' not in sys.modules
    """,
    str(tmp_path / 'run'),
  )


def test_no_file_names_a_place_of_one_machine():
  places = re.compile(r'(?<![\w.])/(?:work|root|home|Users)/')
  for path in [*ROOT.glob('jaxlite/**/*.py'), *ROOT.glob('experiments/**/*.py'), ROOT / 'launch.py']:
    assert not places.search(path.read_text()), path
