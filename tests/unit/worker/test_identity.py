"""Two copies of one process must not draw the same numbers."""

from __future__ import annotations

import random
import ssl

import numpy as np

from rewarm.worker.identity import reseed


def test_every_generator_goes_on_differently() -> None:
    own, arrays = random.getstate(), np.random.get_state()
    drawn = []
    for _ in range(2):
        random.setstate(own)
        np.random.set_state(arrays)
        reseed()
        drawn.append((random.random(), np.random.random(), ssl.RAND_bytes(8)))
    (a, b, c), (d, e, f) = drawn
    assert a != d
    assert b != e
    assert c != f
