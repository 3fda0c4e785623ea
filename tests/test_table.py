import csv
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from latmod_fake import latency_ns

from latmod.dataset import DatasetFolder, Measurement, Protocol
from latmod.errors import MachineError
from latmod.plan import plan_sweep
from latmod.repeat import repeatability
from latmod.sweeping import run_sweep
from latmod.table import observations, parity_failures, table_row, write_table
from latmod.timing import Statistic


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, exported_graphs: Path) -> DatasetFolder:
    """Return a finished sweep of the tiny space in the fake runtime."""
    found = DatasetFolder(tmp_path_factory.mktemp("data") / "tiny")
    shutil.copytree(exported_graphs, found.graph_path("x").parent)
    card = plan_sweep(
        [exported_graphs / "tiny.toml"], ["fake"], Protocol(rounds=3, burst_seconds=0.01, max_samples=20), name="tiny"
    )
    run_sweep(found, card, lambda progress: None)
    return found


def test_an_observation_knows_spec_features_and_latency(folder: DatasetFolder) -> None:
    for one in observations(folder):
        truth = latency_ns(one.features)
        assert one.latency_ns() == pytest.approx(truth, rel=0.01)
        assert one.latency_ns(Statistic.MIN) <= one.latency_ns(Statistic.P50) <= one.latency_ns(Statistic.P90)
        assert one.features["blocks1"] == one.spec["blocks"][0]  # type: ignore[index]
        assert one.features["width"] == one.spec["width"]
        assert one.parity == "ok"


def test_a_slow_day_is_told_by_all_networks_and_taken_out(folder: DatasetFolder, tmp_path: Path) -> None:
    again = DatasetFolder(tmp_path / "days")
    shutil.copytree(folder.path, again.path)
    log = again.path / "measurements.jsonl"
    bursts = [msgspec.json.decode(line) for line in log.read_bytes().splitlines()]
    for burst in bursts:
        day = 2 if burst["round"] == 2 else 1
        burst["started"] = f"2026-01-0{day}T00:00:00+00:00"
        if day == 2 and burst["status"] == "ok":
            burst["samples_ns"] = [round(1.44 * ns) for ns in burst["samples_ns"]]
    log.write_bytes(b"".join(msgspec.json.encode(burst) + b"\n" for burst in bursts))
    for one in observations(again):
        assert one.latency_ns() == pytest.approx(1.2 * latency_ns(one.features), rel=0.01)
        assert max(one.round_ns["min"]) < 1.02 * min(one.round_ns["min"])
    raw = observations(again, {})
    assert all(max(one.round_ns["min"]) > 1.4 * min(one.round_ns["min"]) for one in raw)


def test_the_table_reads_as_what_it_is(folder: DatasetFolder) -> None:
    rows = list(csv.DictReader(write_table(folder).open()))
    assert len(rows) == 4
    first = ["model", "family", "runtime", "threads", "batch", "latency_ms", "min_ms", "p50_ms", "p90_ms", "mean_ms"]
    assert list(rows[0])[: len(first)] == first
    assert {row["spec_block"] for row in rows} == {"basic", "bottleneck"}
    for row in rows:
        assert float(row["min_ms"]) <= float(row["latency_ms"]) <= float(row["mean_ms"]) * 1.0001
        assert float(row["noise"]) < 0.05
        assert float(row["macs"]) > 0


def test_the_table_opens_in_pandas_with_numbers_as_numbers(folder: DatasetFolder) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_csv(write_table(folder))
    assert frame["latency_ms"].dtype == np.float64
    assert frame["threads"].dtype == np.int64
    assert frame.notna().all().all()


def test_rows_and_features_have_no_name_twice(folder: DatasetFolder) -> None:
    one = observations(folder)[0]
    assert len(table_row(one)) == 13 + len(one.spec) + 3 + len(one.features) - 1


def test_a_sweep_repeats_itself(folder: DatasetFolder) -> None:
    for row in repeatability(folder, folder):
        assert (row.models, row.median_difference, row.within_5) == (4, 0.0, 1.0)


def test_two_machines_are_not_compared(folder: DatasetFolder, tmp_path: Path) -> None:
    import msgspec

    other = DatasetFolder(tmp_path / "other")
    shutil.copytree(folder.path, other.path)
    card = other.read_card()
    machine = msgspec.structs.replace(card.machine, memory_gib=card.machine.memory_gib + 1)
    other.write_card(msgspec.structs.replace(card, machine=machine))
    with pytest.raises(MachineError, match="different machines"):
        repeatability(folder, other)


def test_parity_failures_are_models_whose_outputs_differ_or_are_not_finite(folder: DatasetFolder) -> None:
    def burst(model: str, runtime: str, value: float, reason: str = "") -> Measurement:
        return Measurement(
            model=model, runtime=runtime, round=0, status="ok", samples_ns=(1,), output=(1.0, value), reason=reason
        )

    measurements = [
        burst("odd", "a", 0.5),
        burst("odd", "b", 0.5 + 1e-5),
        burst("odd", "c", 0.505),
        burst("same", "a", 0.5),
        burst("same", "b", 0.5 + 1e-5),
        burst("other", "a", 0.5),
        burst("other", "b", 0.51),
        burst("infinite", "a", 0.0, "the output is not finite"),
    ]
    both = {("other", "a"), ("other", "b"), ("infinite", "a")}
    assert parity_failures(measurements) == both | {("odd", "c")}
    assert parity_failures(measurements, {"c": 0.01}) == both
