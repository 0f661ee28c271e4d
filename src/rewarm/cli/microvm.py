"""`rewarm microvm`: the guest that micro-VMs boot, made and looked at on this machine; needs no server."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import click

from rewarm.cli.options import json_option
from rewarm.cli.output import emit_json, progress_bar, show_table
from rewarm.errors import HomeLocked, MicrovmUnavailable
from rewarm.units import human_bytes, human_seconds

_home_option = click.option("--home", envvar="REWARM_HOME", default="~/.rewarm", show_default=True, show_envvar=True,
                            help="Where the server keeps what it has.")  # fmt: skip


@click.group("microvm", short_help="Make the guest that micro-VMs boot.")
def command() -> None:
    """Make the guest that micro-VMs boot (kernel, Python, a small init), see what is kept for them, remove it.

    Needs no root and no server. Everything comes from this machine's Debian mirrors, by way of apt.

    \b
    Examples:
      rewarm microvm build
      rewarm microvm status --json
      rewarm microvm rm
    """


@command.command("build", short_help="Make a guest of Debian packages.")
@_home_option
@json_option
def build(home: str, as_json: bool) -> None:
    """Download Debian packages (about 40 MB, kept for the next time), unpack them without running any of their
    scripts, and make a kernel, an initrd and a root file system of them.

    The same packages give the same guest, byte for byte. A server uses it from its next start of a micro-VM on.

    \b
    Examples:
      rewarm microvm build
      rewarm microvm build --home /var/lib/rewarm --json
    """
    import time

    from rewarm.guest import build_guest
    from rewarm.store.home import Home

    since_s = time.monotonic()
    path = _path(home)
    with contextlib.suppress(HomeLocked):  # a server lives in it: it is a home already
        Home.open(path).close()
    with progress_bar(as_json) as bar:

        def progress(step: str, done: int, total: int) -> None:
            if bar is not None:
                scale = 1e6 if step == "downloading" else 1
                bar(round(done / scale), round(total / scale), step)

        guest = build_guest(path, progress)
    took_s = time.monotonic() - since_s
    if as_json:
        emit_json({**_told(path), "seconds": took_s})
        return
    click.echo(
        f"guest {guest.guest_id}: Linux {guest.kernel_version}, Python {guest.python}; made in {human_seconds(took_s)}"
    )


@command.command("status", short_help="Show the guest and what is kept for micro-VMs.")
@_home_option
@json_option
def status(home: str, as_json: bool) -> None:
    """Show the guest that was built last, and the disk space of all guests, packages and images.

    Not of snapshots, which come and go with a server: rewarm ps shows those.

    \b
    Examples:
      rewarm microvm status
      rewarm microvm status --json | jq .guest.kernel_version
    """
    told = _told(_path(home))
    if as_json:
        emit_json(told)
        return
    guest = told["guest"]
    if guest is None:
        click.echo(told["why"])
    else:
        click.echo(f"guest {guest['guest_id']}: Linux {guest['kernel_version']}, Python {guest['python']}")
    if told["kept"]:
        rows = [[kept["name"], human_bytes(kept["disk_bytes"])] for kept in told["kept"]]
        show_table(["kept", "on disk"], [*rows, ["", human_bytes(told["disk_bytes"])]], right=["on disk"])


@command.command("rm", short_help="Remove the guest and all images.")
@_home_option
@json_option
def remove(home: str, as_json: bool) -> None:
    """Remove the guest, the downloaded packages and all images made for micro-VMs. No server may be using the home.

    Deployed functions stay: those that run in micro-VMs start again once there is a guest.

    \b
    Examples:
      rewarm microvm rm
      rewarm microvm rm --home /var/lib/rewarm
    """
    from rewarm.guest.workshop import Workshop
    from rewarm.store.home import Home

    with Home.open(_path(home)) as opened:
        workshop = Workshop(opened.path)
        freed_bytes = sum(workshop.contents().values())
        workshop.remove()
    if as_json:
        emit_json({"home": str(opened.path), "freed_bytes": freed_bytes})
    else:
        click.echo(f"freed {human_bytes(freed_bytes)}")


def _path(home: str) -> Path:
    return Path(os.path.realpath(Path(home).expanduser()))


def _told(path: Path) -> dict[str, Any]:
    from rewarm.guest import find_guest
    from rewarm.guest.workshop import Workshop

    kept = [{"name": name, "disk_bytes": used} for name, used in Workshop(path).contents().items()]
    told: dict[str, Any] = {
        "home": str(path), "guest": None, "why": "", "kept": kept, "disk_bytes": sum(k["disk_bytes"] for k in kept),
    }  # fmt: skip
    try:
        guest = find_guest(path)
    except MicrovmUnavailable as error:
        return {**told, "why": error.message}
    return {
        **told,
        "guest": {
            "guest_id": guest.guest_id, "python": guest.python, "kernel_version": guest.kernel_version,
            "folder": str(guest.folder), "sha256": guest.sha256,
        },
    }  # fmt: skip
