"""A process that trains a case with PyTorch: started by `against_pytorch`, never by hand.

It needs PyTorch and NumPy only, so it may run in an interpreter that has no JAX.
"""

from __future__ import annotations

import itertools
import json
import sys
from typing import Any

import cases
import serving

LAYOUTS = ('NCHW', 'channels-last')
LONE = ', 1 thread'  # small products are quicker without a barrier
OPTIMIZERS = ('default', 'foreach', 'fused')


def forms(case: str) -> list[str]:
  """Returns the forms of a case: layouts where it convolves, PyTorch's ways to run an optimizer, threads."""
  layouts = LAYOUTS if case in ('cnn', 'resnet20') else ('',)
  found = [' '.join(filter(None, pair)) for pair in itertools.product(layouts, OPTIMIZERS)]
  return [*found, *(f'{form}{LONE}' for form in found)] if case in cases.WIDTHS else found


def optimizer_of(torch: Any, model: Any, kind: str, lr: float, way: str) -> Any:
  """Momentum SGD or AdamW in one of PyTorch's implementations."""
  flags = {'default': {}, 'foreach': {'foreach': True}, 'fused': {'fused': True}}[way]
  if kind == 'sgd':
    return torch.optim.SGD(model.parameters(), lr, momentum=cases.MOMENTUM, **flags)
  return torch.optim.AdamW(model.parameters(), lr, weight_decay=cases.WEIGHT_DECAY, **flags)


def main() -> None:
  """Serves one case with one optimizer."""
  spec = json.loads(sys.argv[1])
  if spec['allocator'] == 'kept':
    serving.one_arena()
  import torch
  import torch_models

  def build(form: str) -> serving.Running:
    threads = 1 if LONE in form else serving.cores()
    torch.set_num_threads(threads)
    *layout, way = form.removesuffix(' compiled').removesuffix(LONE).split(' ')
    last = layout == ['channels-last']
    memory = torch.channels_last if last else torch.contiguous_format
    model = torch_models.network(spec['case']).to(memory_format=memory).train()
    optimizer = optimizer_of(torch, model, spec['optimizer'], cases.case(spec['case']).lr[spec['optimizer']], way)
    forward = torch.compile(model) if form.endswith(' compiled') else model

    def given(batch: dict[str, Any]) -> tuple[Any, Any]:
      inputs = torch.from_numpy(batch['inputs'])
      if spec['case'] in ('cnn', 'resnet20'):
        inputs = inputs.permute(0, 3, 1, 2).contiguous(memory_format=memory)  # once: no step pays for it
      return inputs, torch.from_numpy(batch['labels']).long()

    prepared = [given(batch) for batch in cases.batches(spec['case'])]

    def step(index: int) -> Any:
      inputs, labels = prepared[index % len(prepared)]
      optimizer.zero_grad(set_to_none=True)
      loss = torch.nn.functional.cross_entropy(forward(inputs), labels)
      loss.backward()
      optimizer.step()
      return loss.detach()

    return serving.Running(step, lambda loss: [float(loss)], prepare=lambda: torch.set_num_threads(threads))

  serving.serve_steps(build, serving.keep_mapped if spec['allocator'] == 'kept' else lambda: None)


if __name__ == '__main__':
  main()
