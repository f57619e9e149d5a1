"""The train step: the pure function, and which compiled programs run it."""

from jaxlite.step.state import TrainState, ensemble_axes, went_nan
from jaxlite.step.train_step import Train

__all__ = ['Train', 'TrainState', 'ensemble_axes', 'went_nan']
