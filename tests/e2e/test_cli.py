"""The real command line, in a process of its own: what it prints, where, and its exit codes."""

import json
from pathlib import Path

import pytest
from command import latmod

from latmod.machine import read_machine
from latmod.predictor import load_predictor

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "latmod" / "predictors"


COMMANDS = (
    "predict", "inspect", "compare", "plan", "diff", "measure", "sweep", "table", "fit", "evaluate", "repeat",
    "runtimes", "doctor", "demo",
)  # fmt: skip


def test_help_lists_every_command() -> None:
    found = latmod("--help")
    assert found.returncode == 0
    for command in COMMANDS:
        assert command in found.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_and_is_in_the_readme(command: str) -> None:
    found = latmod(command, "--help")
    assert found.returncode == 0
    assert f"latmod {command}" in found.stdout.split("Options:")[0].split("\n", 2)[2]
    assert f"latmod {command}" in (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def graph(exported_graphs: Path) -> Path:
    return sorted(exported_graphs.glob("*.onnx"))[0]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sweep over twelve tiny networks in the fake runtime, made by the real command."""
    folder = tmp_path_factory.mktemp("e2e")
    space = folder / "space.toml"
    space.write_text(
        'schema = 1\nfamily = "resnet"\ncount = 12\nseed = 1\n[draw]\nblock = { values = ["basic", "bottleneck"] }\n'
        'blocks = [{ low = 1, high = 3, scale = "uniform" }, 1, { low = 1, high = 3, scale = "uniform" }, 1]\n'
        'width = { low = 4, high = 16, scale = "log" }\nside = 32\nclasses = 10\n'
    )
    out = folder / "data"
    found = latmod("sweep", space, "--runtime", "fake", "--rounds", 2, "--burst-seconds", 0.01, "--out", out)
    assert found.returncode == 0, found.stderr
    assert found.stdout == ""
    assert "measured 12 (model, runtime) pairs; 0 failed" in found.stderr
    return out


@pytest.fixture(scope="module")
def predictors(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("predictors")
    found = latmod(
        "fit", dataset, "--out", out, "--regressor", "LinearRegression", "--regressor", "PhysicsKernel",
        "--split-seeds", 2, "--format", "json",
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    rows = json.loads(found.stdout)
    assert {"MACsOnly", "LogLinearTotals", "NonNegativeTotals"} <= {row["regressor"] for row in rows}
    assert all(row["mape"] < 0.2 for row in rows if row["regressor"] == "PhysicsKernel" and "r2_worst" in row)
    return out


def test_a_finished_sweep_is_not_measured_again(dataset: Path) -> None:
    before = (dataset / "measurements.jsonl").read_bytes()
    space = dataset.parent / "space.toml"
    found = latmod("sweep", space, "--runtime", "fake", "--rounds", 2, "--burst-seconds", 0.01, "--out", dataset)
    assert found.returncode == 0
    assert (dataset / "measurements.jsonl").read_bytes() == before


def test_predictions_come_in_every_format(predictors: Path, graph: Path, tmp_path: Path) -> None:
    found = latmod("predict", graph, "--predictor", predictors, "--format", "json")
    assert found.returncode == 0, found.stderr
    (one,) = json.loads(found.stdout)
    names = "model runtime latency_ms low_ms high_ms in_domain reasons unknown_share machine level threads load_ms"
    assert list(one) == names.split()
    assert one["low_ms"] < one["latency_ms"] < one["high_ms"]
    assert one["runtime"] == "fake"
    for style in ("table", "csv", "md"):
        assert graph.stem in latmod("predict", graph, "--predictor", predictors, "--format", style).stdout
    target = tmp_path / "out.csv"
    assert latmod("predict", graph, "--predictor", predictors, "--format", "csv", "-o", target).stdout == ""
    assert target.read_text().startswith("model,runtime")


def test_predictions_are_held_against_measurements(predictors: Path, dataset: Path) -> None:
    found = latmod("evaluate", dataset, "--predictor", predictors, "--format", "json")
    assert found.returncode == 0, found.stderr
    rows = json.loads(found.stdout)
    assert len(rows) == 12
    assert all(abs(row["error"]) < 0.2 and row["in_domain"] for row in rows)
    refused = latmod("evaluate", dataset)
    assert refused.returncode == 1
    assert "no predictor for fake" in refused.stderr or "that machine" in refused.stderr


def test_here_states_the_prediction_for_the_machine_as_it_is(predictors: Path, graph: Path) -> None:
    found = latmod("predict", graph, "--predictor", predictors, "--here", "--format", "json")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)[0]["latency_ms"] > 0


def test_strict_refuses_what_is_out_of_domain(predictors: Path, graph: Path) -> None:
    far = ["predict", graph, "--predictor", predictors, "--shape", "input=64x3x32x32"]
    assert latmod(*far).returncode == 0
    refused = latmod(*far, "--strict")
    assert refused.returncode == 4
    assert "batch 64 is above what was seen" in refused.stderr
    (line,) = {line.partition(": batch")[0] for line in refused.stderr.splitlines() if "batch 64" in line}
    assert line == f"out of domain: {graph.name} in fake"


def test_inspect_prints_totals_that_are_the_sum_of_its_rows(graph: Path) -> None:
    rows = json.loads(latmod("inspect", graph, "--format", "json").stdout)
    assert rows[-1]["name"] == "total"
    for column in ("macs", "flops", "params", "bytes_read", "bytes_written"):
        assert sum(row[column] for row in rows[:-1]) == rows[-1][column]
    summary = json.loads(latmod("inspect", graph, "--totals", "--format", "json").stdout)
    assert summary[0]["macs"] == rows[-1]["macs"]
    assert summary[0]["is_residual"] is True


def test_runtimes_are_listed() -> None:
    rows = json.loads(latmod("runtimes", "--format", "json").stdout)
    assert {"name", "version", "installed", "extra", "source", "kernels"} <= set(rows[0])
    assert {"onnxruntime", "torch", "fake"} <= {row["name"] for row in rows}


def test_a_dry_run_measures_nothing(tmp_path: Path) -> None:
    found = latmod("sweep", "smoke", "--runtime", "fake", "--dry-run", "--out", tmp_path / "none")
    assert found.returncode == 0
    assert "6 models" in found.stderr
    assert not (tmp_path / "none").exists()


def test_failed_parts_give_exit_code_3(tiny_space: Path, tmp_path: Path) -> None:
    found = latmod(
        "sweep", tiny_space, "--runtime", "fake", "--rounds", 1, "--burst-seconds", 0.01, "--out", tmp_path / "d",
        LATMOD_FAKE="unsupported:basic",
    )  # fmt: skip
    assert found.returncode == 3
    assert "no operator Conv" in found.stderr


def test_two_sweeps_into_one_folder(tiny_space: Path, tmp_path: Path) -> None:
    from latmod.dataset import DatasetFolder

    folder = DatasetFolder(tmp_path / "d")
    with folder.writing():
        found = latmod("sweep", tiny_space, "--runtime", "fake", "--out", folder.path)
    assert found.returncode == 1
    assert "another sweep is writing here" in found.stderr
    assert found.stderr.count("Error") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["predict", "nothing.onnx"], 1, "nothing.onnx"),
        (["inspect", "."], 1, "folder"),
        (["predict"], 2, "Missing argument"),
        (["nonsense"], 2, "No such command"),
        (["sweep", "no-such-space"], 1, "bundled spaces are"),
        (["sweep", "smoke", "--runtime", "nonsense"], 1, "unknown runtime"),
        (["table", "/nowhere"], 1, "not a data set"),
        (["fit", "/nowhere"], 1, "not a data set"),
        (["measure", "x.onnx", "--shape", "input"], 2, "NAME=1x3x224x224"),
        (["predict", "x.onnx", "--predictor", "/nowhere.onnx"], 1, "nowhere.onnx"),
    ],
)
def test_bad_input_gives_one_line_and_its_exit_code(arguments: list[str], code: int, message: str) -> None:
    found = latmod(*arguments)
    assert found.returncode == code
    assert message in found.stderr
    assert "Traceback" not in found.stderr


def test_a_bad_space_names_file_and_key(tmp_path: Path) -> None:
    space = tmp_path / "bad.toml"
    space.write_text('schema = 1\nfamily = "resnet"\ncount = 3\ncolour = "red"\n')
    found = latmod("sweep", space)
    assert found.returncode == 1
    assert found.stderr.strip().count("\n") == 0
    assert "bad.toml" in found.stderr
    assert "colour" in found.stderr


def test_traceback_shows_where_an_error_came_from() -> None:
    assert "Traceback" in latmod("--traceback", "inspect", "nothing.onnx").stderr


def test_predictors_are_adapted_to_this_machine(tmp_path: Path, graph: Path) -> None:
    target = tmp_path / "adapted"
    quick = ("--rounds", "1", "--burst-seconds", "0.001", "--patience-seconds", "0")
    found = latmod("adapt", "--runtime", "onnxruntime", *quick, "--out", target, "--format", "json")
    assert found.returncode == 0, found.stderr
    row = json.loads(found.stdout)[0]
    assert row["runtime"] == "onnxruntime"
    assert row["networks"] == 24
    assert row["times as long"] > 0.0
    answer = latmod("predict", graph, "--predictor", target, "--format", "json")
    assert json.loads(answer.stdout)[0]["machine"] == read_machine().label
    assert "this machine is" not in answer.stderr


def test_the_state_of_this_machine_says_nothing_of_another(graph: Path) -> None:
    other = next(one for one in ("6/167/1", "25/1/1") if one not in read_machine().label)
    refused = latmod("predict", graph, "--machine", other, "--here")
    assert refused.returncode == 1
    assert "make predictors for it with `latmod adapt`" in refused.stderr


@pytest.mark.parametrize("command", [("predict",), ("compare",), ("plan", "--budget-ms", "20")])
def test_a_machine_that_was_asked_for_is_named_without_advice(command: tuple[str, ...], graph: Path) -> None:
    other = next(one for one in ("6/167/1", "25/1/1") if one not in read_machine().label)
    target = graph.parent if command[0] == "plan" else graph
    answer = latmod(*command, target, "--machine", other)
    assert "hold for" in answer.stderr
    assert "this machine is" in answer.stderr
    assert "adapt" not in answer.stderr


def test_here_leaves_out_what_is_known_on_other_machines_alone(predictors: Path, graph: Path) -> None:
    other = next(
        one for one in ("engines-zen3-tract", "engines-xeon-tract") if _is_elsewhere(SHIPPED / f"kernels-{one}-1t.onnx")
    )
    shipped = SHIPPED / f"kernels-{other}-1t.onnx"
    found = latmod("predict", graph, "--predictor", predictors, "--predictor", shipped, "--here", "--format", "json")
    assert found.returncode == 0, found.stderr
    assert {row["runtime"] for row in json.loads(found.stdout)} == {"fake"}
    assert "--here leaves out tract" in found.stderr


def _is_elsewhere(predictor: Path) -> bool:
    return load_predictor(predictor).card.machine != read_machine().label
