"""`rewarm pack`: what a deploy would make of a function's weights, without a server."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rewarm.cli.options import json_option
from rewarm.cli.output import console, emit_json, show_table, wants_progress
from rewarm.errors import BadDefinition, UsageError
from rewarm.units import counted, human_bytes, human_seconds

if TYPE_CHECKING:
    from rewarm.weights.format import Pack


@click.command("pack", short_help="Pack a function's weights and show their layers.")
@click.argument("path", metavar="PATH[:Name]")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Keep the pack in this new directory.")
@json_option
def command(path: str, out: Path | None, as_json: bool) -> None:
    """Construct the function once, run it, and put its weights in the order in which they are needed.

    `rewarm deploy` does the same on the server. Here it is for a look: which layers there are, how large they are, how
    long each computes, and whether the order is that of a real run ("traced") or of registration, for want of inputs
    (declare them with inputs=…, or give the class a method example()). PATH is what deploy takes.

    \b
    Examples:
      rewarm pack app.py
      rewarm pack app.py:Bert --json | jq '.layers[].bytes'
      rewarm pack ./my-function --out packed/
    """
    if out is not None and out.exists():
        raise UsageError(f"{out} is there already; choose a new directory with --out")
    with tempfile.TemporaryDirectory(prefix="rewarm-pack-") as scratch:
        if wants_progress(as_json):
            with console(err=True).status(f"packing {path}"):
                done = _pack(path, Path(scratch), out)
        else:
            done = _pack(path, Path(scratch), out)
    if as_json:
        emit_json(done)
        return
    rows = [
        [str(no), layer["name"], human_bytes(layer["bytes"]), "" if layer["on_demand"] else "yes",
         human_seconds(layer["compute_s"]) if layer["compute_s"] else ""]
        for no, layer in enumerate(done["layers"], 1)
    ]  # fmt: skip
    show_table(["", "layer", "size", "streamed", "computes"], rows, right=["", "size", "computes"])
    order = "as one run used them" if done["order"] == "traced" else "as they are registered: no inputs to run it with"
    click.echo(f"{human_bytes(done['bytes'])} in {counted(len(rows), 'layer')}, {order}")
    if out is not None:
        click.echo(f"kept in {out}")


def _pack(path: str, scratch: Path, out: Path | None) -> dict[str, Any]:
    from rewarm.bench.shipping import Wish, of_target
    from rewarm.control.deploy import deploy
    from rewarm.store import archive
    from rewarm.store.store import Store

    shipment = of_target(path, Wish())
    upload = scratch / "upload.tar"
    with upload.open("wb") as file:
        archive.pack(shipment.files, dict(shipment.manifest), file)
    with Store.open(scratch / "home") as store:
        revision, _, packed = deploy(store, upload)
        if not packed:
            raise BadDefinition(
                f"{revision.name} has no weights: name them in its decorator, weights='model.safetensors'"
            )
        pack = store.pack(revision)
        if pack is None:
            raise BadDefinition(f"the weights of {revision.name} are not packed: {packed['why']}")
        if out is not None:
            _keep(pack, out)
        return {"name": revision.name, **_described(pack)}


def _described(pack: Pack) -> dict[str, Any]:
    index, facts = pack.index, pack.index.facts()
    return {
        "key": index.key, "kind": index.kind, "order": index.order, "bytes": facts.total_bytes,
        "streamed_bytes": facts.streamed_bytes, "setup_s": index.setup_s,
        "layers": [
            {"name": layer.name, "bytes": layer.size_bytes, "compute_s": layer.compute_s, "on_demand": layer.on_demand}
            for layer in facts.layers
        ],
    }  # fmt: skip


def _keep(pack: Pack, out: Path) -> None:
    out.mkdir(parents=True)
    for path in sorted(pack.folder.iterdir()):
        shutil.copyfile(path, out / path.name)
    for no, file in enumerate(pack.index.files):
        shutil.copyfile(pack.path(no), out / file.name)
