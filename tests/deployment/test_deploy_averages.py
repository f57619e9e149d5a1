"""What is deployed of a run is what its report measured: averages, points, merged weights, whatever trained beside."""

import json

import jax
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

import jaxlite as jl
from jaxlite import trees
from jaxlite.checkpoint import load_arrays
from jaxlite.deployment.operations import listing
from jaxlite.deployment.packed.file import read_pack
from jaxlite.run.deploying import deploy_run
from loops import X, Y, config_of, run

pytestmark = pytest.mark.unoptimized
RECIPES = {
  'average': lambda config, total: jl.chain(jl.average(0.9), optax.adam(0.1)),
  'schedule-free': lambda config, total: jl.chain(optax.contrib.schedule_free_adamw(0.1)),
  'average of low rank': lambda config, total: jl.chain(jl.average(0.9), jl.optim.lora(rank=1), optax.adam(0.1)),
  'clusters': lambda config, total: jl.chain(jl.quantization.clustered(4), optax.adam(0.1)),
}
TASK = jl.tasks.Task(
  'number',
  loss=lambda facts: lambda outputs, batch: (outputs[:, 0] - batch['labels']) ** 2,
  metrics=lambda facts: jl.tasks.means(squares=lambda outputs, batch: (outputs[:, 0] - batch['labels']) ** 2),
  score='squares',
  falls=('squares',),
)


def net():
  rng = np.random.default_rng(3)
  shapes = {'a': (6, 16), 'b': (16,), 'c': (16, 1)}
  params = {name: (0.4 * rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}
  return lambda p, x: jax.nn.relu(x @ p['a'] + p['b']) @ p['c'], params


SLOW = ('average of low rank', 'clusters')


@pytest.mark.parametrize('name', [pytest.param(one, marks=pytest.mark.slow) if one in SLOW else one for one in RECIPES])
def test_what_is_deployed_is_what_was_measured(name, tmp_path):
  """In numbers of the run's own test split, which other weights would change."""
  fields = {'task': lambda: TASK}
  data = (X, (X[:, 0] - X[:, 1] ** 2).astype(np.float32))
  run(tmp_path, RECIPES[name], model=net(), data=data, steps=12, **fields)
  config = config_of(RECIPES[name], steps=12, **fields)
  wanted = json.loads((tmp_path / 'result.json').read_text())['metrics']['squares']

  options = {'batches': (), 'seconds': 0.0, 'data': data, 'say': lambda line: None}
  report = deploy_run(config, tmp_path, formats='pack,safetensors', out=tmp_path / 'whole', **options)
  assert not [row.why for row in report.written if row.why]
  assert report.score == pytest.approx(wanted, rel=1e-5)
  pack, values = report.written
  assert pack.score == pytest.approx(wanted, rel=1e-5)

  fn, start = net()
  live = _live(tmp_path)
  network = jl.load(tmp_path)
  np.testing.assert_allclose(read_pack(pack.path).predict(X), network.predict(X), rtol=1e-5, atol=1e-5)
  own = {key: value for key, value in _values(values.path).items() if key in start}
  assert sorted(own) == sorted(start)
  mean, std = (_values(values.path)[f'normalize.{key}'] for key in ('mean', 'std'))
  np.testing.assert_allclose(fn(own, (X - mean) / std), network.predict(X), rtol=1e-4, atol=1e-4)
  if live:  # what trains answers otherwise, so that the above could fail
    assert not np.allclose(fn(live, (X - mean) / std), network.predict(X), atol=1e-3)

  if name in ('schedule-free', 'average of low rank'):  # no weight of clusters can go
    cut = deploy_run(config, tmp_path, formats='pack', budget={'parameters': 70}, out=tmp_path / 'cut', **options)
    assert cut.costs.parameters <= 70
    assert not cut.written[0].why


def _live(folder):
  """The params of the best checkpoint as they trained, where they are the network's own."""
  found = trees.by_path(load_arrays(folder / 'checkpoints', ('params',), which='best').state['params'])
  return found if 'a' in found else {}


def _values(path):
  return {name.removeprefix('params.'): value for name, value in load_file(path).items()}


def test_a_run_of_clusters_is_a_list_of_operations():
  """Its weights are picked by weights, which no walk through the program expected."""
  fn, params = net()
  model = jl.from_function(fn, params)
  train = jl.train_step(
    model, lambda outputs, batch: outputs[:, 0] ** 2, jl.chain(jl.quantization.clustered(4), optax.sgd(0.1))
  )
  state = train.init(jax.random.key(0), {'inputs': X, 'labels': Y})
  left = {round(float(value), 5) for value in np.unique(train.model.export(state.params, state.model_state)[0]['a'])}
  assert len(left) <= 4
  network = jl.Network(train.model, state.params, state.model_state)
  assert listing.network_graph(network, X[:2]).operations
