"""The error function and its inverse, in NumPy alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def erf(x: np.ndarray) -> np.ndarray:
  """Returns the error function, rounded once."""
  return np.vectorize(math.erf, otypes=[np.float64])(x).astype(x.dtype)


# Of the inverse error function of float32, highest power first: in the middle, and in the tails.
_MIDDLE = (
  2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087, -0.00125372503, -0.00417768164,
  0.246640727, 1.50140941,
)  # fmt: skip
_TAILS = (
  -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613, 0.00943887047,
  1.00167406, 2.83297682,
)  # fmt: skip


def erf_inv(x: np.ndarray) -> np.ndarray:
  """Returns the inverse error function of float32, up to rounding of the last digits.

  References:
    Giles, Approximating the erfinv function, 2010, https://people.maths.ox.ac.uk/gilesm/files/gems_erfinv.pdf

  >>> round(float(erf_inv(erf(np.float32([1.25])))[0]), 5)
  1.25
  """
  w = -np.log1p(-x * x)
  central = _polynomial(_MIDDLE, w - np.float32(2.5))
  far = w >= 5
  if np.any(far):
    central = np.where(far, _polynomial(_TAILS, np.sqrt(w) - np.float32(3)), central)
  return np.where(np.abs(x) == 1, np.copysign(np.float32(np.inf), x), central * x)


def _polynomial(coefficients: Sequence[float], w: np.ndarray) -> np.ndarray:
  total = np.full_like(w, coefficients[0])
  for coefficient in coefficients[1:]:
    total = total * w + np.float32(coefficient)
  return total
