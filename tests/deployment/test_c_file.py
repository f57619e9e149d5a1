"""Laws of a C99 file as a whole: nothing that is wrong is written, it says how much memory it takes, and its texts are
whatever a person called things."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from graphs import Batch, Maker, convolution, integer_network, random_graph
from jaxlite.cpu.kernels.compiler import compiler
from jaxlite.deployment.c import check as c_check
from jaxlite.deployment.c.file import write_c
from jaxlite.deployment.c.source import c_source
from jaxlite.deployment.operations import reference

CC = compiler()
needs_compiler = pytest.mark.skipif(CC is None, reason='no C compiler')
STRICT = ('-std=c99', '-Wall', '-Wextra', '-Werror', '-pedantic')


def network():
  m = Maker()
  x = m.input(6, 6, 2)
  y = m.op('relu', m.op('conv', x, m.floats(8, 3, 3, 2), m.floats(8), **convolution(2, padding=((1, 1),))))
  y = m.op('add', y, m.op('tanh', m.op('conv', y, m.floats(8, 1, 1, 8), **convolution(2))))
  y = m.op('dense', m.op('mean', y, axes=(1, 2)), m.floats(8, 5), m.floats(5))
  return m, m.graph(y)


@needs_compiler
def test_a_file_is_compiled_run_and_compared_before_it_is_written(tmp_path, monkeypatch):
  m, graph = network()
  given = m.examples(7)
  found = write_c(graph, tmp_path / 'my net.c', given, header=True)
  assert (found.verified, found.name) == (True, 'my_net')
  assert 0 <= found.largest < 1e-4
  assert sorted(os.listdir(tmp_path)) == ['my net.c', 'my net.h']
  (tmp_path / 'use.cc').write_text(
    '#include "my net.h"\nint main() { static float x[MY_NET_INPUT_SIZE * 2], y[MY_NET_OUTPUT_SIZE * 2];\n'
    'my_net_predict_many(x, y, 2); return y[0] != y[MY_NET_OUTPUT_SIZE] || my_net_version[0] == 0; }\n'
  )
  subprocess.run([CC, *STRICT, '-c', 'my net.c', '-o', 'net.o'], cwd=tmp_path, check=True)
  subprocess.run([CC, '-x', 'c', 'use.cc', '-x', 'none', 'net.o', '-o', 'use', '-lm'], cwd=tmp_path, check=True)
  subprocess.run([tmp_path / 'use'], check=True)
  fast = subprocess.run([CC, '-ffast-math', '-E', 'my net.c'], cwd=tmp_path, capture_output=True, check=False)
  assert b'compile without -ffast-math' in fast.stderr
  for kind, what in (('conv', 'conv'), ('relu', 'relu'), ('mean', 'mean')):
    rule = reference.RULES[kind]
    monkeypatch.setitem(reference.RULES, kind, lambda *a, rule=rule, **k: rule(*a, **k) * np.float32(1.001))
    with pytest.raises(ValueError, match=rf'in C, {what} .* gives .* no file is written'):
      write_c(graph, tmp_path / 'wrong.c', given)
    monkeypatch.setitem(reference.RULES, kind, rule)
  assert not (tmp_path / 'wrong.c').exists()


@needs_compiler
def test_a_single_wrong_integer_is_found(tmp_path):
  m, found = integer_network(3)
  graph, given = m.graph(*found), m.examples(2)
  source = c_source(graph)
  c_check.verify(source, graph, given, [CC, *STRICT])
  text = re.sub(r'(int8_t network_c\d+\[486\] = \{\n)(-?\d+)', lambda hit: f'{hit[1]}{-int(hit[2])}', source.text)
  assert text != source.text
  with pytest.raises(ValueError, match='in C, quantized_conv'):
    c_check.verify(source._replace(text=text), graph, given, [CC, *STRICT])


@needs_compiler
@pytest.mark.parametrize('made', [lambda: network(), lambda: _of(integer_network(1)), lambda: _of(random_graph(5))])
def test_static_memory_and_constants_are_what_the_file_says(made, tmp_path):
  _, graph = made()
  source = c_source(graph)
  (tmp_path / 'net.c').write_text(source.text)
  subprocess.run([CC, *STRICT, '-O0', '-c', 'net.c', '-o', 'net.o'], cwd=tmp_path, check=True)
  symbols = subprocess.run(
    ['nm', '-S', '-t', 'd', tmp_path / 'net.o'], capture_output=True, text=True, check=True
  ).stdout
  sizes = {'b': 0, 'r': 0}
  for size, kind, _ in re.findall(r'^\d+ (\d+) ([br]) (network_\w+)$', symbols, re.M):
    sizes[kind] += int(size)
  assert sizes == {'b': source.memory, 'r': source.constants}
  assert f'NETWORK_MEMORY {source.memory}L' in source.text
  assert 'malloc' not in source.text


def _of(pair):
  m, found = pair
  return m, m.graph(*found)


def test_memory_is_used_again():
  m = Maker()
  y = m.input(1000)
  for _ in range(12):
    y = m.op('dense', y, m.constant(np.ones((1, 1), np.float32), (1000, 1000)))
  source = c_source(m.graph(y))
  assert (source.memory, source.constants) == (2 * 4000, 4_000_000)  # one array for equal weights, two values in turn
  m = Maker()
  y = m.op('cumsum', m.input(1000), axis=1)
  for _ in range(12):
    y = m.op('exp', m.op('neg', y))
  assert c_source(m.graph(m.op('cumsum', y, axis=1))).memory == 4000  # written over itself


@needs_compiler
def test_texts_are_kept_whatever_is_in_them(tmp_path):
  m, graph = network()
  classes = ['T-shirt "é"', 'a */ int x; /*', 'back\\slash\\', 'what??/', '靴', '\u202e', 'new\nline']
  about = {'classes': classes, 'units': '°C', 'ch.3 — notes': 'x' * 9000 + 'é', 'empty': [], 'none': ''}
  write_c(graph, tmp_path / '3 nets: größe??.c', m.examples(1), about=about)
  (text,) = tmp_path.glob('*.c')
  (tmp_path / 'main.c').write_text(
    f'#include <stdio.h>\n#include "{text.name.replace("?", chr(92) + "?")}"\nint main(void) {{\n'
    f'for (int i = 0; i < {len(classes)}; ++i) {{ fputs(net_3_nets_gr_e_classes[i], stdout); putchar(1); }}\n'
    'fputs(net_3_nets_gr_e_units, stdout); putchar(1); fputs(net_3_nets_gr_e_ch_3_notes, stdout); return 0; }\n'
  )
  shutil.copy(text, tmp_path / 'net.c')
  main = (tmp_path / 'main.c').read_text()
  (tmp_path / 'main.c').write_text(re.sub(r'#include "[^"]*"', '#include "net.c"', main))
  subprocess.run([CC, *STRICT, 'main.c', '-o', 'main', '-lm'], cwd=tmp_path, check=True)
  out = subprocess.run([tmp_path / 'main'], capture_output=True, check=True).stdout.decode()
  assert out.split('\x01') == [*classes, '°C', 'x' * 9000 + 'é']
  for about in ({'units': 'm', 'units!': 's'}, {'predict': 'x'}, {'c0': 'x'}):
    with pytest.raises(ValueError, match='is a name in a C99 file already'):
      c_source(graph, about=about)


def refused():
  def made(build):
    m = Maker()
    return m.graph(build(m))

  wide = {'x_scale': 1.0, 'x_zero_point': -128}
  one = lambda m: m.constant(np.ones(1, np.float32))  # noqa: E731
  deep = lambda m: m.constant(np.full((1, 1), 127, np.int8), (70_000, 1))  # noqa: E731
  return {
    'has a rule for; conv_general_dilated': lambda: made(_computed_kernel),
    'network holds|C99 file holds .* is float16': lambda: made(lambda m: m.op('neg', m.input(2, dtype='float16'))),
    'fit in int32; those of v0 may be 2,266': lambda: made(
      lambda m: m.op('quantized_dense', m.input(70_000, dtype='int8', low=0, high=2), deep(m), one(m), **wide)
    ),
    'zero point is a whole number .* zero_point=0.5': lambda: made(
      lambda m: m.op('quantize', m.input(2), scale=1.0, zero_point=0.5, low=-128, high=127)
    ),
    'bounds of an int8 value .* got 0 and 255': lambda: made(
      lambda m: m.op('quantize', m.input(2), scale=1.0, zero_point=0, low=0, high=255)
    ),
    'of whole numbers has no rule': lambda: made(
      lambda m: m.op('mean', m.input(4, dtype='int32', low=0, high=2), axes=(1,))
    ),
  }


def _computed_kernel(m):
  x = m.input(5, 3)
  numbers = ((0, 2, 1), (2, 1, 0), (0, 2, 1))
  told = {'window_strides': (1,), 'padding': ((0, 0),), 'lhs_dilation': (1,), 'rhs_dilation': (1,)}
  return m.op('conv_general_dilated', x, m.floats(2, 3, 4), dimension_numbers=numbers, feature_group_count=1, **told)


@pytest.mark.parametrize('match', refused())
def test_what_cannot_be_written_is_refused_in_a_line(match):
  graph = refused()[match]()
  with pytest.raises(ValueError, match=match) as caught:
    c_source(graph)
  assert '\n' not in str(caught.value)


def test_without_a_compiler_nothing_is_written_but_where_that_is_said(tmp_path, monkeypatch):
  m, graph = network()
  monkeypatch.setenv('PATH', str(tmp_path))
  monkeypatch.delenv('CC', raising=False)
  with pytest.raises(ImportError, match='no C compiler was found'):
    write_c(graph, tmp_path / 'net.c', m.examples(1))
  assert not os.listdir(tmp_path)
  found = write_c(graph, tmp_path / 'net.c', {}, verify=False)
  assert not found.verified
  assert np.isnan(found.largest)


@needs_compiler
def test_a_compiler_that_fails_is_told_in_a_line(tmp_path, monkeypatch):
  m, graph = network()
  broken = tmp_path / 'broken'
  broken.write_text('#!/bin/sh\necho "net.c:1: error: no such thing" >&2\nexit 1\n')
  broken.chmod(0o755)
  monkeypatch.setenv('CC', str(broken))
  with pytest.raises(ValueError, match=r'refuses what was written: net\.c:1: error: no such thing'):
    write_c(graph, tmp_path / 'net.c', m.examples(1))
  with pytest.raises(ValueError, match='at least one'):
    write_c(graph, tmp_path / 'net.c', m.examples(0))
  assert os.listdir(tmp_path) == ['broken']


TARGETS = (
  'x86_64-linux-musl',
  'aarch64-linux-musl',
  'arm-linux-musleabihf',
  'x86-linux-musl',
  'wasm32-wasi',
  'x86_64-windows-gnu',
)


@pytest.mark.slow
@pytest.mark.parametrize('target', TARGETS)
def test_clang_takes_it_for_every_machine(target, tmp_path):
  pytest.importorskip('ziglang')
  for name, (m, found) in {'integers': integer_network(2), 'random': random_graph(9)}.items():
    source = c_source(m.graph(*found), name)
    (tmp_path / f'{name}.c').write_text(source.text)
    flags = ['-O3', *STRICT, '-target', target, '-c', f'{name}.c', '-o', f'{name}.o']
    subprocess.run([sys.executable, '-m', 'ziglang', 'cc', *flags], cwd=tmp_path, check=True)


@pytest.mark.slow
@needs_compiler
def test_clang_gives_the_same_integers():
  pytest.importorskip('ziglang')
  m, found = integer_network(4)
  graph, given = m.graph(*found), m.examples(3)
  zig = [sys.executable, '-m', 'ziglang', 'cc']
  for flags in (
    ['-O0'],
    ['-O3', '-march=native'],
    ['-O3', '-ffp-contract=fast', '-march=native'],
    ['-target', 'x86-linux-musl', '-O2'],
    ['-target', 'x86-linux-musl', '-mcpu=i586', '-O2'],  # floats computed in 80 bits
  ):
    c_check.verify(c_source(graph), graph, given, [*zig, '-std=c99', *flags])


def test_examples_are_computed_one_by_one_whatever_batch_a_shape_has():
  m = Maker()
  x = m.input(3, 4)
  turned = m.op('transpose', x, permutation=(0, 2, 1))
  assert m.values[turned].shape == (Batch(), 4, 3)
  assert c_source(m.graph(turned)).memory == 0  # copied to where the result goes


def test_inputs_that_differ_in_case_alone_have_sizes_of_their_own():
  m = Maker()
  x, y = m.input(3), m.input(5)
  graph = m.graph(m.op('reduce_sum', x, axes=(1,)), m.op('reduce_sum', y, axes=(1,)))
  names = dict(zip(graph.inputs, ('input/a', 'input/A'), strict=True))
  operations = tuple(one._replace(inputs=tuple(names[name] for name in one.inputs)) for one in graph.operations)
  values = {names.get(name, name): value for name, value in graph.values.items()}
  graph = graph._replace(inputs=tuple(names.values()), operations=operations, values=values)
  sizes = re.findall(r'#define (\w+INPUT\w*_SIZE) (\d+)L', c_source(graph).header)
  assert sorted(size for _, size in sizes) == ['3', '5']
  assert len({name for name, _ in sizes}) == 2
