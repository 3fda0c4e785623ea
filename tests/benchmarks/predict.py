"""Time what a user waits for: `python tests/benchmarks/predict.py` (not part of the suite; needs the extra `torch`).

For ResNet-50 with its 102 MB of weights and weight-free: the whole process of a cold `latmod predict`, a warm
`latmod.predict()` in one process, `import latmod`, the peak memory, and how much cheaper that is than measuring. For
each data set: the share of the sweep's wall time that was spent inside `infer`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import latmod
from latmod.dataset import DatasetFolder
from latmod.graph import strip_weights
from latmod.schedule import summarise

ROOT = Path(__file__).parents[2]


def main() -> None:
    """Print one line per figure, as JSON with --json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        whole = export_resnet50(Path(name) / "resnet50.onnx")
        free = Path(name) / "weight-free.onnx"
        free.write_bytes(strip_weights(whole))
        figures["file_with_weights_mb"] = whole.stat().st_size / 1e6
        figures["file_weight_free_kb"] = free.stat().st_size / 1e3
        figures["import_latmod_s"] = (
            cold(["-c", "import latmod"], arguments.runs)[0] - cold(["-c", ""], arguments.runs)[0]
        )
        both = (("with_weights", whole), ("weight_free", free))
        # The cold ones first: a child's peak memory counts what its parent held when it was forked.
        for label, path in both:
            wall, peak = cold(["-m", "latmod", "predict", str(path)], arguments.runs)
            figures[f"cold_{label}_s"], figures[f"peak_{label}_mb"] = wall, peak / 1e6
        for label, path in both:
            figures[f"warm_{label}_ms"] = warm_ms(path, 3 * arguments.runs)
        start = time.perf_counter()
        measured = latmod.measure([free], ["onnxruntime"])
        figures["measuring_once_s"] = time.perf_counter() - start
        assert measured[0].latency_ms is not None
        figures["measured_ms"] = measured[0].latency_ms
        figures["measuring_over_warm_predict"] = figures["measuring_once_s"] * 1e3 / figures["warm_weight_free_ms"]
    for path in sorted((ROOT / "datasets").glob("*/dataset.json")):
        folder = DatasetFolder(path.parent)
        share = summarise(folder.read_card(), folder.read_measurements()).infer_share
        figures[f"infer_share_{path.parent.name}"] = share
    if arguments.json:
        print(json.dumps(figures, indent=1))
        return
    for figure, value in figures.items():
        print(f"{figure:<40} {value:10.3f}")


EXPORT = """
import sys, warnings
import torch, torchvision
warnings.simplefilter("ignore")
module = torchvision.models.resnet50().eval()
torch.onnx.export(module, (torch.zeros(1, 3, 224, 224),), sys.argv[1], dynamo=False, opset_version=17)
"""


def export_resnet50(path: Path) -> Path:
    """Export torchvision's ResNet-50 with random weights, in a process of its own: this one stays small."""
    subprocess.run([sys.executable, "-c", EXPORT, str(path)], check=True)
    return path


def cold(arguments: list[str], runs: int) -> tuple[float, int]:
    """Return the median wall time (s) and the largest resident set (bytes) of a process, after one warm-up."""
    walls = []
    peak = 0
    for _ in range(runs + 1):
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        walls.append(time.perf_counter() - start)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        peak = max(peak, usage.ru_maxrss * 1024)
    return statistics.median(walls[1:]), peak


def warm_ms(path: Path, runs: int) -> float:
    """Return the median time of `latmod.predict` on a file, everything loaded."""
    latmod.predict(path)
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        latmod.predict(path)
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


if __name__ == "__main__":
    main()
