"""Starting a monitor of virtual machines so that it does not outlive the server."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

#: What a process gives up that gets a user of its own.
_GIVEN_UP = ("--clear-groups", "--inh-caps", "-all", "--bounding-set", "-all", "--no-new-privs")


def spawn(
    words: Sequence[str], env: Mapping[str, str], pass_fds: Iterable[int], output_fd: int, folder: Path | None = None,
    uid: int | None = None,
) -> int:  # fmt: skip
    """The pid of a new process, a child of this one in a process group of its own. Raises OSError.

    It is killed when the thread that called this ends. `setpriv` asks for the signal last, since a change of user
    clears it, and it is bound to whoever is the parent then; the shell looks whether that was still us. Neither sees
    `env`, which may name a library to preload. The output goes to `output_fd`; of the environment it gets PATH and
    `env`. With `uid`, that is its user and its group, and it has no capability, nor can it get any. Nobody but the
    caller waits for its end.
    """
    become: list[str] = []
    if uid is not None:
        os.fchown(output_fd, uid, uid)  # a pipe may be opened anew through /proc by its owner alone
        become = ["--reuid", str(uid), "--regid", str(uid), *_GIVEN_UP]
    exports = "".join(f"export {name}={shlex.quote(value)}; " for name, value in env.items())
    script = f'[ "$PPID" = {os.getpid()} ] || exit 1; {exports}exec "$@"'
    process = subprocess.Popen(
        ["setpriv", *become, "--pdeathsig", "KILL", "sh", "-c", script, "sh", *words],
        pass_fds=tuple(pass_fds), stdin=subprocess.DEVNULL, stdout=output_fd, stderr=output_fd, process_group=0,
        cwd=folder, env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
    )  # fmt: skip
    process.returncode = 0  # the caller waits for it, not subprocess
    return process.pid
