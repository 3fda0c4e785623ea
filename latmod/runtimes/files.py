"""Give engines that read files a whole model: the graph with its weights made, in a folder that goes again."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from latmod.errors import UnsupportedModelError
from latmod.graph import fill_weights, weight_slots
from latmod.runtimes import Model
from latmod.weights import WeightMaker

# A protobuf of more than 2 GiB cannot be written; above this the weights lie beside the graph.
_MAX_INLINE_BYTES = 1_800_000_000
_TIMEOUT_SECONDS = 300


@contextmanager
def whole_file(model: Model) -> Iterator[Path]:
    """Write the model with its weights to `model.onnx` in a temporary folder, and remove both afterwards."""
    from onnx import save_model

    path = Path(model.path)
    proto = fill_weights(path, WeightMaker(model.weight_seed).make(weight_slots(path)))
    with tempfile.TemporaryDirectory(prefix="latmod-model-") as folder:
        whole = Path(folder) / "model.onnx"
        large = sum(len(tensor.raw_data) for tensor in proto.graph.initializer) > _MAX_INLINE_BYTES
        save_model(proto, str(whole), save_as_external_data=large, location="weights.bin")
        yield whole


def run_converter(command: Sequence[str], folder: Path, name: str) -> tuple[int, str]:
    """Run a program that converts a model in its folder; return its exit code and the last that it said, in one line.

    In a process of its own: converters print, and end their process on graphs that they do not like. Raises
    UnsupportedModelError, with the `name` of the model, where it does not end.
    """
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise UnsupportedModelError(f"{name} is not converted within {_TIMEOUT_SECONDS} s") from error
    told = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return done.returncode, one_line(" ".join(told[-3:]))


@contextmanager
def silent() -> Iterator[None]:
    """Let nothing of what an engine's own code prints reach standard output, which belongs to results."""
    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(nowhere)
        os.close(kept)


def one_line(error: object) -> str:
    """Return an engine's message as one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]
