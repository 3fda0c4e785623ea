"""The commands that judge: fit, evaluate, repeat."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from latmod.cli.options import chosen_predictors, output_options, predictor_option, runtime_option, write, write_rows
from latmod.errors import LatmodError
from latmod.report import Format, percent

if TYPE_CHECKING:
    from latmod.kernel_findings import KernelReport

_FRACTIONS = frozenset(
    {
        "error",
        "noise",
        "mape",
        "median_error",
        "within_5",
        "within_10",
        "coverage",
        "width",
        "order",
        "noise_floor",
        "right",
        "regret",
        "worst_regret",
        "alone",
        "false_alarms",
    }
)


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
@click.option(
    "--level",
    type=click.Choice(["auto", "graph", "kernel"]),
    default="auto",
    show_default=True,
    help="Sum over kernels or features of the graph; auto: kernels where a data set has their times.",
)
@click.option(
    "--totals-only", is_flag=True, help="Forget per-kernel times; fit sums over kernels to whole latencies alone."
)
@click.option(
    "--borrow",
    "lenders",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DATASET",
    help="Data set of another machine, or another one of this: kinds of kernels that these lack are taken from it, "
    "and a runtime that told its kernels there alone starts from them; of several, kinds come from the first that has "
    "them.",
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
    level: str,
    totals_only: bool,
    lenders: tuple[Path, ...],
    summary: bool,
    style: str,
    output: str,
) -> None:
    """Compare regressors on data sets, write the best of each runtime as a predictor; without arguments: datasets/*.

    \b
    latmod fit
    latmod fit datasets/resnet-varied-width --runtime torch --statistic mean
    """
    from latmod.cli.fit_text import full_text, kernel_text, summary_text
    from latmod.dataset import DatasetFolder
    from latmod.fitting import by_level, by_machine, write_artifact
    from latmod.fitting import fit as fit_folders
    from latmod.kernel_findings import fit_kernel_level
    from latmod.timing import Statistic

    paths = datasets or tuple(sorted(path.parent for path in Path("datasets").glob("*/dataset.json")))
    if not paths:
        raise LatmodError("no data set in datasets/: make one with `latmod sweep`, or name one")
    graph_sets, kernel_sets = by_level([DatasetFolder(path) for path in paths], level, named=bool(datasets))
    reports, transfers = fit_folders(
        graph_sets, runtimes=runtimes, statistic=Statistic(statistic), seed=seed, regressors=regressors,
        split_seeds=split_seeds,
    )  # fmt: skip
    sums: list[KernelReport] = []
    for own in by_machine(kernel_sets):
        sums += fit_kernel_level(
            own, runtimes=runtimes, seed=seed, totals_only=totals_only, near=sums,
            lenders=[DatasetFolder(path) for path in lenders],
        )  # fmt: skip
    artifacts = [artifact for report in reports for artifact in report.artifacts] + [one.artifact for one in sums]
    written = [write_artifact(artifact, out) for artifact in artifacts]
    if style in ("json", "csv"):
        found = [row for report in reports for row in report.rows]
        families = [row for one in sums for row in one.rows]
        write_rows([msgspec.to_builtins(row) for row in (*found, *transfers, *families)], style, output)
    else:
        text = (summary_text if summary else full_text)(reports, transfers, Format(style)) if reports else ""
        write(text + kernel_text(sums, Format(style), parts=not summary), output)
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
@predictor_option
@runtime_option
@click.option(
    "--level",
    type=click.Choice(["best", "graph", "kernel", "all"]),
    default="best",
    show_default=True,
    help="What `latmod predict` answers, features of the graph alone, sums over kernels alone, or each of them and the "
    "sum of the kernels as measured.",
)
@click.option(
    "--training",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DATASET",
    help="Also show the baselines, fitted to these data sets.",
)
@click.option("--summary", is_flag=True, help="Print scores, over all and family by family, not every network.")
@click.option("--pairs", "by_pair", is_flag=True, help="Print how well differences between networks are told.")
@click.option("--picks", "by_pick", is_flag=True, help="Print how often the runtime that is told to be fastest is.")
@output_options
def evaluate(
    datasets: tuple[Path, ...],
    predictors: tuple[Path, ...],
    runtimes: tuple[str, ...],
    level: str,
    training: tuple[Path, ...],
    summary: bool,
    by_pair: bool,
    by_pick: bool,
    style: str,
    output: str,
) -> None:
    """Hold predictions against measured data sets, network by network.

    \b
    latmod evaluate datasets/checks/resnet-standard
    """
    from latmod.dataset import DatasetFolder
    from latmod.evaluating import evaluate as evaluate_one
    from latmod.evaluating import evaluate_baselines, evaluate_told, levels_of, picks, summarise
    from latmod.pairs import evaluate_pairs

    known = chosen_predictors(predictors, runtimes)
    folders = [DatasetFolder(path) for path in datasets]
    if by_pair:
        _write_fractions([one for folder in folders for one in evaluate_pairs(folder, known)], style, output)
        return
    verdicts = [
        one
        for folder in folders
        for name in (levels_of(folder, known) if level == "all" else (level,))
        for one in evaluate_one(folder, known, name)
    ]
    if level == "all":
        found = [one for folder in folders if folder.has_kernels for one in evaluate_told(folder, known)]
        verdicts += [one for one in found if not runtimes or one.runtime in runtimes]
    if training:
        seen = [DatasetFolder(path) for path in training]
        found = [one for folder in folders for one in evaluate_baselines(folder, seen, known)]
        verdicts += [one for one in found if not runtimes or one.runtime in runtimes]
    told = picks(verdicts) if by_pick else summarise(verdicts) if summary else verdicts
    hidden = {"macs"} | ({"level"} if not (summary or by_pick) and level == "best" and not training else set())
    _write_fractions(told, style, output, hidden)


def _write_fractions(told: Sequence[msgspec.Struct], style: str, output: str, hidden: Collection[str] = ()) -> None:
    """Write records; for people with their fractions in per cent and without the `hidden` fields."""
    rows = [msgspec.to_builtins(one) for one in told]
    for row in rows if style in ("table", "md") else []:
        for name in hidden:
            row.pop(name, None)
        for name in _FRACTIONS & row.keys():
            row[name] = percent(row[name], 2 if name in ("noise", "noise_floor") else 1)
    write_rows(rows, style, output)
