"""What tests read off a traced program."""

from jaxlite.graph.walk import equations


def shared_flags(closed):
  """How many loops of a program over several members ask one flag for all: batched, all of them would run each turn."""
  loops = [eqn for eqn in equations(closed) if eqn.primitive.name == 'while']
  flags = [eqn.invars[eqn.params['cond_nconsts'] + eqn.params['body_nconsts']].aval for eqn in loops]
  return sum(flag.dtype == bool and not flag.shape for flag in flags)
