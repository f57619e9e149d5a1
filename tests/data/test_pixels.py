"""One file becomes the pixels that its format means, whatever the mode; what cannot be told is refused by name."""

import io

import numpy as np
import pytest
from PIL import Image

import pictured
from jaxlite.data.encoders import load_encoder
from jaxlite.data.pixels import PictureEncoder, as_pixels, reads_name

COLOR = pictured.texture(np.random.default_rng(0), 12, 16)
OWN = PictureEncoder(None)


def pixels(content, encoder=OWN):
  return as_pixels(encoder.decode(content, 'a file')).astype(int)


@pytest.mark.parametrize('form', ['PNG', 'BMP', 'TIFF', 'PPM', 'TGA', 'PCX'])
def test_what_is_kept_without_loss_is_read_without_loss(form):
  np.testing.assert_array_equal(pixels(pictured.saved(COLOR, form)), COLOR)


@pytest.mark.parametrize('form', ['JPEG', 'WEBP', 'JPEG2000'])
def test_what_loses_a_little_loses_a_little(form):
  assert np.abs(pixels(pictured.saved(COLOR, form)) - COLOR).mean() < 12


def test_sixteen_bits_become_eight_over_their_whole_range():
  ramp = np.linspace(0, 65535, 64).reshape(8, 8).round().astype(np.uint16)
  got = pixels(pictured.saved(ramp, 'PNG'), PictureEncoder(None, 1))[..., 0]
  np.testing.assert_array_equal(got, np.round(ramp / 257))


def test_transparency_shows_the_background():
  alpha = np.zeros((12, 16, 1), np.uint8)
  alpha[:6] = 255
  seen = PictureEncoder(None, background=7)
  got = pixels(pictured.saved(np.concatenate([COLOR, alpha], -1), 'PNG'), seen)
  np.testing.assert_array_equal(got[:6], COLOR[:6])
  assert (got[6:] == 7).all()
  palette = Image.fromarray(COLOR).convert('P')
  index = int(np.asarray(palette)[0, 0])
  assert (pixels(pictured.saved(palette, 'PNG', transparency=index), seen)[0, 0] == 7).all()


def test_modes_mean_their_colors():
  image = Image.fromarray(COLOR)
  gray = np.asarray(image.convert('L')).astype(int)
  for mode in ('L', 'LA'):
    np.testing.assert_array_equal(pixels(pictured.saved(image.convert(mode), 'PNG')), gray[..., None].repeat(3, -1))
  np.testing.assert_array_equal(pixels(pictured.saved(image, 'PNG'), PictureEncoder(None, 1))[..., 0], gray)
  bits = image.convert('1')
  np.testing.assert_array_equal(pixels(pictured.saved(bits, 'PNG'))[..., 0], np.asarray(bits) * 255)
  inks = np.asarray(image.convert('CMYK')).astype(int)
  told = 255 - np.minimum(255, inks[..., :3] + inks[..., 3:])
  assert np.abs(pixels(pictured.saved(image.convert('CMYK'), 'TIFF')) - told).max() <= 1


def test_a_photograph_stands_as_its_camera_was_held():
  for orientation, turned in {
    1: COLOR,
    3: COLOR[::-1, ::-1],
    6: COLOR.swapaxes(0, 1)[:, ::-1],
    2: COLOR[:, ::-1],
  }.items():
    exif = Image.Exif()
    exif[0x112] = orientation
    np.testing.assert_array_equal(pixels(pictured.saved(COLOR, 'PNG', exif=exif)), turned)


def test_the_first_frame_of_an_animation_is_taken():
  frames = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (10, 200)]
  about = {}
  got = as_pixels(OWN.decode(pictured.saved(frames[0], 'GIF', save_all=True, append_images=frames[1:]), 'x', about))
  assert about['animated']
  assert np.abs(got.astype(int) - 10).max() <= 2


@pytest.mark.parametrize('fit', ['crop', 'stretch', 'pad'])
def test_a_fit_keeps_what_it_says(fit):
  wide = np.zeros((8, 32, 3), np.uint8)
  wide[:, 12:20] = 200  # the middle
  got = as_pixels(PictureEncoder((8, 8), fit=fit, background=9).decode(pictured.saved(wide, 'PNG'), 'x')).astype(int)
  assert got.shape == (8, 8, 3)
  if fit == 'crop':
    assert (got == 200).all()
  elif fit == 'stretch':
    assert (got[:, :2] == 0).all()
    assert (got[:, 3:5] > 150).all()
  else:
    assert (np.delete(got, [3, 4], 0) == 9).all()
    assert got[3:5].max() > 150


@pytest.mark.parametrize(
  'content, said',
  [
    (b'', 'the file is empty'),
    (b'<svg></svg>', 'no picture: a text in HTML, SVG or XML'),
    (b'\0' * 99, 'no picture: 99 bytes'),
    (pictured.saved(COLOR, 'JPEG')[:-60], 'is damaged'),
    (pictured.saved(COLOR, 'PNG')[:-60], 'is damaged'),
    (pictured.saved(COLOR, 'GIF')[:-80], 'is damaged'),
    (pictured.saved(COLOR, 'EPS'), 'is EPS, which is not decoded here'),
    (pictured.saved(np.ones((4, 4), np.float32), 'TIFF'), 'whose white is not told'),
    (pictured.saved(np.ones((4, 4), np.int32), 'TIFF'), 'whose white is not told'),
    (pictured.saved(Image.new('1', (20_000, 20_000)), 'PNG'), 'too large to decode'),
  ],
  ids=['empty', 'svg', 'zeros', 'jpeg', 'png', 'gif', 'eps', 'float', 'int32', 'bomb'],
)
def test_what_cannot_be_read_is_told_by_name(content, said):
  with pytest.raises(ValueError, match=said) as caught:
    OWN.decode(content, 'a file')
  assert str(caught.value).startswith('a file ')
  assert '\n' not in str(caught.value)


def test_more_pixels_than_are_allowed_are_refused_before_they_are_decoded():
  with pytest.raises(ValueError, match='x has 16 x 12 pixels, more than most_pixels=100'):
    PictureEncoder(None, most_pixels=100).decode(pictured.saved(COLOR, 'PNG'), 'x')


def test_an_encoder_takes_what_people_have(tmp_path):
  encoder = PictureEncoder((12, 16))
  (tmp_path / 'a.png').write_bytes(pictured.saved(COLOR, 'PNG'))
  given = [tmp_path / 'a.png', str(tmp_path / 'a.png'), Image.fromarray(COLOR), COLOR, pictured.saved(COLOR, 'PNG')]
  assert (encoder(given) == COLOR).all()
  batch = encoder(given)
  assert encoder(batch) is batch
  assert load_encoder(encoder.to_json()) == encoder
  for wrong, said in (([3], 'picture 0 is int64'), ([], 'got none'), (batch.astype(np.float32), 'got float32')):
    with pytest.raises(ValueError, match=said):
      encoder(wrong)


@pytest.mark.parametrize('options', [{'channels': 4}, {'fit': 'zoom'}, {'background': 300}, {'background': 0.5}])
def test_an_encoder_that_means_nothing_is_refused(options):
  with pytest.raises(ValueError, match='got'):
    PictureEncoder((4, 4), **options)


def test_names_tell_pictures():
  assert [
    name for name in ('a.jpg', 'b.JPEG', 'c.tif', 'd.txt', 'e.csv', 'f.pdf', 'g.eps', 'h') if reads_name(name)
  ] == [
    *('a.jpg', 'b.JPEG', 'c.tif', 'h'),
  ]


def test_a_portable_graymap_of_sixteen_bits_is_read_as_other_formats_of_sixteen_are():
  gray = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
  out = io.BytesIO()
  Image.fromarray(gray).save(out, 'PNG')
  graymap = b'P5 8 8 65535 ' + gray.astype('>u2').tobytes()
  np.testing.assert_array_equal(PictureEncoder(None)([graymap]), PictureEncoder(None)([out.getvalue()]))


def test_channels_that_stand_first_are_told():
  with pytest.raises(
    ValueError, match=r'^a picture has 1 to 4 channels, the last axis; picture 0 is uint8\[3, 14, 14\]'
  ):
    PictureEncoder((8, 8))([np.zeros((3, 14, 14), np.uint8)])
