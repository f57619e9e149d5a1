"""What `forecast_memory.py` trains: networks of five frameworks, in several sizes, on drawn data.

A configuration is a line of values. Those of one family are all in the calibration or all held out.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Case(NamedTuple):
  """One configuration.

  Attributes:
    family: of networks; in 'framework network' form.
    size: a width, depth or both, as the family takes it.
    batch: examples a step.
    shape: of one example; a single number is a length of token ids.
    examples: in all splits.
    evaluation: examples in a batch of evaluation.
    recipe: the optimizer and what stands around it.
    task: what is learned.
    steps: of the run.
    cache: whether the compile cache is filled.
  """

  family: str
  size: Any
  batch: int
  shape: tuple[int, ...]
  examples: int = 2000
  evaluation: int = 512
  recipe: str = 'adamw'
  task: str = 'classification'
  steps: int = 6
  cache: str = 'cold'

  @property
  def name(self) -> str:
    return '/'.join(str(value).replace(' ', '') for value in self)


IMAGE, SMALL, DIGIT = (32, 32, 3), (28, 28, 1), (8, 8, 1)
CALIBRATION = (
  Case('linen mlp', (128,), 64, (64,)),
  Case('linen mlp', (512, 512), 1024, SMALL),
  Case('linen mlp', (2048, 2048), 256, SMALL, recipe='sgd'),
  Case('linen mlp', (1024, 1024, 1024), 8192, (64,), examples=12000),
  Case('linen mlp', (256,), 4096, (300,), examples=40000, steps=8),
  Case('linen cnn', (8, 16), 64, DIGIT, steps=40),
  Case('linen cnn', (32, 64), 64, SMALL),
  Case('linen cnn', (32, 64), 256, SMALL),
  Case('linen cnn', (32, 64), 1024, SMALL, examples=4000),
  Case('linen cnn', (16, 32), 128, IMAGE, recipe='sgd', evaluation=1024, examples=6000),
  Case('linen cnn', (32, 64), 128, SMALL, cache='warm'),
  Case('linen resnet', 1, 32, IMAGE),
  Case('linen resnet', 1, 256, IMAGE, recipe='sgd'),
  Case('linen resnet', 3, 64, IMAGE),
  Case('linen resnet', 2, 128, IMAGE, cache='warm'),
  Case('linen vit', (2, 64), 64, IMAGE),
  Case('linen vit', (4, 128), 32, IMAGE, recipe='sgd'),
  Case('linen vit', (4, 128), 128, IMAGE),
  Case('nnx mlp', (512, 256), 512, SMALL),
  Case('nnx mlp', (2048,), 2048, (256,), examples=8000, recipe='sgd'),
  Case('nnx cnn', (16, 32), 256, SMALL),
  Case('plain scan', (8, 256), 512, (64,)),
  Case('plain scan', (16, 128), 2048, (32,), recipe='sgd', examples=6000),
  Case('plain mlp', (1024,), 4096, (128,), task='regression', examples=12000),
)
HELD_OUT = (
  Case('equinox mlp', (512, 512), 2048, (100,), examples=6000),
  Case('equinox mlp', (1500, 700), 512, SMALL, recipe='sgd'),
  Case('equinox mlp', (256, 256), 256, (50,), task='regression', steps=40),
  Case('equinox mlp', (4096,), 128, (512,), recipe='average'),
  Case('equinox cnn', (16, 32), 128, SMALL),
  Case('equinox cnn', (24, 48), 512, SMALL, recipe='sgd', examples=3000),
  Case('equinox cnn', (12,), 64, IMAGE, evaluation=256),
  Case('haiku mlp', (300, 100), 128, SMALL),
  Case('haiku mlp', (1024, 1024), 1024, (200,), recipe='sgd'),
  Case('haiku mlp', (128, 128), 6000, (128,), examples=15000),
  Case('haiku cnn', (16, 32), 96, SMALL),
  Case('haiku cnn', (32,), 400, IMAGE, recipe='sgd', evaluation=1000, examples=4000),
  Case('linen decoder', (2, 64), 32, (64,), task='language'),
  Case('linen decoder', (4, 128), 16, (128,), task='language', recipe='sgd'),
  Case('linen decoder', (2, 128), 64, (64,), task='language', evaluation=64),
  Case('linen decoder', (1, 256), 24, (100,), task='language', evaluation=128),
  Case('linen depthwise', 16, 64, IMAGE),
  Case('linen depthwise', 32, 128, IMAGE, recipe='sgd'),
  Case('linen lenet', (), 64, SMALL),
  Case('linen lenet', (), 1000, SMALL, examples=5000),
  Case('linen bag', 64, 256, (60,)),
  Case('linen bag', 128, 1024, (200,), recipe='sgd', examples=4000),
  Case('nnx attention', (2, 64), 64, (32, 24)),
  Case('nnx attention', (3, 128), 128, (48, 16), recipe='sgd'),
  Case('nnx attention', (1, 96), 400, (40, 10), evaluation=256),
  Case('plain gru', 128, 64, (40, 12)),
  Case('plain gru', 256, 256, (28, 28), recipe='sgd'),
  Case('plain remat', (12, 256), 1024, (64,), examples=4000),
  Case('plain remat', (24, 128), 4096, (32,), examples=9000, recipe='sgd'),
  Case('plain mixer', (4, 64), 128, (49, 32)),
  Case('plain mixer', (6, 96), 256, (36, 16), recipe='sgd'),
  Case('plain wide', 20000, 64, (256,)),
  Case('plain wide', 8000, 500, (512,), recipe='sgd'),
  Case('plain wide', 30000, 32, (100,), recipe='freeze'),
  Case('linen unet', 8, 16, (32, 32, 3), task='segmentation', examples=600, evaluation=64),
  Case('linen unet', 16, 48, (32, 32, 1), task='segmentation', examples=600, evaluation=128, recipe='sgd'),
  Case('equinox resnet', (2, 16), 64, IMAGE),
  Case('equinox resnet', (3, 32), 128, IMAGE, recipe='sgd', evaluation=256),
  Case('haiku gated', (512, 4), 512, (128,), recipe='prune'),
  Case('haiku gated', (256, 8), 2000, (64,), recipe='fake_quant', examples=6000),
  Case('haiku gated', (768, 2), 256, (300,), recipe='accumulate'),
  Case('linen teacher', (256, 1024), 512, SMALL, recipe='distill'),
  Case('linen teacher', (64, 3000), 128, SMALL, recipe='distill'),
  Case('plain ensemble', (8, 128), 256, (64,)),
  Case('plain ensemble', (4, 512), 1024, (100,), recipe='sgd', examples=3000),
  Case('plain nested', (4, 6, 128), 512, (64,)),
  Case('plain nested', (3, 3, 384), 2048, (48,), recipe='sgd', examples=6000),
  Case('plain branches', (64, 3000), 1024, (128,), examples=3000),
  Case('plain experts', (8, 384), 2048, (64,), examples=6000),
  Case('plain bfloat16', (1024, 1024), 2048, (256,), examples=6000),
  Case('haiku lstm', 96, 128, (40, 16)),
  Case('haiku lstm', 256, 64, (20, 24), recipe='sgd'),
  Case('linen remat', (8, 512), 2048, (64,), examples=6000),
  Case('nnx norm', (24, 48), 256, IMAGE, examples=1500, evaluation=300),
  Case('nnx norm', (12, 24), 64, SMALL, recipe='sgd', examples=1500),
  Case('equinox mlp', (32,), 16, (13,), task='tables', examples=178),
  Case('equinox mlp', (800, 800), 800, (90,), cache='warm'),
  Case('linen decoder', (3, 96), 32, (96,), task='language', cache='warm'),
  Case('linen depthwise', 24, 96, IMAGE, cache='warm'),
  Case('haiku mlp', (600, 300), 3000, (150,), examples=100000, cache='warm'),
)
# Networks whose weights, not their process, are most of what is held: the others say nothing of such.
LARGE = (
  Case('linen mlp', (1600, 1600), 256, (64, 64, 3), examples=1200, evaluation=256, steps=12),
  Case('linen mlp', (1600, 1600), 256, (64, 64, 3), examples=1200, evaluation=256, steps=12, recipe='sgd'),
  Case('linen mlp', (6000, 6000), 64, (300,), examples=1000, evaluation=64, steps=8, recipe='descent'),
  Case('plain mlp', (4000,), 64, (4000,), examples=1000, evaluation=64, steps=12),
)
LARGE_HELD_OUT = (
  Case('equinox mlp', (3000, 2000), 64, (500,), evaluation=256, steps=12),
  Case('haiku mlp', (6000, 6000), 64, (500,), examples=1000, evaluation=64, steps=8),
  Case('linen bag', 3000, 64, (60,), examples=1000, evaluation=64, steps=8),
  Case('equinox mlp', (5000, 4000), 64, (500,), examples=1000, evaluation=64, steps=8, recipe='descent'),
)
CASES = {case.name: case for case in (*CALIBRATION, *HELD_OUT, *LARGE, *LARGE_HELD_OUT)}


def config(case: Case, folder: str) -> Any:
  """The run of a configuration, without the allocator's setting.

  Args:
    case: which.
    folder: for nothing but what a config wants a name of.
  """
  import jaxlite as jl
  from jaxlite.config.schema import CheckpointConfig, DataConfig, EvalConfig, LogConfig, MachineConfig

  tasks = {
    'classification': None,
    'regression': jl.tasks.regression,
    'language': jl.tasks.language,
    'segmentation': jl.tasks.segmentation,
    'tables': None,
  }
  half = jl.Duration(steps=max(1, case.steps // 2))
  return jl.Config(
    name='forecast',
    data=DataConfig(batch_size=case.batch),
    train=jl.Duration(steps=case.steps),
    eval=EvalConfig(every=half, batch_size=case.evaluation),
    checkpoint=CheckpointConfig(every=half),
    log=LogConfig(every=half, progress=False),
    machine=MachineConfig(keep_memory=False, compile_cache=case.cache == 'warm'),
    recipe=lambda config, total: recipe(case),
    task=tasks[case.task],
  )


def recipe(case: Case) -> Any:
  """The recipe of a configuration, by its name."""
  import jax
  import jax.numpy as jnp
  import optax

  import jaxlite as jl

  adamw = (optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
  if case.recipe == 'distill':
    width, inputs = case.size[1], int(__import__('math').prod(case.shape))
    weights = {'a': jnp.full((inputs, width), 0.01), 'b': jnp.full((width, 10), 0.01)}
    teach = lambda p, x: jax.nn.relu(x.reshape(len(x), -1).astype(jnp.float32) @ p['a']) @ p['b']  # noqa: E731
    teacher = jl.Network(jl.from_function(teach, weights), weights, {})
    return jl.chain(jl.distill(teacher), optax.adam(1e-3))
  return {
    'sgd': lambda: jl.chain(optax.sgd(1e-3, momentum=0.9)),
    'descent': lambda: jl.chain(optax.sgd(1e-3)),
    'adamw': lambda: jl.chain(*adamw),
    'average': lambda: jl.chain(jl.average(0.99), optax.adam(1e-3)),
    'freeze': lambda: jl.chain(jl.freeze('a'), optax.adam(1e-3)),
    'prune': lambda: jl.chain(*adamw, jl.prune(sparsity=0.5, begin=0, end=2, every=1)),
    'fake_quant': lambda: jl.chain(jl.fake_quant(bits=8), *adamw),
    'accumulate': lambda: jl.chain(jl.accumulate(4), *adamw),
  }[case.recipe]()


def data(case: Case) -> tuple[Any, Any]:
  """Inputs and labels of a configuration, drawn."""
  import numpy as np

  if case.task == 'tables':  # real ones, few of them
    from sklearn.datasets import load_wine

    inputs, labels = load_wine(return_X_y=True)
    return inputs.astype(np.float32), labels
  draw = np.random.default_rng(0)
  n = case.examples
  if case.task == 'language':
    tokens = draw.integers(1, 256, (n, *case.shape), dtype=np.int32)
    return tokens, tokens
  if case.family == 'linen bag':
    return draw.integers(1, 5000, (n, *case.shape), dtype=np.int32), np.arange(n) % 10
  if len(case.shape) == 3:
    inputs = draw.integers(0, 256, (n, *case.shape), dtype=np.uint8)
  else:
    inputs = draw.normal(size=(n, *case.shape)).astype(np.float32)
  if case.task == 'segmentation':
    return inputs, draw.integers(0, 4, (n, *case.shape[:2])).astype(np.int32)
  if case.task == 'regression':
    return inputs, inputs.reshape(n, -1)[:, :1].astype(np.float32)
  return inputs, np.arange(n) % 10
