"""Answers of an ONNX file in OpenVINO for `agreement`, which starts it: never by hand.

python openvino_answers.py FILE.onnx INPUTS.npy ANSWERS.npy [floats]

With `floats` its low-precision transformation is off: it then quantizes and computes in float32, as the file reads.
"""

from __future__ import annotations

import sys

import numpy as np
import openvino


def main(file: str, inputs: str, answers: str, how: str = '') -> None:
  """Computes by the hundreds, floats in float32: by itself it takes bfloat16 where the processor has it."""
  core = openvino.Core()
  options = {'INFERENCE_PRECISION_HINT': 'f32', **({'LP_TRANSFORMS_MODE': False} if how == 'floats' else {})}
  model = core.compile_model(core.read_model(file), 'CPU', options)
  images = np.load(inputs)
  parts = [model([images[start : start + 100]])[0] for start in range(0, len(images), 100)]
  np.save(answers, np.concatenate(parts))


if __name__ == '__main__':
  main(*sys.argv[1:])
