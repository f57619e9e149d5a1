"""Fine-tuning on 269 pictures beside training from nothing, over seeds, and what a further head costs.

  python experiments/bench/photos.py --out=runs/photos.jsonl [--seeds=5] [--steps=60] [--small_steps=300]

The pictures, the network and the settings are those of `experiments/finetune.py`; a seed draws splits, first values and
order. 'from nothing' is MobileNetV2 with drawn values for as many steps as the fine-tuning has, 'small from nothing' a
CNN of 301 thousand parameters for `--small_steps` steps, which a person without weights would rather take. 'head' is
the head solved on fixed features; 'fine-tuned' begins there. 'further head' is one more on the same pictures, of which
the features are kept: plants or not, by `jl.finetune`, the whole run with its report; below the table stands what
`jl.finetuning.begin` takes, which gives the network with its solved head and no run. Finished lines stay in `--out`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags

import jaxlite as jl

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import finetune

FLAGS = flags.FLAGS
flags.DEFINE_string('out', 'runs/photos.jsonl', 'where finished lines are kept')
flags.DEFINE_string('workdir', 'runs/photos', 'where runs and features are kept')
flags.DEFINE_integer('seeds', 5, 'draws of the splits')
flags.DEFINE_integer('steps', 60, 'of fine-tuning, and of the same network from nothing')
flags.DEFINE_integer('small_steps', 300, 'of the small network from nothing')
flags.DEFINE_list('ways', ['head', 'further head', 'fine-tuned', 'small from nothing', 'from nothing'], 'which')


def config_of(way: str, seed: int) -> Any:
  """The config of `experiments/finetune.py` for one way."""
  config = finetune.get_config()
  steps = jl.Duration(steps=FLAGS.steps)
  config = dataclasses.replace(config, seed=seed, runs={}, train=steps, features=f'{FLAGS.workdir}/features')
  config.eval.every = config.checkpoint.every = config.log.every = jl.Duration(percent=25)
  if way == 'fine-tuned':
    return config
  if way == 'head':
    return finetune.probe(config)
  config = finetune.scratch(config)
  if way == 'from nothing':
    return config
  optim = dataclasses.replace(config.optim, lr=3e-3)
  config = dataclasses.replace(config, optim=optim, train=jl.Duration(steps=FLAGS.small_steps))
  return dataclasses.replace(config, model=small, recipe=augmented)


def small(_: Any) -> Any:
  """The student of `experiments/finetune.py`, in floats and without a teacher."""
  return finetune.SmallCNN(features=(8, 16, 32), hidden=64, classes=len(finetune.transfer_data.GROUPS), dropout=0.2)


def augmented(config: Any, total_steps: int) -> Any:
  """Adam on a warm-up cosine, pictures flipped and shifted."""
  import optax

  rate = jl.optim.warmup_cosine(config.optim.lr, total_steps, warmup_steps=total_steps // 20)
  parts = [optax.clip_by_global_norm(1.0), optax.scale_by_adam(), jl.optim.l2(1e-4)]
  return jl.chain(jl.augment(*finetune.shown(config)), *parts, optax.scale_by_learning_rate(rate))


def one(way: str, seed: int) -> dict[str, Any]:
  """Trains one way on one draw."""
  folder, head = Path(FLAGS.workdir, f'{way}-{seed}'.replace(' ', '_')), {}
  quiet = lambda line: None  # noqa: E731
  if way == 'further head':
    data = finetune.pictures(config_of('head', seed))
    plants = finetune.transfer_data.GROUPS.index('plants')
    splits = {name: getattr(data, name) for name in ('train', 'validation', 'test')}
    splits = {name: some._replace(labels=(some.labels == plants).astype(np.int32)) for name, some in splits.items()}
    facts = {**data.facts, 'classes': 2, 'class_names': ['other', 'plants']}
    data = data._replace(**splits, facts=facts, fingerprint=f'{data.fingerprint} plants')
    network, features = finetune.transfer_data.pretrained('mobilenet_v2', 96), f'{FLAGS.workdir}/features'
    began = time.perf_counter()
    jl.finetuning.begin(network, data, method='probe', folder=features)
    head = {'head': time.perf_counter() - began}
    jax.clear_caches()
    run = lambda: jl.finetune(network, data, folder, method='probe', features=features, say=quiet)  # noqa: E731
  else:
    config = config_of(way, seed)
    run = lambda: jl.train(config, folder, say=quiet)  # noqa: E731
  began, processor = time.perf_counter(), time.process_time()
  result = run()
  took = {'seconds': time.perf_counter() - began, 'processor': time.process_time() - processor}
  jax.clear_caches()
  return {'way': way, 'seed': seed, 'accuracy': float(result.metrics['accuracy']), **took, **head}


def interval(values: np.ndarray) -> str:
  """The mean and half of the 95 % interval."""
  from scipy import stats

  half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
  return f'{values.mean():.1f} ± {half:.1f}'


def main(_: list[str]) -> None:
  """Fills what is missing and prints the table."""
  path = Path(FLAGS.out)
  path.parent.mkdir(parents=True, exist_ok=True)
  lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
  for seed in range(FLAGS.seeds):
    for way in FLAGS.ways:
      if not any(line['way'] == way and line['seed'] == seed for line in lines):
        lines.append(one(way, seed))
        print(lines[-1], flush=True)
        with open(path, 'a', encoding='utf-8') as file:
          file.write(json.dumps(lines[-1]) + '\n')
  ways = list(dict.fromkeys(line['way'] for line in lines))
  by = {way: {line['seed']: line for line in lines if line['way'] == way} for way in ways}
  best = 'fine-tuned' if 'fine-tuned' in by else 'head'
  print(f'\n| way | seeds | test, % | {best} minus it | s of processor | s by the clock, most |')
  print('|---|--:|--:|--:|--:|--:|')
  for way, found in by.items():
    score = np.array([100 * line['accuracy'] for line in found.values()])
    both = sorted(set(found) & set(by.get(best, ())))
    gain = np.array([100 * (by[best][seed]['accuracy'] - found[seed]['accuracy']) for seed in both])
    told = '' if way in (best, 'further head') or not both else interval(gain)
    processor = np.median([line['processor'] for line in found.values()])
    most = max(line['seconds'] for line in found.values())
    print(f'| {way} | {len(found)} | {interval(score)} | {told} | {processor:.1f} | {most:.1f} |')
  heads = [line['head'] for line in by.get('further head', {}).values() if 'head' in line]
  if heads:
    print(f'a further head alone: {min(heads):.1f} to {max(heads):.1f} s by the clock')


if __name__ == '__main__':
  app.run(main)
