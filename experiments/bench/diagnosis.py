"""Does a diagnosis name the fault that was put in, and does what it suggests help? Constructed runs, four tasks, three
frameworks, thirteen faults and none.

  python experiments/bench/diagnosis.py --out=runs/diagnosis.jsonl --half=odd --numbers=100:120 --healthy=200:280 --act
  python experiments/bench/diagnosis.py --out=runs/diagnosis.jsonl --table

JAX_DISABLE_MOST_OPTIMIZATIONS=1 and a folder in JAX_COMPILATION_CACHE_DIR take half of the time off.

Even numbers are the half that thresholds were chosen on, odd ones are held out and are what the table judges. Runs of
one network share compiled programs: what they differ in (rate, decay, length, data, first weights) lies in their state.
Each is built by what `jl.train` builds it with, and trained without checkpoints and reports. With --act the suggested
change is trained too, both over seeds; it helps where clean test data say so by more than two standard errors of the
difference: by the task's own loss; of class imbalance by macro F1; of a leak by how close what validation says comes to
what clean data say, since a mended leak makes validation look worse. Every finished line is kept in --out, and the same
command goes on where it was stopped.
"""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import diagnosis_cases as cases
import diagnosis_runs as runs
import jax
import numpy as np
from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_string('out', 'runs/diagnosis.jsonl', 'where finished lines are kept')
flags.DEFINE_string('numbers', '0:20', 'first:last number of each fault')
flags.DEFINE_string('healthy', '0:80', 'first:last number of the healthy ones')
flags.DEFINE_enum('half', 'both', ['both', 'even', 'odd'], 'of these numbers')
flags.DEFINE_list('causes', list(cases.CAUSES), 'some of the causes')
flags.DEFINE_bool('table', False, 'only print the table of what is there, judged anew')
flags.DEFINE_bool('act', False, 'also train what is suggested')
flags.DEFINE_integer('seeds', 3, 'of each, with --act')


def main(_: list[str]) -> None:
  """Runs what is missing and prints the table."""
  out = Path(FLAGS.out)
  out.parent.mkdir(parents=True, exist_ok=True)
  lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
  known = {(line['cause'], line['number']) for line in lines}
  spans = {name: range(*map(int, FLAGS[name].value.split(':'))) for name in ('numbers', 'healthy')}
  halves = {'both': (0, 1), 'even': (0,), 'odd': (1,)}[FLAGS.half]
  numbers = sorted(number for number in {*spans['numbers'], *spans['healthy']} if number % 2 in halves)
  if not FLAGS.table:
    for number in numbers:
      for cause in FLAGS.causes:
        if (cause, number) in known or number not in spans['healthy' if cause == 'healthy' else 'numbers']:
          continue
        case = cases.case(cause, number)
        diagnosis, line = runs.judged(case)
        line['number'] = number
        if FLAGS.act and diagnosis.action is not None:
          line['act'] = runs.acted(case, diagnosis.action.overrides, FLAGS.seeds)
        with out.open('a') as file:
          file.write(json.dumps(line, default=float) + '\n')
        lines.append(line)
        print(
          f'{cause} {number} ({line["task"]}, {line["framework"]}): {line["found"]} {line.get("act", "")}', flush=True
        )
        if len(lines) % 200 == 0:  # programs of so many runs are enough to hold
          runs.family.cache_clear()
          jax.clear_caches()
          gc.collect()
  lines = [runs.again(line) for line in lines] if FLAGS.table else lines
  print(table([line for line in lines if line['number'] % 2], 'held out'))
  print(table([line for line in lines if not line['number'] % 2], 'chosen on'))


def table(lines: list[dict[str, Any]], title: str) -> str:
  """Counts, F1 of each class, their mean, false alarms."""
  text, scores = [f'\n{title}: {len(lines)} runs'], []
  for cause in cases.CAUSES:
    own = [line for line in lines if line['cause'] == cause]
    if not own:
      continue
    hits = sum(line['found'] == cause for line in own)
    called = sum(line['found'] == cause for line in lines)
    f1 = 2 * hits / max(1, len(own) + called)
    scores.append(f1)
    others = sorted({line['found'] for line in own} - {cause})
    acts = [line['act'] for line in own if 'act' in line]
    helped = f'  helped {sum(act["better"] for act in acts)} of {len(acts)}' if acts else ''
    helped += f' (by the score {sum(act["helped"]["score"] for act in acts)})' if acts else ''
    text.append(f'{cause:26} {hits:3} of {len(own):3}  F1 {f1:.3f}{helped}  {", ".join(others)}')
  healthy = [line for line in lines if line['cause'] == 'healthy']
  alarms = sum(line['found'] != 'healthy' for line in healthy)
  text.append(f'macro F1 {np.mean(scores) if scores else 0:.3f}; false alarms {alarms} of {len(healthy)}')
  return '\n'.join(text)


if __name__ == '__main__':
  app.run(main)
