"""Search for settings: spaces as data, which point comes next, which trial is not worth its time, who does which.

Nothing here trains: `jl.tune` (in `run/`) does, and asks this room what to train next and when to stop.
"""

from jaxlite.tuning.kinds import choice, integer, log_uniform, uniform

__all__ = ['choice', 'integer', 'log_uniform', 'uniform']
