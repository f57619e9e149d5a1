"""Reading and rewriting a jaxpr: walks, provenance of weights, the rewriting interpreter."""
