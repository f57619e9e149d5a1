"""The product: parts of a recipe, and the function forms that work alone. One technique, one file."""
