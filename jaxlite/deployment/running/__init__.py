"""Running a list of operations: as a JAX function, and on a CPU by kernels for whole networks of integers."""
