"""Convolutions in PyTorch for `convolutions`, which starts it: never by hand."""

from __future__ import annotations

from typing import Any

import serving

serving.one_arena()
import torch  # noqa: E402 - its threads come after

torch.set_num_threads(serving.cores())
_kept: dict[str, Any] = {}


def run(kind: list[Any], calls: int, fresh: bool) -> float:
  """Returns the seconds of a value and its gradients, in the faster of the two layouts."""
  if fresh:
    batch, size, channels, features, kernel, stride, groups, transposed = kind
    make = getattr(torch.nn, f'Conv{"Transpose" if transposed else ""}{len(size)}d')
    layouts = {1: [torch.contiguous_format], 2: [torch.contiguous_format, torch.channels_last]}
    layouts[3] = [torch.contiguous_format, torch.channels_last_3d]
    _kept['forms'] = [
      (
        make(channels, features, kernel, stride, kernel // 2, groups=groups, bias=False).to(memory_format=layout),
        torch.randn(batch, channels, *size).to(memory_format=layout).requires_grad_(),
      )
      for layout in layouts[len(size)]
    ]
    for form in _kept['forms']:
      gradient(*form)
    serving.keep_mapped()
  return (
    min(serving.seconds(lambda form=form: [gradient(*form) for _ in range(calls)]) for form in _kept['forms']) / calls
  )


def gradient(conv: Any, x: Any) -> None:
  """One value and its gradients by image and weights."""
  conv.zero_grad(set_to_none=True)
  x.grad = None
  (conv(x) ** 2).sum().backward()


if __name__ == '__main__':
  serving.serve({'run': run})
