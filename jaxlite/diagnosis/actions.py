"""What to do about a finding: one action, as fields of the config, ready to run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxlite.diagnosis.verdict import Action

if TYPE_CHECKING:  # records alone are judged without JAX
  from jaxlite.diagnosis.measure import Measured

_ABSENT = object()
_LARGEST = 0.02  # |update| of any step, beside the first weights, that such a network learns with
_DECAY, _SHRINKS = 10.0, 0.1  # decoupled decay, and how much of a weight it may take off at a step
_RATIO = 3e-3  # |update| / |weight| a step that a network of this library learns well with


class Known(NamedTuple):
  """What an action depends on.

  Attributes:
    config: of the run, as `config.json` has it.
    read: the fields that its recipe, model and data have read; None where that is not known: then all that are set.
    measured: what was measured, or None.
  """

  config: Mapping[str, Any]
  read: Collection[str] | None
  measured: Measured | None

  def get(self, path: str, default: Any = None) -> Any:
    """Returns a field of the config by its path."""
    value: Any = self.config
    for name in path.split('.'):
      if not isinstance(value, Mapping) or name not in value:
        return default
      value = value[name]
    return value

  def reads(self, path: str) -> bool:
    """Tells whether the run depends on a field."""
    return path in self.read if self.read is not None else self.get('recipe') is None


def action_for(cause: str, known: Known) -> Action | None:
  """Returns what to do about a cause; None where no field of a config could help, or all that would are set so."""
  make = _ACTIONS.get(cause)
  action = make(known) if make is not None else None
  if action is None:
    return None
  left = {path: value for path, value in action.overrides.items() if known.get(path, _ABSENT) != value}
  return action._replace(overrides=left) if left else None


def _rate(known: Known, factor: float) -> dict[str, Any]:
  lr = known.get('optim.lr')
  if known.reads('optim.lr') and isinstance(lr, int | float):
    return {'optim.lr': float(f'{lr * factor:.3g}')}
  before = known.get('repair.rate', 1.0)
  return {'repair.rate': float(f'{float(before) * factor:.3g}')}


def _longer(known: Known, factor: int) -> dict[str, Any]:
  train = known.get('train') or {}
  for unit in ('steps', 'epochs', 'examples'):
    if (amount := train.get(unit)) is not None:
      return {f'train.{unit}': amount * factor}
  return {}


def _activation(known: Known) -> Action:
  ends = known.measured.ends_in if known.measured else 'activation'
  return Action({'repair.logits': True}, f'leave the {ends} at the end of the network out, since its loss does that '
                'itself or its labels lie beyond', 'beginning')  # fmt: skip


def _loss(known: Known) -> Action:
  return Action({'loss': None}, "train by the task's own loss: the run's is not smallest where the answer is right",
                'beginning')  # fmt: skip


def _scale(known: Known) -> Action:
  overrides = {'repair.scale': True}
  return Action(overrides, 'standardize the inputs', 'beginning')


def _leak(known: Known) -> Action:
  return Action({'repair.leaks': True}, 'train without the examples that validation or test has too; validation will '
                'fall to what is true', 'beginning')  # fmt: skip


def _labels(known: Known) -> Action:
  return Action({'repair.labels': True}, 'train without the examples whose labels are contradicted with confidence',
                'beginning')  # fmt: skip


def _balance(known: Known) -> Action:
  overrides: dict[str, Any] = {'repair.balance': True}
  if known.measured is not None and known.measured.task in ('classification', 'multi_label'):
    overrides['eval.metric'] = 'f1_macro'
  return Action(overrides, 'let rare classes count more', 'beginning')


def _exploding(known: Known) -> Action:
  return Action({'repair.start': True, 'repair.clip': 1.0}, 'start with layers of unit scale, and clip gradients',
                'beginning')  # fmt: skip


def _vanishing(known: Known) -> Action:
  return Action({'repair.start': True}, 'start with layers of unit scale, so that the first ones get a gradient',
                'beginning')  # fmt: skip


def _dying(known: Known) -> Action:
  start = known.measured.start if known.measured else None
  born = start is not None and max(start.dead.values(), default=0.0) > 0.4
  rate = {} if born else _rate(known, 0.1)
  also = '' if born else ', lower the rate and clip gradients'
  return Action({'repair.start': True, **rate, **({} if born else {'repair.clip': 1.0})},
                f'start with units that half of the examples make positive{also}', 'beginning')  # fmt: skip


def _unstable(known: Known) -> Action:
  walk = known.measured.walk if known.measured else None
  largest = walk.largest if walk is not None and walk.largest == walk.largest else 0.0
  factor = min(0.1, float(f'{_LARGEST / max(largest, _LARGEST):.1g}'))
  return Action(_rate(known, factor), f'lower the learning rate to {factor:g} of what it is', 'beginning')


def _slow(known: Known) -> Action | None:
  walk = known.measured.walk if known.measured else None
  ratio = walk.ratio if walk is not None and walk.ratio == walk.ratio else None
  if ratio == 0:
    return None  # no factor makes a rate of 0 larger
  if ratio is not None and ratio < _RATIO / 4:
    factor = 10.0 if ratio > _RATIO / 40 else 100.0 if ratio > _RATIO / 400 else 1000.0
    return Action(_rate(known, factor), f'raise the learning rate {factor:g} times: a step changes the weights by '
                  f'{ratio:.1e} of their size', 'beginning')  # fmt: skip
  return Action(_longer(known, 3), 'train on, three times as long: it was still learning', 'checkpoint')


def _overfitting(known: Known) -> Action:
  decay = float(known.get('optim.weight_decay', 0.0) or 0.0)
  if known.reads('optim.weight_decay'):
    lr = known.get('optim.lr')
    most = _SHRINKS / lr if isinstance(lr, int | float) and lr > 0 else _DECAY
    overrides: dict[str, Any] = {'optim.weight_decay': float(f'{max(min(_DECAY, most), 3 * decay):.2g}')}
    if known.measured is not None and known.measured.kind:
      overrides['eval.metric'] = 'loss'
    return Action(overrides, 'hold the weights small, so that training examples are not learned by heart, and pick the '
                  'model by its validation loss', 'beginning')  # fmt: skip
  if known.get('eval.patience'):
    return Action({}, 'it stops early already', 'beginning')
  return Action({'eval.patience': 5}, 'stop where validation turns, before examples are learned by heart', 'beginning')


def _underfitting(known: Known) -> Action:
  decay = float(known.get('optim.weight_decay', 0.0) or 0.0)
  if known.reads('optim.weight_decay') and decay > 0.02:
    return Action({'optim.weight_decay': 1e-4}, 'let the weights grow: the weight decay holds them at nothing',
                  'beginning')  # fmt: skip
  if known.get('model') is not None:
    return Action({'model': None}, 'try the default network for data of this form: this one is too small for them',
                  'beginning')  # fmt: skip
  return Action(_longer(known, 4), 'train four times as long', 'beginning')


_ACTIONS: Mapping[str, Callable[[Known], Action | None]] = {
  'wrong output activation': _activation,
  'wrong loss': _loss,
  'abnormal data': _scale,
  'leak': _leak,
  'label noise': _labels,
  'class imbalance': _balance,
  'exploding gradient': _exploding,
  'vanishing gradient': _vanishing,
  'dying ReLU': _dying,
  'unstable loss': _unstable,
  'not finite': _unstable,
  'blown up': _unstable,
  'slow convergence': _slow,
  'still falling': _slow,
  'overfitting': _overfitting,
  'underfitting': _underfitting,
  'nothing learned': _slow,
}
