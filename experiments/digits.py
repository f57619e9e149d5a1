"""The main job: a teacher on handwritten digits, and a student a third its size, pruned, int8 and distilled.

  python launch.py

It lies inside the package, for those who installed without a checkout: `jaxlite/experiments/digits.py`.
"""

from jaxlite.experiments.digits import SPACE, Digits, alone, get_config, model, recipe, student, teacher

__all__ = ['SPACE', 'Digits', 'alone', 'get_config', 'model', 'recipe', 'student', 'teacher']
