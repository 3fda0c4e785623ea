"""compare, plan and diff as real processes, with the predictors that ship, on networks of the zoo."""

import json
import math
import shutil
from pathlib import Path

import pytest
from command import latmod

GRAPHS = Path(__file__).parents[2] / "datasets" / "zoo" / "graphs"
SMALL, LARGE = GRAPHS / "resnet18.onnx", GRAPHS / "resnet50.onnx"


def test_compare_ranks_the_runtimes() -> None:
    found = latmod("compare", SMALL, "--format", "json")
    assert found.returncode == 0, found.stderr
    rows = json.loads(found.stdout)
    assert {"onnxruntime", "torch"} <= {row["runtime"] for row in rows}
    assert [row["latency_ms"] for row in rows] == sorted(row["latency_ms"] for row in rows)
    assert sum(row["fastest"] for row in rows) == pytest.approx(1.0)
    assert "is fastest" in latmod("compare", SMALL).stdout


def test_plan_tells_what_meets_a_budget(tmp_path: Path) -> None:
    for path in (SMALL, LARGE):
        shutil.copy(path, tmp_path)
    # Machines differ, so the budget is one between the two on this one.
    told = json.loads(latmod("predict", SMALL, LARGE, "--runtime", "onnxruntime", "--format", "json").stdout)
    budget_ms = math.sqrt(math.prod(row["latency_ms"] for row in told))
    found = latmod("plan", tmp_path, "--budget-ms", budget_ms, "--runtime", "onnxruntime", "--format", "json")
    assert found.returncode == 0, found.stderr
    assert {row["model"]: row["meets"] for row in json.loads(found.stdout)} == {
        "resnet18.onnx": True,
        "resnet50.onnx": False,
    }
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    assert latmod("plan", tmp_path, "--budget-ms", budget_ms).returncode == 3
    assert "no folder with .onnx files" in latmod("plan", tmp_path / "none", "--budget-ms", 50).stderr


def test_diff_fails_where_the_model_is_surely_slower() -> None:
    slower = latmod("diff", SMALL, LARGE, "--runtime", "onnxruntime")
    assert slower.returncode == 5
    assert "slower by more than 10% with 90 % confidence" in slower.stderr
    assert latmod("diff", LARGE, SMALL).returncode == 0
    same = latmod("diff", SMALL, SMALL)
    assert same.returncode == 0
    assert "no kernel differs" in same.stdout


@pytest.mark.parametrize("style", ["table", "md", "json", "csv"])
def test_diff_gives_the_same_bytes_again(style: str) -> None:
    first, again = (latmod("diff", LARGE, SMALL, "--format", style).stdout for _ in range(2))
    assert first == again
    assert "onnxruntime" in first
    if style == "json":
        (one, *_) = json.loads(first)
        assert one["low"] < one["ratio"] < one["high"]
        assert "AMD EPYC" in one["machine"]
        assert {"change", "kernel", "share"} <= one["blames"][0].keys()


@pytest.mark.parametrize("limit", ["ten", "-5%"])
def test_a_limit_must_be_a_percentage(limit: str) -> None:
    found = latmod("diff", SMALL, LARGE, f"--fail-over={limit}")
    assert found.returncode == 2
    assert "not a percentage" in found.stderr


def test_a_runtime_that_cannot_run_the_model_is_left_out_with_a_note(tmp_path: Path) -> None:
    batch = ("--shape", "input=8x3x224x224", "--machine", "25/17/1, avx512f")
    found = latmod("compare", SMALL, *batch, "--format", "json")
    assert found.returncode == 0, found.stderr
    assert "openvino" in found.stdout
    assert "ncnn" not in found.stdout
    assert "note: ncnn cannot run resnet18.onnx: it runs one image at a time" in found.stderr
    alone = latmod("predict", SMALL, *batch, "--runtime", "ncnn")
    assert (alone.returncode, alone.stdout) == (1, "")
    assert "Error: ncnn cannot run resnet18.onnx" in alone.stderr
    changed = latmod("diff", SMALL, LARGE, *batch, "--fail-over", "1000%")
    assert changed.returncode == 0, changed.stderr
    assert "ncnn" not in changed.stdout
    shutil.copy(SMALL, tmp_path)
    planned = latmod("plan", tmp_path, "--budget-ms", 50, *batch)
    assert "ncnn" not in planned.stdout
    assert "ncnn cannot run" in planned.stderr
