"""A path says what lies there: the config names a folder or a file, and unread fields are told."""

import json

import numpy as np
import pytest
from scipy.io import wavfile

import pictured
from jaxlite import config as configs
from jaxlite.config.schema import validate
from jaxlite.config.serialize import compare, to_dict
from jaxlite.data import kind_of, path_of
from jaxlite.errors import ConfigError
from jaxlite.run.jobs import _held
from jaxlite.run.setup import dataset_of


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
  monkeypatch.setenv('JAXLITE_DATA', str(tmp_path / 'home'))


def data_of(source, **fields):
  config = configs.Config(name='x')
  config.data.source = str(source)
  for name, value in fields.items():
    setattr(config.data, name, value)
  return dataset_of(config, None)


def test_a_config_names_pictures_sounds_tables_and_texts(tmp_path):
  pictured.write(tmp_path / 'pictures', 40)
  found = data_of(tmp_path / 'pictures', size=8, keep='folder', threads=1)
  assert found.train.inputs.shape == (32, 8, 8, 3)
  assert _held(found.train) == 40 * 8 * 8 * 3 + 32 * 4  # what may be decoded ahead, and labels
  assert _held(data_of(tmp_path / 'pictures', size=800, keep='folder').train) == (1 << 26) + 32 * 4
  assert data_of('pictures', directory=str(tmp_path), size=8).fingerprint == found.fingerprint
  for number in range(20):
    place = tmp_path / 'sounds' / f'c{number % 2}'
    place.mkdir(parents=True, exist_ok=True)
    wave = np.sin(np.arange(8000) * (0.1 + number % 2)).astype(np.float32)
    wavfile.write(place / f'{number}.wav', 16_000, wave)
  assert data_of(tmp_path / 'sounds').train.inputs.shape == (16, 48, 64, 1)
  rows = [{'text': f'{word} film', 'label': word} for word in ('good', 'bad')] * 10
  (tmp_path / 'films.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  assert data_of(tmp_path / 'films.jsonl').train.inputs['tokens'].shape == (16, 2)
  (tmp_path / 'table.csv').write_text('a,b,kind\n' + '1,2,x\n3,4,y\n' * 20)
  assert data_of(tmp_path / 'table.csv', label='kind').feature_names == ('a', 'b')
  assert data_of('digits').name == 'digits'


def test_a_word_beside_the_classes_does_not_make_texts_of_pictures(tmp_path):
  pictured.write(tmp_path / 'pictures', 8)
  (tmp_path / 'pictures' / 'README.txt').write_text('where they come from')
  inside = next(one for one in sorted((tmp_path / 'pictures').iterdir()) if one.is_dir())
  (inside / 'a list.txt').write_text('names')
  assert kind_of(tmp_path / 'pictures') == 'pictures'
  (tmp_path / 'texts' / 'good').mkdir(parents=True)
  (tmp_path / 'texts' / 'good' / 'one.txt').write_text('a film')
  (tmp_path / 'texts' / 'cover.png').write_bytes(b'x')
  assert kind_of(tmp_path / 'texts') == 'texts'


def test_what_lies_nowhere_is_told(tmp_path):
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'other').mkdir()
  (tmp_path / 'other' / 'a.docx').write_text('x')
  assert path_of('digits', str(tmp_path)) is None
  for path, said in (
    (tmp_path / 'empty', 'holds nothing'),
    (tmp_path / 'other', 'holds a.docx'),
    (__file__, 'a file of'),
  ):
    with pytest.raises(ValueError, match=said):
      kind_of(path if path != __file__ else tmp_path / 'other' / 'a.docx')


def test_how_pictures_are_read_may_change_on_a_resume_and_what_is_read_may_not():
  config = configs.Config(name='x')
  saved = to_dict(config)
  config.data.keep, config.data.threads = 'pixels', 3
  assert not compare(saved, config).refused
  config.data.size = 9
  assert len(compare(saved, config).refused) == 1
  for name, value in (('data.size', -1), ('data.threads', -1)):
    other = configs.Config(name='x')
    setattr(other.data, name.split('.')[1], value)
    with pytest.raises(ConfigError, match=f'{name} is at least 0'):
      validate(other)
