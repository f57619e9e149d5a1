"""What Flax's own serialization is told of the states of parts: what holds no array is structure, not content."""

from __future__ import annotations

from typing import Any

from jaxlite.graph.layouts import Layouts


def serializable() -> None:
  """Lets `flax.serialization` write states of parts that were told their weights; call it where Flax is imported.

  A state holds the layouts of weights as part of its structure. Flax takes what it does not know for a value that
  msgpack cannot write; now it passes over it, and a restore keeps the template's.
  """
  from flax import serialization

  def nothing(own: Any) -> dict[str, Any]:
    del own
    return {}

  def unchanged(own: Any, state: dict[str, Any]) -> Any:
    del state
    return own

  serialization.register_serialization_state(Layouts, nothing, unchanged, override=True)
