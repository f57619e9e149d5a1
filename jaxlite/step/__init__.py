"""The train step: the pure function, and which compiled programs run it; and its pieces for loops of other people."""

from jaxlite.step.state import TrainState, ensemble_axes, went_nan
from jaxlite.step.train_step import Train
from jaxlite.step.wrapped import Wrapped, told, wrap

__all__ = ['Train', 'TrainState', 'Wrapped', 'ensemble_axes', 'told', 'went_nan', 'wrap']
