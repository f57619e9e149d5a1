"""aeon's side of the time series, started by `time_series`, never by hand: MiniRocket, and one neighbor by warping."""

from __future__ import annotations

import json
import os
import sys
import time

import numpy as np


def main() -> None:
  """Fits both and says what they say of the test; its labels are not here."""
  spec = json.loads(sys.argv[1])
  out = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  from aeon.classification.convolution_based import MiniRocketClassifier
  from aeon.classification.distance_based import KNeighborsTimeSeriesClassifier

  with np.load(spec['data']) as held:
    x, y, test = (held[name] for name in ('train_x', 'train_y', 'test_x'))
  x, test = (one.transpose(0, 2, 1).astype(np.float64) for one in (x, test))  # channels first
  told = {}
  peers = {f'MiniRocket {seed}': MiniRocketClassifier(random_state=seed) for seed in spec['seeds']}
  peers['1-NN, DTW'] = KNeighborsTimeSeriesClassifier(n_neighbors=1, distance='dtw')
  for name, peer in peers.items():
    began = time.process_time()
    peer.fit(x, y)
    told[name] = {'labels': [int(one) for one in peer.predict(test)], 'seconds': time.process_time() - began}
  out.write(json.dumps(told) + '\n')
  out.flush()


if __name__ == '__main__':
  main()
