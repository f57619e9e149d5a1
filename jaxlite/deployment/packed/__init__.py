"""One small file: a list of operations in few bytes, read without JAX and without belief."""
