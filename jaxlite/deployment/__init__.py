"""What leaves a run: the portable program, the inventory of bytes, loading, and the network as a list of operations
from which files of other formats are written."""
