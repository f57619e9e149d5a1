"""Starting from what others learned: weights of other formats and frameworks, read and put into any model.

`read` gives the arrays of a file by name, lazily and without running anything in it: safetensors, GGUF, PyTorch's
files (without PyTorch), npz.
"""

from jaxlite.finetuning.reading import read
from jaxlite.finetuning.text_models import PretrainedText, pretrained_text
from jaxlite.finetuning.weights import Weights, WeightsError

__all__ = [
  'PretrainedText',
  'Weights',
  'WeightsError',
  'pretrained_text',
  'read',
]
