"""Torch-Pruning for `shrink`, which starts it: never by hand."""

from __future__ import annotations

import contextlib
import copy
import sys
import time
from typing import Any

import serving

serving.one_arena()
import cases  # noqa: E402
import torch  # noqa: E402 - its threads come after
import torch_models  # noqa: E402

with contextlib.redirect_stdout(sys.stderr):  # it prints what it does not find
  import torch_pruning as tp

torch.set_num_threads(serving.cores())
_kept: dict[str, Any] = {}


class Projected(torch.nn.Module):
  """A block of a ResNet whose shortcut is a convolution."""

  def __init__(self, block: torch_models.Block) -> None:
    super().__init__()
    self.first, self.second = block.first, block.second
    outputs = block.second.conv.out_channels
    self.short = torch.nn.Conv2d(outputs - block.grown, outputs, 1, stride=block.stride, bias=False)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    y = self.second(torch.relu(self.first(x)))
    return torch.relu(self.short(x) + y)


def prune(name: str, keep: float, batch: int, projected: bool) -> dict[str, Any]:
  """Prunes one network by magnitude, the widths multiples of 8; tells what is left and whether it is right.

  Args:
    name: of the case.
    keep: share of the units that stays.
    batch: images at once.
    projected: whether a ResNet's shortcuts are convolutions where channels grow, and not zeros beside what there is.

  Returns:
    'parameters' before and after, and 'apart': how far the answers are from those of the whole network with zeros in
    place of what is gone, as a share of the largest; or 'why' it does not run.
  """
  torch.manual_seed(0)
  model = torch_models.network(name)
  if projected:
    for path, block in model.named_children():
      if getattr(block, 'grown', 0):
        setattr(model, path, Projected(block))
  model.eval()
  for module in model.modules():  # statistics and biases as after training: none is zero
    if isinstance(module, torch.nn.BatchNorm2d):
      for values in (module.running_mean, module.bias.data, module.weight.data):
        values.add_(0.1 * torch.randn_like(values))
  height, width, channels = cases.case(name).image
  inputs = torch.randn(batch, channels, height, width)
  small, masked = copy.deepcopy(model), copy.deepcopy(model)
  try:
    last = [module for module in small.modules() if isinstance(module, torch.nn.Linear)][-1]
    pruner = tp.pruner.BasePruner(
      small,
      inputs,
      importance=tp.importance.MagnitudeImportance(p=1),
      pruning_ratio=1 - keep,
      ignored_layers=[last],
      round_to=8,
    )
    names = {id(module): path for path, module in small.named_modules()}
    for group in pruner.step(interactive=True):
      for step, entries in group:
        _zero(masked, names.get(id(step.target.module)), step.handler.__name__, entries)
      group.prune()
    with torch.no_grad():
      wanted, got = masked(inputs), small(inputs)
    apart = float((wanted - got).abs().max() / wanted.abs().max())
  except Exception as error:  # whatever it is, it is the result
    return {'why': ' '.join(str(error).split())[:200]}
  _kept['forms'] = {
    f'{way}{last}': (form.to(memory_format=layout), inputs.to(memory_format=layout))
    for way, form in (('whole', model), ('pruned', small))
    for last, layout in (('', torch.contiguous_format), (', channels last', torch.channels_last))
    for form in [copy.deepcopy(form)]
  }
  counts = [sum(values.numel() for values in one.parameters()) for one in (model, small)]
  return {'parameters': counts, 'apart': apart}


def _zero(masked: torch.nn.Module, path: str | None, what: str, entries: list[int]) -> None:
  """Zeroes in the whole network what a step of Torch-Pruning takes away."""
  if path is None:  # no layer: a sum, a reshape
    return
  layer = masked.get_submodule(path)
  inner = 'in_channels' in what and not isinstance(layer, torch.nn.BatchNorm2d)
  entries = [one for one in entries if one < layer.weight.shape[1 if inner else 0]]  # it leaves the others be, too
  with torch.no_grad():
    if inner:
      layer.weight[:, entries] = 0
      return
    layer.weight[entries] = 0
    if layer.bias is not None:
      layer.bias[entries] = 0


def timed(calls: int, processor: bool) -> dict[str, float]:
  """Returns the seconds of a forward of each form."""
  clock = time.process_time if processor else time.perf_counter
  found = {}
  with torch.inference_mode():
    for name, (form, inputs) in _kept['forms'].items():
      form(inputs)
      began = clock()
      for _ in range(calls):
        form(inputs)
      found[name] = (clock() - began) / calls
  return found


if __name__ == '__main__':
  serving.serve({'prune': prune, 'time': timed})
