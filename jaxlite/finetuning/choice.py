"""Which way of fine-tuning suits so many examples: rules of thumb, each said with its reason."""

from __future__ import annotations

from typing import NamedTuple

from jaxlite.errors import counted

METHODS = ('auto', 'probe', 'full', 'last', 'gradual', 'lora')
_FEW = 20  # examples a class: below, there is too little to move a backbone by
_MANY = 5_000  # examples: above, statistics of batch norm and low layers can be learned anew
_LARGE = 50_000_000  # parameters: above, moments of all of them are what memory goes to
_STEPS = (80, 2_000)  # of a run at least and at most, where nobody says


class Choice(NamedTuple):
  """A way of fine-tuning.

  Attributes:
    method: 'probe' (the head alone, solved exactly), 'full', 'last' (the upper layers), 'gradual' or 'lora'.
    norm: 'keep' (the backbone runs as in evaluation: statistics stay, nothing is dropped) or 'train'.
    ratio: of the first layer's rate to the head's.
    why: the reason, in one line.
  """

  method: str
  norm: str
  ratio: float
  why: str


def choose(
  examples: int,
  classes: int,
  parameters: int,
  *,
  method: str = 'auto',
  norm: str = 'auto',
  ratio: float = 0.0,
  can_probe: bool = True,
) -> Choice:
  """Picks a way by the number of examples and the size of the backbone; what is given is taken.

  Args:
    examples: of the training split.
    classes: to tell apart.
    parameters: of the backbone.
    method, norm: as in `Choice`; 'auto' picks.
    ratio: 0 picks.
    can_probe: whether a head can be solved (classes of which one is right).

  >>> choose(90, 6, 2_000_000).method, choose(2_000, 6, 2_000_000).method, choose(2_000, 6, 90_000_000).method
  ('probe', 'full', 'lora')
  """
  each = examples / max(1, classes)
  held = counted(round(each), 'example') + (' a class' if classes > 1 else '')
  why = 'as given'
  if method == 'auto':
    if each < _FEW and can_probe:
      method = 'probe'
      why = (
        f'{held} {"is" if round(each) == 1 else "are"} too few to move {parameters:,} parameters by: the head alone, '
        'solved exactly'
      )
    elif parameters > _LARGE:
      method = 'lora'
      why = f'{parameters:,} parameters with moments are dear: low-rank changes of the backbone, and the head'
    else:
      method = 'full'
      why = f'{held} suffice to move everything, lower layers more slowly' + (
        ', from the head that was solved on fixed features' if can_probe else ''
      )
  if norm == 'auto':
    norm = 'train' if examples >= _MANY and method in ('full', 'gradual') else 'keep'
  if not ratio:
    ratio = 0.1 if examples < _MANY else 0.3
  return Choice(method, norm, ratio, why)


def steps_for(examples: int, batch_size: int) -> int:
  """Returns how long a run is where nobody says: some 3,000 examples seen, within bounds.

  >>> steps_for(200, 32), steps_for(100_000, 32)
  (94, 2000)
  """
  passes = max(1.0, min(15.0, 3_000 / examples))
  return int(min(_STEPS[1], max(_STEPS[0], -(-examples * passes // batch_size))))
