"""Keep a data set on disk: a card, one line per burst, and the weight-free graphs.

The folder holds `dataset.json` (the card), `measurements.jsonl` (append-only, flushed to disk burst by burst),
`kernels.jsonl` (the same for per-kernel times, where they were asked for), `graphs/MODEL.onnx`, and `table.csv`, which
`latmod table` derives from the rest.
"""

import fcntl
import os
import statistics
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import msgspec

from latmod.errors import DatasetError
from latmod.log import Log, read_records, replace_file
from latmod.machine import Disturbance, Machine
from latmod.quiet import QuietLevels, is_quiet, over_quiet, undisturbed
from latmod.timing import Reference, Statistic, median_reference, over_rounds

SCHEMA = 1
# Schema 1: the first.

CARD_FILE = "dataset.json"
MEASUREMENTS_FILE = "measurements.jsonl"
KERNELS_FILE = "kernels.jsonl"
GRAPHS_FOLDER = "graphs"
TABLE_FILE = "table.csv"

SpecFields = dict[str, str | int | float | list[int | str]]


class PlannedModel(msgspec.Struct, frozen=True, kw_only=True):
    """Hold one model of a data set, with the estimate that was made before anything was built."""

    model: str
    family: str
    spec: SpecFields
    macs: int
    params: int
    memory_bytes: int
    skipped: str = ""
    """Why the model was left out before measuring, empty where it was not."""


class Seeds(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the seeds of a sweep: the order of models, the weights, the choice of images."""

    sweep: int = 0
    weight: int = 0
    input: int = 0


class Protocol(msgspec.Struct, frozen=True, kw_only=True):
    """Hold how a sweep measures; two sweeps of different protocol never share a folder."""

    threads: int = 1
    rounds: int = 5
    burst_seconds: float = 0.5
    min_samples: int = 2
    max_samples: int = 100
    max_latency_seconds: float = 0.0
    """Models slower than this are left out after their first run; 0 for none."""
    patience_seconds: float = 0.0
    """How long a burst may look for quiet before it samples the cores as they are; 0 where nobody looked."""
    input_count: int = 4
    images: str = ""
    """A folder of photographs, empty for those that ship with latmod."""
    kernel_rounds: int = 0
    """In so many of the rounds, each burst is followed by one in which the engine tells per-kernel times."""
    seeds: Seeds = Seeds()


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """Describe a data set: what was drawn, how it was measured, where, and with which versions."""

    schema: int
    name: str
    created: str
    latmod: str
    spaces: list[dict[str, object]]
    protocol: Protocol
    runtimes: dict[str, str]
    machine: Machine
    versions: dict[str, str]
    models: list[PlannedModel]
    settings: dict[str, dict[str, str | int | bool]] = {}
    """What each engine says that it uses, written with its first burst."""
    nominal: Reference | None = None
    """The machine's nominal state, written when the sweep is finished."""
    tolerances: dict[str, float] = {}
    """By how much each runtime's outputs may differ from another's, relative to the largest output."""

    @property
    def planned(self) -> list[PlannedModel]:
        """Return the models that are to be measured."""
        return [model for model in self.models if not model.skipped]


class Measurement(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Hold one burst of one model in one runtime, or why there is none."""

    v: int = SCHEMA
    model: str
    runtime: str
    round: int
    attempt: int = 0
    """0, or how often this burst was repeated because its references disagreed."""
    status: str
    """`ok`; `unsteady` (its references disagreed, a later attempt follows); `failed`; `skipped`."""
    reason: str = ""
    started: str = ""
    samples_ns: tuple[int, ...] = ()
    warmup_ns: tuple[int, ...] = ()
    probes_ns: tuple[int, ...] = ()
    """The slower of the two probes around each sample (see `latmod.quiet`); empty where nobody looked."""
    load_ns: int = 0
    before: Reference | None = None
    after: Reference | None = None
    disturbance: Disturbance | None = None
    output: tuple[float, ...] = ()
    """Largest absolute value, mean, and the first values of the first output, for the parity check."""
    wall_ns: int = 0
    """What the burst took with everything around it, as the sweep saw it."""


LOOP = "loop "
"""Begins the operator of a kernel that a compiler wrote for several operators of a file; what it calls them follows."""


class KernelTime(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Hold what one kernel took: the operator as the engine names it, shapes, and the value that it writes, if known.

    `ns` is the mean over the fastest third of the runs, by their totals (OpenVINO's over all); `count` is how many
    kernels of this operator and these shapes share it. `nodes` are the nodes of the file that it does the work of, or
    values that these write, where the engine says so.
    """

    op: str
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    value: str
    count: int
    ns: int
    nodes: tuple[str, ...] = ()


class KernelMeasurement(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Hold one burst of one model in one runtime in which per-kernel times were told, or why there is none."""

    v: int = SCHEMA
    model: str
    runtime: str
    round: int
    status: str
    """`ok` or `failed`."""
    reason: str = ""
    started: str = ""
    before: Reference | None = None
    after: Reference | None = None
    kernels: tuple[KernelTime, ...] = ()
    wall_ns: int = 0


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what is known of one model in one runtime: spec, features, and one latency per round for each statistic."""

    model: str
    family: str
    runtime: str
    runtime_version: str
    machine_id: str
    threads: int
    batch: int
    spec: SpecFields
    features: dict[str, float]
    round_ns: dict[str, tuple[float, ...]]
    """Corrected for drift and page faults, one value per round, by figure: min, mean, p50, p90."""
    load_ns: float = 0.0
    """What opening the model took, the least over rounds."""
    disturbed: bool = False
    """Whether no sample of any round was taken on quiet cores; the least of all stands for the median then."""
    parity: str = "ok"
    """`differs` where this runtime's output disagrees with the others' on the same weights and input."""

    def latency_ns(self, statistic: Statistic = Statistic.MEDIAN_OF_MINIMA) -> float:
        """Return the latency in ns: over rounds, the median (or mean, or minimum) of each round's figure."""
        if statistic is Statistic.MEDIAN_OF_MINIMA:
            return over_quiet(self.round_ns["min"], not self.disturbed)
        return over_rounds(self.round_ns[statistic_key(statistic)], statistic)


def statistic_key(statistic: Statistic) -> str:
    """Return which figure of a round a statistic is made of: min, mean, p50 or p90."""
    return "min" if statistic in (Statistic.MEDIAN_OF_MINIMA, Statistic.MIN) else statistic.value


class DatasetFolder:
    """Read and append to one data set folder."""

    def __init__(self, path: Path) -> None:
        """Name the folder; nothing is read or made yet."""
        self.path = path

    @property
    def exists(self) -> bool:
        """Return whether a card is there."""
        return (self.path / CARD_FILE).is_file()

    @property
    def has_kernels(self) -> bool:
        """Return whether per-kernel times were asked for and told."""
        return (self.path / KERNELS_FILE).is_file()

    def graph_path(self, model: str) -> Path:
        """Return where the weight-free graph of a model lies."""
        return self.path / GRAPHS_FOLDER / f"{model}.onnx"

    def read_card(self) -> Card:
        """Return the card; raise DatasetError where there is none, or one of another schema."""
        path = self.path / CARD_FILE
        try:
            text = path.read_bytes()
        except OSError as error:
            raise DatasetError(f"{self.path}: not a data set ({CARD_FILE}: {error.strerror})") from error
        try:
            schema = msgspec.json.decode(text, type=_SchemaOnly).schema
            if schema != SCHEMA:
                raise DatasetError(f"{path}: schema {schema}, this latmod reads {SCHEMA}; use the latmod that wrote it")
            return msgspec.json.decode(text, type=Card)
        except msgspec.MsgspecError as error:
            raise DatasetError(f"{path}: {error}") from error

    def write_card(self, card: Card) -> None:
        """Replace the card in one step."""
        text = msgspec.json.format(msgspec.json.encode(card), indent=1)
        replace_file(self.path / CARD_FILE, text + b"\n")

    def read_measurements(self) -> list[Measurement]:
        """Return all bursts in the order they were stored; a torn last line is passed over."""
        return read_records(self.path / MEASUREMENTS_FILE, Measurement)

    def read_kernels(self) -> list[KernelMeasurement]:
        """Return all bursts with per-kernel times in the order they were stored; none where they were not asked for."""
        return read_records(self.path / KERNELS_FILE, KernelMeasurement)

    @contextmanager
    def writing(self) -> Iterator["Logs"]:
        """Hold the folder's lock and its logs; raise DatasetError where another sweep holds it or writing fails."""
        try:
            (self.path / GRAPHS_FOLDER).mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
        except OSError as error:
            raise DatasetError(f"{self.path}: cannot be written ({error.strerror}); choose another --out") from error
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise DatasetError(
                    f"{self.path}: another sweep is writing here; wait for it or choose another --out"
                ) from None
            with ExitStack() as stack:
                bursts = stack.enter_context(closing(Log(self.path / MEASUREMENTS_FILE)))
                yield Logs(bursts, self.path / KERNELS_FILE, stack)
        finally:
            os.close(lock)


class Logs:
    """Append bursts to the log of measurements, and those with per-kernel times to a log that begins with the first."""

    def __init__(self, bursts: Log, kernels_path: Path, stack: ExitStack) -> None:
        """Write to an open log, and to another that is opened when it is needed and closed with `stack`."""
        self._bursts = bursts
        self._kernels_path = kernels_path
        self._kernels: Log | None = None
        self._stack = stack

    def append(self, record: Measurement | KernelMeasurement) -> None:
        """Append a record to its log."""
        if isinstance(record, Measurement):
            self._bursts.append(record)
            return
        if self._kernels is None:
            self._kernels = self._stack.enter_context(closing(Log(self._kernels_path)))
        self._kernels.append(record)


def final_bursts(measurements: Iterable[Measurement]) -> dict[tuple[str, str], dict[int, Measurement]]:
    """Return for each (model, runtime) the burst that counts in each round: the last `ok` one."""
    found: dict[tuple[str, str], dict[int, Measurement]] = {}
    for measurement in measurements:
        if measurement.status == "ok":
            found.setdefault((measurement.model, measurement.runtime), {})[measurement.round] = measurement
    return found


def quiet_levels(measurements: Iterable[Measurement]) -> QuietLevels:
    """Return what probes took on quiet cores."""
    levels = QuietLevels()
    for m in measurements:
        levels.add(m.runtime, m.probes_ns)
    return levels


def undisturbed_minima(rounds: Iterable[Measurement], level_ns: int) -> tuple[dict[int, float], bool]:
    """Return the least sample by round, of those taken on quiet cores, and whether there are any such.

    Rounds without one are left out where others have one.
    """
    own = list(rounds)
    samples, quiet = undisturbed([(m.samples_ns, m.probes_ns) for m in own], level_ns)
    return {m.round: float(min(found)) for m, found in zip(own, samples, strict=True) if found}, quiet


def quiet_probe_ns(burst: Measurement, level_ns: int) -> int:
    """Return what a probe took beside a burst's undisturbed samples, the median; 0 where none was undisturbed."""
    quiet = [probe for probe in burst.probes_ns if is_quiet(probe, level_ns)]
    return round(statistics.median(quiet)) if quiet else 0


def disturbed_pairs(measurements: Iterable[Measurement]) -> dict[tuple[str, str], int]:
    """Return the (model, runtime) pairs of which no sample was taken on quiet cores, with the number of a new round."""
    done = list(measurements)
    levels = quiet_levels(done)
    return {
        pair: max(rounds) + 1
        for pair, rounds in final_bursts(done).items()
        if not undisturbed_minima(rounds.values(), levels.level(pair[1]))[1]
    }


def nominal_reference(measurements: list[Measurement]) -> Reference:
    """Return the machine's nominal state: the median of each part of the state, over all bursts that saw quiet cores.

    Over all bursts where none did.
    """
    done = [m for m in measurements if m.status == "ok"]
    levels = quiet_levels(done)
    probes = {index: probe for index, m in enumerate(done) if (probe := quiet_probe_ns(m, levels.level(m.runtime)))}
    quiet = [done[index] for index in probes] or done
    references = [part for m in quiet for part in (m.before, m.after) if part is not None]
    if not references:
        raise DatasetError("no finished burst with reference loads: the machine's nominal state is unknown")
    nominal = median_reference(references)
    return msgspec.structs.replace(nominal, probe_ns=round(statistics.median(probes.values()))) if probes else nominal


class _SchemaOnly(msgspec.Struct):
    schema: int
