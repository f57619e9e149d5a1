"""Each format gives the arrays that were written, lazily, bit for bit, and says what it is."""

import io
import json
import zipfile

import numpy as np
import pytest

import weight_files as files
from jaxlite.finetuning import WeightsError, read
from jaxlite.host.safetensors_file import write_safetensors


def same(held, arrays):
  assert set(held) == set(arrays)
  for name, array in arrays.items():
    assert held.dtype(name) == array.dtype
    assert held.shape(name) == array.shape
    found = held[name]
    assert found.dtype.isnative
    np.testing.assert_array_equal(np.asarray(found, np.float64), np.asarray(array, np.float64))


@pytest.mark.parametrize('form', ['zip', 'deflated', 'legacy'])
def test_torch_files_keep_strides_dtypes_and_shared_storages(tmp_path, form):
  arrays = files.sample()
  path = tmp_path / 'a.pth'
  entries, held = files.described(arrays)
  path.write_bytes(
    files.legacy_of(arrays) if form == 'legacy' else files.torch_zip(entries, held, packed=form == 'deflated')
  )
  found = read(path)
  assert (found.form, found.layout) == ('torch', 'torch')
  same(found, arrays)
  assert not found['fc.weight'].flags.c_contiguous
  data = np.arange(12, dtype=np.float32)
  views = {
    'turned': (0, (3, 4), (1, 3)),
    'part': (1, (2, 2), (4, 2)),
    'spread': (2, (3, 2), (0, 1)),
    'none': (0, (0, 5), (5, 1)),
  }
  entries = {name: files.tensor('0', 'FloatStorage', 12, *view) for name, view in views.items()}
  write = files.torch_legacy if form == 'legacy' else files.torch_zip
  path.write_bytes(write(entries, {'0': data.tobytes()}))
  strided = np.lib.stride_tricks.as_strided
  expected = {
    name: strided(data[start:], shape, [4 * one for one in stride]) for name, (start, shape, stride) in views.items()
  }
  same(read(path), expected)


@pytest.mark.parametrize('flag', ['conj', 'neg'])
def test_a_tensor_that_torch_reads_with_another_sign_is_refused(tmp_path, flag):
  path = tmp_path / 'a.pth'
  one = files.tensor('0', 'ComplexFloatStorage', 2, 0, (2,), (1,), [flag])
  path.write_bytes(files.torch_zip({'w': one}, {'0': bytes(16)}))
  with pytest.raises(WeightsError, match=f"what is stored under '{flag}': save .resolve_conj"):
    read(path)


def test_a_checkpoint_of_training_names_its_parts_and_gives_one(tmp_path):
  one = files.tensor('0', 'FloatStorage', 2, 0, (2,), (1,))
  inner = files.table({'w': one})[2:-1]
  path = tmp_path / 'c.pth'
  path.write_bytes(files.torch_zip({'state_dict': inner, 'epoch': files.number(3), 'ema': inner}, {'0': b'\0' * 8}))
  assert set(read(path)) == {'state_dict/w', 'ema/w'}
  assert set(read(path, key='ema')) == {'w'}
  with pytest.raises(WeightsError, match=r"no name begins with 'model/'; nearest: "):
    read(path, key='model')


def test_safetensors_and_archives_and_shards(tmp_path):
  arrays = files.sample()
  write_safetensors(tmp_path / 'model.safetensors', arrays, {'format': 'pt'})
  same(read(tmp_path / 'model.safetensors'), arrays)
  same(read(tmp_path), arrays)  # the folder
  with zipfile.ZipFile(tmp_path / 'model.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.write(tmp_path / 'model.safetensors', 'sub/model.safetensors')
    archive.writestr('sub/config.json', '{}')
  same(read(tmp_path / 'model.zip'), arrays)
  parts = tmp_path / 'parts'
  parts.mkdir()
  names = list(arrays)
  shards = {'model-00001-of-00002.safetensors': names[:2], 'model-00002-of-00002.safetensors': names[2:]}
  for shard, inside in shards.items():
    write_safetensors(parts / shard, {name: arrays[name] for name in inside}, {'format': 'pt'})
  with pytest.raises(WeightsError, match=r'holds shards .* and no index'):
    read(parts)
  where = {name: shard for shard, inside in shards.items() for name in inside}
  (parts / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': where}))
  same(read(parts), arrays)
  same(read(parts / 'model.safetensors.index.json'), arrays)


def test_npz_packed_or_not(tmp_path):
  arrays = {'a/w': np.asfortranarray(np.arange(6.0).reshape(2, 3)), 'b': np.arange(4, dtype='>i4'), 'c': np.array(2.5)}
  for save in (np.savez, np.savez_compressed):
    save(tmp_path / 'a.npz', **arrays)
    same(read(tmp_path / 'a.npz'), {**arrays, 'b': arrays['b'].astype(np.int32)})


def test_gguf_blocks_and_tokenizer(tmp_path):
  data, arrays = files.gguf_sample()
  (tmp_path / 'm.gguf').write_bytes(data)
  held = read(tmp_path / 'm.gguf')
  same(held, arrays)
  assert held.about['tokenizer.ggml.tokens'] == ['a', 'é', 'ab']
  assert held.about['tokenizer.ggml.scores'].tolist() == [0.5, -1.0]
  assert (held.about['general.name'], held.about['llama.block_count']) == ('small', 2)


def test_msgpack_of_flax(tmp_path):
  import flax.serialization
  import jax.numpy as jnp

  tree = {'params': {'d': {'kernel': jnp.ones((2, 3)), 'bias': jnp.zeros(3, jnp.bfloat16)}}, 'n': np.float32(3), 'i': 5}
  (tmp_path / 'm.msgpack').write_bytes(flax.serialization.to_bytes(tree))
  same(read(tmp_path / 'm.msgpack'), {**_flat(tree['params']['d'], 'params/d/'), 'n': np.array(3, np.float32)})


def _flat(tree, prefix):
  return {prefix + name: np.asarray(leaf) for name, leaf in tree.items()}


def test_checkpoints_of_orbax_and_of_its_manager(tmp_path):
  import jax.numpy as jnp
  import orbax.checkpoint as ocp

  tree = {'params': {'kernel': jnp.zeros((2, 3)), 'bias': jnp.ones(3, jnp.bfloat16)}, 'list': [jnp.ones(2)]}
  want = {**_flat(tree['params'], 'params/'), 'list/0': np.ones(2, np.float32)}
  with ocp.StandardCheckpointer() as saver:
    saver.save(tmp_path / 'one', tree)
  with ocp.CheckpointManager(tmp_path / 'many') as manager:
    manager.save(3, args=ocp.args.StandardSave(tree))
  for name in ('one', 'many', 'many/3'):
    same(read(tmp_path / name), want)
  assert set(read(tmp_path / 'one', key='params')) == {'kernel', 'bias'}
  ocp.PyTreeCheckpointer(use_ocdbt=False).save(tmp_path / 'apart', {'w': jnp.zeros((2, 3)), 'v': jnp.ones(2)})
  same(read(tmp_path / 'apart'), {'w': np.zeros((2, 3), np.float32), 'v': np.ones(2, np.float32)})
  (tmp_path / 'apart' / 'w' / '0.0').unlink()  # what is lost is no zeros
  with pytest.raises(WeightsError, match="'w' cannot be read"):
    read(tmp_path / 'apart')['w']
  with pytest.raises(TypeError, match='from one path, a name on the hub, or arrays by name'):
    read(['a', 'b'])


def test_a_hub_name_is_found_in_the_cache_and_told_where_it_is_not(tmp_path, monkeypatch):
  pytest.importorskip('huggingface_hub')
  import huggingface_hub.constants as constants

  monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path))
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
  for name in ('owner/safe', 'owner/old'):
    commit = '0123456789abcdef0123456789abcdef01234567'
    folder = tmp_path / f'models--{name.replace("/", "--")}'
    (folder / 'refs').mkdir(parents=True)
    (folder / 'refs' / 'main').write_text(commit)
    inside = folder / 'snapshots' / commit
    inside.mkdir(parents=True)
    arrays = files.sample()
    if name == 'owner/safe':
      write_safetensors(inside / 'model.safetensors', arrays, {'format': 'pt'})
    else:
      (inside / 'pytorch_model.bin').write_bytes(files.legacy_of(arrays))
    same(read(f'hf://{name}'), arrays)
  same(read('hf://owner/safe@main:model.safetensors'), arrays)
  with pytest.raises(FileNotFoundError, match='hf://owner/none is not reached and not in the cache'):
    read('hf://owner/none')
  with pytest.raises(FileNotFoundError, match="write 'hf://owner/none'"):
    read('owner/none')


def test_what_is_no_file_of_weights_is_told(tmp_path):
  (tmp_path / 'empty').write_bytes(b'')
  (tmp_path / 'noise').write_bytes(b'hello, world, this is text')
  (tmp_path / 'bare.pkl').write_bytes(b'\x80\x04K\x01.')
  for name, told in (('empty', 'is empty'), ('noise', 'begins like no file'), ('bare.pkl', 'is a bare pickle')):
    with pytest.raises(WeightsError, match=told):
      read(tmp_path / name)
  with pytest.raises(FileNotFoundError, match='is not there'):
    read(tmp_path / 'absent.pth')
  with pytest.raises(WeightsError, match='addresses are not fetched'):
    read('https://example.org/model.safetensors')
  inner = io.BytesIO()
  with zipfile.ZipFile(inner, 'w') as archive:
    archive.writestr('a.bin', b'x' * 40)
  with zipfile.ZipFile(tmp_path / 'outer.zip', 'w') as archive:
    archive.writestr('model.bin', inner.getvalue())
  with pytest.raises(WeightsError, match='an archive in an archive'):
    read(tmp_path / 'outer.zip')


def test_casting_and_parts(tmp_path):
  arrays = files.sample()
  write_safetensors(tmp_path / 'm.safetensors', arrays)
  held = read(tmp_path / 'm.safetensors', dtype=np.float16)
  assert held.dtype('conv.weight') == held['conv.weight'].dtype == np.float16
  assert held.dtype('norm.count') == np.int64
  assert set(held.only('weight$')) == {'conv.weight', 'fc.weight'}
  with pytest.raises(KeyError, match=r"holds no 'fc\.wight'; nearest: fc\.weight"):
    held['fc.wight']
  for dtype in ('int8', 'flaot16'):  # whole numbers would leave zeros of weights
    with pytest.raises(WeightsError, match=f"dtype of floating numbers, 'float16'; got '{dtype}'"):
      read(tmp_path / 'm.safetensors', dtype=dtype)
