"""A list of operations as a LiteRT file."""
