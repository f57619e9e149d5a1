"""A convolution's three products as equations, for tests of what stands in for them."""

import jax


def products(conv, x, w, dy):
  """The three convolution equations of a forward pass with both gradients, with their operands and results."""

  def all_three(x, w, dy):
    y, back = jax.vjp(conv, x, w)
    return y, *back(dy)

  jaxpr = jax.make_jaxpr(all_three)(x, w, dy).jaxpr
  env = dict(zip(jaxpr.invars, (x, w, dy), strict=True))
  for eqn in jaxpr.eqns:
    operands = [env[atom] for atom in eqn.invars]
    out = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
    env.update(zip(eqn.outvars, out if eqn.primitive.multiple_results else [out], strict=True))
    if eqn.primitive.name == 'conv_general_dilated':
      yield eqn, operands, out
