"""What `latmod inspect` prints for ResNet-18, letter by letter; `pytest --update-golden` writes the files anew."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from latmod.cli import main

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import msgspec

    from latmod.export import export_spec
    from latmod.families import FAMILIES

    path = tmp_path_factory.mktemp("golden") / "resnet18.onnx"
    family = FAMILIES["resnet"]
    export_spec(family, msgspec.convert({"block": "basic", "blocks": [2, 2, 2, 2]}, family.spec_type), path)
    return path


@pytest.mark.parametrize(("style", "suffix"), [("table", "txt"), ("json", "json"), ("csv", "csv"), ("md", "md")])
def test_inspect_prints_what_it_always_printed(
    resnet18: Path, style: str, suffix: str, request: pytest.FixtureRequest
) -> None:
    printed = CliRunner().invoke(main, ["inspect", str(resnet18), "--format", style]).stdout
    golden = HERE / f"inspect-resnet18.{suffix}"
    if request.config.getoption("--update-golden"):
        golden.write_text(printed)
    assert printed == golden.read_text()


def test_the_totals_are_the_sum_of_the_printed_rows(resnet18: Path) -> None:
    printed = CliRunner().invoke(main, ["inspect", str(resnet18), "--format", "md"]).stdout
    cells = [[cell.strip() for cell in line.strip("|\n ").split("|")] for line in printed.splitlines()]
    columns, rows, total = cells[0], cells[2:-1], cells[-1]
    for name in ("macs", "flops", "params", "bytes_read", "bytes_written"):
        position = columns.index(name)
        numbers = [int(re.sub(",", "", row[position])) for row in (*rows, total)]
        assert sum(numbers[:-1]) == numbers[-1]
    assert int(total[columns.index("params")].replace(",", "")) == 11_689_512
