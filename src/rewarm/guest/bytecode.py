"""Python files compiled ahead, for images that nobody can write to."""

from __future__ import annotations

import sys
from pathlib import Path

from rewarm.guest.workshop import run

# Never checked against the source: it cannot change. In a process of its own and in one order, because what marshal
# writes depends on which strings the interpreter shares, and with one seed, because sets are stored in their order.
_COMPILE = """\
import os, py_compile, sys
tree, inside = sys.argv[1:]
for folder, folders, names in os.walk(tree):
    folders.sort()
    for name in sorted(names):
        if name.endswith(".py"):
            path = os.path.join(folder, name)
            where = os.path.join(inside, os.path.relpath(path, tree))
            mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
            try:
                py_compile.compile(path, dfile=where, doraise=True, invalidation_mode=mode)
            except (py_compile.PyCompileError, ValueError, SyntaxError):
                pass  # a template, or of another Python: it fails when it is imported, as it would anywhere
"""


def compile_tree(tree: Path, inside: str) -> None:
    """Every Python file of `tree` into its __pycache__; tracebacks will name it in the folder `inside`.

    Raises SystemFault.
    """
    words = [sys.executable, "-S", "-s", "-B", "-W", "ignore", "-c", _COMPILE, str(tree), inside]
    run(words, needs="Python", env={"PYTHONHASHSEED": "0", "PYTHONPATH": "", "PYTHONPYCACHEPREFIX": ""})
