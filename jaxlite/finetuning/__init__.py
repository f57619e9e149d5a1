"""Starting from what others learned: weights of other formats and frameworks, read and put into any model.

`read` gives the arrays of a file by name, lazily and without running anything in it: safetensors, GGUF, PyTorch's
files (without PyTorch), Keras's, Flax's msgpack, npz, checkpoints of Orbax, our own runs and packed files.
`load_weights` puts them into a model of any framework, and tells what became of each array.

From the ground: weights.py is the lazy mapping that every reader gives; `*_form.py` read one format each (zip_file.py
the archives around them, torch_pickle.py tables of tensors, gguf_blocks.py blocks of few bits); folders.py and hub.py
know where files lie; reading.py picks the reader. names.py and keras_names.py say which names mean the same,
program.py what a model's program does with each leaf, axes.py how stored axes become those; matching.py judges, and
loading.py fills the model.
"""

from jaxlite.finetuning.account import Report, Row
from jaxlite.finetuning.loading import Loaded, load_weights
from jaxlite.finetuning.reading import read
from jaxlite.finetuning.weights import Weights, WeightsError

__all__ = [
  'Loaded',
  'Report',
  'Row',
  'Weights',
  'WeightsError',
  'load_weights',
  'read',
]
