"""The kernel level from a sweep to its artifact, on the fake runtime, whose latency is a known sum over nodes."""

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from latmod.artifact import KernelCard
from latmod.dataset import DatasetFolder, Protocol
from latmod.errors import DatasetError, MachineError
from latmod.fitting import by_level, write_artifact
from latmod.kernel_findings import KernelReport, fit_kernel_level
from latmod.kernel_fitting import priced
from latmod.labels import labelled_models
from latmod.pairs import evaluate_pairs
from latmod.plan import plan_sweep
from latmod.predicting import predict
from latmod.predictor import KernelPredictor, load_predictor
from latmod.sweeping import run_sweep
from latmod.table import corrections

pytest.importorskip("torch")

SPACE = """
schema = 1
family = "{family}"
count = 8
seed = 1

[draw]
variant = {{ low = 0, high = 999, scale = "uniform" }}
width = {{ low = 12, high = 32, scale = "log" }}
depth = {{ low = 3, high = 6, scale = "log" }}
side = {{ values = [64, 96] }}
classes = 10
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> DatasetFolder:
    place = tmp_path_factory.mktemp("kernels")
    spaces = []
    for family in ("mobile", "plain", "grouped"):
        path = place / f"{family}.toml"
        path.write_text(SPACE.format(family=family))
        spaces.append(path)
    protocol = Protocol(rounds=3, burst_seconds=0.001, max_samples=5, kernel_rounds=2)
    found = DatasetFolder(place / "data")
    card = plan_sweep(spaces, ["fake"], protocol, name="data")
    result = run_sweep(found, card, lambda progress: None)
    assert (result.measured, result.failed) == (24, ())
    return found


def test_per_kernel_times_are_told_in_the_first_rounds_and_not_again(folder: DatasetFolder) -> None:
    told = folder.read_kernels()
    assert len(told) == 24 * 2
    assert {burst.round for burst in told} == {0, 1}
    assert all(burst.status == "ok" and burst.kernels for burst in told)
    run_sweep(folder, folder.read_card(), lambda progress: None)
    assert len(folder.read_kernels()) == 24 * 2


def test_models_that_were_never_measured_in_quiet_are_left_out(folder: DatasetFolder, tmp_path: Path) -> None:
    noisy = DatasetFolder(tmp_path / "noisy")
    shutil.copytree(folder.path, noisy.path)
    log = noisy.path / "measurements.jsonl"
    bursts = [json.loads(line) for line in log.read_text().splitlines()]
    disturbed = bursts[-1]["model"]
    for burst in bursts:
        if burst["status"] == "ok":
            burst["probes_ns"] = [200 if burst["model"] == disturbed else 100] * len(burst["samples_ns"])
    log.write_text("".join(f"{json.dumps(burst)}\n" for burst in bursts))
    assert fit_kernel_level([noisy], jobs=1)[0].rows[0].models == 23


def test_every_family_is_predicted_from_the_others(folder: DatasetFolder, tmp_path: Path) -> None:
    report = fit_kernel_level([folder], jobs=1)[0]
    assert [row.family for row in report.rows] == ["all", "all, of known families", "grouped", "mobile", "plain"]
    assert report.rows[0].mape < 0.3
    assert report.rows[0].models == 24
    assert abs(sum(part.share for part in report.parts) - 1.0) < 1e-6
    path = write_artifact(report.artifact, tmp_path)
    loaded = load_predictor(path)
    assert isinstance(loaded, KernelPredictor)
    assert isinstance(loaded.card, KernelCard)
    model = sorted((folder.path / "graphs").glob("*.onnx"))[0]
    answer = predict(model, predictors=[loaded])[0]
    assert answer.level == "kernel"
    assert answer.in_domain
    assert answer.low_ms < answer.latency_ms < answer.high_ms
    related, alike = evaluate_pairs(folder, [loaded])
    assert (related.pairs_of, related.pairs) == ("one family", 3 * 28)
    assert 0 < alike.pairs < 24 * 23 / 2
    assert related.coverage >= 0.8
    assert related.false_alarms <= 0.2
    assert 0 < related.error < related.width


def test_two_data_sets_may_have_the_same_networks(folder: DatasetFolder, tmp_path: Path) -> None:
    again = DatasetFolder(tmp_path / "again")
    shutil.copytree(folder.path, again.path)
    report = fit_kernel_level([folder, again], jobs=1)[0]
    assert report.rows[0].models == 48
    assert isinstance(report.artifact.card, KernelCard)
    assert 0.0 < report.artifact.card.pair_quantile < 10.0


def test_nothing_is_borrowed_of_other_threads(folder: DatasetFolder, tmp_path: Path) -> None:
    lender = DatasetFolder(tmp_path / "lender")
    shutil.copytree(folder.path, lender.path)
    report = fit_kernel_level([folder], jobs=1, lenders=[lender])[0]
    assert isinstance(report.artifact.card, KernelCard)
    assert report.artifact.card.borrowed == ()
    card = lender.read_card()
    lender.write_card(msgspec.structs.replace(card, protocol=msgspec.structs.replace(card.protocol, threads=2)))
    with pytest.raises(MachineError, match="other threads"):
        fit_kernel_level([folder], jobs=1, lenders=[lender])


def kernels_are_off_by(report: KernelReport, told: DatasetFolder) -> float:
    models = labelled_models(told, ["fake"], corrections(told))["fake"]
    labels = np.concatenate([model.kernel_ns for model in models])
    return float(np.nanmedian(np.abs(np.log(np.concatenate(priced(report.fits.whole, models)) / labels))))


def test_a_runtime_that_tells_nothing_here_starts_from_what_it_told_elsewhere(
    folder: DatasetFolder, tmp_path: Path
) -> None:
    silent = DatasetFolder(tmp_path / "silent")
    shutil.copytree(folder.path, silent.path)
    (silent.path / "kernels.jsonl").unlink()
    card = silent.read_card()
    # Other vector units are no obstacle: the prices are brought to what whole networks take here.
    silent.write_card(msgspec.structs.replace(card, machine=msgspec.structs.replace(card.machine, isa=())))
    alone, taught = (fit_kernel_level([silent], jobs=1, lenders=lenders)[0] for lenders in ((), [folder]))
    assert kernels_are_off_by(taught, folder) < 0.7 * kernels_are_off_by(alone, folder)
    assert isinstance(taught.artifact.card, KernelCard)
    assert taught.artifact.card.borrowed == ()


def test_data_sets_go_to_the_level_that_they_are_for(folder: DatasetFolder) -> None:
    assert by_level([folder], "auto", named=False) == ([], [folder])
    assert by_level([folder], "graph", named=False) == ([folder], [])
    assert by_level([folder], "kernel", named=True) == ([], [folder])


def test_what_cannot_be_fitted_gives_one_line(tmp_path: Path, tiny_space: Path, exported_graphs: Path) -> None:
    (tmp_path / "plain").mkdir()
    plain = DatasetFolder(tmp_path / "plain")
    card = plan_sweep([tiny_space], ["fake"], Protocol(rounds=1, burst_seconds=0.001), name="plain")
    plain.write_card(card)
    with pytest.raises(DatasetError, match="at least 3 are needed"):
        fit_kernel_level([plain])
