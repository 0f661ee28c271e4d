"""`rewarm experiment streaming`: first answers of models that are not in memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from rewarm.cli.options import json_option
from rewarm.cli.output import emit_json, progress_bar, show_table, show_verdicts

if TYPE_CHECKING:
    from rewarm.bench.streaming_rows import Result


@click.command("streaming", short_help="First answers of models that are not in memory.")
@click.option("--quick", is_flag=True, help="BERT-base and MiniLM only: under four minutes in all.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("results"), show_default=True,
              help="Folder for streaming.json, streaming.md and streaming.svg.")  # fmt: skip
@click.option("--models", type=click.Path(file_okay=False, path_type=Path),
              default=Path("~/.cache/rewarm/models"), show_default=True,
              help="Folder on a real disk where models are written once and stay: 2.8 GB, with --quick 0.6 GB; thrice "
                   "that while it runs.")  # fmt: skip
@json_option
def streaming(quick: bool, out: Path, models: Path, as_json: bool) -> None:
    """{read all, on demand, streamed, + pins, warm} × {BERT-base, Llama-1B, ResNet-50, MiniLM} on torch, cold and warm.

    Beside torch.load, safetensors, what else is installed of runai-model-streamer, fastsafetensors and tensorizer, and
    the default session of onnxruntime beside a mapped one. Nothing else should use the machine meanwhile. Needs torch
    and safetensors, and a user who may lock half a model in memory (`ulimit -l`).

    \b
    Examples:
      rewarm experiment streaming --quick
      rewarm experiment streaming --out results/ --json
    """
    from rewarm.bench import streaming_report
    from rewarm.bench.experiment_streaming import require_engines, run
    from rewarm.bench.plots import require_matplotlib
    from rewarm.bench.streaming_rows import QUICK, Settings

    # What is missing is told before minutes of measuring, not after.
    require_engines()
    require_matplotlib()
    with progress_bar(as_json, "cases") as progress:
        result = run(models.expanduser(), QUICK if quick else Settings(), progress)
    paths = streaming_report.write(result, out)
    if as_json:
        emit_json(streaming_report.to_json(result))
        return
    _show(result)
    click.echo("written: " + ", ".join(str(path) for path in paths))


def _show(result: Result) -> None:
    from rewarm.bench import streaming_report

    titles = list(streaming_report.TITLES)
    show_table(titles, [streaming_report.cells(row) for row in result.rows], right=titles[3:])
    click.echo()
    show_verdicts(streaming_report.verdicts(result))
    for what, why in result.left_out.items():
        click.echo(f"left out: {what}: {why}")
