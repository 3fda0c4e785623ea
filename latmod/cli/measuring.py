"""The commands that measure: sweep, measure, table, runtimes, doctor, demo."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from latmod.cli.options import (
    GIB,
    duration,
    images_option,
    memory_option,
    output_options,
    parse_shapes,
    patience_option,
    runtime_option,
    shape_option,
    threads_option,
    write_rows,
)
from latmod.report import Row

if TYPE_CHECKING:
    from latmod.schedule import SweepResult
    from latmod.sweeping import Progress

EXIT_FAILED_PARTS = 3
KERNEL_ROUNDS = 1


@click.command()
@click.argument("spaces", nargs=-1, metavar="[SPACE.toml|MODEL.onnx]...")
@runtime_option
@threads_option
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Passes over all models.")
@click.option(
    "--repeats",
    type=click.IntRange(0),
    default=2,
    show_default=True,
    help="How often to measure again, after the rounds, what never found quiet cores.",
)
@click.option("--burst-seconds", type=float, default=0.5, show_default=True, help="Time budget of one burst.")
@patience_option
@click.option(
    "--min-samples", type=click.IntRange(1), default=2, show_default=True, help="Samples of a slow model's burst."
)
@click.option(
    "--max-samples", type=click.IntRange(1), default=100, show_default=True, help="Samples of a fast model's burst."
)
@click.option("--max-seconds", type=float, default=0.0, help="Leave out models slower than this (0: none).")
@click.option("--max-gmacs", type=float, default=0.0, help="Leave out models of more GMACs than this (0: none).")
@memory_option
@click.option("--limit", type=click.IntRange(0), default=0, help="Take so many models of each space (0: all).")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the order of models.")
@click.option("--weight-seed", type=int, default=0, show_default=True, help="Seed of the weights.")
@click.option("--input-seed", type=int, default=0, show_default=True, help="Seed of the choice of images.")
@shape_option
@images_option
@click.option(
    "--timeout", type=float, default=600.0, show_default=True, help="Seconds after which a worker counts as hung."
)
@click.option("--kernels", is_flag=True, help="Also ask the engines what each kernel takes, in the first round.")
@click.option("--out", type=click.Path(path_type=Path), help="Data set folder (default: datasets/SPACE).")
@click.option("--dry-run", is_flag=True, help="Print the plan and an estimate of time and memory; measure nothing.")
def sweep(
    spaces: tuple[str, ...],
    runtimes: tuple[str, ...],
    threads: int,
    rounds: int,
    repeats: int,
    burst_seconds: float,
    patience_seconds: float,
    min_samples: int,
    max_samples: int,
    max_seconds: float,
    max_gmacs: float,
    max_memory: float,
    limit: int,
    seed: int,
    weight_seed: int,
    input_seed: int,
    shapes: tuple[str, ...],
    images: str,
    timeout: float,
    kernels: bool,
    out: Path | None,
    dry_run: bool,
) -> None:
    """Measure the models of spaces (files, folders of them, or bundled ones by name) in runtimes, in rounds.

    Networks of your own, as .onnx files or folders of them, are measured alike: weights in them are not needed, and
    where dims are free, --shape says what they are. The data set can be fitted to, and evaluated, as any other.

    Without arguments: the bundled smoke space, in every installed runtime. Start the same command again to resume; with
    more rounds, models or other runtimes it goes on from there.

    \b
    latmod sweep
    latmod sweep specs/resnet-varied-width.toml --runtime torch --runtime onnxruntime --max-seconds 6
    latmod sweep my-networks --kernels --rounds 2
    """
    from latmod.dataset import DatasetFolder, Protocol, Seeds
    from latmod.machine import read_machine
    from latmod.plan import default_memory_bytes, estimate, find_spaces, plan_sweep
    from latmod.runtimes import installed_runtimes
    from latmod.sweeping import run_sweep
    from latmod.table import write_table

    spaces = spaces or ("smoke",)
    paths = find_spaces(spaces)
    names = (Path(space).resolve().parent if space.endswith(".onnx") else Path(space) for space in spaces)
    name = "+".join(dict.fromkeys(path.stem for path in names))
    protocol = Protocol(
        threads=threads,
        rounds=rounds,
        burst_seconds=burst_seconds,
        min_samples=min_samples,
        max_samples=max_samples,
        max_latency_seconds=max_seconds,
        patience_seconds=patience_seconds,
        input_count=4,
        images=images,
        kernel_rounds=min(rounds, KERNEL_ROUNDS) if kernels else 0,
        seeds=Seeds(sweep=seed, weight=weight_seed, input=input_seed),
    )
    folder = DatasetFolder(out or Path("datasets") / name)
    memory_bytes = int(max_memory * GIB) or default_memory_bytes(read_machine())
    card = plan_sweep(
        paths, runtimes or installed_runtimes(), protocol, name=folder.path.name, limit=limit, max_gmacs=max_gmacs,
        max_memory_bytes=memory_bytes, shapes=shapes,
    )  # fmt: skip
    plan = estimate(card)
    telling = f" and {protocol.kernel_rounds} of kernels" if protocol.kernel_rounds else ""
    click.echo(
        f"{plan.models} models ({plan.skipped} left out) x {len(card.runtimes)} runtimes x {rounds} rounds{telling} = "
        f"{plan.bursts} bursts, about {duration(plan.hours * 3600)}; largest model {plan.largest_gmacs:.3g} GMACs, "
        f"{plan.largest_memory_bytes / GIB:.2g} GiB -> {folder.path}",
        err=True,
    )
    if dry_run:
        columns = ("model", "macs", "params", "memory_bytes", "skipped")
        write_rows([{column: getattr(model, column) for column in columns} for model in card.models], "table", "-")
        return
    result = run_sweep(folder, card, _Display(), repeats=repeats, memory_bytes=memory_bytes, timeout_seconds=timeout)
    table = write_table(folder) if result.measured else None
    _print_result(result, table)
    if result.failed:
        sys.exit(EXIT_FAILED_PARTS)


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="MODEL.onnx...")
@runtime_option
@threads_option
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Passes over all models.")
@click.option("--burst-seconds", type=float, default=0.5, show_default=True, help="Time budget of one burst.")
@patience_option
@shape_option
@images_option
@memory_option
@output_options
def measure(
    models: tuple[Path, ...],
    runtimes: tuple[str, ...],
    threads: int,
    rounds: int,
    burst_seconds: float,
    patience_seconds: float,
    shapes: tuple[str, ...],
    images: str,
    max_memory: float,
    style: str,
    output: str,
) -> None:
    """Measure .onnx files, with the sweep's own code; weights in the files are not needed.

    \b
    latmod measure resnet50.onnx --runtime torch --runtime onnxruntime
    """
    import msgspec

    from latmod.measuring import measure as measure_models
    from latmod.runtimes import installed_runtimes

    results = measure_models(
        models,
        runtimes or installed_runtimes(),
        threads=threads,
        rounds=rounds,
        burst_seconds=burst_seconds,
        patience_seconds=patience_seconds,
        shapes=parse_shapes(shapes),
        images=images,
        memory_bytes=int(max_memory * GIB),
        notify=lambda line: click.echo(line, err=True),
    )
    write_rows([msgspec.to_builtins(one) for one in results], style, output)
    if any(one.latency_ms is None for one in results):
        sys.exit(EXIT_FAILED_PARTS)


@click.command()
@runtime_option
@click.option("--rounds", type=click.IntRange(1), default=2, show_default=True, help="Passes over all networks.")
@click.option("--burst-seconds", type=float, default=0.2, show_default=True, help="Time budget of one burst.")
@patience_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("latmod-adapted"),
    show_default=True,
    help="Folder for the predictors.",
)
@output_options
def adapt(
    runtimes: tuple[str, ...],
    rounds: int,
    burst_seconds: float,
    patience_seconds: float,
    out: Path,
    style: str,
    output: str,
) -> None:
    """Adapt the predictors that ship to this machine, by a few small networks that are measured here.

    \b
    latmod adapt
    latmod predict resnet50.onnx --predictor latmod-adapted
    """  # fmt: skip
    from latmod.adapting import adapt_here
    from latmod.cli.options import chosen_predictors, that_add_up_kernels
    from latmod.fitting import write_artifact
    from latmod.report import percent

    known = that_add_up_kernels(chosen_predictors((), runtimes))
    found = adapt_here(
        known,
        asked=bool(runtimes),
        rounds=rounds,
        burst_seconds=burst_seconds,
        patience_seconds=patience_seconds,
        notify=lambda line: click.echo(line, err=True),
        tell=_Display(),
    )
    rows: list[Row] = []
    for one in found:
        path = write_artifact(one, out)
        rows.append(
            {
                "runtime": one.card.runtime,
                "networks": one.card.models,
                "adapted from": one.card.adapted_from,
                "times as long": one.factor,
                "error": percent(one.error) if style in ("table", "md") else one.error,
                "predictor": str(path),
            }
        )
    write_rows(rows, style, output)


@click.command()
@click.argument("datasets", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="DATASET...")
def table(datasets: tuple[Path, ...]) -> None:
    """Derive table.csv of data sets from their measurements.

    \b
    latmod table datasets/resnet-fixed-width
    """
    from latmod.dataset import DatasetFolder
    from latmod.table import write_table

    for path in datasets:
        click.echo(write_table(DatasetFolder(path)))


@click.command()
@output_options
def runtimes(style: str, output: str) -> None:
    """Show which runtimes are installed, and how to get the others.

    \b
    latmod runtimes --format json
    """
    from latmod.errors import RuntimeMissingError
    from latmod.runtimes import find_runtimes

    rows: list[Row] = []
    for name, runtime in find_runtimes().items():
        try:
            version = runtime.version()
        except RuntimeMissingError:
            version = ""
        install = f"pip install 'latmod[{runtime.extra}]'" if runtime.extra else "with latmod"
        rows.append(
            {
                "name": name,
                "version": version,
                "installed": bool(version),
                "extra": install,
                "source": runtime.source,
                "kernels": runtime.profiles,
            }
        )
    write_rows(rows, style, output)


@click.command()
@click.option("--seconds", type=float, default=10.0, show_default=True, help="Length of the noise test.")
@output_options
def doctor(seconds: float, style: str, output: str) -> None:
    """Show the machine, test its noise, and advise.

    \b
    latmod doctor --seconds 3
    """
    from latmod.doctor import check_up, checkup_rows

    write_rows(checkup_rows(check_up(seconds)), style, output)


class _Display:
    """Print how far a sweep is, between bursts: one line that is rewritten on a terminal, a line per 5 % elsewhere."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._last = ""

    def __call__(self, progress: "Progress") -> None:
        if progress.line:
            click.echo(("\r\033[K" if self._live else "") + progress.line, err=True)
        text = f"{progress.phase}: {progress.done}/{progress.total}, {duration(progress.seconds_left)} left"
        if self._live:
            click.echo(f"\r\033[K{text}", nl=progress.done == progress.total, err=True)
            return
        step = f"{progress.phase.partition(' ')[0]} {20 * progress.done // max(1, progress.total)}"
        if step != self._last:
            self._last = step
            click.echo(text, err=True)


def _print_result(result: "SweepResult", table_path: Path | None) -> None:
    click.echo(
        f"measured {result.measured} (model, runtime) pairs; {len(result.failed)} failed, "
        f"{len(result.skipped)} left out; "
        f"{result.infer_share:.0%} of the time inside infer" + (f"; table: {table_path}" if table_path else ""),
        err=True,
    )
    if result.disturbed:
        click.echo(
            f"{result.disturbed} pairs never found quiet cores: their latencies are too high, and kernel fits leave "
            "them out; the same command with more --repeats measures them again",
            err=True,
        )
    for line in result.failed:
        click.echo(f"failed: {line}", err=True)


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("latmod-demo"),
    show_default=True,
    help="Folder for everything.",
)
@runtime_option
@output_options
def demo(out: Path, runtimes: tuple[str, ...], style: str, output: str) -> None:
    """Do the whole job in three minutes: sweep, fit, predict ResNet-18, measure it, compare.

    \b
    latmod demo
    """
    import msgspec

    from latmod.demo import RUNTIMES as DEMO_RUNTIMES
    from latmod.demo import run_demo
    from latmod.report import percent

    found = run_demo(out, runtimes or DEMO_RUNTIMES, _Display(), lambda line: click.echo(line, err=True))
    rows = [msgspec.to_builtins(one) for one in found]
    for row in rows if style in ("table", "md") else []:
        row["error"] = percent(row["error"])
    write_rows(rows, style, output)
