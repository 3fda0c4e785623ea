"""Plan a sweep: draw the models, estimate each before anything is built, leave out what would not fit."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from latmod import __version__
from latmod.dataset import SCHEMA, Card, PlannedModel, Protocol
from latmod.errors import SpecError
from latmod.families import FAMILIES
from latmod.families.file import File
from latmod.graph import parse_shapes, shape_names
from latmod.machine import Machine, read_machine, read_versions
from latmod.runtimes import find_runtime
from latmod.specs import Listed, Space, draw, load_space

MACS_PER_SECOND = 30e9
"""What one core of a recent server does in fp32, for estimates of time only; the real rate shows in the first round."""
_OPEN_SECONDS = 0.25
_COMPILE_SECONDS = {"torch-compile": 20.0}
"""What opening a model takes where that writes code and compiles it: means of 9, 20 and 29 s (kernels-zen5-compile,
mixer-zen5-compile, kernels-zen3-compile).
"""
_MEMORY_SHARE = 0.6


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """Tell what a plan would take."""

    models: int
    skipped: int
    bursts: int
    hours: float
    largest_memory_bytes: int
    largest_gmacs: float


def default_memory_bytes(machine: Machine) -> int:
    """Return the bound of memory per model where the user gives none; the same whenever a sweep is resumed."""
    return int(_MEMORY_SHARE * machine.memory_gib * 2**30)


def find_spaces(names: Sequence[str]) -> list[Path]:
    """Return the files of spaces, and the networks, given as files, folders of either, or names of bundled spaces.

    Raises SpecError where there is none.
    """
    bundled = bundled_spaces()
    found = []
    for name in names:
        path = Path(name)
        if not path.exists():
            if name not in bundled:
                raise SpecError(f"{name}: no such file; bundled spaces are {', '.join(sorted(bundled))}")
            path = bundled[name]
        found += _space_files(path)
    return found


def _space_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.toml")) or sorted(path.glob("*.onnx"))
    if not files:
        raise SpecError(f"{path}: no .toml and no .onnx file in this folder")
    return files


def bundled_spaces() -> dict[str, Path]:
    """Return the spaces that come with latmod, by name: from the package, or from `specs/` of a source checkout.

    A folder of spaces is one of them, by the folder's name.
    """
    package = Path(__file__).parent
    folder = package / "spaces"
    if not folder.is_dir():
        folder = package.parent / "specs"
    return {path.stem: path for path in sorted(folder.iterdir()) if path.is_dir() or path.suffix == ".toml"}


def plan_sweep(
    spaces: Sequence[Path],
    runtimes: Sequence[str],
    protocol: Protocol,
    *,
    name: str,
    limit: int = 0,
    max_gmacs: float = 0.0,
    max_memory_bytes: int = 0,
    shapes: Sequence[str] = (),
) -> Card:
    """Return the card of a sweep over spaces; models over a bound are in it as skipped, with the estimate.

    A space may be an `.onnx` file instead, and `shapes` say what the free dims of such are, of those that have them;
    `limit` takes so many models from each space, `max_gmacs` 0 means no bound, `max_memory_bytes` 0 means 60 % of the
    machine's memory. Raises SpecError for a space that cannot be read, GraphError for such a network,
    RuntimeMissingError for a runtime that is not installed.
    """
    machine = read_machine()
    bound = max_memory_bytes or default_memory_bytes(machine)
    loaded = _load_spaces(spaces, shapes)
    found = {runtime: find_runtime(runtime) for runtime in runtimes}
    models: dict[str, PlannedModel] = {}
    for space in loaded:
        for model in _models(space, limit, max_gmacs, bound):
            models.setdefault(model.model, model)
    if not models:
        raise SpecError("no models: the spaces draw none")
    return Card(
        schema=SCHEMA,
        name=name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        latmod=__version__,
        spaces=[msgspec.to_builtins(space) for space in loaded],
        protocol=protocol,
        runtimes={name: runtime.version() for name, runtime in found.items()},
        machine=machine,
        versions=read_versions(),
        models=list(models.values()),
        tolerances={name: runtime.tolerance for name, runtime in found.items()},
    )


def estimate(card: Card) -> Estimate:
    """Estimate what a card's sweep takes, from MACs and the names of the runtimes alone."""
    protocol = card.protocol
    latencies = [model.macs / MACS_PER_SECOND for model in card.planned]
    samples = [max(protocol.burst_seconds, protocol.min_samples * latency) for latency in latencies]
    running = sum(1.3 * burst + latency for burst, latency in zip(samples, latencies, strict=True))
    opening = [_COMPILE_SECONDS.get(name, _OPEN_SECONDS) * len(latencies) for name in card.runtimes]
    passes = protocol.rounds + protocol.kernel_rounds
    return Estimate(
        models=len(card.planned),
        skipped=len(card.models) - len(card.planned),
        bursts=len(card.planned) * len(card.runtimes) * passes,
        hours=sum(running + own for own in opening) * passes / 3600,
        largest_memory_bytes=max((model.memory_bytes for model in card.planned), default=0),
        largest_gmacs=max((model.macs for model in card.planned), default=0) / 1e9,
    )


def _load_spaces(paths: Sequence[Path], shapes: Sequence[str]) -> list[Space]:
    """Return the spaces, and one of all networks that are given as files."""
    networks = [path for path in paths if path.suffix == ".onnx"]
    if shapes and not networks:
        raise SpecError("--shape is for .onnx files, and none is given; a space says what its networks take")
    loaded = [load_space(path, FAMILIES) for path in paths if path.suffix != ".onnx"]
    if networks:
        wanted = {text: next(iter(parse_shapes([text]))) for text in shapes}
        names = {path: shape_names(path) if wanted else frozenset() for path in networks}
        if unknown := set(wanted.values()) - frozenset().union(*names.values()):
            raise SpecError(f"--shape {min(unknown)}: no input and no free dim of these files is named so")
        listed: list[dict[str, Listed]] = [
            {"path": str(path), "shapes": tuple(text for text, name in wanted.items() if name in names[path])}
            for path in networks
        ]
        loaded.append(Space(schema=1, family=File.name, model=tuple(listed)))
        draw(loaded[-1], FAMILIES, source=f"{len(networks)} .onnx files")
    return loaded


def _models(space: Space, limit: int, max_gmacs: float, max_memory_bytes: int) -> list[PlannedModel]:
    family = FAMILIES[space.family]
    found = []
    for name, spec in draw(space, FAMILIES, limit=limit or None):
        needs = family.estimate(spec)
        skipped = ""
        if max_gmacs and needs.macs > max_gmacs * 1e9:
            skipped = f"estimated {needs.macs / 1e9:.0f} GMACs, more than --max-gmacs {max_gmacs:g}"
        elif needs.peak_memory_bytes > max_memory_bytes > 0:
            skipped = (
                f"estimated {needs.peak_memory_bytes / 2**30:.1f} GiB, more than --max-memory "
                f"{max_memory_bytes / 2**30:.1f} GiB"
            )
        found.append(
            PlannedModel(
                model=name,
                family=space.family,
                spec=msgspec.json.decode(msgspec.json.encode(spec)),
                macs=needs.macs,
                params=needs.params,
                memory_bytes=needs.peak_memory_bytes,
                skipped=skipped,
            )
        )
    return found
