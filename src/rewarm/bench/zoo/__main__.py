"""`python -m rewarm.bench.zoo`: writes real-shaped models with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rewarm.bench.zoo import CATALOGUE
from rewarm.errors import RewarmError
from rewarm.units import human_bytes

_SIZES = "\n".join(f"  {name:<10} {human_bytes(one.size_bytes):>8}  {one.text}" for name, one in CATALOGUE.items())


@click.command("python -m rewarm.bench.zoo", epilog="\b\nModels:\n" + _SIZES)
@click.argument("models", nargs=-1, required=True, type=click.Choice([*CATALOGUE]), metavar="MODEL...")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="The folder to write to.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="The same seed, the same bytes.")
def main(models: tuple[str, ...], out: Path, seed: int) -> None:
    """Write each MODEL with random weights as a .safetensors file into a folder. Needs torch.

    A file that is there already is kept. Experiments with real sizes use these where no real weights can be had.
    """
    try:
        from rewarm.bench.zoo.generate import weights_file
    except ImportError as error:
        raise click.ClickException(f"{error}; get it with: pip install 'rewarm[torch]'") from error

    for name in dict.fromkeys(models):
        with click.progressbar(length=CATALOGUE[name].size_bytes >> 20, label=name, show_pos=True) as bar:

            def on_progress(done: int, total: int, tensor: str, bar: Any = bar) -> None:
                bar.length = total
                bar.update(done - bar.pos)

            try:
                path = weights_file(name, out, seed, on_progress)
            except RewarmError as error:
                raise click.ClickException(str(error)) from error
        click.echo(str(path))


if __name__ == "__main__":
    main()
