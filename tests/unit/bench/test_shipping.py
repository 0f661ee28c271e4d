"""What is shipped for a file and for a folder; files are inspected by the real inspecting process."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rewarm.bench.shipping import Wish, find_example, of_target
from rewarm.errors import BadDefinition, NotFound, RewarmError

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")

CLASS = """
import numpy as np
import rewarm
from helper import double

@rewarm.function(name="twice"{weights})
class Twice:
    def predict(self, x: np.ndarray) -> np.ndarray:
        return double(x)
"""
TWO = """
import rewarm

@rewarm.function(name="a")
def one(event, context): return 1

@rewarm.function(name="b")
def two(event, context): return 2
"""


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return folder


def test_a_file_goes_with_its_local_modules_and_weights(tmp_path: Path) -> None:
    text = CLASS.format(weights=', weights="w.bin"')
    write(tmp_path, app__py=text, helper__py="def double(x): return 2 * x\n", w__bin="w", other__py="")
    shipment = of_target(str(tmp_path / "app.py"), Wish(overrides={"memory": "512MB"}))
    assert set(shipment.files) == {"app.py", "helper.py", "w.bin"}
    assert shipment.manifest == {
        "file": "app.py", "select": None, "handler": None, "name": None, "overrides": {"memory": "512MB"},
    }  # fmt: skip
    assert shipment.size_bytes == sum(path.stat().st_size for path in shipment.files.values())


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    write(tmp_path, app__py=CLASS.format(weights=', weights="w.bin"'), helper__py="def double(x): return x\n")
    with pytest.raises(RewarmError, match=r"w\.bin"):
        of_target(str(tmp_path / "app.py"), Wish())


def test_weights_outside_the_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "w.bin").write_text("w")
    text = CLASS.format(weights=', weights="../w.bin"')
    write(tmp_path / "in", app__py=text, helper__py="def double(x): return x\n")
    with pytest.raises(RewarmError, match=r"w\.bin"):
        of_target(str(tmp_path / "in" / "app.py"), Wish())


def test_two_functions_in_a_file_need_a_choice(tmp_path: Path) -> None:
    path = str(write(tmp_path, app__py=TWO) / "app.py")
    with pytest.raises(BadDefinition, match="two"):
        of_target(path, Wish())
    assert of_target(f"{path}:two", Wish()).manifest["select"] == "two"


def test_a_plain_handler_needs_no_decorator(tmp_path: Path) -> None:
    path = str(write(tmp_path, handler__py="def main(event, context): return event\n") / "handler.py")
    shipment = of_target(path, Wish(handler="handler.main", name="echo"))
    assert shipment.manifest["handler"] == "handler.main"
    assert shipment.manifest["name"] == "echo"
    with pytest.raises(BadDefinition, match="--handler"):
        of_target(path, Wish())


@pytest.mark.parametrize("text", ["import nothing_of_that_name\n", "def broken(:\n", "import os; os._exit(3)\n"])
def test_a_file_that_does_not_import_is_told_in_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(RewarmError) as error:
        of_target(str(write(tmp_path, app__py=text) / "app.py"), Wish())
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize("target", ["nowhere.py", "nowhere", "nowhere.py:Name"])
def test_a_path_that_is_not_there(target: str) -> None:
    with pytest.raises(NotFound, match="nowhere"):
        of_target(target, Wish())


def test_targets_that_cannot_be_meant(tmp_path: Path) -> None:
    write(tmp_path, notes__txt="x", app__py=TWO)
    with pytest.raises(BadDefinition, match=r"not a \.py file"):
        of_target(str(tmp_path / "notes.txt"), Wish())
    with pytest.raises(BadDefinition, match="nothing after it"):
        of_target(f"{tmp_path / 'app.py'}:", Wish())
    with pytest.raises(BadDefinition, match="one of them"):
        of_target(f"{tmp_path / 'app.py'}:one", Wish(handler="app.two"))
    with pytest.raises(BadDefinition, match="takes no :Name"):
        of_target(f"{tmp_path}:Name", Wish())


def test_a_folder_goes_whole_save_for_hidden_files_and_caches(tmp_path: Path) -> None:
    toml = 'file = "app.py"\nselect = "one"\nname = "first"\n[overrides]\nmemory = "512MB"\nslo = "1s"\n'
    write(tmp_path, app__py=TWO, rewarm__toml=toml)
    for name in (".git/x", ".venv/x", "__pycache__/x", "node_modules/x", "data/deep/x", ".hidden", "data/.hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    shipment = of_target(str(tmp_path), Wish(overrides={"memory": "1GB"}))
    assert set(shipment.files) == {"app.py", "rewarm.toml", "data/deep/x"}
    assert shipment.manifest == {
        "file": "app.py", "select": "one", "handler": None, "name": "first",
        "overrides": {"memory": "1GB", "slo": "1s"},
    }  # fmt: skip
    # What the command line says wins, and a handler replaces the selection.
    wished = of_target(str(tmp_path), Wish(handler="app.two", name="second")).manifest
    assert (wished["handler"], wished["select"], wished["name"]) == ("app.two", None, "second")


def test_a_handler_of_a_folder_needs_no_folder_file(tmp_path: Path) -> None:
    write(tmp_path, app__py="def handler(event, context): return event\n", other__mjs="export const handler = 1;")
    for name in ("node_modules/left/index.js", "node_modules/.bin/x", "__pycache__/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    python = of_target(str(tmp_path), Wish(handler="app.handler"))
    assert set(python.files) == {"app.py", "other.mjs"}
    assert (python.manifest["file"], python.manifest["handler"]) == ("app.py", "app.handler")
    node = of_target(str(tmp_path), Wish(handler="other.routes.hello"))
    assert set(node.files) == {"app.py", "other.mjs", "node_modules/left/index.js"}
    assert node.manifest["file"] == "other.mjs"
    with pytest.raises(BadDefinition, match=r"no file for --handler gone\.handler"):
        of_target(str(tmp_path), Wish(handler="gone.handler"))
    write(tmp_path, app__js="")
    with pytest.raises(BadDefinition, match=r"several files .*app\.py, app\.js"):
        of_target(str(tmp_path), Wish(handler="app.handler"))


@needs_node
def test_javascript_goes_with_its_local_modules(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    write(tmp_path, app__mjs="import {two} from './lib/two.mjs'; export const handler = () => two;", other__mjs="")
    write(tmp_path / "lib", two__mjs="import three from './three.cjs'; export const two = three - 1;")
    write(tmp_path / "lib", three__cjs="module.exports = require('./one.json').one + 2;", one__json='{"one": 1}')
    shipment = of_target(str(tmp_path / "app.mjs"), Wish())
    assert set(shipment.files) == {"app.mjs", "lib/two.mjs", "lib/three.cjs", "lib/one.json"}
    write(tmp_path, package__json="{}")
    assert "package.json" in of_target(str(tmp_path / "app.mjs"), Wish()).files


@needs_node
@pytest.mark.parametrize("kind", ["import { left } from 'left';", "const { left } = require('left');"])
def test_packages_go_with_their_folder_only(tmp_path: Path, kind: str) -> None:
    (tmp_path / "node_modules/left").mkdir(parents=True)
    write(tmp_path / "node_modules/left", index__js="exports.left = 1;")
    name = "app.mjs" if kind.startswith("import") else "app.cjs"
    export = "export const handler" if kind.startswith("import") else "exports.handler"
    (tmp_path / name).write_text(f"{kind}\n{export} = () => left;")
    with pytest.raises(BadDefinition, match=rf"rewarm deploy {tmp_path} --handler app\.handler"):
        of_target(str(tmp_path / name), Wish())


@pytest.mark.parametrize(
    ("toml", "complaint"),
    [
        (None, "needs a rewarm.toml"),
        ("file = ", "rewarm.toml"),
        ('name = "x"', "which file"),
        ('file = "gone.py"', "not in the folder"),
        ("file = 3", "must be a string"),
        ('file = "app.py"\nflie = "x"', "unknown key 'flie'"),
        ('file = "app.py"\noverrides = 3', "must be a table"),
        ('file = "app.py"\nselect = "a"\nhandler = "app.b"', "not both"),
    ],
)
def test_a_folder_file_that_cannot_be_meant(tmp_path: Path, toml: str | None, complaint: str) -> None:
    write(tmp_path, app__py=TWO)
    if toml is not None:
        write(tmp_path, rewarm__toml=toml)
    with pytest.raises(BadDefinition, match=complaint):
        of_target(str(tmp_path), Wish())


def test_the_example_is_found_or_its_absence_is_told(tmp_path: Path) -> None:
    assert find_example("any", tmp_path) == tmp_path
    with pytest.raises(NotFound, match=r"in a checkout of rewarm, or name its folder with --app$"):
        find_example("digits", tmp_path / "gone", "--app")
    with pytest.raises(NotFound, match=r"in a checkout of rewarm$"):
        find_example("gone")
