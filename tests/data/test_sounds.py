"""Sounds: files against scipy's reader, spectra against scipy's transform, folders as those of pictures."""

import io
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal
from scipy.io import wavfile

from jaxlite.data import batch_at, log_mel, read_wav, resampled, sounds
from jaxlite.data.encoders import load_encoder
from jaxlite.data.spectra import mel_filters

WAVE = np.random.default_rng(0).uniform(-0.9, 0.9, (800, 2))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
  monkeypatch.setenv('JAXLITE_DATA', str(tmp_path / 'home'))


def wav(values, rate=8000):
  out = io.BytesIO()
  wavfile.write(out, rate, values)
  return out.getvalue()


def chunked(kind, bits, data, channels=1, rate=8000, before=b''):
  block = channels * bits // 8
  about = struct.pack('<HHIIHH', kind, channels, rate, rate * block, block, bits)
  body = b'WAVEfmt ' + struct.pack('<I', 16) + about + before + b'data' + struct.pack('<I', len(data)) + data
  return b'RIFF' + struct.pack('<I', len(body)) + body


@pytest.mark.parametrize(
  'values',
  [
    (WAVE * 127 + 128).astype(np.uint8),
    (WAVE * 32767).astype(np.int16),
    (WAVE * 2**31).astype(np.int32),
    WAVE.astype(np.float32),
    WAVE,
    WAVE[:, 0].astype(np.float32),
  ],
  ids=['uint8', 'int16', 'int32', 'float32', 'float64', 'mono'],
)
def test_samples_are_those_that_were_written(values):
  samples, rate = read_wav(wav(values), 'x')
  assert (rate, samples.dtype) == (8000, np.float32)
  np.testing.assert_allclose(
    samples, WAVE[:, :1] if values.ndim == 1 else WAVE, atol=0.016 if values.dtype == np.uint8 else 7e-5
  )


def test_three_bytes_a_sample_and_chunks_between():
  numbers = np.array([0, 1 << 22, -(1 << 23), (1 << 23) - 1, -1])
  data = b''.join(int(one).to_bytes(3, 'little', signed=True) for one in numbers)
  content = chunked(1, 24, data, before=b'LIST' + struct.pack('<I', 3) + b'abc\0')
  np.testing.assert_allclose(read_wav(content, 'x')[0][:, 0], numbers / 2.0**23)
  assert len(read_wav(content[:-5], 'x')[0]) == 3  # cut off while it was recorded


@pytest.mark.parametrize(
  'content, said',
  [
    (b'', 'the file is empty'),
    (b'ID3' + bytes(50), 'is no WAV file'),
    (b'RIFF\0\0\0\0WAVE', 'lacks its format'),
    (chunked(7, 8, bytes(9)), 'holds mu-law'),
    (chunked(85, 16, bytes(9)), 'holds MP3'),
    (chunked(1, 16, b''), 'holds 0 samples'),
    (chunked(1, 12, bytes(9)), 'is damaged, or of a kind'),
    (chunked(3, 32, np.array([0, np.nan], '<f4').tobytes()), 'not finite, at 1'),
  ],
)
def test_what_is_no_sound_is_told_by_name(content, said):
  with pytest.raises(ValueError, match=said) as caught:
    read_wav(content, 'a file')
  assert str(caught.value).startswith('a file ')


def test_spectra_are_those_of_scipy_and_of_the_device():
  rate, frame, hop = 8000, 200, 80
  wave = WAVE[:, 0].astype(np.float32)
  got = log_mel(wave, rate, bands=20, frame=frame, hop=hop)
  window = signal.get_window('hann', frame)
  how = {'nperseg': frame, 'noverlap': frame - hop, 'nfft': 256, 'detrend': False, 'scaling': 'spectrum'}
  _, _, sizes = signal.spectrogram(wave.astype(float), rate, window, mode='magnitude', **how)
  wanted = np.log(np.square(sizes * window.sum()).T @ mel_filters(rate, 256, 20))
  assert got.shape == (1 + (800 - frame) // hop, 20)
  np.testing.assert_allclose(got, wanted, atol=1e-5)
  np.testing.assert_allclose(log_mel(jnp.asarray(wave), rate, bands=20, frame=frame, hop=hop), got, atol=1e-3)
  tone = np.sin(2 * np.pi * 1000 * np.arange(1600) / rate)
  points = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 4000 / 700), 22) / 2595) - 1)
  assert (log_mel(tone, rate, bands=20, frame=frame, hop=hop).argmax(-1) == np.abs(points[1:-1] - 1000).argmin()).all()


@pytest.mark.parametrize(
  'options, said',
  [
    ({'frame': 2000}, 'a frame takes 2000 samples; got 800'),
    ({'bands': 400}, 'a band holds a frequency'),
    ({'high': 9000.0}, '0 to 4000 Hz'),
    ({'hop': 0}, 'hop is a whole number'),
    ({'floor': 0}, 'floor is above 0'),
  ],
)
def test_spectra_that_cannot_be_are_refused(options, said):
  with pytest.raises(ValueError, match=said):
    log_mel(WAVE[:, 0], 8000, **{'bands': 20, 'frame': 200, **options})


def test_a_tone_keeps_its_pitch_at_another_rate():
  tone = np.sin(2 * np.pi * 440 * np.arange(4410) / 44100).astype(np.float32)
  got = resampled(tone, 44100, 16000)
  assert np.abs(got - np.sin(2 * np.pi * 440 * np.arange(1600) / 16000))[50:-50].max() < 0.01


def test_a_folder_of_sounds(tmp_path):
  for number in range(20):
    place = tmp_path / 'set' / ('low', 'high')[number % 2]
    place.mkdir(parents=True, exist_ok=True)
    tone = 0.5 * np.sin(2 * np.pi * (200, 1500)[number % 2] * np.arange(4000 + 10 * number) / 8000)
    (place / f'{number}.wav').write_bytes(wav(np.stack([tone, tone], 1).astype(np.float32)))
  options = {'rate': 8000, 'bands': 16, 'progress': False}
  with pytest.raises(ValueError, match=r'0.50 to 0.52 s: give seconds=0.52'):
    sounds(tmp_path / 'set', **options)
  plain, decoded = (sounds(tmp_path / 'set', 0.5, keep=keep, **options) for keep in ('memory', 'folder'))
  assert plain.fingerprint == decoded.fingerprint
  one, other = (batch_at(data.train, 6, 0, 3)['inputs'] for data in (plain, decoded))
  np.testing.assert_array_equal(one, other)
  assert one.shape == (6, 23, 16, 1)
  np.testing.assert_allclose(plain.mean, np.mean(plain.train.inputs), rtol=1e-5)
  np.testing.assert_allclose(plain.std, np.std(plain.train.inputs), rtol=1e-5)
  assert any('20 of 20 sounds have several channels' in note for note in plain.notes)
  encoder = load_encoder(plain.encoder.to_json())
  assert encoder == plain.encoder
  np.testing.assert_array_equal(encoder([tmp_path / 'set' / plain.files['test'][0]]), plain.test.inputs[:1])
  (tmp_path / 'set' / 'low' / '0.wav').write_bytes(b'RIFF')
  with pytest.raises(ValueError, match=r'1 of 20 cannot: .*0.wav is no WAV file'):
    sounds(tmp_path / 'set', 0.5, **options)


def test_what_follows_the_samples_is_no_sound():
  def wav(kind, size, data, before=b''):
    about = struct.pack('<HHIIHH', 1, 1, 8000, 16000, 2, 16)
    inside = b'WAVE' + before + b'fmt ' + struct.pack('<I', 16) + about + b'data' + struct.pack('<I', size) + data
    return kind + struct.pack('<I', 0xFFFFFFFF) + inside

  title = b'LIST' + struct.pack('<I', 4) + b'INFO'
  with pytest.raises(ValueError, match='holds 0 samples: record something'):
    read_wav(wav(b'RIFF', 0, title), 'x')
  samples = np.arange(100, dtype='<i2').tobytes()
  assert len(read_wav(wav(b'RIFF', 0, samples), 'x')[0]) == 100  # of a recorder that did not come to say how many
  long = b'ds64' + struct.pack('<IQQQI', 28, 0, 200, 100, 0)
  assert len(read_wav(wav(b'RF64', 0xFFFFFFFF, samples + title, long), 'x')[0]) == 100
