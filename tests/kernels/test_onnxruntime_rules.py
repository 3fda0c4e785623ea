"""The rules against the engine: the kernels that onnxruntime's own profile tells of, on networks of every family."""

from pathlib import Path

import pytest
from engine_told import expected_and_told

from latmod.export import export_spec
from latmod.families import FAMILIES, GENERATED
from latmod.families.generated import GeneratedSpec
from latmod.families.published import PublishedSpec
from latmod.families.resnet import ResNetSpec

pytest.importorskip("torch")

SPECS = {
    name: [GeneratedSpec(variant=variant, width=96, depth=4, side=128, classes=10) for variant in (1, 2, 4)]
    for name in GENERATED
} | {"resnet": [ResNetSpec(block="basic", blocks=(1, 1, 1, 1), width=16, side=64)]}


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
