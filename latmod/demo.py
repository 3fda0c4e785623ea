"""The main job in a few minutes: sweep, fit, predict a network that was not in the sweep, measure it, compare."""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from latmod.dataset import DatasetFolder, Protocol, Seeds
from latmod.export import export_spec
from latmod.families import FAMILIES
from latmod.fitting import fit, write_artifact
from latmod.measuring import measure
from latmod.plan import bundled_spaces, default_memory_bytes, plan_sweep
from latmod.predicting import predict
from latmod.predictor import load_predictor
from latmod.sweeping import Notify, run_sweep
from latmod.table import write_table

ROUNDS = 3
BURST_SECONDS = 0.3
_FAMILY = "resnet"
_HELD_OUT: dict[str, object] = {"block": "basic", "blocks": [2, 2, 2, 2], "width": 64}
"""ResNet-18, which the demo's space could draw but does not."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what was predicted for one runtime, and what was measured afterwards."""

    model: str
    runtime: str
    predicted_ms: float
    low_ms: float
    high_ms: float
    measured_ms: float
    error: float


RUNTIMES = ("onnxruntime", "torch")
"""What the demo runs in, whatever else is installed."""


def run_demo(out: Path, runtimes: Sequence[str], notify: Notify, say: Callable[[str], None]) -> list[Comparison]:
    """Run the whole of latmod into a folder; start it again to resume a sweep that was interrupted."""
    folder = DatasetFolder(out / "dataset")
    protocol = Protocol(
        threads=1,
        rounds=ROUNDS,
        burst_seconds=BURST_SECONDS,
        patience_seconds=BURST_SECONDS,
        min_samples=3,
        max_samples=60,
        max_latency_seconds=0.0,
        input_count=4,
        images="",
        seeds=Seeds(),
    )
    card = plan_sweep([bundled_spaces()["demo"]], runtimes, protocol, name="demo")
    say(f"1. measuring {len(card.planned)} ResNets in {' and '.join(runtimes)}, {ROUNDS} rounds")
    result = run_sweep(folder, card, notify, repeats=0, memory_bytes=default_memory_bytes(card.machine))
    say(f"   {result.measured} done, {len(result.failed)} failed; table: {write_table(folder)}")

    say("2. fitting predictors")
    reports, _ = fit([folder], regressors=("LinearRegression", "PhysicsKernel"), split_seeds=5)
    files = [write_artifact(artifact, out / "predictors") for report in reports for artifact in report.artifacts]
    for file in files:
        say(f"   {file}")

    model = out / "resnet18.onnx"
    family = FAMILIES[_FAMILY]
    export_spec(family, msgspec.convert(_HELD_OUT, family.spec_type), model)
    say(f"3. predicting {model}, which was not in the sweep")
    predictions = {one.runtime: one for one in predict(model, predictors=[load_predictor(file) for file in files])}

    say("4. measuring it")
    rows = []
    for measured in measure([model], list(predictions), rounds=5, burst_seconds=0.5):
        if measured.latency_ms is None:
            say(f"   {measured.runtime}: {measured.status}")
            continue
        told = predictions[measured.runtime]
        rows.append(
            Comparison(
                model=measured.model,
                runtime=measured.runtime,
                predicted_ms=told.latency_ms,
                low_ms=told.low_ms,
                high_ms=told.high_ms,
                measured_ms=measured.latency_ms,
                error=told.latency_ms / measured.latency_ms - 1.0,
            )
        )
    return rows
