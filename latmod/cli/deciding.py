"""The commands that answer a question: compare, plan, diff."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from latmod.cli.options import (
    chosen_predictors,
    machine_option,
    output_options,
    parse_shapes,
    predictor_option,
    runtime_option,
    shape_option,
    that_add_up_kernels,
    threads_option,
    write,
    write_rows,
)
from latmod.cli.predicting import note, warn_of_other_machine
from latmod.errors import LatmodError
from latmod.report import Format, Row, percent, render, significant

if TYPE_CHECKING:
    from latmod.comparing import Contender, Fit
    from latmod.differing import Difference
    from latmod.machine import Machine
    from latmod.predictor import Predictor

EXIT_SLOWER = 5


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="MODEL.onnx...")
@predictor_option
@runtime_option
@machine_option
@shape_option
@threads_option
@click.option("--measure", "measured", is_flag=True, help="Also measure, in the runtimes that are installed.")
@output_options
def compare(
    models: tuple[Path, ...],
    predictors: tuple[Path, ...],
    runtimes: tuple[str, ...],
    machine: str,
    shapes: tuple[str, ...],
    threads: int,
    measured: bool,
    style: str,
    output: str,
) -> None:
    """Tell in which runtime a model is fastest, and how sure that is.

    \b
    latmod compare mobilenet.onnx
    latmod compare mobilenet.onnx --measure
    """
    from latmod.comparing import compare as compare_one
    from latmod.machine import read_machine
    from latmod.predicting import predict

    known = _comparable(chosen_predictors(predictors, runtimes, machine), threads, read_machine())
    found: list[Contender] = []
    for path in models:
        found += compare_one(predict(path, predictors=known, shapes=parse_shapes(shapes), notify=note))
    if measured:
        found = _with_measured(found, models, shapes, threads)
    warn_of_other_machine(known, asked_for=machine)
    write_rows([_contender_row(one, measured) if style == "table" else _fields(one) for one in found], style, output)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="FOLDER")
@click.option("--budget-ms", type=click.FloatRange(min=0, min_open=True), required=True, help="Latency allowed.")
@click.option(
    "--confidence", type=click.FloatRange(0.5, 1.0, max_open=True), default=0.9, show_default=True,
    help="Probability of meeting it that counts as meeting it.",
)  # fmt: skip
@predictor_option
@runtime_option
@machine_option
@shape_option
@threads_option
@output_options
def plan(
    folder: Path,
    budget_ms: float,
    confidence: float,
    predictors: tuple[Path, ...],
    runtimes: tuple[str, ...],
    machine: str,
    shapes: tuple[str, ...],
    threads: int,
    style: str,
    output: str,
) -> None:
    """Tell which of the .onnx files in a folder meet a latency budget, and in which runtime.

    \b
    latmod plan models/ --budget-ms 20
    """
    from latmod.comparing import meets_budget
    from latmod.machine import read_machine
    from latmod.predicting import predict

    files = sorted(folder.glob("*.onnx")) if folder.is_dir() else []
    if not files:
        raise LatmodError(f"{folder}: no folder with .onnx files in it")
    known = _comparable(chosen_predictors(predictors, runtimes, machine), threads, read_machine())
    found: list[Fit] = []
    failed = 0
    for path in files:
        try:
            answers = predict(path, predictors=known, shapes=parse_shapes(shapes), notify=note)
        except LatmodError as error:
            failed += 1
            click.echo(f"Error: {error}", err=True)
            continue
        found += [meets_budget(one, budget_ms, confidence) for one in answers]
    warn_of_other_machine(known, asked_for=machine)
    ranked = sorted(found, key=lambda one: (one.model, not one.meets, one.latency_ms, one.runtime))
    rows = [_fields(one) for one in ranked]
    for row in rows if style in ("table", "md") else []:
        row["confidence"] = percent(float(str(row["confidence"])))
    write_rows(rows, style, output)
    if failed:
        sys.exit(3 if found else 1)


@click.command()
@click.argument("old", type=click.Path(path_type=Path), metavar="OLD.onnx")
@click.argument("new", type=click.Path(path_type=Path), metavar="NEW.onnx")
@predictor_option
@runtime_option
@machine_option
@shape_option
@threads_option
@click.option("--fail-over", default="10%", show_default=True, metavar="PERCENT", help="Slow-down that fails.")
@click.option("--top", type=click.IntRange(0), default=10, show_default=True, help="Kernels to name.")
@output_options
def diff(
    old: Path,
    new: Path,
    predictors: tuple[Path, ...],
    runtimes: tuple[str, ...],
    machine: str,
    shapes: tuple[str, ...],
    threads: int,
    fail_over: str,
    top: int,
    style: str,
    output: str,
) -> None:
    """Predict what a change of a model does to its latency, and which kernels are to blame.

    Ends with exit code 5 where the model surely (with 90 % confidence) becomes slower by more than the limit.

    \b
    latmod diff main.onnx branch.onnx --runtime onnxruntime --fail-over 10%
    """
    from latmod.differing import difference
    from latmod.graph import read_graph
    from latmod.predicting import ask, of_threads, sharpest, that_can_run

    limit = _fraction(fail_over)
    able = sharpest(that_add_up_kernels(of_threads(chosen_predictors(predictors, runtimes, machine), threads)))
    before, after = (ask(read_graph(path, parse_shapes(shapes)), path.name) for path in (old, new))
    able = that_can_run(that_can_run(able, before, note), after, note)
    found = []
    for one in able:
        was, now = one.breakdown(before), one.breakdown(after)
        found.append(difference(one.card.runtime, was, now, one.card.pair_quantile))
    warn_of_other_machine(able, asked_for=machine)
    machines = [one.card.machine for one in able]
    write(_diff_text(found, machines, old.name, new.name, limit, top, Format(style)), output)
    if any(one.surely_above > 1.0 + limit for one in found):
        click.echo(f"slower by more than {fail_over} with 90 % confidence", err=True)
        sys.exit(EXIT_SLOWER)


def _comparable(known: "tuple[Predictor, ...]", threads: int, here: "Machine") -> "tuple[Predictor, ...]":
    """Keep the predictors for a number of threads on one machine; say so where this one has fewer runtimes' ones."""
    from latmod.predicting import of_one_machine, of_threads

    kept = of_threads(known, threads)
    chosen = of_one_machine(kept, here)
    own = sorted({one.card.runtime for one in kept if one.card.machine_id == here.id})
    if own and chosen[0].card.machine_id != here.id:
        note(f"for this machine there are only {', '.join(own)}: --machine {here.id}")
    return chosen


def _fields(one: "Contender | Fit") -> dict[str, str | float | bool | None]:
    found: dict[str, str | float | bool | None] = msgspec.to_builtins(one)
    return found


def _with_measured(
    found: "list[Contender]", models: tuple[Path, ...], shapes: tuple[str, ...], threads: int
) -> "list[Contender]":
    from latmod.measuring import measure
    from latmod.runtimes import installed_runtimes

    wanted = {one.runtime for one in found}
    names = [name for name in installed_runtimes() if name in wanted]
    answers = measure(models, names, threads=threads, shapes=parse_shapes(shapes),
                      notify=lambda line: click.echo(line, err=True))  # fmt: skip
    told = {(one.model, one.runtime): one for one in answers}
    return [
        msgspec.structs.replace(one, measured_ms=truth.latency_ms, measured_load_ms=truth.load_ms)
        if (truth := told.get((Path(one.model).stem, one.runtime)))
        else one
        for one in found
    ]


def _contender_row(one: "Contender", measured: bool) -> Row:
    row: dict[str, str | float | bool | None] = {
        "model": one.model,
        "runtime": one.runtime,
        "latency_ms": one.latency_ms,
        "90 % interval": f"{significant(one.low_ms)} .. {significant(one.high_ms)}",
        "speed-up": None if one.speedup is None else f"{one.speedup:.2f}x",
        "is fastest": percent(one.fastest, 0),
        "load_ms": one.load_ms,
        "in domain": one.in_domain,
    }
    if measured:
        row |= {"measured_ms": one.measured_ms, "measured load_ms": one.measured_load_ms}
    return row


def _fraction(text: str) -> float:
    try:
        value = float(text.strip().removesuffix("%")) / 100.0
    except ValueError:
        value = -1.0
    if value < 0:
        raise click.BadParameter(f"{text!r} is not a percentage such as 10%", param_hint="--fail-over")
    return value


def _diff_text(
    found: "list[Difference]", machines: Sequence[str], old: str, new: str, limit: float, top: int, style: Format
) -> str:
    """Return the changes, and the kernels to blame: one document in JSON, two tables otherwise.

    `machines` are those that the latencies hold for, as people call them: they may differ between runtimes.
    """
    if style in (Format.JSON, Format.CSV):
        rows: list[Row] = []
        for one, machine in zip(found, machines, strict=True):
            whole = {"runtime": one.runtime, "machine": machine, "old_ms": one.old_ms, "new_ms": one.new_ms,
                     "ratio": one.ratio, "low": one.low, "high": one.high, "surely_above": one.surely_above,
                     "fails": one.surely_above > 1.0 + limit}  # fmt: skip
            named = [_rounded(msgspec.to_builtins(blame)) for blame in one.blames[:top]]
            if style is Format.JSON:
                rows.append({"old": old, "new": new, **_rounded(whole), "blames": named})  # type: ignore[dict-item]
            else:
                for blame in named or [{}]:
                    rows.append({"old": old, "new": new, **_rounded(whole), **blame})  # type: ignore[dict-item]
        return render(rows, style)
    head: list[Row] = [
        {
            "runtime": one.runtime,
            old: f"{significant(one.old_ms)} ms",
            new if new != old else f"{new} (new)": f"{significant(one.new_ms)} ms",
            "change": _signed(one.ratio),
            "90 % interval": f"{_signed(one.low)} .. {_signed(one.high)}",
            f"over {percent(limit, 0)}": "yes, surely" if one.surely_above > 1.0 + limit
            else "no" if one.high <= 1.0 + limit else "cannot be told",
            "machine": machine,
        }
        for one, machine in zip(found, machines, strict=True)
    ]  # fmt: skip
    text = render(head, style)
    blames: list[Row] = [
        {"runtime": one.runtime, "change": blame.change, "kernel": blame.kernel, "kind": blame.kind,
         "old_ms": blame.old_ms, "new_ms": blame.new_ms, "adds": f"{100.0 * blame.share:+.1f} %"}
        for one in found
        for blame in one.blames[:top]
    ]  # fmt: skip
    return text + ("\n" + render(blames, style) if blames else "\nno kernel differs\n")


def _rounded(row: dict[str, object]) -> dict[str, object]:
    """Cut numbers to six significant digits: the rest differs between processors."""
    return {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in row.items()}


def _signed(ratio: float) -> str:
    return f"{100.0 * (ratio - 1.0):+.1f} %"
