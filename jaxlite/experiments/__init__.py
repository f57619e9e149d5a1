"""Experiments that come with the package, so that an install without a checkout has something to run."""
