"""What must not be the same in two copies of one process: randomness above all."""

from __future__ import annotations

import os
import random
import sys


def reseed() -> None:
    """Seed every generator of random numbers of this interpreter that is known to us, from the system's.

    Those that user code made for itself are its own matter (`rewarm.after_restore`).
    """
    random.seed()
    numpy_random = sys.modules.get("numpy.random")  # numpy 2 loads it on first use, and seeds it then
    if numpy_random is not None:
        numpy_random.seed(random.getrandbits(32))
    ssl = sys.modules.get("ssl")
    if ssl is not None:  # OpenSSL keeps generators of its own
        ssl.RAND_add(os.urandom(32), 32.0)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.default_generator.seed()
