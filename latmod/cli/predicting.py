"""The commands that read models and data: predict, inspect, fit, evaluate, repeat."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from latmod.cli.options import output_options, parse_shapes, runtime_option, shape_option, write, write_rows
from latmod.errors import LatmodError, OutOfDomainError
from latmod.report import Format, Row, percent, render, significant

if TYPE_CHECKING:
    from latmod.predictor import Prediction, Predictor
    from latmod.timing import Reference


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="MODEL.onnx...")
@click.option(
    "--predictor", "predictors", multiple=True, type=click.Path(path_type=Path), help="Predictor file or folder."
)
@runtime_option
@shape_option
@click.option(
    "--here", is_flag=True, help="Spend two seconds on the reference load; predict for the machine's state now."
)
@click.option("--strict", is_flag=True, help="Refuse (exit code 4) where a model is out of domain.")
@output_options
def predict(
    models: tuple[Path, ...],
    predictors: tuple[Path, ...],
    runtimes: tuple[str, ...],
    shapes: tuple[str, ...],
    here: bool,
    strict: bool,
    style: str,
    output: str,
) -> None:
    """Predict the latency of .onnx files, one line per model and runtime; nothing is run.

    \b
    latmod predict resnet50.onnx
    latmod predict *.onnx --format csv -o latencies.csv
    """
    from latmod.predictor import predict as predict_one

    known = _predictors(predictors, runtimes)
    state = _state_now() if here else None
    found: list[Prediction] = []
    problems = []
    for path in models:
        try:
            found += predict_one(path, predictors=known, shapes=parse_shapes(shapes), state=state)
        except LatmodError as error:
            problems.append(error)
            click.echo(f"Error: {error}", err=True)
    _warn_of_other_machine(known)
    if found:
        rows = [_prediction_row(one) if style == "table" else msgspec.to_builtins(one) for one in found]
        write_rows(rows, style, output)
    for reason in dict.fromkeys(f"{one.model}: {reason}" for one in found for reason in one.reasons):
        click.echo(f"out of domain: {reason}", err=True)
    if problems:
        sys.exit(1 if not found else 3)
    if strict and not all(one.in_domain for one in found):
        raise OutOfDomainError("out of domain, refused under --strict; the reasons stand above")


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="MODEL.onnx...")
@shape_option
@click.option("--totals", is_flag=True, help="One row per model instead of one per node.")
@output_options
def inspect(models: tuple[Path, ...], shapes: tuple[str, ...], totals: bool, style: str, output: str) -> None:
    """Show what is in .onnx files: shapes, MACs, FLOPs, parameters and bytes per node, totals, unknown operators.

    \b
    latmod inspect resnet50.onnx
    latmod inspect *.onnx --totals --format csv
    """
    from latmod.inspection import inspect as inspect_one

    found = [inspect_one(path, parse_shapes(shapes)) for path in models]
    rows: list[Row] = [row for one in found for row in ([one.summary()] if totals else one.rows())]
    if style == "table" and not totals:
        text = ""
        for one in found:
            nodes = render(
                [{k: v for k, v in row.items() if k not in ("model", "known")} for row in one.rows()], Format.TABLE
            )
            facts = "".join(f"{key + ':':<15} {value}\n" for key, value in one.summary().items() if value != "")
            text += f"{facts}\n{nodes}\n"
        write(text, output)
        return
    write_rows(rows, style, output)


@click.command()
@click.argument("datasets", nargs=-1, type=click.Path(path_type=Path), metavar="[DATASET]...")
@runtime_option
@click.option(
    "--statistic",
    type=click.Choice(["median-of-minima", "mean", "p50", "p90", "min"]),
    default="median-of-minima",
    show_default=True,
    help="What of the samples is predicted.",
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("predictors"), show_default=True, help="Folder.")
@click.option("--seed", type=int, default=0, show_default=True, help="First of the split and regressor seeds.")
@click.option("--regressor", "regressors", multiple=True, metavar="NAME", help="Keep to these regressors.")
@click.option(
    "--split-seeds", type=click.IntRange(2), default=10, show_default=True, help="Random splits per regressor."
)
@click.option("--summary", is_flag=True, help="Print one short table instead of every regressor's scores.")
@output_options
def fit(
    datasets: tuple[Path, ...],
    runtimes: tuple[str, ...],
    statistic: str,
    out: Path,
    seed: int,
    regressors: tuple[str, ...],
    split_seeds: int,
    summary: bool,
    style: str,
    output: str,
) -> None:
    """Compare regressors on data sets, write the best of each runtime as a predictor; without arguments: datasets/*.

    \b
    latmod fit
    latmod fit datasets/resnet-varied-width --runtime torch --statistic mean
    """
    from latmod.cli.fit_text import full_text, summary_text
    from latmod.dataset import DatasetFolder
    from latmod.fitting import fit as fit_folders
    from latmod.fitting import write_artifact
    from latmod.timing import Statistic

    paths = datasets or tuple(sorted(path.parent for path in Path("datasets").glob("*/dataset.json")))
    if not paths:
        raise LatmodError("no data set in datasets/: make one with `latmod sweep`, or name one")
    reports, transfers = fit_folders(
        [DatasetFolder(path) for path in paths], runtimes=runtimes, statistic=Statistic(statistic), seed=seed,
        regressors=regressors, split_seeds=split_seeds,
    )  # fmt: skip
    written = [write_artifact(artifact, out) for report in reports for artifact in report.artifacts]
    if style in ("json", "csv"):
        found = [row for report in reports for row in report.rows]
        write_rows([msgspec.to_builtins(row) for row in (*found, *transfers)], style, output)
    elif summary:
        write(summary_text(reports, transfers, Format(style)), output)
    else:
        write(full_text(reports, transfers, Format(style)), output)
    for path in written:
        click.echo(f"predictor: {path}", err=True)


@click.command()
@click.argument("first", type=click.Path(path_type=Path), metavar="DATASET")
@click.argument("again", type=click.Path(path_type=Path), metavar="AGAIN")
@output_options
def repeat(first: Path, again: Path, style: str, output: str) -> None:
    """Compare two sweeps over the same models: how well measurements repeat, with and without drift correction.

    \b
    latmod repeat datasets/resnet-fixed-width datasets/checks/resnet-repeat
    """
    from latmod.dataset import DatasetFolder
    from latmod.repeat import repeatability

    rows = [msgspec.to_builtins(one) for one in repeatability(DatasetFolder(first), DatasetFolder(again))]
    for row in rows if style in ("table", "md") else []:
        for name in ("median_difference", "within_5", "within_10", "common_scale"):
            row[name] = percent(row[name])
    write_rows(rows, style, output)


@click.command()
@click.argument("datasets", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="DATASET...")
@click.option("--predictor", "predictors", multiple=True, type=click.Path(path_type=Path), help="File or folder.")
@runtime_option
@output_options
def evaluate(
    datasets: tuple[Path, ...], predictors: tuple[Path, ...], runtimes: tuple[str, ...], style: str, output: str
) -> None:
    """Hold predictions against measured data sets, network by network; without --predictor the shipped ones.

    \b
    latmod evaluate datasets/checks/resnet-standard
    """
    from latmod.dataset import DatasetFolder
    from latmod.evaluating import evaluate as evaluate_one

    known = _predictors(predictors, runtimes)
    rows = [msgspec.to_builtins(one) for path in datasets for one in evaluate_one(DatasetFolder(path), known)]
    for row in rows if style in ("table", "md") else []:
        row["error"], row["noise"] = percent(row["error"]), percent(row["noise"], 2)
    write_rows(rows, style, output)


def _predictors(paths: Sequence[Path], runtimes: Sequence[str]) -> tuple["Predictor", ...]:
    """Load the named predictors, or those that ship; keep those for the named runtimes."""
    from latmod.predictor import load_predictor, reference_predictors

    files = [file for path in paths for file in (sorted(path.glob("*.onnx")) if path.is_dir() else [path])]
    known = tuple(load_predictor(file) for file in files) if paths else reference_predictors()
    kept = tuple(one for one in known if not runtimes or one.card.runtime in runtimes)
    if not kept:
        have = ", ".join(sorted({one.card.runtime for one in known})) or "none"
        raise LatmodError(
            f"no predictor for {', '.join(runtimes) or 'any runtime'}; there are: {have} (see `latmod fit`)"
        )
    return kept


def _state_now() -> "Reference":
    from latmod.timing import median_reference
    from latmod.worker import reference_passes

    return median_reference(reference_passes(seconds=2.0).passes)


def _warn_of_other_machine(predictors: Sequence["Predictor"]) -> None:
    from latmod.machine import read_machine

    here = read_machine()
    for card in {one.card.machine_id: one.card for one in predictors}.values():
        if card.machine_id != here.id:
            click.echo(f"note: the predictions hold for {card.machine}; this machine is {here.label}", err=True)


def _prediction_row(one: "Prediction") -> Row:
    return {
        "model": one.model,
        "runtime": one.runtime,
        "latency_ms": one.latency_ms,
        "90 % interval": f"{significant(one.low_ms)} .. {significant(one.high_ms)}",
        "in domain": one.in_domain,
        "machine": one.machine,
    }
