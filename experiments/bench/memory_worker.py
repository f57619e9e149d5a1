"""One process of `forecast_memory.py`: trains a configuration and tells its peaks.

python experiments/bench/memory_worker.py run CASE [kept]
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import memory_cases

from jaxlite.host.machine import status

FACTS = ('VmRSS', 'VmHWM', 'RssAnon', 'RssFile', 'VmData', 'VmSize', 'VmPeak')


def main() -> None:
  name = sys.argv[2]
  case = memory_cases.CASES[name]
  with tempfile.TemporaryDirectory() as folder:
    print(json.dumps(trained(case, Path(folder), kept='kept' in sys.argv)))


def made(case: memory_cases.Case) -> tuple[Any, Any]:
  """The network and the data of a configuration."""
  import memory_networks

  import jaxlite as jl
  from jaxlite import data as datasets

  inputs, labels = memory_cases.data(case)
  outputs = {'regression': 1, 'language': memory_networks.VOCABULARY, 'segmentation': 4, 'tables': 3}.get(case.task, 10)
  config = memory_cases.config(case, '')
  facts = {'vocabulary': memory_networks.VOCABULARY} if case.task == 'language' else None
  data = datasets.from_arrays((inputs, labels), task=config.task, facts=facts)
  del inputs, labels
  network = memory_networks.network(case.family, case.size, case.shape, outputs)
  return network if isinstance(network, jl.Model) else jl.adapt(network), data


def trained(case: memory_cases.Case, folder: Path, *, kept: bool) -> dict[str, Any]:
  """The peaks of one run, by stage; the kernel's high-water mark is set back between stages."""
  import dataclasses

  from jaxlite.planning import memory
  from jaxlite.run import loop, states
  from jaxlite.step import warm_up

  stages: dict[str, dict[str, int]] = {}
  facts: dict[str, Any] = {}
  at = ['import']

  def note(name: str) -> None:
    """Ends a stage and begins another."""
    now = {fact: status(fact) for fact in FACTS}
    seen = stages.setdefault(at[0], now)
    stages[at[0]] = {fact: max(seen[fact], now[fact]) for fact in FACTS}
    stages[f'after {at[0]}'] = now
    at[0] = name
    Path('/proc/self/clear_refs').write_text('5')

  def staged(name: str, function: Any) -> Any:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
      before = at[0]
      note(name)
      try:
        return function(*args, **kwargs)
      finally:
        note(before)

    return run

  loop.evaluate = staged('evaluation', loop.evaluate)
  loop.decide_and_test = staged('evaluation', loop.decide_and_test)
  loop.evidence = staged('report', loop.evidence)
  loop.run_folder.finish = staged('report', loop.run_folder.finish)
  loop.prepare = staged('prepare', loop.prepare)
  loop.identify = staged('identify', loop.identify)
  states.start = staged('start', states.start)
  loop._fit = staged('steps', loop._fit)
  warm_up.with_forms = staged('forms', warm_up.with_forms)
  compiling = warm_up.compiling

  @contextlib.contextmanager
  def seen_compiling(*args: Any, **kwargs: Any) -> Any:
    before = at[0]
    note('compile')
    with compiling(*args, **kwargs) as took:
      yield took
    note(before)
    analysis = took.program.memory_analysis() if took.program is not None else None
    names = ('argument', 'output', 'alias', 'temp', 'generated_code')
    facts['program'] = analysis and {one: getattr(analysis, f'{one}_size_in_bytes') for one in names}

  warm_up.compiling = seen_compiling
  forecast, told = memory.forecast, facts.setdefault('told', {})

  def seen_forecast(held: Any, seen: Any, basis: str, cache: str, room: int = 0) -> Any:
    """Keeps what the run's own forecasts start from, and what they say."""
    found = forecast(held, seen, basis, cache, room)
    if basis not in told:
      said = {name: getattr(found, name) for name in ('peak', 'upper', 'raw', 'data_segment', 'address_space')}
      told[basis] = {'sizes': held._asdict(), 'seen': seen._asdict(), 'room': room, **said}
    return found

  memory.forecast = seen_forecast
  save = loop.checkpoint.Checkpoints.save
  loop.checkpoint.Checkpoints.save = staged('checkpoint', save)
  note('data')
  model, data = made(case)
  config = memory_cases.config(case, str(folder))
  if kept:
    config = dataclasses.replace(config, machine=dataclasses.replace(config.machine, keep_memory=True))
  said: list[str] = []
  note('begin')
  loop.train(config, folder / 'run', model=model, data=data, say=said.append)
  note('end')
  memory.forecast = forecast
  peak = max(stage['VmHWM'] for stage in stages.values())
  return {
    'peak': peak,
    'facts': facts,
    'stages': stages,
    'said': [line for line in said if 'memory' in line or 'dispatch' in line],
  }


if __name__ == '__main__':
  main()
