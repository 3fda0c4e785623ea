"""Turn flat rows into text: a table for people, JSON, CSV or Markdown for everything else."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from enum import StrEnum

Cell = str | int | float | bool | None | Sequence[str]
Row = Mapping[str, Cell]


class Format(StrEnum):
    """Name a way to print rows."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    MD = "md"


def render(rows: Sequence[Row], style: Format) -> str:
    """Return rows as text that ends in a newline; columns stand in the order of their first appearance."""
    match style:
        case Format.JSON:
            known = [{key: _known(cell) for key, cell in row.items()} for row in rows]
            return json.dumps(known, indent=1, allow_nan=False, default=list) + "\n"
        case Format.CSV:
            return _csv(rows)
        case Format.MD:
            return _markdown(rows)
        case Format.TABLE:
            return _table(rows)


def significant(value: float, digits: int = 4) -> str:
    """Return a number with so many significant digits, without an exponent where that stays readable."""
    if not math.isfinite(value):
        return "-"
    if value == 0 or 1e-4 <= abs(value) < 1e7:
        decimals = digits - 1 - (math.floor(math.log10(abs(value))) if value else 0)
        return f"{value:,.{max(0, decimals)}f}"
    return f"{value:.{digits - 1}e}"


def percent(value: float, digits: int = 1) -> str:
    """Return a fraction as per cent."""
    return f"{100 * value:.{digits}f} %" if math.isfinite(value) else "-"


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(column for row in rows for column in row))


def _text(cell: Cell) -> str:
    match cell:
        case None:
            return ""
        case bool():
            return "yes" if cell else "no"
        case float():
            return significant(cell)
        case int():
            return f"{cell:,}"
        case str():
            return cell
        case _:
            return "; ".join(cell)


def _known(cell: Cell) -> Cell:
    """Return None for a number that nobody knows (the noise of one round), which JSON has no word for."""
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell


def _csv(rows: Sequence[Row]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, _columns(rows), restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {key: "; ".join(cell) if isinstance(cell, list | tuple) else _known(cell) for key, cell in row.items()}
        )
    return out.getvalue()


def _markdown(rows: Sequence[Row]) -> str:
    columns = _columns(rows)
    rules = ["---:" if all(_is_number(row.get(column)) for row in rows) else "---" for column in columns]
    body = [[_text(row.get(column)).replace("|", "\\|") for column in columns] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in [columns, rules, *body])


def _table(rows: Sequence[Row]) -> str:
    columns = _columns(rows)
    body = [[_text(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in [columns, *body]) for i in range(len(columns))]
    right = [all(_is_number(row.get(column)) for row in rows) for column in columns]
    lines = []
    for line in [columns, ["-" * width for width in widths], *body]:
        cells = [
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(line, widths, right, strict=True)
        ]
        lines.append("  ".join(cells).rstrip() + "\n")
    return "".join(lines)


def _is_number(cell: Cell) -> bool:
    return cell is None or (isinstance(cell, int | float) and not isinstance(cell, bool))
