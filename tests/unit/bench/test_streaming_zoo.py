"""Real-shaped models with random weights: the same for the same seed, whole or absent, and good for an answer."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from click.testing import CliRunner

from rewarm.bench.zoo import CATALOGUE

torch = pytest.importorskip("torch", reason="the zoo is torch's: pip install 'rewarm[torch]'")
safetensors = pytest.importorskip("safetensors", reason="pip install 'rewarm[torch]'")

from rewarm.bench.zoo import __main__, generate, models  # noqa: E402 - they import torch
from rewarm.errors import NotFound, SystemFault  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zoo")


@pytest.fixture(scope="module")
def weights(folder: Path) -> Path:
    return generate.weights_file("minilm", folder)


def test_the_same_seed_gives_the_same_bytes_and_another_gives_others(weights: Path, tmp_path: Path) -> None:
    again, other = (generate.weights_file("minilm", tmp_path, seed) for seed in (0, 1))
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (weights, again, other)]
    assert digests[0] == digests[1] != digests[2]


def test_a_file_that_is_whole_is_kept_and_another_is_written_anew(weights: Path, tmp_path: Path) -> None:
    path = generate.weights_file("minilm", tmp_path)
    written_ns = path.stat().st_mtime_ns
    assert generate.weights_file("minilm", tmp_path) == path and path.stat().st_mtime_ns == written_ns
    with path.open("r+b") as file:
        file.truncate(1 << 20)
    assert generate.weights_file("minilm", tmp_path).read_bytes() == weights.read_bytes()
    assert [found.name for found in tmp_path.iterdir()] == [path.name]  # nothing is left beside it


def test_progress_comes_to_its_end(tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    path = generate.weights_file("minilm", tmp_path, 0, lambda *step: told.append(step))
    done = [step[0] for step in told]
    assert done == sorted(done) and told[-1][0] == told[-1][1] == path.stat().st_size >> 20
    # A table of 45 MB is not held whole: it is told of more than once.
    assert len({step[0] for step in told if step[2] == "embeddings.word_embeddings.weight"}) > 2


@pytest.mark.parametrize("name", ["minilm", "resnet-50"])
def test_weights_fit_their_model_and_answers_are_tame(name: str, folder: Path) -> None:
    from safetensors.torch import load_file

    net = models.FACTORIES[name]().eval()
    net.load_state_dict(load_file(generate.weights_file(name, folder)))
    with torch.inference_mode():
        answer, other = (net(models.example_input(name, seed)) for seed in (0, 1))
    assert torch.isfinite(answer).all() and 0.01 < answer.std() < 1e5
    assert not torch.equal(answer, other)
    assert torch.equal(models.example_input(name, 3), models.example_input(name, 3))


def test_sizes_are_those_that_are_told() -> None:
    assert list(models.FACTORIES) == list(CATALOGUE)
    with torch.device("meta"):
        for name, entry in CATALOGUE.items():
            tensors = models.FACTORIES[name]().state_dict().values()
            size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            assert size_bytes == pytest.approx(entry.size_bytes, rel=0.01), name


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="the zoo has no model 'gpt-9'; it has bert-base"):
        generate.weights_file("gpt-9", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemFault, match="name another folder"):
        generate.weights_file("minilm", tmp_path / "file")
    ran = CliRunner().invoke(__main__.main, ["minilm", "--out", str(tmp_path / "file" / "below")])
    assert ran.exit_code == 1 and "Error: cannot write" in ran.output and "Traceback" not in ran.output
    assert CliRunner().invoke(__main__.main, ["gpt-9", "--out", str(tmp_path)]).exit_code == 2


def test_the_command_says_where(weights: Path, folder: Path) -> None:
    ran = CliRunner().invoke(__main__.main, ["minilm", "--out", str(folder)])
    assert ran.exit_code == 0 and ran.output.splitlines()[-1] == str(weights)
    said = CliRunner().invoke(__main__.main, ["--help"]).output
    for name in CATALOGUE:
        assert name in said
