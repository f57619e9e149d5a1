"""What an experiment is made of: plain dataclasses, units in their names. Standard library only.

A config holds values and names functions; the loop calls the functions after every override, so a recipe
never sees an old learning rate. What belongs here: the fields, their ranges, and shrinking a run to seconds.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from jaxlite.config.duration import Duration
from jaxlite.config.fields import annotation, conforms, describe, fields, is_group
from jaxlite.errors import ConfigError, nearest

_SMOKE_STEPS = 20


@dataclasses.dataclass
class DataConfig:
  """Where the examples come from.

  Attributes:
    source: the name of a data set ('digits', 'fashion_mnist', or any that is prepared as array_record), or a path: a
      folder of pictures, of WAV files or of texts by class, a table in CSV, Parquet or JSON lines.
    directory: the folder that holds it; empty for the usual place.
    batch_size: examples per step.
    validation: the share of the training split that is held out, in [0, 1); 0: the last model is taken. A Dataset
      that is split already does not read it, which is said.
    load: (config) -> a `jaxlite.data.Dataset`, an experiment's own data; None loads `source`.
    standardize: pictures and numbers by mean and standard deviation of the training split; False leaves them as they
      are. A Dataset that `load` returns, or that is given to `jaxlite.train`, has made its own choice.
    size: height and width that pictures of a folder are brought to; 0 where all have one size.
    label: the column of a table that is learned; '' for 'label'.
    keep: where pictures are decoded from: 'auto', 'memory', 'folder', 'pixels' or 'jpeg', see `jaxlite.data.pictures`.
      Of a table: 'memory' or 'disk', see `jaxlite.data.from_table`.
    threads: that decode pictures and sounds; 0 takes one a core.
    reduce: brings the inputs to fewer features before the network, by what the training split shows: 'pca',
      'randomized_pca', 'incremental_pca', 'random_projection', 'sparse_projection' or 'mutual_information', see
      `jaxlite.data.reduce`; '' leaves them as they are.
    components: how many features `reduce` keeps; below 1, the share of the variance that 'pca' keeps.
    whiten: of 'pca', each component has deviation 1.
  """

  source: str = 'digits'
  directory: str = ''
  batch_size: int = 64
  validation: float = 0.1
  load: Callable[[Config], Any] | None = None
  standardize: bool = True
  size: int = 0
  label: str = ''
  keep: str = 'auto'
  threads: int = 0
  reduce: str = ''
  components: float = 0.95
  whiten: bool = False


@dataclasses.dataclass
class OptimConfig:
  """What the recipe's optimizer is built from.

  Attributes:
    lr: peak learning rate.
    warmup: from zero to the peak; 0 steps for none.
    weight_decay: decoupled, for weights only.
    clip: largest global norm of a gradient; 0 leaves gradients as they are.
  """

  lr: float = 1e-3
  warmup: Duration = dataclasses.field(default_factory=lambda: Duration(percent=5))
  weight_decay: float = 1e-4
  clip: float = 1.0


@dataclasses.dataclass
class EvalConfig:
  """When the model is looked at.

  Attributes:
    every: between evaluations on the validation split.
    metric: which validation metric picks the best model; '' for the task's own (accuracy for classes; where some are
      rare, 'f1_macro' counts all alike).
    patience: evaluations without improvement before the run stops early; 0 never stops it.
    batch_size: examples per batch.
    target: a value of that metric: while it trains the run says when it will probably be reached, and at its end when
      it was; it trains on all the same. None: no target.
    start: also look at what the run begins with: one that was pretrained never ends worse, by validation.
    precision: of a binary or multi-label task, at least this share of what is called positive should be: the threshold
      that gives it on validation with the highest recall is kept with the model. None: nobody asks.
    recall: likewise, at least this share of the positives should be found, with the highest precision.
  """

  every: Duration = dataclasses.field(default_factory=lambda: Duration(epochs=1))
  metric: str = ''
  patience: int = 0
  batch_size: int = 512
  target: float | None = None
  start: bool = False
  precision: float | None = None
  recall: float | None = None


@dataclasses.dataclass
class LogConfig:
  """What a run says while it trains.

  Attributes:
    every: between logged training points.
    tensorboard: also write TensorBoard files.
    progress: show a bar (on a terminal and in a notebook) and a line at each point.
  """

  every: Duration = dataclasses.field(default_factory=lambda: Duration(steps=50))
  tensorboard: bool = True
  progress: bool = True


@dataclasses.dataclass
class CheckpointConfig:
  """What a run keeps.

  Attributes:
    every: between checkpoints.
    keep: how many of the latest stay; the best stays beside them.
  """

  every: Duration = dataclasses.field(default_factory=lambda: Duration(epochs=1))
  keep: int = 2


@dataclasses.dataclass(kw_only=True)
class MachineConfig:
  """What is set for speed and for memory. But for `rewrites`, `micro_batches` and `remat`, which round differently, no
  field changes a number.

  Attributes:
    keep_memory: on CPU, freed memory stays mapped where there is enough of it.
    compile_cache: compiled programs are kept in the user's cache folder for the next start.
    rewrites: on CPU, pools and convolutions take the form that is fastest on this machine: the same gradients up to
      rounding. The run keeps its choices.
    steps_per_dispatch: at most so many steps are sent to the device at once, between two points of the run; 1: each on
      its own; 0: as many as are faster so on this machine, if any. Never around a convolution on CPU.
    micro_batches: a step's batch is taken in so many parts, one after the other (`jl.accumulate`): less memory, the
      same gradient up to rounding where nothing is random: dropout draws for each part. It divides data.batch_size.
    remat: the forward is cut into so many pieces, of which only the ends are kept until the backward pass; what lies
      between is computed again (`jl.optim.remat`): less memory, about a third more work; 0 keeps everything.
    force: the run starts even where its forecast says that it would be killed.
  """

  keep_memory: bool = True
  compile_cache: bool = True
  rewrites: bool = True
  steps_per_dispatch: int = 0
  micro_batches: int = 1
  remat: int = 0
  force: bool = False


@dataclasses.dataclass(kw_only=True)
class RepairConfig:
  """What `jl.diagnose` found and a person wants mended, whatever the framework and the recipe; all off by default.

  Attributes:
    start: the first weights are scaled, layer by layer, so that each layer answers the first batch with deviation 1.
    rate: every update is multiplied by it: a learning rate that the recipe has written down is changed so.
    clip: largest global norm of a gradient, before anything else of the recipe; 0 for none.
    scale: quantities among the inputs are standardized, whatever the data set says.
    logits: the network's last softmax, sigmoid, tanh or ReLU is left out.
    leaks: training examples that validation or test has too are left out.
    labels: training examples whose label is contradicted with confidence by fits without them are left out; of several
      labels an example, those are turned.
    balance: training examples count by how rare their class is, or the rarest of their labels: by one over the root of
      its share.
  """

  start: bool = False
  rate: float = 1.0
  clip: float = 0.0
  scale: bool = False
  logits: bool = False
  leaks: bool = False
  labels: bool = False
  balance: bool = False


@dataclasses.dataclass(kw_only=True)
class Config:
  """One experiment. Subclass it to add fields; they are set, checked and saved like these.

  Attributes:
    name: the run's name in its report.
    seed: feeds every source of randomness.
    data, optim, eval, log, checkpoint, machine, repair: see their classes.
    train: the length of the run.
    teacher: the folder of a finished run to learn from, relative to this run's own; empty for none.
    model: (config) -> a network that an adapter takes, or a Model; None where `jaxlite.train` is given one, or for a
      small default by the form of the data.
    recipe: (config, total_steps) -> Recipe; None for clipping, AdamW and a warm-up cosine out of `optim`.
    task: () -> what is learned, such as `jl.tasks.regression`; None takes that of the data, or classification for data
      that name none.
    loss: (outputs, batch) -> float[B]; None takes the task's.
    runs: several runs in this order, each a variation (config) -> config; empty for a single one.

  >>> Config(name='mine', train=Duration(steps=100)).optim.lr
  0.001
  """

  name: str
  seed: int = 0
  data: DataConfig = dataclasses.field(default_factory=DataConfig)
  optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
  train: Duration = dataclasses.field(default_factory=lambda: Duration(epochs=10))
  eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
  log: LogConfig = dataclasses.field(default_factory=LogConfig)
  checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
  machine: MachineConfig = dataclasses.field(default_factory=MachineConfig)
  repair: RepairConfig = dataclasses.field(default_factory=RepairConfig)
  teacher: str = ''
  model: Callable[[Config], Any] | None = None
  recipe: Callable[[Config, int], Any] | None = None
  task: Callable[[], Any] | None = None
  loss: Callable[[Any, Mapping[str, Any]], Any] | None = None
  runs: dict[str, Callable[[Config], Config]] = dataclasses.field(default_factory=dict)


_RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
  ('seed', lambda value: 0 <= value < 2**32, 'at least 0 and below 2**32'),
  ('data.batch_size', lambda value: value >= 1, 'at least 1'),
  ('data.validation', lambda value: 0 <= value < 1, 'in [0, 1)'),
  ('data.source', bool, 'the name of a data set, or a path'),
  ('data.size', lambda value: value >= 0, 'at least 0 (0: that of the pictures)'),
  ('data.threads', lambda value: value >= 0, 'at least 0 (0: one a core)'),
  ('data.components', lambda value: 0 < value < 1 or value == value // 1 >= 1, 'a share in (0, 1), or a whole number'),
  ('optim.lr', lambda value: 0 < value < math.inf, 'above 0 and finite'),
  ('optim.weight_decay', lambda value: 0 <= value < math.inf, 'at least 0 and finite'),
  ('optim.clip', lambda value: 0 <= value < math.inf, 'at least 0 (0: off) and finite'),
  ('eval.patience', lambda value: value >= 0, 'at least 0 (0: off)'),
  ('eval.batch_size', lambda value: value >= 1, 'at least 1'),
  ('eval.target', lambda value: value is None or math.isfinite(value), 'finite'),
  ('eval.precision', lambda value: value is None or 0 < value <= 1, 'in (0, 1]'),
  ('eval.recall', lambda value: value is None or 0 < value <= 1, 'in (0, 1]'),
  ('machine.steps_per_dispatch', lambda value: value >= 0, 'at least 0 (0: chosen by time)'),
  ('machine.micro_batches', lambda value: value >= 1, 'at least 1'),
  ('machine.remat', lambda value: value >= 0, 'at least 0 (0: off)'),
  ('repair.rate', lambda value: 0 < value < math.inf, 'above 0 and finite'),
  ('repair.clip', lambda value: 0 <= value < math.inf, 'at least 0 (0: off) and finite'),
  ('checkpoint.keep', lambda value: value >= 1, 'at least 1'),
  ('train', lambda value: value.given()[0] != 'percent', 'in steps, epochs or examples'),
  ('train', lambda value: value.given()[1] > 0, 'longer than 0'),
  ('eval.every', lambda value: value.given()[1] > 0, 'longer than 0'),
  ('log.every', lambda value: value.given()[1] > 0, 'longer than 0'),
  ('checkpoint.every', lambda value: value.given()[1] > 0, 'longer than 0'),
)


# What lies beside the folders of several runs, or makes a folder that of a single one.
_TAKEN = ('report.md', 'report.html', 'report.json', 'curves.png', 'sparsity.png', 'checkpoints')


def validate(config: Config) -> None:
  """Raises where a config cannot run: a stray attribute, a wrong type, a value out of its range.

  Raises:
    ConfigError: one line: the field, its rule and what was got.

  >>> validate(Config(name='x', data=DataConfig(batch_size=0)))
  Traceback (most recent call last):
    ...
  jaxlite.errors.ConfigError: data.batch_size is at least 1; got 0
  """
  if not isinstance(config, Config):
    raise ConfigError(f'a run is described by a jl.Config(name=...); got {_short(config)}')
  _check_types(config, '', [path for path, *_ in fields(config)])
  values = {path: value for path, _, _, value in fields(config)}
  for path, holds, rule in _RULES:
    if path in values and not holds(values[path]):  # an experiment's own group may lack a field of ours
      shown = values[path] if isinstance(values[path], Duration) else repr(values[path])
      raise ConfigError(f'{path} is {rule}; got {shown}')
  for path, name in (('name', config.name), *(('runs', name) for name in config.runs)):
    if not re.fullmatch(r'\w[\w.\-]*', name):
      raise ConfigError(f'{path}: a run names its folder in letters, digits, dot, dash and underscore; got {name!r}')
  linked: dict[str, str] = {}  # as the page of all runs does it
  for name in config.runs:
    if name in _TAKEN:
      raise ConfigError(f'runs: {name!r} is what is written in the folder of all runs itself: name it otherwise')
    if (other := linked.setdefault(name.rstrip('-.'), name)) != name:
      raise ConfigError(f'runs: names differ by more than dots and dashes at their end; got {other!r} and {name!r}')


# How the fields are written that people get wrong.
_WRITTEN = {
  'train': 'train=jl.Duration(epochs=5)',
  'model': 'model=lambda config: network; a network itself is given to jl.train(..., model=network)',
  'recipe': 'recipe=lambda config, total_steps: jl.chain(...)',
  'task': 'task=jl.tasks.regression, or with arguments task=lambda: jl.tasks.regression(...)',
  'loss': 'loss=jl.cross_entropy, or lambda outputs, batch: ...',
  'data.load': 'load=lambda config: jl.data.from_arrays(...)',
}


def _check_types(group: Any, prefix: str, known: list[str]) -> None:
  declared = [field.name for field in dataclasses.fields(group)]
  for name in getattr(group, '__dict__', {}):
    if name not in declared:  # a plain dataclass takes any attribute, so a typo in get_config would pass unseen
      raise ConfigError(f'unknown field {prefix}{name}; nearest: {nearest(prefix + name, known)}')
  for name in declared:
    value, note = getattr(group, name), annotation(type(group), name)
    if not conforms(value, note):
      fix = f': {_WRITTEN[prefix + name]}' if prefix + name in _WRITTEN else ''
      raise ConfigError(f'{prefix}{name} is {describe(note)}; got {_short(value)}{fix}')
    if isinstance(value, Duration):
      try:
        value.given()
      except ConfigError as error:
        raise ConfigError(f'{prefix}{name}: {error}') from None
    if is_group(value):
      try:
        _check_types(value, f'{prefix}{name}.', known)
      except ConfigError:
        if isinstance(value, Duration) or prefix + name not in _WRITTEN:
          raise
        # A Linen module can be called, and is a dataclass with fields that nobody declares.
        kind = type(value).__name__
        raise ConfigError(f'{prefix}{name} is {describe(note)}; got a {kind}: {_WRITTEN[prefix + name]}') from None


def _short(value: Any) -> str:
  """A value as a person reads it in one line: of what has a long name, what it is."""
  shown = repr(value)
  return shown if len(shown) <= 60 and '\n' not in shown else f'a {type(value).__name__}'


def smoke(config: Config) -> Config:
  """Returns a copy that runs in seconds: few steps, small batches, every Duration in proportion.

  A variation of `runs` may set durations of its own, so shrink what it returns, not what it is given.

  >>> str(smoke(Config(name='x')).train)
  '20 steps'
  """
  small = copy.deepcopy(config)
  durations = [(owner, name, value) for _, owner, name, value in fields(small) if isinstance(value, Duration)]
  whole: dict[str, float] = {'percent': 100.0}
  for _, _, duration in durations:
    unit, amount = duration.given()
    if unit != 'percent':  # in another unit than the run's, the longest is taken to span half of the run
      whole[unit] = max(whole.get(unit, 0), 2 * amount)
  unit, amount = config.train.given()
  whole[unit] = amount
  for owner, name, duration in durations:
    unit, amount = duration.given()
    share = min(100.0, 100 * amount / whole[unit]) if amount else 0
    object.__setattr__(owner, name, Duration(percent=share))
  small.train = Duration(steps=_SMOKE_STEPS)
  small.eval.every = Duration(percent=50)
  small.checkpoint.every = Duration(percent=50)
  small.log.every = Duration(percent=25)
  small.eval.patience = 0
  small.data.batch_size = min(small.data.batch_size, 32)
  return small
