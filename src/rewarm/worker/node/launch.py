"""Become a node process that waits for code: `python -I -S launch.py DATA_FD SERVER_PID NAMESPACES [CGROUP]`.

Node cannot ask for a parent-death signal, so this small script does before it turns into node; a signal once set stays
over an exec. Run by its path and without `site`: to import rewarm would take longer than node itself.
"""

from __future__ import annotations

import os
import resource
import runpy
import sys

_DATA_FD = 3
_HERE = os.path.dirname(os.path.abspath(__file__))
#: The limit of memory is one of the process (RLIMIT_DATA, set when it is handed over), and V8 does not see it coming:
#: it has to collect before its heap grows by a third, and not to keep 48 MB for young objects.
_V8 = ("--max-old-space-size=65536", "--initial-heap-size=16", "--max-semi-space-size=4", "--heap-growing-percent=30")


def main(argv: list[str]) -> None:
    kernel = runpy.run_path(os.path.join(_HERE, os.pardir, os.pardir, "kernel.py"))
    kernel["die_with"](int(argv[1]))
    try:
        for cgroup in argv[3:]:
            kernel["join_cgroup"](cgroup)
        if argv[2] != "none":
            kernel["unshare"](argv[2] == "user")
    except OSError as error:  # less isolation than hoped for is no reason not to start
        print(f"this runtime is not isolated: {error}", file=sys.stderr, flush=True)
    os.dup2(int(argv[0]), _DATA_FD)
    kernel["close_from"](_DATA_FD + 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = 1024 if hard == resource.RLIM_INFINITY else min(1024, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    try:
        os.execvp("node", ["node", *_V8, os.path.join(_HERE, "runtime.mjs")])
    except OSError as error:
        sys.exit(f"node cannot be run ({error.strerror}): install Node.js and start the server with it on its PATH")


if __name__ == "__main__":
    main(sys.argv[1:])
