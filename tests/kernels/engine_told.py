"""Hold the rules of onnxruntime against what its own profile tells of a file."""

from collections import Counter
from pathlib import Path

from latmod.dataset import KernelTime
from latmod.graph import read_graph, read_inputs
from latmod.inputs import random_inputs
from latmod.kernels import Kernel, kernels
from latmod.labels import join
from latmod.machine import read_machine
from latmod.runtimes import Model, Settings, find_runtime


def told_by_the_engine(path: Path) -> tuple[KernelTime, ...]:
    inputs = random_inputs(read_inputs(path), 1, seed=0)
    session = find_runtime("onnxruntime").open(Model(path=str(path)), inputs, Settings(profile=True))
    # Of the few runs that the least budget allows, a busy neighbour can slow one kernel down to a share that shows.
    return session.kernels(0.05)


def expected_and_told(path: Path) -> tuple[tuple[Kernel, ...], tuple[KernelTime, ...]]:
    """Return the kernels by the rules and by the engine, which agree."""
    told = told_by_the_engine(path)
    expected = kernels(read_graph(path), "onnxruntime", isa=read_machine().isa)
    labels = join(expected, [told])
    assert abs(labels.unmatched_ns) < 0.02 * labels.total_ns, differences(expected, told)
    return expected, told


def differences(expected: tuple[Kernel, ...], told: tuple[KernelTime, ...]) -> str:
    ours = Counter(f"{kernel.op.rpartition('::')[2]} {kernel.inputs} {kernel.outputs}" for kernel in expected)
    theirs: Counter[str] = Counter()
    for time in told:
        theirs[f"{time.op} {time.inputs} {time.outputs}"] += time.count
    lines = [f"engine only: {key} x{count}" for key, count in (theirs - ours).items()]
    return "\n".join([*lines, *(f"rules only: {key} x{count}" for key, count in (ours - theirs).items())])
