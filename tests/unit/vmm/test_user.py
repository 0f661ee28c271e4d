from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import rewarm
from rewarm.vmm.user import FIRST_UID, UIDS, obstacle, runs_as, take_uid

_CODE = "from rewarm.vmm.user import runs_as, take_uid; print(take_uid(), runs_as())"


def said(*before: str) -> str:
    """By a server that was started so."""
    environment = {**os.environ, "PYTHONPATH": str(Path(rewarm.__file__).parents[1])}
    if subprocess.run([*before, "true"], check=False).returncode != 0:
        pytest.skip(f"{before[0]} is not allowed here")
    words = [*before, sys.executable, "-P", "-c", _CODE]
    return subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


@pytest.mark.skipif(obstacle() is not None, reason=str(obstacle()))
def test_every_machine_has_a_user_of_its_own() -> None:
    uids = [take_uid() for _ in range(100)]
    assert len(set(uids)) == 100
    assert all(uid is not None and FIRST_UID <= uid < FIRST_UID + UIDS for uid in uids)
    assert str(FIRST_UID) in runs_as()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has something to give up")
@pytest.mark.parametrize(
    ("before", "words"),
    [
        (("setpriv", "--reuid", "65534"), "None as the server's user: the server is not root"),
        (
            ("setpriv", "--inh-caps", "-all", "--bounding-set", "-kill,-chown"),
            "None as the server's user: root lacks the capabilities chown, kill here",
        ),
        (("unshare", "--user", "--map-root-user"), "None as the server's user: this user namespace has one user"),
    ],
)
def test_others_keep_theirs(before: tuple[str, ...], words: str) -> None:
    assert said(*before) == words
