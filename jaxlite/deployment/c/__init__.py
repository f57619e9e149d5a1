"""One C99 file without dependencies, written from a list of operations."""
