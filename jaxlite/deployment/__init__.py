"""What leaves a run: the portable program, the inventory of bytes, loading."""
