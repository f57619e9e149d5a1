"""What a missing package is called, and the command that installs it. Standard library only."""

from __future__ import annotations

import importlib.util

# What pip installs, where its name is not that of the module.
_PIP = {
  'equinox': "'jaxlite[equinox]'",
  'haiku': "'jaxlite[haiku]'",
  'keras': "'jaxlite[keras]'",
  'orbax.checkpoint': 'orbax-checkpoint',
  'sklearn': 'scikit-learn',
  'tensorflow_datasets': 'tensorflow-datasets',
}


def need(asker: str, *modules: str) -> None:
  """Makes sure that packages are installed, and imports none.

  Args:
    asker: who needs them, for the message.
    *modules: what will be imported.

  Raises:
    ImportError: one line with everything that is missing.

  >>> need('this example', 'json', 'no_such_package')
  Traceback (most recent call last):
    ...
  ImportError: this example needs no_such_package: pip install no_such_package
  """
  missing = [module for module in modules if not _is_there(module)]
  if missing:
    names = ' '.join(_PIP.get(module, module) for module in missing)
    raise ImportError(f'{asker} needs {", ".join(missing)}: pip install {names}')


def _is_there(module: str) -> bool:
  try:
    return importlib.util.find_spec(module) is not None
  except ModuleNotFoundError:  # not even the package around it
    return False
