"""Lay out what `latmod fit` found for a person: one table per data set and runtime, or one short table of the best."""

from collections.abc import Sequence

from latmod.findings import FitReport, FitRow, TransferRow
from latmod.kernel_findings import FamilyRow, KernelReport
from latmod.kernel_study import Part
from latmod.report import Cell, Format, Row, percent, render

_SHARES = ("mape", "median_error", "within_5", "within_10", "coverage", "width")
_PLAIN_BASELINE = "MACsOnly"


def full_text(reports: Sequence[FitReport], transfers: Sequence[TransferRow], style: Format) -> str:
    """Return the short tables, then every regressor's scores, data set by data set, then how they transfer."""
    text = summary_text(reports, transfers, style)
    for report in reports:
        for key in dict.fromkeys((row.runtime, row.threads) for row in report.rows):
            own = [row for row in report.rows if (row.runtime, row.threads) == key]
            seeds = f"{own[0].split_seeds} split x {max(row.regressor_seeds for row in own)} regressor seeds"
            floor = percent(own[0].noise_floor, 2)
            title = (
                f"{report.dataset}, {key[0]}, {key[1]} thread(s): {own[0].models} models, {seeds}, noise floor {floor}"
            )
            text += _heading(title, style) + render([_score_row(row) for row in own], style) + "\n"
    if transfers:
        text += _heading("trained on one part, tested on another", style)
        text += render([_transfer_row(row) for row in transfers], style) + "\n"
    return text


def summary_text(reports: Sequence[FitReport], transfers: Sequence[TransferRow], style: Format) -> str:
    """Return what ships beside the study's three and the plainest baseline, and what ships beyond what it has seen."""
    rows: list[Row] = []
    moved: list[Row] = []
    for report in reports:
        for chosen in report.chosen:
            own = [row for row in report.rows if (row.runtime, row.threads) == (chosen.runtime, chosen.threads)]
            ships = (chosen.regressor, chosen.features, chosen.target)
            shown = [row for row in own if (row.regressor, row.features, row.target) == ships]
            for name in dict.fromkeys(row.regressor for row in own if row.role == "study"):
                study = [row for row in own if row.regressor == name and row.features == "study"]
                shown.append(max(study, key=lambda row: row.r2))
            shown += [row for row in own if row.regressor == _PLAIN_BASELINE]
            rows += [_summary_row(row, ships) for row in shown]
            moved += [
                _moved_row(row)
                for row in transfers
                if row.trained_on.partition(":")[0] == report.dataset
                and (row.runtime, row.threads) == (chosen.runtime, chosen.threads)
                and (row.regressor, row.features, row.target) == ships
            ]
    text = _heading("what ships, beside the study and a FLOP count", style) + render(rows, style) + "\n"
    if moved:
        text += _heading("what ships, beyond what it has seen", style) + render(moved, style) + "\n"
    return text


def kernel_text(reports: Sequence[KernelReport], style: Format, *, parts: bool) -> str:
    """Return how each family was predicted without it, and, with `parts`, where the error comes from."""
    text = ""
    for report in reports:
        title = f"{report.dataset}, {report.runtime}: every family predicted by what was fitted to the others"
        text += _heading(title, style) + render([_family_row(row) for row in report.rows], style) + "\n"
        if parts:
            shown = [_part_row(part) for part in report.parts]
            text += _heading(f"{report.dataset}, {report.runtime}: kinds of kernels", style) + render(shown, style)
            text += "\n"
    return text


def _family_row(row: FamilyRow) -> Row:
    return {
        "family": row.family,
        "models": row.models,
        "MAPE": percent(row.mape),
        "median error": percent(row.median_error),
        "within 5 %": percent(row.within_5, 0),
        "within 10 %": percent(row.within_10, 0),
        "r2 (log)": f"{row.r2_log:.4f}",
        "90 % interval covers": percent(row.coverage, 0),
        "its width": percent(row.width, 0),
        "noise floor": percent(row.noise_floor),
        "measured kernels' sum is off by": percent(row.kernel_sum_mape),
        "time in unseen kernels": percent(row.unseen_share),
        "time in unexpected kernels": percent(row.unmatched_share),
    }


def _part_row(part: Part) -> Row:
    return {
        "kind": part.kind,
        "kernels": part.kernels,
        "share of time": percent(part.share),
        "bias": percent(part.bias),
        "mean error": percent(part.error),
        "adds to a network's error": percent(part.contribution, 2),
    }


def _moved_row(row: TransferRow) -> Row:
    return {
        "runtime": row.runtime,
        "fitted on": row.trained_on,
        "tested on": row.tested_on,
        "regressor": row.regressor,
        "r2": f"{row.r2:.4f}",
        "MAPE": percent(row.mape),
        "median error": percent(row.median_error),
        "within 10 %": percent(row.within_10, 0),
        "90 % interval covers": percent(row.coverage, 0),
    }


def _summary_row(row: FitRow, ships: tuple[str, str, str]) -> Row:
    name = f"{row.regressor} (ships)" if (row.regressor, row.features, row.target) == ships else row.regressor
    return {
        "data set": row.dataset,
        "runtime": row.runtime,
        "regressor": name,
        "features": row.features,
        "r2": f"{row.r2:.4f}",
        "worst r2": f"{row.r2_worst:.4f}",
        "MAPE": percent(row.mape),
        "median error": percent(row.median_error),
        "within 5 %": percent(row.within_5, 0),
        "within 10 %": percent(row.within_10, 0),
        "90 % interval covers": percent(row.coverage, 0),
        "noise floor": percent(row.noise_floor, 2),
    }


def _score_row(row: FitRow) -> Row:
    shown: dict[str, Cell] = {
        "regressor": row.regressor,
        "role": row.role,
        "features": row.features,
        "target": row.target,
        "r2": f"{row.r2:.4f}",
        "r2_std": f"{row.r2_std:.4f}",
        "r2_worst": f"{row.r2_worst:.4f}",
        "r2_log": f"{row.r2_log:.4f}",
        "spearman": f"{row.spearman:.4f}",
    }
    return shown | {name: percent(getattr(row, name)) for name in _SHARES} | {"params": row.params}


def _transfer_row(row: TransferRow) -> Row:
    shown: dict[str, Cell] = {
        "runtime": row.runtime,
        "trained_on": row.trained_on,
        "tested_on": row.tested_on,
        "regressor": row.regressor,
        "features": row.features,
        "target": row.target,
        "r2": f"{row.r2:.4f}",
        "r2_log": f"{row.r2_log:.4f}",
        "spearman": f"{row.spearman:.4f}",
    }
    return shown | {name: percent(getattr(row, name)) for name in _SHARES}


def _heading(title: str, style: Format) -> str:
    return f"### {title}\n\n" if style is Format.MD else f"{title}\n"
