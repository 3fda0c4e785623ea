import csv
import io
import json
from pathlib import Path

import msgspec
import onnx
import pytest
from onnx_resnets import write_resnet

from latmod.inspection import describe, inspect
from latmod.residual import NotResidual, ResidualShape

LIGHT = sorted((Path(onnx.__file__).parent / "backend" / "test" / "data" / "light").glob("*.onnx"))
SUMMED = ("macs", "flops", "params", "bytes_read", "bytes_weights", "bytes_written")


@pytest.mark.parametrize("path", LIGHT, ids=lambda path: path.stem)
def test_totals_are_the_sums_of_the_printed_rows(path):
    found = inspect(path)
    *rows, total = found.rows()
    assert total["name"] == "total"
    for name in SUMMED:
        assert total[name] == sum(row[name] for row in rows)
        assert found.summary()[name] == total[name]
    assert total["macs"] > 10**8
    assert found.unknown_ops == {}
    assert found.unknown_share == 0
    assert len({row["name"] for row in rows}) == len(rows)


def test_rows_are_flat_and_alike():
    found = inspect(LIGHT[0])
    rows = found.rows()
    assert len({tuple(row) for row in rows}) == 1
    assert json.loads(json.dumps(rows)) == rows
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    assert len(out.getvalue().splitlines()) == len(rows) + 1
    assert all(isinstance(value, str | int | float) for value in found.summary().values())
    assert msgspec.json.decode(msgspec.json.encode(found))["model"] == LIGHT[0].stem


def test_residual_network(tmp_path):
    found = inspect(write_resnet(tmp_path / "r.onnx", block="bottleneck", blocks=(1, 2, 3, 1), width=24, classes=7))
    assert isinstance(found.residual, ResidualShape)
    facts = found.summary()
    assert (facts["block"], facts["blocks"], facts["width"], facts["classes"]) == ("bottleneck", "1-2-3-1", 24, 7)
    assert facts["inputs"] == "x:float32[1x3x64x64]"
    assert [describe(tensor) for tensor in found.outputs] == [facts["outputs"]]
    assert found.nodes[0].output == "1x24x32x32"
    assert not any(row.op in ("Flatten", "Identity", "Constant") for row in found.nodes)


def test_other_network_gives_the_reason():
    found = inspect(next(path for path in LIGHT if "vgg19" in path.stem))
    assert isinstance(found.residual, NotResidual)
    assert found.summary()["reason"] == found.residual.reason
    assert found.summary()["is_residual"] is False


def test_shapes_are_passed_on(tmp_path):
    path = write_resnet(tmp_path / "r.onnx")
    assert inspect(path, {"x": (4, 3, 64, 64)}).totals.macs == 4 * inspect(path).totals.macs
