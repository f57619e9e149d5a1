"""One runner of the race: the small CNN in PyTorch, started by `race`, never by hand.

Everything that makes it quick and changes no number: pixels scaled once, batches gathered by index, channels-last,
the fused optimizer, freed memory kept.
"""

from __future__ import annotations

import json
import sys


def main() -> None:
  """Trains and tells the test accuracy until it is told to stop."""
  spec = json.loads(sys.argv[1])
  import serving

  serving.one_arena()
  import numpy as np
  import race_course as course
  import torch
  import torch_models

  torch.set_num_threads(serving.cores())
  torch.manual_seed(spec['seed'])
  data = course.read(spec['data'])
  layout = torch.channels_last

  def scaled(images: np.ndarray) -> torch.Tensor:
    pixels = torch.from_numpy(images.copy()).permute(0, 3, 1, 2)
    return ((pixels.float() - course.MEAN) / course.STD).contiguous(memory_format=layout)

  images, labels = scaled(data.train[0]), torch.from_numpy(data.train[1]).long()
  test_images, test_labels = scaled(data.test[0]), torch.from_numpy(data.test[1]).long()
  model = torch_models.network('cnn', spec['seed'], dropout=course.DROPOUT).to(memory_format=layout)
  optimizer = torch.optim.AdamW(model.parameters(), course.LR, weight_decay=course.WEIGHT_DECAY, fused=True)
  order = torch.empty(0, dtype=torch.long)
  for step in range(len(labels) // course.BATCH * course.EPOCHS):
    if len(order) < course.BATCH:
      order = torch.randperm(len(labels))
    rows, order = order[: course.BATCH], order[course.BATCH :]
    optimizer.zero_grad(set_to_none=True)
    torch.nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
    optimizer.step()
    if step == 0:
      serving.keep_mapped()
    if (step + 1) % course.EVERY == 0:
      model.eval()
      with torch.inference_mode():
        right = sum(
          int(
            (
              model(test_images[at : at + course.EVAL_BATCH]).argmax(1) == test_labels[at : at + course.EVAL_BATCH]
            ).sum()
          )
          for at in range(0, len(test_labels), course.EVAL_BATCH)
        )
      model.train()
      if not course.tell(step + 1, right / len(test_labels)):
        return


if __name__ == '__main__':
  main()
