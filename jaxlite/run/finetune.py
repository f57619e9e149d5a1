"""Fine-tuning as one call: a network that was trained on something else, data of one's own, and a run that trains on.

What it is made of stands in `finetune_start.py`; it is a run like any other: the same folder, report, resume,
deployment.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, overload

from jaxlite.config.schema import LogConfig
from jaxlite.planning.plan import Plan
from jaxlite.report.result import Result
from jaxlite.run import loop, planning
from jaxlite.run.finetune_start import FineTune, begin, own_fields, prepared, ready, recipe_of, suited
from jaxlite.run.records import Log, Told

__all__ = ['FineTune', 'begin', 'finetune', 'ready', 'recipe_of', 'suited']


@overload
def finetune(
  network: Any,
  data: Any = None,
  workdir: str | Path = 'runs/finetune',
  *,
  config: FineTune | None = None,
  fresh: bool = False,
  command: str = '',
  say: Callable[[str], None] = print,
  log: Log | LogConfig | None = None,
  plan: None = None,
  **fields: Any,
) -> Result: ...


@overload
def finetune(
  network: Any,
  data: Any = None,
  workdir: str | Path = 'runs/finetune',
  *,
  config: FineTune | None = None,
  fresh: bool = False,
  command: str = '',
  say: Callable[[str], None] = print,
  log: Log | LogConfig | None = None,
  plan: float,
  **fields: Any,
) -> Plan: ...


def finetune(
  network: Any,
  data: Any = None,
  workdir: str | Path = 'runs/finetune',
  *,
  config: FineTune | None = None,
  fresh: bool = False,
  command: str = '',
  say: Callable[[str], None] = print,
  log: Log | LogConfig | None = None,
  plan: float | None = None,
  **fields: Any,
) -> Result | Plan:
  """Fine-tunes a network on other data, in one run; the same call again resumes.

  The head is taken off, features are computed once and kept, a new head is solved on them in seconds, and what then
  learns follows the number of examples, or `method`. The run evaluates what it begins with: it never ends with a model
  that validation likes less than the solved head.

  Args:
    network: with its values: a Network (`jl.load(workdir, model=...)`, a pretrained one of `jl.finetuning`), an NNX or
      Equinox module, a Keras model, (function, params). It takes the inputs of the data as they are: preprocessing is
      its own, and leaves with the model.
    data: a `jaxlite.data.Dataset`, arrays (inputs, labels), or None where the config loads them.
    workdir: the run's folder.
    config: all that can be set; None is `FineTune(name='finetune')`.
    fresh, command, say: as in `jl.train`.
    log: likewise, a function (kind, step, values); a LogConfig is the config's field of that name.
    plan: a training loss: nothing is trained, and the step at which that loss will be reached is told, beside memory
      and time, from the network as if it were linear in its weights.
    **fields: of `FineTune`, set on the config: `method='probe'`, `seed=1`, `train=jl.Duration(epochs=5)`.

  Returns:
    The Result. `jl.load(workdir)` predicts with backbone, head and preprocessing in one. With `plan`, the Plan: its
    `to_loss` has the step, and `print` shows all.

  Raises:
    TypeError: a log that is no function.
    ValueError: one line: a network that does not take these inputs, labels that are missing, one class alone, fewer
      examples than classes, features that are not finite, a field that does not exist.

  References:
    Kumar et al., Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution, 2022,
    https://arxiv.org/abs/2202.10054; Zancato et al., Predicting Training Time Without Training, 2020,
    https://arxiv.org/abs/2008.12478
  """
  if isinstance(log, LogConfig):
    fields, log = {**fields, 'log': log}, None
  told = None if log is None else Told(log, say)  # before features are computed
  config, data, begun, lines = prepared(network, data, config, fields, say)
  for line in lines:
    say(line)
  if plan is not None:
    return planning.plan(config, workdir, model=begun, data=data, target=plan, say=say)
  how = {'fresh': fresh, 'command': command, 'say': say, 'log': told}
  return loop.train_varied(config, workdir, own_fields(), model=begun, data=data, **how)
