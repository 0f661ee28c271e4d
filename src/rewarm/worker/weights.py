"""The weights of a deployed function, as its constructor sees them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


class Weights:
    """One read-only file in the store. `path` may be opened by anything; the methods are shortcuts."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.size_bytes = self.path.stat().st_size

    def session(self, **options: Any) -> Any:
        """An `onnxruntime.InferenceSession` on the file, with one compute thread.

        Keyword arguments set attributes of its SessionOptions (for example `intra_op_num_threads=2`). Raises what
        onnxruntime raises if the file is not an ONNX model.
        """
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = 1
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        for name, value in options.items():
            if not hasattr(settings, name):
                raise AttributeError(f"onnxruntime.SessionOptions has no option {name!r}")
            setattr(settings, name, value)
        return onnxruntime.InferenceSession(str(self.path), settings, providers=["CPUExecutionProvider"])

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """The arrays of an `.npz` file, or of an `.npy` file under the name "weights". Never unpickles."""
        import numpy as np

        loaded = np.load(self.path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"weights": loaded}
        return {name: loaded[name] for name in loaded.files}

    def __repr__(self) -> str:
        return f"<Weights {self.path.name}, {self.size_bytes} bytes>"
