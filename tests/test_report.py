import csv
import io
import json

import pytest

from latmod.report import Format, Row, percent, render, significant

ROWS: list[Row] = [
    {"model": "a|b", "latency_ms": 12.3456, "macs": 1234567, "in_domain": True, "reasons": ()},
    {
        "model": "c",
        "latency_ms": 0.00123,
        "macs": 1,
        "in_domain": False,
        "reasons": ("too wide", "too deep"),
        "more": None,
    },
]


def test_json_is_a_list_of_flat_objects() -> None:
    assert json.loads(render(ROWS, Format.JSON)) == [
        {**ROWS[0], "reasons": []},
        {**ROWS[1], "reasons": ["too wide", "too deep"]},
    ]


def test_what_nobody_knows_is_null_or_empty() -> None:
    rows: list[Row] = [{"model": "a", "noise": float("nan")}]
    assert json.loads(render(rows, Format.JSON)) == [{"model": "a", "noise": None}]
    assert render(rows, Format.CSV) == "model,noise\na,\n"


def test_csv_has_every_column_and_joins_sentences() -> None:
    rows = list(csv.DictReader(io.StringIO(render(ROWS, Format.CSV))))
    assert [row["latency_ms"] for row in rows] == ["12.3456", "0.00123"]
    assert rows[1]["reasons"] == "too wide; too deep"
    assert rows[0]["more"] == ""


def test_markdown_escapes_bars_and_aligns_numbers() -> None:
    lines = render(ROWS, Format.MD).splitlines()
    assert lines[1] == "| --- | ---: | ---: | --- | --- | ---: |"
    assert "a\\|b" in lines[2]


def test_a_table_lines_up() -> None:
    lines = render(ROWS, Format.TABLE).splitlines()
    assert lines[0].index("latency_ms") + len("latency_ms") == lines[2].index("12.35") + len("12.35")
    assert "yes" in lines[2]
    assert "1,234,567" in lines[2]


@pytest.mark.parametrize("style", list(Format))
def test_no_rows_are_no_error(style: Format) -> None:
    assert isinstance(render([], style), str)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.000"),
        (12.3456, "12.35"),
        (1234.5, "1,234"),
        (0.00123, "0.001230"),
        (1e9, "1.000e+09"),
        (float("nan"), "-"),
    ],
)
def test_four_digits_are_shown(value: float, text: str) -> None:
    assert significant(value) == text


def test_percent() -> None:
    assert percent(0.1234) == "12.3 %"
    assert percent(float("nan")) == "-"
