"""Training, judging and mending the constructed runs of `diagnosis_cases.py`; `diagnosis.py` counts."""

from __future__ import annotations

import dataclasses
import functools
import math
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import diagnosis_cases as cases
import diagnosis_networks as networks
import jax
import jax.numpy as jnp
import numpy as np

import jaxlite as jl
from jaxlite.config.serialize import to_dict
from jaxlite.data import batches
from jaxlite.diagnosis import distributions, judge, label_noise, look, measure, outcomes, repairs, steps, twins
from jaxlite.run import acting, defaults, diagnosing, evaluation, records, setup


class Family(NamedTuple):
  """Runs that share programs.

  Attributes:
    setup: of one of them.
    looker: likewise; filled by the first.
  """

  setup: Any
  looker: dict[str, Any]


@functools.cache
def family(task: str, framework: str, shape: Any, loss: Any, adam: bool, batch: int, few: bool) -> Family:
  """Builds what runs share; the shape is without its scale and bias."""
  config = jl.Config(name='family', loss=loss, recipe=lambda config, total: jl.chain(cases.held(adam=adam)))
  config.data.batch_size, config.train = batch, jl.Duration(epochs=4)
  config.machine.rewrites, config.machine.steps_per_dispatch = False, 1
  data = cases.case('overfitting' if few else 'healthy', 2 * cases.TASKS.index(task)).data
  for number in range(0, 8, 2):  # the one of this task
    made = cases.case('overfitting' if few else 'healthy', number)
    data = made.data if made.task == task else data
  features = 40 if few else 8
  if shape is None:
    inputs = batches.batch_at(data.train, batch, 0, 0)['inputs']
    model = defaults.model(data, inputs)
  else:
    model = networks.network(framework, shape, cases.OUTPUTS[task], features, task == 'language', 0)
  return Family(setup.prepare(config, Path(tempfile.gettempdir(), 'jaxlite-none'), model, data), {})


class Made(NamedTuple):
  """A run before its first step."""

  setup: Any
  looker: dict[str, Any]
  start: Any


def made_of(case: cases.Case, repair: Any = None) -> Made:
  """A case on its family's programs, with what `config.repair` says."""
  repair = repair or case.config.repair
  shape = case.shape if case.shape is None or not repair.logits else case.shape._replace(end='')
  bare = None if shape is None else shape._replace(scale=1.0, bias=0.0)
  config = case.config
  few = len(case.data.train.labels) < 200
  data = repairs.of_data(repair, case.data)
  shared = family(case.task, case.framework, bare, config.loss, case.adam, config.data.batch_size, few)
  own = shared.setup
  epoch = batches.steps_per_epoch(data.train, config.data.batch_size)
  total = config.train.to_steps(steps_per_epoch=epoch, batch_size=config.data.batch_size)
  plan = own.plan._replace(total=total, log=10, evaluate=2 * epoch)
  first = batches.batch_at(data.train, config.data.batch_size, config.seed, 0)
  train = own.train
  state = train.init(jax.random.key(config.seed), own.first_batch)
  if case.shape is not None:
    state = state._replace(params=networks.begun(case.shape, state.params))
  const = dict(state.const)
  for name, value in const.items():
    if name == 'normalize':
      shape_of = np.shape(value['mean'])
      mean, std = (np.zeros(shape_of), np.ones(shape_of)) if data.mean is None else (data.mean, data.std)
      const[name] = {'mean': jnp.asarray(mean, jnp.float32), 'std': jnp.asarray(std, jnp.float32)}
  optim = config.optim
  values = {'rate': optim.lr * repair.rate, 'decay': optim.weight_decay, 'total': plan.total, 'count': 0}
  values['clip'] = repair.clip or optim.clip or 1e30
  (held, moments), *rest = state.opt_state
  held = held._replace(**{name: jnp.asarray(value, jnp.float32) for name, value in values.items()})
  state = state._replace(const=const, opt_state=((held, moments), *rest))
  if repair.start:
    state = repairs.started(train, state, first)
  full = dataclasses.replace(config, repair=repair)
  own = own._replace(config=full, data=data, plan=plan, first_batch=first, score=config.eval.metric or own.score)
  return Made(own, shared.looker, state)


def trained(made: Made, best: bool = False) -> tuple[Any, list[dict[str, Any]], Any]:
  """(last state, history, the state that validation liked best) of a run, as the loop makes them; it ends at a NaN."""
  own, config = made.setup, made.setup.config
  state = jax.tree.map(jnp.copy, made.start)
  history, pending = [], []
  top: tuple[float, Any] = (-math.inf, None)
  sign = own.data.task.better(own.score)
  for step in range(own.plan.total + 1):
    if pending and (step % own.plan.log == 0 or step == own.plan.total):
      values = [dict(one) for one in jax.device_get(pending)]
      values = [{'loss': float(sum(one.values()) if 'loss' not in one else one['loss']), **one} for one in values]
      means = records.means_of([{**one, records.WEIGHT: 1.0} for one in values])
      pending = []
      if not means or not math.isfinite(means['loss']):
        break
      history.append({'kind': 'train', 'step': step, **{name: float(value) for name, value in means.items()}})
    if step and (step % own.plan.evaluate == 0 or step == own.plan.total):
      found = evaluation.numbers(evaluation.evaluate(own, state, own.data.validation).values)
      history.append({'kind': 'validation', 'step': step, **found})
      if best and sign * found[own.score] > top[0]:
        top = (sign * found[own.score], jax.tree.map(jnp.copy, state))
    if step < own.plan.total:
      batch = batches.batch_at(own.data.train, config.data.batch_size, config.seed, step)
      state, terms = own.train.step(state, batch)
      pending.append(terms)
  return state, history, state if top[1] is None else top[1]


READ = ('optim.lr', 'optim.weight_decay', 'optim.clip')


def judged(case: cases.Case) -> tuple[Any, dict[str, Any]]:
  """(the diagnosis, a line to keep)."""
  began = time.perf_counter(), time.process_time()
  made = made_of(case)
  end, history, _ = trained(made)
  middle = time.process_time()
  subject = diagnosing.subject_of(made.setup, made.start, end)
  looker = look.Looker(subject, made.looker.get('one'))
  made.looker['one'] = looker
  found = measure.measure(subject, looker=looker)
  whole = bool(history) and history[-1]['step'] == made.setup.plan.total
  config = {**to_dict(case.config), 'model': 'a network of its own'}
  about = {'config': config, 'facts': made.setup.data.facts, 'task': case.task}
  about |= {'failed': None if whole else {'step': 0, 'where': 'loss'}, 'read': READ}
  diagnosis = judge.diagnose(history, measured=found, own_loss=case.config.loss is None, **about)
  line = {
    'cause': case.cause,
    'task': case.task,
    'framework': case.framework,
    'found': diagnosis.cause or diagnosis.verdict,
    'findings': {one.name: [one.value, one.threshold, one.present] for one in diagnosis.findings},
    'measured': _plain(found),
    'history': history,
    'whole': whole,
    'action': None if diagnosis.action is None else diagnosis.action.overrides,
    'seconds': [round(middle - began[1], 2), round(time.process_time() - middle, 2)],
  }
  return diagnosis, line


def _plain(found: Any) -> dict[str, Any]:
  kept = found._asdict()
  for name in ('start', 'end'):
    look = kept[name]
    kept[name] = {**look._asdict(), 'layers': [layer._asdict() for layer in look.layers]}
  kept['walk'] = None if found.walk is None else found.walk._asdict()
  kept['twins'] = None if found.twins is None else found.twins[:2]
  return kept


def again(line: dict[str, Any]) -> dict[str, Any]:
  """A kept line, judged anew from what was measured: thresholds of now."""
  kept = dict(line['measured'])
  for name in ('start', 'end'):
    layers = tuple(look.Layer(**layer) for layer in kept[name]['layers'])
    kept[name] = look.Look(**{**kept[name], 'layers': layers})
  kept['walk'] = None if kept['walk'] is None else steps.Walk(**kept['walk'])
  kept['scales'] = None if kept['scales'] is None else distributions.Scales(*kept['scales'])
  kept['twins'] = None if kept['twins'] is None else twins.Twins(*kept['twins'], np.zeros(0))
  for name in ('wrong_labels', 'wrong_by_model', 'wrong_by_reference'):
    kept[name] = None if kept[name] is None else label_noise.Doubt(*kept[name])
  case = cases.case(line['cause'], line['number'])
  config = {**to_dict(case.config), 'model': 'a network of its own'}
  whole = line['whole']
  diagnosis = judge.diagnose(
    line['history'],
    measured=measure.Measured(**kept),
    config=config,
    facts=case.data.facts,
    task=line['task'],
    failed=None if whole else {'step': 0, 'where': 'loss'},
    read=READ,
    own_loss=case.config.loss is None,
  )
  findings = {one.name: [one.value, one.threshold, one.present] for one in diagnosis.findings}
  action = None if diagnosis.action is None else diagnosis.action.overrides
  return {**line, 'found': diagnosis.cause or diagnosis.verdict, 'findings': findings, 'action': action}


def clean(case: cases.Case) -> dict[str, float]:
  """How good a run's best model by validation is on the clean test split, larger is better each.

  Returns:
    'loss': of the task, whatever the run was trained by; 'score': macro F1 of classes and labels, else the task's own;
    'estimate': how close what validation says of the loss comes to that.
  """
  made = made_of(case)
  _, _, state = trained(made, best=True)
  own, test = made.setup, case.data.test
  subject = diagnosing.subject_of(own, made.start, state)

  def loss(split: Any) -> float:
    outputs, _ = outcomes.outputs_of(subject, (split.inputs, split.labels, None), state)
    batch = {'inputs': split.inputs, 'labels': split.labels, 'weight': np.ones(len(split.labels), np.float32)}
    value = float(np.mean(_own_loss(case.task)(jnp.asarray(outputs), batch)))
    return value if math.isfinite(value) else 1e9

  values = evaluation.numbers(evaluation.evaluate(own, state, test).values)
  name = 'f1_macro' if 'f1_macro' in values else own.data.task.score
  score = own.data.task.better(name) * values[name]
  found = loss(test)
  if case.task == 'language':
    score = -found
  return {
    'loss': -found,
    'score': float(score) if math.isfinite(score) else -1e9,
    'estimate': -abs(loss(own.data.validation) - found),
  }


@functools.cache
def _own_loss(task: str) -> Any:
  made = next(one for one in (cases.case('healthy', number) for number in range(0, 8, 2)) if one.task == task)
  return jax.jit(made.data.task.loss(made.data.facts))


# By what a mended run is judged; the others by the loss.
JUDGED_BY = {'class imbalance': 'score', 'leak': 'estimate'}


def acted(case: cases.Case, overrides: dict[str, Any], seeds: int) -> dict[str, Any]:
  """What clean data say over seeds, without the change and with it; it helped where the difference is above two
  standard errors."""
  found: dict[str, list[dict[str, float]]] = {'before': [], 'after': []}
  for seed in range(seeds):
    before = dataclasses.replace(case.config, seed=case.config.seed + 1000 * seed)
    after = acting.overridden(before, {path: value for path, value in overrides.items() if path != 'model'})
    shape = None if 'model' in overrides else case.shape
    found['before'].append(clean(case._replace(config=before)))
    found['after'].append(clean(case._replace(config=after, shape=shape)))
  helped = {name: _above(*([one[name] for one in found[when]] for when in found)) for name in found['before'][0]}
  return {**found, 'helped': helped, 'better': helped[JUDGED_BY.get(case.cause, 'loss')]}


def _above(before: list[float], after: list[float]) -> bool:
  apart = np.subtract(after, before)
  error = float(apart.std(ddof=1) / np.sqrt(len(apart))) if len(apart) > 1 else 0.0
  return bool(apart.mean() > max(2 * error, 0.0))
