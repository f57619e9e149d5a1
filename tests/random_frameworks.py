def network(rng):
  raise NotImplementedError
