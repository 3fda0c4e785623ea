"""What the commands share: options, and writing results."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from latmod.errors import GraphError, LatmodError
from latmod.report import Format, Row, render

if TYPE_CHECKING:
    from latmod.predictor import KernelPredictor, Predictor

GIB = 2**30

_Command = TypeVar("_Command", bound=Callable[..., object])


def output_options(command: _Command) -> _Command:
    """Add --format and -o to a command that reads."""
    style = click.option(
        "--format", "style", type=click.Choice([one.value for one in Format]), default="table", show_default=True,
        help="How to print.",
    )  # fmt: skip
    target = click.option("-o", "--output", default="-", help="File to write, - for standard output.", metavar="FILE")
    return style(target(command))


def write(text: str, output: str) -> None:
    """Write a result to a file or to standard output."""
    if output == "-":
        click.echo(text, nl=False)
        return
    try:
        Path(output).write_text(text, encoding="utf-8")
    except OSError as error:
        raise LatmodError(f"{output}: cannot be written: {error.strerror}") from error


def write_rows(rows: Sequence[Row], style: str, output: str) -> None:
    """Write rows to a file or to standard output."""
    write(render(rows, Format(style)), output)


runtime_option = click.option(
    "--runtime", "runtimes", multiple=True, metavar="NAME", help="Runtime to use; may be given several times."
)
predictor_option = click.option(
    "--predictor",
    "predictors",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Predictor file or folder (default: those that ship).",
)
machine_option = click.option(
    "--machine", default="", metavar="ID",
    help="Machine whose predictors to use: its id, or words that only its description has (default: one like this).",
)  # fmt: skip
threads_option = click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads per inference."
)
patience_option = click.option(
    "--patience-seconds",
    type=click.FloatRange(0),
    default=1.0,
    show_default=True,
    help="How long a burst may look for quiet before it takes the cores as they are (0: not at all).",
)
images_option = click.option(
    "--images", default="", metavar="DIR", help="Folder of photographs to make inputs from (default: the bundled ones)."
)
memory_option = click.option(
    "--max-memory",
    type=float,
    default=0.0,
    metavar="GIB",
    help="Bound of memory per model (default: 60 % of the machine's).",
)
shape_option = click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="NAME=1x3x224x224",
    help="Shape of an input with free dims, or the size of a free dim by its name: --shape batch=1.",
)


def parse_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Read what `--shape` was given; raise click's usage error for what is no shape."""
    from latmod.graph import parse_shapes as parse

    try:
        return parse(texts)
    except GraphError as error:
        raise click.BadParameter(str(error), param_hint="--shape") from None


def duration(seconds: float) -> str:
    """Return a time span for a person."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def chosen_predictors(paths: Sequence[Path], runtimes: Sequence[str], machine: str = "") -> tuple["Predictor", ...]:
    """Load the named predictors, or those that ship; keep those for the named runtimes and machine.

    Raises LatmodError where none is left.
    """
    from latmod.predicting import on_machine, reference_predictors
    from latmod.predictor import load_predictor

    files = [file for path in paths for file in (sorted(path.glob("*.onnx")) if path.is_dir() else [path])]
    known = tuple(load_predictor(file) for file in files) if paths else reference_predictors()
    kept = tuple(one for one in known if not runtimes or one.card.runtime in runtimes)
    if not kept:
        have = ", ".join(sorted({one.card.runtime for one in known})) or "none"
        raise LatmodError(
            f"no predictor for {', '.join(runtimes) or 'any runtime'}; there are: {have} (see `latmod fit`)"
        )
    return on_machine(kept, machine) if machine else kept


def that_add_up_kernels(known: Sequence["Predictor"]) -> list["KernelPredictor"]:
    """Keep the predictors of the kernel level; raise LatmodError where there is none."""
    from latmod.predictor import KernelPredictor

    able = [one for one in known if isinstance(one, KernelPredictor)]
    if not able:
        raise LatmodError("no predictor at hand adds up kernels; make one with `latmod fit --level kernel`")
    return able
