"""The commands that read models: predict and inspect."""

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
    write,
    write_rows,
)
from latmod.errors import LatmodError, MachineError, OutOfDomainError
from latmod.report import Cell, Format, Row, percent, render, significant

if TYPE_CHECKING:
    from latmod.predictor import Prediction, Predictor
    from latmod.timing import Reference

_BAR = 30
"""Length of the longest bar of `predict --kernels`, in characters."""


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="MODEL.onnx...")
@predictor_option
@runtime_option
@machine_option
@shape_option
@click.option("--threads", type=click.IntRange(1), help="Threads per inference.  [default: 1, or --predictor's]")
@click.option(
    "--here", is_flag=True, help="Spend two seconds on the reference load; predict for the machine's state now."
)
@click.option("--kernels", "by_kernel", is_flag=True, help="Show where the time goes, kernel by kernel.")
@click.option("--strict", is_flag=True, help="Refuse (exit code 4) where a model is out of domain.")
@output_options
def predict(
    models: tuple[Path, ...],
    predictors: tuple[Path, ...],
    runtimes: tuple[str, ...],
    machine: str,
    shapes: tuple[str, ...],
    threads: int | None,
    here: bool,
    by_kernel: bool,
    strict: bool,
    style: str,
    output: str,
) -> None:
    """Predict the latency of .onnx files, one line per model and runtime; nothing is run.

    \b
    latmod predict resnet50.onnx
    latmod predict *.onnx --format csv -o latencies.csv
    latmod predict resnet50.onnx --runtime onnxruntime --kernels
    """
    from latmod.machine import read_machine
    from latmod.predicting import nearest, of_threads
    from latmod.predicting import predict as predict_one

    known = chosen_predictors(predictors, runtimes, machine)
    if threads or not predictors:
        known = of_threads(known, threads or 1)
    if not predictors and not machine:
        known = nearest(known, read_machine())
    if by_kernel:
        _predict_kernels(models, known, parse_shapes(shapes), style, output)
        return
    if here:
        known = _of_this_machine(known)
    state = _state_now() if here else None
    found: list[Prediction] = []
    problems = []
    for path in models:
        try:
            found += predict_one(path, predictors=known, shapes=parse_shapes(shapes), state=state, notify=note)
        except LatmodError as error:
            problems.append(error)
            click.echo(f"Error: {error}", err=True)
    if found:
        warn_of_other_machine(known, asked_for=machine)
        several = len({one.threads for one in found}) > 1
        rows = [_prediction_row(one, several) if style == "table" else msgspec.to_builtins(one) for one in found]
        write_rows(rows, style, output)
    doubts: dict[tuple[str, str], list[str]] = {}
    for one in found:
        for reason in one.reasons:
            doubts.setdefault((one.model, reason), []).append(one.runtime)
    for (model, reason), doubted in doubts.items():
        click.echo(f"out of domain: {model} in {', '.join(dict.fromkeys(doubted))}: {reason}", err=True)
    if problems:
        sys.exit(1 if not found else 3)
    if strict and not all(one.in_domain for one in found):
        raise OutOfDomainError("out of domain, refused under --strict; the reasons stand above")


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="MODEL.onnx...")
@shape_option
@click.option("--totals", is_flag=True, help="One row per model instead of one per node.")
@click.option("--kernels", "runtime", metavar="RUNTIME", help="One row per kernel that a runtime makes of the nodes.")
@output_options
def inspect(
    models: tuple[Path, ...], shapes: tuple[str, ...], totals: bool, runtime: str | None, style: str, output: str
) -> None:
    """Show what is in .onnx files: shapes, MACs, FLOPs, parameters and bytes per node, totals, unknown operators.

    \b
    latmod inspect resnet50.onnx
    latmod inspect *.onnx --totals --format csv
    latmod inspect resnet50.onnx --kernels onnxruntime
    """
    from latmod.inspection import inspect as inspect_one

    if runtime is not None:
        write_rows([row for path in models for row in _kernel_rows(path, runtime, parse_shapes(shapes))], style, output)
        return
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


def _kernel_rows(path: Path, runtime: str, shapes: dict[str, tuple[int, ...]]) -> list[Row]:
    """Return what a runtime makes of a model on this machine's instruction set, one row per kernel."""
    from latmod.graph import read_graph
    from latmod.kernels import kernels
    from latmod.machine import read_machine
    from latmod.runtimes import find_runtime

    rules = find_runtime(runtime).rules
    return [
        {
            "model": path.name,
            "kernel": one.label,
            "kind": one.kind,
            "output": " ".join("x".join(map(str, shape)) for shape in one.outputs),
            "macs": int(one.number("macs")),
            "bytes_in": int(one.number("bytes_in")),
            "bytes_weights": int(one.number("bytes_weights")),
            "bytes_out": int(one.number("bytes_out")),
            "nodes": one.nodes,
        }
        for one in kernels(read_graph(path, shapes), rules, isa=read_machine().isa)
    ]


def _predict_kernels(
    models: Sequence[Path],
    known: Sequence["Predictor"],
    shapes: dict[str, tuple[int, ...]],
    style: str,
    output: str,
) -> None:
    """Show where the time of each model goes, the kernels that take most first, in every runtime that can tell."""
    from latmod.graph import read_graph
    from latmod.predicting import ask, choose_each, that_can_run
    from latmod.predictor import KernelPredictor

    able = that_add_up_kernels(known)
    rows: list[Row] = []
    for path in models:
        query = ask(read_graph(path, shapes), path.name)
        for one in choose_each(that_can_run(able, query, note), query):
            assert isinstance(one, KernelPredictor)
            told = one.breakdown(query)
            ranked = sorted(zip(told.kernels, told.kernel_ns, strict=True), key=lambda pair: -pair[1])
            unseen = {outside.label for outside in told.unseen}
            for kernel, ns in ranked:
                share = ns / told.latency_ns
                row: dict[str, Cell] = {
                    "model": path.name,
                    "runtime": one.card.runtime,
                    "kernel": kernel.label,
                    "kind": kernel.kind,
                    "latency_ms": ns / 1e6,
                    "share": percent(share) if style in ("table", "md") else share,
                }
                if style == "table":
                    row["where the time goes"] = "#" * round(_BAR * ns / ranked[0][1])
                else:
                    row["nodes"] = kernel.nodes
                row["measured kind"] = kernel.label not in unseen
                rows.append(row)
            rows.append(
                {"model": path.name, "runtime": one.card.runtime, "kernel": "the run itself", "kind": "",
                 "latency_ms": told.run_ns / 1e6}
            )  # fmt: skip
            rows.append(
                {"model": path.name, "runtime": one.card.runtime, "kernel": "total", "kind": "",
                 "latency_ms": told.latency_ns / 1e6}
            )  # fmt: skip
    write_rows(rows, style, output)


def _of_this_machine(known: Sequence["Predictor"]) -> tuple["Predictor", ...]:
    """Keep predictors whose machine has a state that can be told here, say which are left out.

    How a network's latency follows the reference load is known within a machine alone: from one machine to another this
    load changed 3.6 times where networks changed 2.4 times. Raises MachineError where none is left.
    """
    from latmod.machine import read_machine

    here = read_machine()
    kept = tuple(one for one in known if here.id == one.card.machine_id or here.label == one.card.machine)
    others = sorted({one.card.runtime for one in known} - {one.card.runtime for one in kept})
    if not kept:
        raise MachineError(
            f"--here: {', '.join(others)} known on {known[0].card.machine}, and this machine is {here.label}; "
            "make predictors for it with `latmod adapt`"
        )
    if others:
        note(f"--here leaves out {', '.join(others)}, known on other machines alone")
    return kept


def _state_now() -> "Reference":
    from latmod.timing import median_reference
    from latmod.worker import reference_passes

    return median_reference(reference_passes(seconds=2.0).passes)


def note(line: str) -> None:
    """Say something beside the results, on stderr."""
    click.echo(f"note: {line}", err=True)


def warn_of_other_machine(predictors: Sequence["Predictor"], *, asked_for: str) -> None:
    """Say on stderr for which machine predictions hold, where that is not this one.

    And what to do about it, where nobody asked for one.
    """
    from latmod.machine import read_machine

    here = read_machine()
    machines = {one.card.machine_id: one.card.machine for one in predictors}
    for machine_id, machine in machines.items():
        if machine_id != here.id:
            runtimes = sorted({one.card.runtime for one in predictors if one.card.machine_id == machine_id})
            whose = f"for {', '.join(runtimes)} " if len(machines) > 1 else ""
            advice = "" if asked_for else "; `latmod adapt` makes predictors for it in a few minutes"
            note(f"the predictions {whose}hold for {machine}; this machine is {here.label}{advice}")


def _prediction_row(one: "Prediction", with_threads: bool) -> Row:
    return {
        "model": one.model,
        "runtime": one.runtime,
        **({"threads": one.threads} if with_threads else {}),
        "latency_ms": one.latency_ms,
        "90 % interval": f"{significant(one.low_ms)} .. {significant(one.high_ms)}",
        "in domain": one.in_domain,
        "machine": one.machine,
    }
