"""A network in integers: grids found in a list of operations, the rules of their arithmetic, and what stays float."""
