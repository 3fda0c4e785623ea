"""The rules against the engine: the kernels that onnxruntime's own profile tells of, on networks of every family."""

from collections import Counter
from pathlib import Path

import pytest

from latmod.dataset import KernelTime
from latmod.export import export_spec
from latmod.families import FAMILIES, GENERATED
from latmod.families.generated import GeneratedSpec
from latmod.families.published import PublishedSpec
from latmod.families.resnet import ResNetSpec
from latmod.graph import read_graph, read_inputs
from latmod.inputs import random_inputs
from latmod.kernels import Kernel, kernels
from latmod.labels import join
from latmod.machine import read_machine
from latmod.runtimes import Model, Settings, find_runtime

pytest.importorskip("torch")

SPECS = {
    name: [GeneratedSpec(variant=variant, width=96, depth=4, side=128, classes=10) for variant in (1, 2, 4)]
    for name in GENERATED
} | {"resnet": [ResNetSpec(block="basic", blocks=(1, 1, 1, 1), width=16, side=64)]}


def told_by_the_engine(path: Path) -> tuple[KernelTime, ...]:
    inputs = random_inputs(read_inputs(path), 1, seed=0)
    session = find_runtime("onnxruntime").open(Model(path=str(path)), inputs, Settings(profile=True))
    return session.kernels(0.0)


def expected_and_told(path: Path) -> tuple[tuple[Kernel, ...], tuple[KernelTime, ...]]:
    """Return the kernels by the rules and by the engine, which agree."""
    told = told_by_the_engine(path)
    expected = kernels(read_graph(path), "onnxruntime", isa=read_machine().isa)
    labels = join(expected, [told])
    assert abs(labels.unmatched_ns) < 0.02 * labels.total_ns, differences(expected, told)
    return expected, told


@pytest.mark.parametrize("family", SPECS)
def test_the_engine_runs_what_the_rules_expect(family: str, tmp_path: Path) -> None:
    for number, spec in enumerate(SPECS[family]):
        path = tmp_path / f"{number}.onnx"
        export_spec(FAMILIES[family], spec, path)
        expected_and_told(path)


def test_a_sum_of_two_is_an_addition_by_another_name(tmp_path: Path) -> None:
    path = tmp_path / "light.onnx"
    export_spec(FAMILIES["light"], PublishedSpec(network="shufflenet"), path)
    expected, told = expected_and_told(path)
    sums = [kernel for kernel in expected if kernel.op == "Sum"]
    assert len(sums) == sum(one.count for one in told if one.op == "Sum") > 0
    assert {kernel.kind for kernel in sums} == {"Add"}


def differences(expected: tuple[Kernel, ...], told: tuple[KernelTime, ...]) -> str:
    ours = Counter(f"{kernel.op.rpartition('::')[2]} {kernel.inputs} {kernel.outputs}" for kernel in expected)
    theirs: Counter[str] = Counter()
    for time in told:
        theirs[f"{time.op} {time.inputs} {time.outputs}"] += time.count
    lines = [f"engine only: {key} x{count}" for key, count in (theirs - ours).items()]
    return "\n".join([*lines, *(f"rules only: {key} x{count}" for key, count in (ours - theirs).items())])
