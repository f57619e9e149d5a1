"""Quantization: 2 to 8 bits by rewriting the program, trained (`fake_quant`, `lsq`) or after training (`ptq`)."""

from jaxlite.quantization._account import has_integer_weights, weight_bits
from jaxlite.quantization._bits import few_bits
from jaxlite.quantization._calibration import Calibrate, Histogram, by_min_max, by_mse, by_percentile, histogram
from jaxlite.quantization._calibration import merge as merge_histograms
from jaxlite.quantization._clusters import clustered
from jaxlite.quantization._lsq import lsq
from jaxlite.quantization._ptq import ptq
from jaxlite.quantization._qat import fake_quant
from jaxlite.quantization._quantize import coverage, observe, quantize
from jaxlite.quantization._ranges import dynamic_ranges, ema_ranges, frozen_ranges

__all__ = [
  'Calibrate',
  'Histogram',
  'by_min_max',
  'by_mse',
  'by_percentile',
  'clustered',
  'coverage',
  'dynamic_ranges',
  'ema_ranges',
  'fake_quant',
  'few_bits',
  'frozen_ranges',
  'has_integer_weights',
  'histogram',
  'lsq',
  'merge_histograms',
  'observe',
  'ptq',
  'quantize',
  'weight_bits',
]
