"""`python -m jaxlite` and the command `jaxlite`: what launch.py does, for those who installed without a checkout."""

import sys

from jaxlite.run import launcher


def main() -> None:
  """Runs the command line."""
  launcher.main('python -m jaxlite' if sys.argv[0].endswith('__main__.py') else 'jaxlite')


if __name__ == '__main__':
  main()
