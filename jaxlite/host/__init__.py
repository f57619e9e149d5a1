"""Facts and settings of the machine and the process, each read once."""
