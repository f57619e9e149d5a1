"""Pruning: which weights are zero, when they become so, and how they are kept zero.

`prune` gradually, `prune_groups` whole neurons, channels and heads; `rigl` and `set_` with connections that move,
`straight_through` behind a mask, `sparsegpt` and `sparsify` at once. What is chosen by: `scores`; what is pruned
together: structures; how layers share it: allocations; when: `sparsity_schedules`."""

from jaxlite.pruning import scores as scores
from jaxlite.pruning import sparsity_schedules as sparsity_schedules
from jaxlite.pruning._allocate import erk, global_, uniform
from jaxlite.pruning._gradual import prune
from jaxlite.pruning._groups import find_groups
from jaxlite.pruning._hold import hold
from jaxlite.pruning._mask_state import PruneState, check
from jaxlite.pruning._masks import apply_masks
from jaxlite.pruning._one_shot import sparsify
from jaxlite.pruning._prune_groups import prune_groups
from jaxlite.pruning._rewind import rewind, rounds
from jaxlite.pruning._rigl import rigl, set_, unreset
from jaxlite.pruning._sparsegpt import sparsegpt
from jaxlite.pruning._statistics import gather_statistics
from jaxlite.pruning._straight_through import straight_through
from jaxlite.pruning._structure import block, channel, element, n_m, per_output, stacked

__all__ = [
  'PruneState',
  'apply_masks',
  'block',
  'channel',
  'check',
  'element',
  'erk',
  'find_groups',
  'gather_statistics',
  'global_',
  'hold',
  'n_m',
  'per_output',
  'prune',
  'prune_groups',
  'rewind',
  'rigl',
  'rounds',
  'scores',
  'set_',
  'sparsegpt',
  'sparsify',
  'sparsity_schedules',
  'stacked',
  'straight_through',
  'uniform',
  'unreset',
]
