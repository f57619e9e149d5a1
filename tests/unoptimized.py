"""Programs compiled in a third of the time, for tests that judge neither bits nor speed.

XLA leaves its optimizations out, emits kernels in the older and plainer of its two ways, and cuts no program into
pieces to compile them side by side. What is computed is the same up to rounding.
"""

import contextlib
import functools

_OPTIONS = {'xla_cpu_use_fusion_emitters': False, 'xla_cpu_parallel_codegen_split_count': 1}


@functools.cache
def options():
  """Those of the options that the XLA of this jaxlib has, as (name, value)."""
  import jax

  def known(pair):
    try:
      jax.jit(lambda x: x, compiler_options=dict([pair])).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:  # no such option
      return False
    return True

  return tuple(filter(known, _OPTIONS.items()))


@contextlib.contextmanager
def compiling():
  """Whatever is compiled meanwhile, in any thread, is compiled so; the cache of programs has it under another key."""
  import jax

  with _wrapped(options()):
    jax.config.update('jax_disable_most_optimizations', True)
    try:
      yield
    finally:
      jax.config.update('jax_disable_most_optimizations', False)


@contextlib.contextmanager
def _wrapped(more):
  """JAX has no setting for the options of all programs: the function that makes them is wrapped where it is known."""
  try:
    from jax._src import compiler

    real = compiler.get_compile_options
  except (ImportError, AttributeError):  # another JAX: slower
    yield
    return

  def with_more(*args, **kwargs):
    made = real(*args, **kwargs)
    made.env_option_overrides = [*made.env_option_overrides, *more]
    return made

  compiler.get_compile_options = with_more
  try:
    yield
  finally:
    compiler.get_compile_options = real


def environment(*flags):
  """Variables for a process that is to compile so, beside other flags of XLA."""
  told = [f'--{name}={str(value).lower()}' for name, value in options()]
  return {'JAX_DISABLE_MOST_OPTIMIZATIONS': '1', 'XLA_FLAGS': ' '.join((*flags, *told))}
