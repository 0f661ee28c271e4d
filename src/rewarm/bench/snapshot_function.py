"""The function of experiment `snapshot`, deployed as this very file: three dense layers behind a table of 64 MB.

A request is a list of words, each the number of a row of the table; the answer depends on all of them. What the
constructor makes is the same each time, so equal requests have equal answers, whichever instance gives them.
"""

import numpy as np

import rewarm

ROWS, WIDTH, HIDDEN, CLASSES, WORDS = 1 << 18, 64, 256, 10, 32  # 2**18 rows of 64 float32: 64 MB

_DRAWN = 1 << 10

#: What it is warmed up and recorded with, and asked; and an input that it has not seen before.
SAMPLES = {"first.json": list(range(WORDS)), "second.json": list(range(1000, 1000 + 97 * WORDS, 97))}
UNSEEN = list(range(5, ROWS, ROWS // WORDS))[:WORDS]


@rewarm.function(
    name="snapshot-mlp", memory="512MB", preload=["numpy"], isolation="microvm", samples=list(SAMPLES),
    inputs={"words": rewarm.Tensor("int64", (WORDS,))}, outputs={"scores": rewarm.Tensor("float32", (CLASSES,))},
)  # fmt: skip
class SnapshotMlp:
    """Weights are drawn here: the experiment is about memory, and where it came from does not matter to it."""

    def __init__(self) -> None:
        draw = np.random.default_rng(0)
        some = draw.random((_DRAWN, WIDTH), np.float32)
        self.table = np.empty((ROWS, WIDTH), np.float32)
        for number in range(0, ROWS, _DRAWN):  # drawing all of it would take an emulated processor seconds
            np.add(some, np.float32(number / ROWS), out=self.table[number : number + _DRAWN])
        shapes = ((WIDTH, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, CLASSES))
        self.layers = [draw.random(shape, np.float32) / shape[0] for shape in shapes]

    def predict(self, words: np.ndarray) -> np.ndarray:
        """Numbers of rows int64 [batch, 32] -> scores float32 [batch, 10]."""
        hidden: np.ndarray = self.table[words].mean(axis=1)
        for layer in self.layers:
            hidden = np.maximum(hidden @ layer, 0)
        return hidden
