"""Kernels for one processor: oneDNN's and our own, chosen where they are faster."""
