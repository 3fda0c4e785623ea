"""Join what an engine told of its kernels with the kernels that the rules expect of the same graph."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby, islice
from operator import attrgetter

import msgspec
import numpy as np
from numpy.typing import NDArray

from latmod.additive import PRIOR
from latmod.compiled import compiled
from latmod.dataset import LOOP, DatasetFolder, KernelMeasurement, KernelTime
from latmod.drift import Correction, state_of
from latmod.graph import read_graph
from latmod.kernels import Kernel, kernels
from latmod.kernels.columns import Columns, column_matrix
from latmod.kernels.kernel import RECURRENT, VOLUME_DIMS
from latmod.runtimes import kernel_rules
from latmod.scores import split_half
from latmod.table import observations

_PACKED = frozenset({"Gemm", "FusedGemm", "MatMul", "FusedMatMul", "ConvTranspose", "LSTM", "GRU"})
"""Operators whose weights an engine may have packed away: the first input and the result say their shapes."""
_SEQUENCE = "RNNSeq"
_MOST_MACS_PER_NS = 1000.0
"""Multiply-adds a nanosecond that no core does, not even Winograd's.

Two vector units of 16 numbers make 160 at 5 GHz, and six times six results of a 3x3 convolution a fifth of the work.
ncnn told of 0 ns for one of 10,731 kernels in kernels-engines-zen3, and its convolutions were priced at a fifteenth.
"""


class LabelledModel(msgspec.Struct, frozen=True, kw_only=True):
    """Hold one model in one runtime: its kernels, what each took (nan where the engine told nothing), and the whole.

    `columns` are what a fit sees of the kernels as parts of their network (latmod.kernels.columns). All in ns, stated
    for the nominal state of the machine. `told_ns` is the sum over everything that the engine told (nan where it told
    nothing), `unmatched_ns` the part of it that no expected kernel accounts for.
    """

    model: str
    family: str
    runtime: str
    kernels: tuple[Kernel, ...]
    columns: Columns
    kernel_ns: tuple[float, ...]
    latency_ns: float
    noise: float
    told_ns: float
    unmatched_ns: float
    load_ns: float = 0.0
    """What opening the model took, 0 where nobody knows."""
    disturbed: bool = False
    """Whether none of its samples was taken on quiet cores: the latency is too high, nobody knows by how much."""
    pieces: tuple[tuple[int, ...], ...] = ()
    """Places of kernels that the engine ran, and told of, in one: `kernel_ns` has a part for each, by rough prices."""


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what an engine told of the kernels expected of it, in ns; as in `LabelledModel`."""

    kernel_ns: tuple[float, ...]
    total_ns: float
    unmatched_ns: float
    pieces: tuple[tuple[int, ...], ...] = ()


def labelled_models(
    folder: DatasetFolder,
    runtimes: Collection[str],
    correct: Mapping[str, Correction],
    models: Collection[str] | None = None,
) -> dict[str, list[LabelledModel]]:
    """Return by runtime the models of a data set that were measured there, with what is known of their kernels.

    Those whose outputs differ from what other runtimes give are left out: what was timed is another network. `correct`
    holds the drift correction of every runtime; `models` are those to read, all where not given.
    """
    card = folder.read_card()
    told: dict[tuple[str, str], list[KernelMeasurement]] = defaultdict(list)
    for burst in folder.read_kernels():
        if burst.status == "ok":
            told[burst.runtime, burst.model].append(burst)
    found: dict[str, list[LabelledModel]] = {runtime: [] for runtime in runtimes}
    rules = {runtime: kernel_rules(runtime) for runtime in runtimes}
    measured = [
        one
        for one in observations(folder, correct, with_features=False)
        if one.runtime in found and one.parity == "ok" and (models is None or one.model in models)
    ]
    for model, own in groupby(measured, key=attrgetter("model")):
        graph = read_graph(folder.graph_path(model))
        writers = {name: node.name for node in graph.nodes for name in node.outputs}
        readers = {name: [node.name for node in users] for name, users in graph.users.items()}
        by_rules: dict[str, tuple[tuple[Kernel, ...], Columns]] = {}
        for one in own:
            rule = rules[one.runtime]
            if rule not in by_rules:
                made = kernels(graph, rule, isa=card.machine.isa, threads=card.protocol.threads)
                by_rules[rule] = made, column_matrix(made)
            expected, columns = by_rules[rule]
            times = [_corrected(burst, correct[one.runtime]) for burst in told[one.runtime, one.model]]
            labels = join(expected, times, writers, readers)
            found[one.runtime].append(
                LabelledModel(
                    model=one.model,
                    family=one.family,
                    runtime=one.runtime,
                    kernels=expected,
                    columns=columns,
                    kernel_ns=possible(expected, labels.kernel_ns),
                    latency_ns=one.latency_ns(),
                    noise=split_half(one.round_ns["min"]),
                    told_ns=labels.total_ns,
                    unmatched_ns=labels.unmatched_ns,
                    load_ns=one.load_ns,
                    disturbed=one.disturbed,
                    pieces=labels.pieces,
                )
            )
    return found


def possible(expected: Sequence[Kernel], kernel_ns: Sequence[float]) -> tuple[float, ...]:
    """Return what kernels took, in ns, as nan where no core could do it in that time."""
    pairs = zip(expected, kernel_ns, strict=True)
    return tuple(float("nan") if one.number("macs") > _MOST_MACS_PER_NS * ns else ns for one, ns in pairs)


def stacked(models: Sequence[LabelledModel]) -> tuple[list[Kernel], Columns, NDArray[np.int64]]:
    """Return the kernels of several models in one list, their columns, and where each model but the first begins.

    The residual is asked for all of them at once: what a call costs is more than what some hundred rows do.
    """
    ends = np.cumsum([len(model.kernels) for model in models])
    columns = np.concatenate([model.columns for model in models])
    return [kernel for model in models for kernel in model.kernels], columns, ends[:-1]


def join(
    expected: Sequence[Kernel],
    bursts: Sequence[Sequence[KernelTime]],
    writers: Mapping[str, str] | None = None,
    readers: Mapping[str, Sequence[str]] | None = None,
) -> Told:
    """Return each kernel's time (nan where none matches), all that was told, and what of it matched nothing.

    A kernel matches by the nodes whose work it does or by the value that it writes, where the engine names these, or by
    its operator and shapes; kernels alike in these share their mean. Where a compiler told of loops, they match as
    `latmod.compiled` says. Over bursts the mean is taken. `writers` names the node that writes a value, `readers` those
    that read it.
    """
    nothing = float("nan")
    if not bursts:
        return Told(kernel_ns=(nothing,) * len(expected), total_ns=nothing, unmatched_ns=nothing)
    columns, totals, unmatched = [], [], []
    pieces: tuple[tuple[int, ...], ...] = ()
    for burst in bursts:
        if any(time.op.startswith(LOOP) for time in burst):
            labels, pieces = _parted(expected, compiled(expected, burst))
        elif any(time.nodes for time in burst):
            labels, pieces = _parted(expected, _by_node(expected, burst, writers or {}, readers or {}))
        else:
            labels = _by_value(expected, burst) or _by_shape(expected, burst)
        columns.append([nothing if label is None else label for label in labels])
        total = sum(time.ns * time.count for time in burst)
        totals.append(total)
        unmatched.append(total - sum(label for label in labels if label is not None))
    mean = np.mean(np.array(columns), axis=0)
    return Told(
        kernel_ns=tuple(mean.tolist()),
        total_ns=float(np.mean(totals)),
        unmatched_ns=float(np.mean(unmatched)),
        pieces=pieces,
    )


def _by_node(
    expected: Sequence[Kernel],
    burst: Sequence[KernelTime],
    writers: Mapping[str, str],
    readers: Mapping[str, Sequence[str]],
) -> dict[tuple[int, ...], float]:
    """Return what was told of which kernels, by their places: of those that do the work of the nodes named.

    They are several where the engine does in one piece what the rules expect in several. A piece that names no node of
    the file was put in for what follows (another layout, a part of a norm), and counts there; unless it moves a value
    that the rules expect to be moved, by its name, or as the last piece of all.
    """
    movers = {name: place for place, kernel in enumerate(expected) if not kernel.nodes for name in kernel.values}
    owners = {node: place for place, kernel in enumerate(expected) for node in kernel.nodes}
    sums: dict[int, float] = {}
    members: dict[int, list[int]] = {}
    first_of: dict[int, int] = {}
    before = 0.0
    # OpenVINO numbers its recurrent sequences anew, one for each direction.
    recurrent = (place for place, kernel in enumerate(expected) for _ in range(_directions(kernel)))
    for time in burst:
        nodes = [name if name in owners else writers.get(name, "") for name in time.nodes]
        places = {owners[node] for node in nodes if node in owners}
        if not time.nodes and time.value in movers:
            places = {movers[time.value]}
        if time.op == _SEQUENCE and not places:
            places = {*islice(recurrent, 1)}
        before += float(time.ns) * time.count
        if not places:
            continue
        firsts = {first_of.get(place, place) for place in places}
        joined = sorted(places.union(*(members.pop(first, ()) for first in firsts)))
        members[joined[0]] = joined
        sums[joined[0]] = before + sum(sums.pop(first, 0.0) for first in firsts)
        first_of.update((place, joined[0]) for place in joined)
        before = 0.0
    unnamed = [place for place in movers.values() if place not in first_of]
    if before and len(unnamed) == 1:
        # OpenVINO brings what is returned out of its blocks last.
        members[unnamed[0]], sums[unnamed[0]] = unnamed, before
    for place, reader in _told_by_readers(expected, owners, readers, first_of.keys()).items():
        members[first_of[reader]].append(place)
    return {tuple(joined): sums[first] for first, joined in members.items()}


def _parted(
    expected: Sequence[Kernel], told: Mapping[tuple[int, ...], float]
) -> tuple[list[float | None], tuple[tuple[int, ...], ...]]:
    """Return each kernel's time, and which were told in one: each of these takes a part, as rough prices have it."""
    labels: list[float | None] = [None] * len(expected)
    pieces = tuple(piece for piece in told if len(piece) > 1)
    rough = PRIOR.kernel_ns(expected) if pieces else np.ones(len(expected))
    for piece, ns in told.items():
        places = list(piece)
        parts = rough[places] / rough[places].sum() * ns
        for place, part in zip(places, parts.tolist(), strict=True):
            labels[place] = part
    return labels, pieces


def _directions(kernel: Kernel) -> int:
    return kernel.inputs[2][0] if kernel.op in RECURRENT and len(kernel.inputs) > 2 else 0


def _told_by_readers(
    expected: Sequence[Kernel], owners: Mapping[str, int], readers: Mapping[str, Sequence[str]], told: Collection[int]
) -> dict[int, int]:
    """Return the convolutions over volumes that were not told, and the kernel that what they took was told of.

    MNN makes each of many others, which bear the name of what reads their sum: an addition, a pool, an activation.
    """
    found = {}
    for place, kernel in enumerate(expected):
        if place in told or not kernel.outputs or len(kernel.outputs[0]) != VOLUME_DIMS or not kernel.number("macs"):
            continue
        reader, values = place, kernel.values
        while reader not in told:
            following = {owners[node] for name in values for node in readers.get(name, ()) if node in owners}
            following.discard(reader)
            if len(following) != 1:
                break
            (reader,) = following
            values = expected[reader].values
        else:
            found[place] = reader
    return found


def _by_value(expected: Sequence[Kernel], burst: Sequence[KernelTime]) -> list[float | None]:
    """Return the times of the kernels that write the values named; nothing at all where none is named."""
    told = {time.value: float(time.ns) for time in burst if time.value}
    return [next((told[name] for name in one.values if name in told), None) for one in expected] if told else []


def _by_shape(expected: Sequence[Kernel], burst: Sequence[KernelTime]) -> list[float | None]:
    """Return the mean time of the kernels with the same operator and shapes as each."""
    sums: dict[tuple[object, ...], list[float]] = {}
    for time in burst:
        known = sums.setdefault(_shape_key(time.op, time.inputs, time.outputs), [0.0, 0.0])
        known[0] += time.ns * time.count
        known[1] += time.count
    told = {key: total / count for key, (total, count) in sums.items()}
    return [told.get(_shape_key(one.op, one.inputs, one.outputs)) for one in expected]


def _shape_key(op: str, inputs: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]]) -> tuple[object, ...]:
    """Return what kernels must have in common; engines leave out the domain, small inputs, and matrices they packed."""
    name = op.rpartition("::")[2]
    large = tuple(tuple(shape) for shape in inputs if len(shape) > 1)
    if name in _PACKED:
        large = large[:1]
    return name, large, tuple(tuple(shape) for shape in outputs)


def _corrected(burst: KernelMeasurement, correction: Correction) -> list[KernelTime]:
    factor = correction.factor(state_of(burst))
    return [msgspec.structs.replace(time, ns=round(time.ns * factor)) for time in burst.kernels]
