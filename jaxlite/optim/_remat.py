"""Activations that are computed again in the backward pass instead of being kept: memory for work."""

from __future__ import annotations

from typing import Any

from jaxlite.contract import Account, Hook, Model, Params, State
from jaxlite.errors import whole
from jaxlite.graph.pieces import in_pieces


def remat(pieces: int = 4, *, name: str = 'remat') -> Hook:
  """Cuts the forward into pieces, and computes each again when the backward pass comes to it.

  What is kept until then is the ends of the pieces, not what lies between. The numbers are the same up to rounding, and
  a step takes about a third longer. It works on any model of any framework; one whose layers are a loop (`scan`) is a
  single piece and gains nothing.

  Args:
    pieces: how many; about the square root of the number of layers keeps least.
    name: the hook's name.

  Returns:
    A Hook on the model. It stands first in a chain, so that what other hooks do to the model is computed again too.

  Raises:
    ValueError: fewer than two pieces.

  References:
    Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016, https://arxiv.org/abs/1604.06174

  >>> remat(2).name
  'remat'
  """
  whole(pieces, f'{name}: pieces', least=2)

  def model(inner: Model) -> Model:
    def apply(params: Params, state: State, inputs: Any, *, train: bool, key: Any, step: Any = None) -> Any:
      if not train:
        return inner.apply(params, state, inputs, train=False, key=key, step=step)
      forward = lambda *given: inner.apply(*given[:3], train=True, key=given[3], step=given[4])  # noqa: E731
      return in_pieces(forward, pieces)(params, state, inputs, key, step)

    return inner._replace(apply=apply)

  told = Account(f'each step, in {pieces} pieces')
  return Hook(name, model=model, account=lambda *_: told)
