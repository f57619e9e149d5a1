"""Pictures and masks: what is one place in the picture is the same place in the mask; bad pairs are named."""

import shutil

import numpy as np
import pytest
from PIL import Image

from jaxlite.data import batch_at, masked_pictures

FAST = {'progress': False, 'channels': 1}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
  monkeypatch.setenv('JAXLITE_DATA', str(tmp_path / 'home'))


def write(folder, count=20, size=(12, 20), **named):
  """Pictures whose gray is 60 times the class of their mask, in blocks."""
  rng = np.random.default_rng(0)
  for kind in ('pictures', 'masks'):
    (folder / kind).mkdir(parents=True)
  for number in range(count):
    classes = np.kron(rng.integers(0, 3, (size[0] // 4, size[1] // 4)), np.ones((4, 4), int)).astype(np.uint8)
    Image.fromarray(classes * 60).save(folder / 'pictures' / f'{number:02d}.jpg', quality=100)
    mask = classes.copy()
    mask[0, 0] = 255
    Image.fromarray(mask).save(folder / 'masks' / f'{number:02d}.png')
  return folder / 'pictures', folder / 'masks'


@pytest.mark.parametrize('fit', ['crop', 'stretch', 'pad'])
def test_a_mask_is_cut_as_its_picture(tmp_path, fit):
  folders = write(tmp_path)
  data = masked_pictures(*folders, 24, fit=fit, **FAST)
  inputs, labels = data.train.inputs[..., 0].astype(int), data.train.labels
  assert (labels.dtype, labels.shape) == (np.int32, (16, 24, 24))
  sharp = np.abs((inputs + 30) % 60 - 30) < 4
  agree = (np.round(inputs / 60) == labels)[sharp & (labels >= 0)]
  assert agree.mean() > 0.97
  assert ((labels < 0).mean() > 0.3) == (fit == 'pad')
  np.testing.assert_array_equal(data.train.weight, (labels >= 0).sum((1, 2)))


def test_batches_do_not_depend_on_where_they_are_decoded(tmp_path):
  folders = write(tmp_path)
  plain, decoded = (masked_pictures(*folders, keep=keep, **FAST) for keep in ('memory', 'folder'))
  assert plain.fingerprint == decoded.fingerprint
  assert plain.classes == 3
  for step in (0, 1, 5):
    one, other = (batch_at(data.train, 6, 0, step) for data in (plain, decoded))
    assert {name: value.tobytes() for name, value in one.items()} == {name: other[name].tobytes() for name in one}


def test_colors_and_gray_values_may_stand_for_classes(tmp_path):
  pictures, masks = write(tmp_path)
  plain = masked_pictures(pictures, masks, **FAST)
  colors = [(0, 0, 0), (200, 10, 0), (0, 99, 7), (255, 255, 255)]
  for path in masks.iterdir():
    classes = np.minimum(np.asarray(Image.open(path)), 3)
    Image.fromarray(np.array(colors, np.uint8)[classes]).save(path)
  with pytest.raises(ValueError, match=r'is RGB: give the color of each class'):
    masked_pictures(pictures, masks, **FAST)
  told = masked_pictures(pictures, masks, values=colors, class_names=['a', 'b', 'c', 'void'], **FAST)
  np.testing.assert_array_equal(np.where(told.train.labels == 3, -1, told.train.labels), plain.train.labels)
  with pytest.raises(ValueError, match=r'has \(0, 99, 7\), which is none'):
    masked_pictures(pictures, masks, values=[*colors[:2], (9, 9, 9), colors[3]], **FAST)


def test_black_and_white_masks_are_asked_about(tmp_path):
  pictures, masks = write(tmp_path)
  for path in masks.iterdir():
    Image.fromarray((np.asarray(Image.open(path)) == 1).astype(np.uint8) * 255).save(path)
  with pytest.raises(ValueError, match=r'hold 0 and 255 alone, .* values=\(0, 255\)'):
    masked_pictures(pictures, masks, **FAST)
  assert masked_pictures(pictures, masks, values=(0, 255), **FAST).classes == 2


@pytest.mark.parametrize('how', ['no mask', 'no picture', 'size', 'class', 'broken', 'twice', 'nothing'])
def test_pairs_that_do_not_fit_are_named(tmp_path, how):
  pictures, masks = write(tmp_path)
  said, options = '07', {}
  if how == 'no mask':
    (masks / '07.png').unlink()
    said = r"1 of 20 have none in .*, such as '07.jpg'"
  elif how == 'no picture':
    (pictures / '07.jpg').unlink()
    said = r"every mask has a picture of its name; .* has '07.png'"
  elif how == 'size':
    Image.new('L', (20, 13)).save(masks / '07.png')
    said = 'a mask has the size of its picture; .*07.png is 13 x 20, the picture 12 x 20'
  elif how == 'class':
    options, said = {'class_names': ['a', 'b']}, 'masks hold the class 2, class_names has 2'
  elif how == 'broken':
    (masks / '07.png').write_bytes(b'x')
    said = '1 of 20 cannot: .*07.png is damaged'
  elif how == 'twice':
    shutil.copy(masks / '07.png', masks / '07.bmp')
    said = 'a picture has one mask'
  else:
    for path in masks.iterdir():
      Image.new('L', (20, 12), 7).save(path)
    options, said = {'ignore': 7}, 'hold none but what is ignored'
  with pytest.raises(ValueError, match=said):
    masked_pictures(pictures, masks, **options, **FAST)


def test_a_value_that_is_a_class_is_not_ignored(tmp_path):
  pictures, masks = write(tmp_path)
  plain = masked_pictures(pictures, masks, **FAST)
  for path in masks.iterdir():
    Image.fromarray(np.where(np.asarray(Image.open(path)) == 1, 255, 0).astype(np.uint8)).save(path)
  labels = masked_pictures(pictures, masks, values=(0, 255), **FAST).train.labels
  np.testing.assert_array_equal(np.asarray(labels), np.asarray(plain.train.labels) == 1)
  with pytest.raises(ValueError, match=r'^ignore names gray values .* ignore=\[0, 7\] and values=\(0, 255\)'):
    masked_pictures(pictures, masks, values=(0, 255), ignore=[0, 7], **FAST)


@pytest.mark.parametrize('void', [(224, 224, 192), [(224, 224, 192), (1, 2, 3)]])
def test_a_color_may_be_ignored(tmp_path, void):
  pictures, masks = write(tmp_path)
  plain = masked_pictures(pictures, masks, **FAST)
  colors = np.array([(0, 0, 0), (128, 0, 0), (0, 128, 0), (224, 224, 192)], np.uint8)
  for path in masks.iterdir():
    Image.fromarray(colors[np.minimum(np.asarray(Image.open(path)), 3)]).save(path)
  told = masked_pictures(pictures, masks, values=[tuple(map(int, one)) for one in colors[:3]], ignore=void, **FAST)
  np.testing.assert_array_equal(np.asarray(told.train.labels), np.asarray(plain.train.labels))
  with pytest.raises(ValueError, match=r'^ignore names colors that are no class'):
    masked_pictures(pictures, masks, values=[(0, 0, 0), (128, 0, 0)], ignore=7, **FAST)


def test_a_mask_is_not_left_out_and_nobody_says_so(tmp_path):
  pictures, masks = write(tmp_path)
  (masks / '07.png').write_bytes(b'x')
  with pytest.raises(ValueError, match=r'mend or remove them$'):
    masked_pictures(pictures, masks, broken='skip', **FAST)
