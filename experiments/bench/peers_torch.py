"""PyTorch's side of the table of peers, with torchao, started by `peers`, never by hand.

Pruning by `torch.nn.utils.prune`, a cubic schedule by hand; distillation as PyTorch's tutorial writes the loss; 8 bits
by torchao's way through `torch.export` with the quantizer for x86, float in the first half as it advises. A graph that
was exported keeps no pruning, so where all three are asked the zeros are held by hand in the second half.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

os.environ.setdefault('TORCHINDUCTOR_FREEZING', '1')  # as torchao's page on x86 asks

import peers_course
import serving
import torch
import torch.nn.functional as F  # noqa: N812 - its documentation calls it so
from peers_course import Course, File, Side
from torch import nn
from torch.nn.utils import prune

torch.set_num_threads(serving.cores())


def network(course: Course, seed: int) -> nn.Sequential:
  """The network with the first weights that all have."""
  layers: list[nn.Module] = []
  for kernel, bias in course.weights(seed):
    layer = nn.Linear(*kernel.shape)
    with torch.no_grad():
      layer.weight.copy_(torch.from_numpy(kernel.T.copy()))
      layer.bias.copy_(torch.from_numpy(bias))
    layers += [layer, nn.ReLU()]
  return nn.Sequential(*layers[:-1])


def linears(model: nn.Module) -> list[nn.Linear]:
  return [one for one in model.modules() if isinstance(one, nn.Linear)]


def trained(course: Course, seed: int) -> Any:
  """The network, or the graph that torchao made of it."""
  torch.manual_seed(seed)
  model: Any = network(course, seed)
  x, y = (torch.from_numpy(one) for one in (course.train[0], course.train[1].astype('int64')))
  taught = torch.from_numpy(course.logits) if course.distills() else None
  begin, end, every = course.pruning
  if course.quantizes():
    end = min(end, course.half)  # the graph that comes then cannot be pruned
  masks: list[tuple[torch.Tensor, torch.Tensor]] = []
  names = [
    name for name, _ in model.named_parameters()
  ]  # pruning changes their order, the optimizer's state goes by it

  def adam() -> torch.optim.Adam:
    held = dict(model.named_parameters())
    return torch.optim.Adam([held[name] for name in names], course.rate, fused=True)

  optimizer = adam()
  for step, rows in peers_course.rows_of(course, seed):
    if course.quantizes() and step == course.half:
      before = optimizer.state_dict()
      model, masks = aware(course, bare(model), x)
      optimizer = adam()
      optimizer.load_state_dict(before)
    for group in optimizer.param_groups:
      group['lr'] = course.rate_at(step)
    optimizer.zero_grad(set_to_none=True)
    outputs = model(x[rows])
    loss = F.cross_entropy(outputs, y[rows])
    if taught is not None:
      t = course.temperature
      soft = F.kl_div(
        F.log_softmax(outputs / t, -1), F.log_softmax(taught[rows] / t, -1), reduction='batchmean', log_target=True
      )
      loss = (1 - course.alpha) * loss + course.alpha * t**2 * soft
    loss.backward()
    optimizer.step()
    for weight, mask in masks:
      weight.data.mul_(mask)
    if course.prunes() and begin <= step + 1 <= end and ((step + 1 - begin) % every == 0 or step + 1 == end):
      prune_to(model, course.sparsity_at(step + 1, begin, end))
  return bare(model)


def prune_to(model: nn.Module, sparsity: float) -> None:
  """Of each layer the smallest weights, until the share is zero; pruned ones stay."""
  for layer in linears(model):
    gone = int((layer.weight_mask == 0).sum()) if prune.is_pruned(layer) else 0
    more = round(sparsity * layer.weight.numel()) - gone
    if more > 0:
      prune.l1_unstructured(layer, 'weight', more)


def bare(model: Any) -> Any:
  """Makes the pruning permanent, as its tutorial ends."""
  for layer in linears(model):
    if prune.is_pruned(layer):
      prune.remove(layer, 'weight')
  return model


def aware(course: Course, model: nn.Module, x: torch.Tensor) -> tuple[Any, list[Any]]:
  """The graph that trains in 8 bits, and the zeros to be held."""
  import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as xiq
  from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

  shapes = ({0: torch.export.Dim('batch', min=1, max=4096)},)
  graph = torch.export.export(model, (x[: course.batch],), dynamic_shapes=shapes).module()
  quantizer = xiq.X86InductorQuantizer()
  quantizer.set_global(xiq.get_default_x86_inductor_quantization_config(is_qat=True))
  graph = prepare_qat_pt2e(graph, quantizer)
  held = [(one, (one != 0).float()) for one in graph.parameters() if one.ndim == 2] if course.prunes() else []
  return graph, held


def zeros(model: Any) -> float:
  return peers_course.zeros_of([one.detach() for one in model.parameters() if one.ndim == 2])


def exported(course: Course, model: Any, folder: Path, first: bool) -> list[File]:
  """`torch.export`'s file for any batch size; it is timed both eager and compiled, and the faster one counts."""
  path, given = folder / 'network.pt2', torch.from_numpy(course.test[: course.batch])
  if course.quantizes():
    import torchao.quantization.pt2e as pt2e
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    model = convert_pt2e(copy.deepcopy(model))
    pt2e.move_exported_model_to_eval(model)
  else:
    model = model.eval()
  shapes = ({0: torch.export.Dim('batch', min=1, max=4096)},)
  with torch.no_grad():
    torch.export.save(torch.export.export(model, (given,), dynamic_shapes=shapes), path)

  def opened(size: int) -> Any:
    loaded = torch.export.load(path).module()
    eager = answering(loaded)
    if size not in peers_course.SIZES:
      return eager
    compiled = answering(torch.compile(loaded))
    rows = course.test[:size]
    try:
      return min(eager, compiled, key=lambda call: peers_course.latency(call, rows, 0.1))
    except Exception as error:  # of the compiler: then there is eager alone
      print(f'not compiled: {type(error).__name__}: {str(error)[:200]}')
      return eager

  return [File('pt2', path, opened)]


def answering(model: Any) -> Any:
  @torch.inference_mode()
  def answer(rows: Any) -> Any:
    return model(torch.from_numpy(rows)).numpy()

  return answer


def how(course: Course) -> str:
  return {
    'dense': 'eager, fused Adam',
    'pruned': 'nn.utils.prune, schedule by hand',
    'int8': 'torchao: prepare_qat_pt2e, X86InductorQuantizer',
    'distilled': 'loss by hand, as in its tutorial',
    'all': 'nn.utils.prune, then torchao with zeros held by hand; loss by hand',
  }[course.work]


if __name__ == '__main__':
  peers_course.serve({'torch': Side(trained, exported, zeros, how, ('torch', 'torchao'))})
