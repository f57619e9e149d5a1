"""One picture file as pixels of one size and kind: every mode that Pillow reads, and what is refused and why.

The pixels depend on the bytes of the file alone, so a batch does not depend on threads, on time or on other files.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
from typing import Any

import numpy as np

from jaxlite.data.decoded import Workers
from jaxlite.errors import need
from jaxlite.host.files import read_file

FITS = ('crop', 'stretch', 'pad')
INTERPOLATIONS = ('bilinear', 'bicubic')
MOST_PIXELS = 1 << 26  # of a picture as it is decoded: 67 million, 200 MB in color
_MOST_BYTES = 1 << 30  # of a picture's file
# Left out of Pillow's formats: EPS starts another program, the others are containers that need a handler of the user's.
_REFUSED = frozenset({'EPS', 'WMF', 'BUFR', 'GRIB', 'HDF5', 'MPEG'})
_DRAFT = 2  # a JPEG is decoded at an eighth, a quarter or half where that leaves twice the size that is asked for


@dataclasses.dataclass(frozen=True)
class PictureEncoder:
  """Pictures of any size and mode as uint8 [N, height, width, channels]; what a run keeps of its preprocessing.

  A file is turned as its EXIF orientation says. Palettes become their colors, CMYK and others RGB; what is transparent
  is laid on `background`; 16 bits become 8 by dividing by 257; of an animation the first frame is taken. With three
  channels gray is repeated, with one colors become their luma (ITU-R 601-2). Scaling is over all pixels that a new
  one covers (no aliasing). Color profiles are not applied.

  Attributes:
    size: (height, width); None keeps each picture's own, which then has to be that of the others.
    channels: 1 or 3.
    fit: how another shape becomes that size: 'crop' scales the shorter side and cuts the middle out, 'stretch' scales
      both sides each by its own factor, 'pad' scales the longer side and fills up with `background`.
    background: 0 to 255.
    most_pixels: a picture that is larger when decoded is refused.
    resize: of 'crop', what the shorter side is scaled to before the middle is cut out, as published networks were
      shown pictures; None scales it to what is cut out.
    interpolation: 'bilinear' or 'bicubic'.

  >>> encoder = PictureEncoder((2, 2))
  >>> encoder([np.full((4, 6), 7, np.uint8)]).shape
  (1, 2, 2, 3)
  """

  size: tuple[int, int] | None
  channels: int = 3
  fit: str = 'crop'
  background: int = 255
  most_pixels: int = MOST_PIXELS
  resize: int | None = None
  interpolation: str = 'bilinear'

  def __post_init__(self) -> None:
    if self.channels not in (1, 3):
      raise ValueError(f'pictures have 1 channel (gray) or 3 (color); got channels={self.channels!r}')
    if self.fit not in FITS:
      raise ValueError(f'fit is one of {", ".join(FITS)}; got {self.fit!r}')
    if isinstance(self.background, bool) or not isinstance(self.background, int) or not 0 <= self.background <= 255:
      raise ValueError(f'background is a whole number from 0 to 255; got {self.background!r}')
    if self.interpolation not in INTERPOLATIONS:
      raise ValueError(f'interpolation is one of {", ".join(INTERPOLATIONS)}; got {self.interpolation!r}')
    if self.resize is not None and (self.size is None or self.fit != 'crop' or self.resize < max(self.size)):
      raise ValueError(
        f"resize goes with fit='crop' and is at least the size that is cut out; got resize={self.resize!r}, "
        f'fit={self.fit!r}, size={self.size!r}'
      )

  def __call__(self, pictures: Any) -> np.ndarray:
    """Returns uint8 [N, height, width, channels] of a list of paths, Pillow images or arrays [H, W] or [H, W, C].

    An array uint8 [N, height, width, channels], such as the inputs of a split, is encoded already and passes.

    Raises:
      ValueError: something that is no picture, or cannot be read, with its place.
    """
    size = self.size
    array = pictures if hasattr(pictures, 'ndim') and hasattr(pictures, 'dtype') else None
    if array is not None and array.ndim == 4 and (size is None or tuple(array.shape[1:]) == (*size, self.channels)):
      if array.dtype != np.uint8:
        raise ValueError(f'pixels are uint8, 0 to 255; got {array.dtype}: scale and round them, .astype("uint8")')
      return array
    if isinstance(pictures, str | os.PathLike | bytes) or (array is not None and array.ndim < 4):
      pictures = [pictures]
    workers, found = Workers(), []
    jobs = [workers.submit(self._one, picture, place) for place, picture in enumerate(pictures)]
    found = [job.result() for job in jobs]
    if not found:
      raise ValueError('pictures are a list of paths, images or arrays; got none')
    if len({one.shape for one in found}) > 1:
      raise ValueError(f'pictures have one size; got {found[0].shape[:2]} and others: give size=')
    return np.stack(found)

  def _one(self, picture: Any, place: int) -> np.ndarray:
    from PIL import Image

    where = f'picture {place}'
    if isinstance(picture, str | os.PathLike):
      return np.asarray(self.read(os.fspath(picture)))
    if isinstance(picture, bytes):
      return np.asarray(self.decode(picture, where))
    if not isinstance(picture, Image.Image):
      array = np.asarray(picture)
      if array.dtype != np.uint8 or array.ndim not in (2, 3):
        got = f'{array.dtype}{list(array.shape)}' if array.dtype != object else type(picture).__name__
        raise ValueError(f'a picture is a path, an image or uint8 [H, W] or [H, W, C]; {where} is {got}')
      if array.ndim == 3 and array.shape[-1] not in (1, 2, 3, 4):
        raise ValueError(
          f'a picture has 1 to 4 channels, the last axis; {where} is uint8{list(array.shape)}: where they '
          'stand first, numpy.moveaxis(it, 0, -1)'
        )
      picture = Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array)
    return as_pixels(self._fitted(oriented(picture), where))

  def read(self, path: str) -> Any:
    """Returns the picture in a file as a Pillow image of this size and these channels, 'L' or 'RGB'.

    Raises:
      ValueError: one line, with the path and what is wrong.
    """
    try:
      if os.path.getsize(path) > _MOST_BYTES:
        raise ValueError(f'{path} is no picture that is decoded here: {os.path.getsize(path):,} bytes')
      content = read_file(path)
    except OSError as error:
      raise ValueError(f'{path} cannot be read: {error.strerror or error}') from None
    return self.decode(content, path)

  def decode(self, content: bytes, where: str, about: dict[str, Any] | None = None) -> Any:
    """Returns the picture in the bytes of a file, as `read` does.

    Args:
      content: of the file.
      where: its name, for errors.
      about: is given what was found: 'format', 'mode', 'size' (width, height), 'turned'
        (height, width as it is shown), 'animated'.

    Raises:
      ValueError: one line, with the name and what is wrong.
      MemoryError: there is no memory for it; the file may be sound.
    """
    need('reading pictures', 'PIL')
    from PIL import Image, UnidentifiedImageError

    try:
      with Image.open(io.BytesIO(content)) as image:
        if image.format in _REFUSED:
          raise ValueError(f'{where} is {image.format}, which is not decoded here: save it as PNG or JPEG')
        if about is not None:
          about.update(format=image.format, mode=image.mode, size=image.size)
          about['animated'] = bool(getattr(image, 'is_animated', False))
          size = image.size
        if image.format == 'JPEG' and self.size is not None:  # in either orientation
          side = _DRAFT * max(*self.size, self.resize or 0)
          image.draft(None, (side, side))
        if image.width * image.height > self.most_pixels:
          raise ValueError(
            f'{where} has {image.width} x {image.height} pixels, more than most_pixels={self.most_pixels:,}: '
            'scale it down, or raise most_pixels'
          )
        image.load()
        if about is not None:
          about['turned'] = size if _is_turned(image) else size[::-1]
        if image.mode == 'I' and image.format in ('PNG', 'PPM'):  # 16 bits; of a PGM scaled to all of them
          image = _sixteen(image, where)
        return self._fitted(oriented(image), where)
    except UnidentifiedImageError:
      raise ValueError(f'{where} is no picture: {_kind(content)}') from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
      raise ValueError(f'{where} is too large to decode: {_line(error)}') from None
    except MemoryError:
      raise MemoryError(f'there is no memory to decode {where}: scale it down, or take fewer threads') from None
    except ValueError as error:
      if str(error).startswith(where):
        raise
      raise ValueError(f'{where} is damaged ({_line(error)})') from None
    except Exception as error:  # Pillow's readers raise many kinds for damaged files
      raise ValueError(f'{where} is damaged ({_line(error)})') from None

  def _fitted(self, image: Any, where: str) -> Any:
    return self.place(_plain(image, self.channels, self.background, where), self.background)

  def place(self, image: Any, background: int, *, blends: bool = True) -> Any:
    """Returns an image of any mode brought to the size; without `blends` each pixel is one of the old ones."""
    if self.size is None or (self.resize is None and image.size == (self.size[1], self.size[0])):
      return image
    from PIL import Image

    height, width = self.size
    resampling = Image.Resampling[self.interpolation.upper() if blends else 'NEAREST']
    if self.resize is not None:
      shorter = min(image.size)
      across, down = (self.resize * side // shorter for side in image.size)
      left, top = round((across - width) / 2), round((down - height) / 2)
      return image.resize((across, down), resampling).crop((left, top, left + width, top + height))
    if self.fit == 'stretch':
      return image.resize((width, height), resampling)
    if self.fit == 'crop':
      share = min(image.width / width, image.height / height)
      across, down = share * width, share * height
      left, top = (image.width - across) / 2, (image.height - down) / 2
      box = (max(0.0, left), max(0.0, top), min(image.width, left + across), min(image.height, top + down))
      return image.resize((width, height), resampling, box=box)
    share = max(image.width / width, image.height / height)
    inner = max(1, round(image.width / share)), max(1, round(image.height / share))
    framed = Image.new(image.mode, (width, height), (background,) * 3 if image.mode == 'RGB' else background)
    framed.paste(image.resize(inner, resampling), ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return framed

  def to_json(self) -> str:
    """Returns its JSON form."""
    return json.dumps({'kind': 'picture', **dataclasses.asdict(self)})

  @classmethod
  def from_json(cls, text: str) -> PictureEncoder:
    """Returns the encoder of a JSON form; ValueError where it is of another kind."""
    found = json.loads(text)
    if not isinstance(found, dict) or found.pop('kind', None) != 'picture':
      raise ValueError("this encoder reads JSON of the kind 'picture': use load_encoder")
    size = found.pop('size')
    return cls(None if size is None else (int(size[0]), int(size[1])), **found)

  @property
  def about(self) -> str:
    """What it does, in a line: for whoever feeds a deployed model without it."""
    how = f'by {self.fit}, {self.interpolation}'
    size = 'of their own size' if self.size is None else f'{self.size[0]} x {self.size[1]} {how}'
    size += '' if self.resize is None else f' after scaling the shorter side to {self.resize}'
    kind = 'gray' if self.channels == 1 else 'RGB'
    return f'pictures {size}, {kind}, uint8 0 to 255, transparency on {self.background}'

  def __str__(self) -> str:
    return self.about


def as_pixels(image: Any) -> np.ndarray:
  """Returns uint8 [H, W, C] of an image in mode 'L' or 'RGB'."""
  array = np.asarray(image)
  return array[..., None] if array.ndim == 2 else array


def reads_name(name: str) -> bool:
  """Whether Pillow knows what a file is by its name; one without an extension may be anything.

  >>> reads_name('a.JPG'), reads_name('notes.txt'), reads_name('a')
  (True, False, True)
  """
  need('reading pictures', 'PIL')
  from PIL import Image

  extension = os.path.splitext(name)[1].lower()
  return not extension or Image.registered_extensions().get(extension, '') not in {'', 'PDF', 'PALM', *_REFUSED}


def oriented(image: Any) -> Any:
  """Returns an image turned as its EXIF orientation says."""
  from PIL import ImageOps

  try:
    return ImageOps.exif_transpose(image)
  except Exception:  # damaged EXIF says nothing about the pixels
    return image


def _is_turned(image: Any) -> bool:
  try:
    return image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # the camera was held upright
  except Exception:
    return False


def _plain(image: Any, channels: int, background: int, where: str) -> Any:
  """An image in mode 'L' or 'RGB': 16 bits scaled, palettes resolved, transparency laid on the background."""
  from PIL import Image

  mode = 'L' if channels == 1 else 'RGB'
  if image.mode.startswith('I;16'):
    image = _sixteen(image, where)
  elif image.mode in ('I', 'F'):
    raise ValueError(f'{where} has pixels of 32 bits, whose white is not told: save it with 8 or 16')
  if image.mode in ('RGBA', 'LA', 'PA', 'La', 'RGBa') or 'transparency' in image.info:
    if image.mode in ('La', 'RGBa'):
      image = image.convert({'La': 'LA', 'RGBa': 'RGBA'}[image.mode])
    image = image.convert('RGBA')
    paper = Image.new('RGBA', image.size, (background, background, background, 255))
    image = Image.alpha_composite(paper, image)
  return image if image.mode == mode else image.convert(mode)


def _sixteen(image: Any, where: str) -> Any:
  """A gray image of 16 bits as one of 8; Pillow's own conversion would cut off at 255."""
  from PIL import Image

  values = np.asarray(image).astype(np.int64)
  if values.min() < 0 or values.max() > 65535:
    raise ValueError(f'{where} has pixels of 32 bits, {values.min()} to {values.max()}: save it with 8 or 16')
  return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _kind(content: bytes) -> str:
  if not content:
    return 'the file is empty'
  if content[:1] == b'<' or content[:5].lower() == b'<?xml':
    return 'a text in HTML, SVG or XML'
  return f'{len(content):,} bytes that begin with {content[:8]!r}'


def _line(error: BaseException) -> str:
  return str(error).strip().split('\n')[0] or type(error).__name__
