"""What `import rewarm` promises, and that the documentation knows all of it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import rewarm

ROOT = Path(__file__).resolve().parents[2]
PUBLIC = ["Aimd", "Dynamic", "NoBatching", "RewarmError", "Slo", "Static", "Tensor", "Weights", "after_restore",
          "before_snapshot", "function"]  # fmt: skip


def test_public_names() -> None:
    assert rewarm.__all__ == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert getattr(rewarm, name).__doc__


def test_nothing_of_ours_is_public_by_accident() -> None:
    ours = {
        name
        for name, value in vars(rewarm).items()
        if not name.startswith("_")
        and not isinstance(value, ModuleType)
        and getattr(value, "__module__", "").startswith("rewarm")
    }
    assert ours <= set(PUBLIC)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = rewarm.nonsense


def test_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", rewarm.__version__)


def test_import_is_cheap() -> None:
    """User code pays for facts and policies only: no server, no numpy, no asyncio."""
    code = "import sys, rewarm; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    env = {"PYTHONPATH": str(ROOT / "src")}
    loaded = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True, text=True).stdout
    assert not {"asyncio", "numpy", "onnxruntime", "torch", "uvicorn", "starlette", "click"} & set(loaded.split())


@pytest.mark.parametrize("name", PUBLIC)
def test_docs_mention(name: str) -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    text = "\n".join(page.read_text("utf-8") for page in pages if page.is_file())
    assert re.search(rf"\brewarm\.{name}\b", text), f"neither README.md nor docs/ mentions rewarm.{name}"
