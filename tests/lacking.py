"""What takes from a fresh process what its machine has, to be run there first."""

# As where the extra was never installed: its package is not to be found.
WITHOUT_EXTRA = """
import importlib.metadata
real = importlib.metadata.files
def files(name):
  if name == 'onednn-cpu-gomp': raise importlib.metadata.PackageNotFoundError(name)
  return real(name)
importlib.metadata.files = files
"""
