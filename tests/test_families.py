import pickle
import subprocess
import sys
import time

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latmod.errors import SpecError
from latmod.families import FAMILIES
from latmod.families.resnet import ResNetSpec

torch = pytest.importorskip("torch")
models = pytest.importorskip("torchvision.models")

RESNET = FAMILIES["resnet"]
STANDARD = {
    "resnet18": ResNetSpec(block="basic", blocks=(2, 2, 2, 2)),
    "resnet34": ResNetSpec(block="basic", blocks=(3, 4, 6, 3)),
    "resnet50": ResNetSpec(block="bottleneck", blocks=(3, 4, 6, 3)),
    "resnet101": ResNetSpec(block="bottleneck", blocks=(3, 4, 23, 3)),
    "resnet152": ResNetSpec(block="bottleneck", blocks=(3, 8, 36, 3)),
    "wide_resnet50_2": ResNetSpec(block="bottleneck", blocks=(3, 4, 6, 3), widen=2),
    "wide_resnet101_2": ResNetSpec(block="bottleneck", blocks=(3, 4, 23, 3), widen=2),
}
SMALL = st.builds(
    ResNetSpec,
    block=st.just("bottleneck"),
    blocks=st.tuples(*4 * [st.integers(1, 3)]),
    width=st.integers(1, 24),
    widen=st.sampled_from((1, 1.5, 2)),
    side=st.integers(32, 75),
    batch=st.integers(1, 3),
    classes=st.integers(1, 20),
) | st.builds(
    ResNetSpec,
    block=st.just("basic"),
    blocks=st.tuples(*4 * [st.integers(1, 3)]),
    width=st.integers(1, 24),
    side=st.integers(32, 75),
)


@pytest.mark.parametrize("name", STANDARD)
def test_standard_networks_have_torchvisions_parameters(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = RESNET.build(STANDARD[name]), models.get_model(name)
    shapes = [{key: value.shape for key, value in module.state_dict().items()} for module in (ours, theirs)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", STANDARD)
def test_estimates_of_standard_networks_are_torchvisions_figures(name: str) -> None:
    published = models.get_model_weights(name)["IMAGENET1K_V1"].meta
    estimate = RESNET.estimate(STANDARD[name])
    assert estimate.params == published["num_params"]
    assert estimate.macs / 1e9 == pytest.approx(published["_ops"], rel=0.01)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "wide_resnet50_2"])
def test_same_weights_give_torchvisions_output(name: str) -> None:
    torch.manual_seed(0)
    theirs, ours = models.get_model(name).eval(), RESNET.build(STANDARD[name]).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(SMALL)
def test_estimates_equal_what_torch_counts(spec: ResNetSpec) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        module = RESNET.build(spec).eval()
        output = module(torch.empty(RESNET.input_shape(spec)))
    estimate = RESNET.estimate(spec)
    assert output.shape == (spec.batch, spec.classes)
    assert estimate.params == sum(parameter.numel() for parameter in module.parameters())
    assert 2 * estimate.macs == counter.get_total_flops()
    assert estimate.peak_memory_bytes > 4 * estimate.params


@settings(max_examples=50)
@given(SMALL, st.sampled_from(("width", "side", "batch", "classes")))
def test_estimates_grow_with_every_field(spec: ResNetSpec, field: str) -> None:
    larger = msgspec.structs.replace(spec, **{field: 2 * getattr(spec, field)})
    before, after = RESNET.estimate(spec), RESNET.estimate(larger)
    assert after.macs > before.macs
    assert after.params >= before.params
    assert after.peak_memory_bytes > before.peak_memory_bytes
    if field == "batch":
        assert (after.macs, after.params) == (2 * before.macs, before.params)


def test_largest_network_is_built_on_meta_in_well_under_a_second() -> None:
    spec = ResNetSpec(block="bottleneck", blocks=(12, 32, 144, 12), width=192)
    assert RESNET.estimate(spec).params > 1.9e9
    start = time.perf_counter()
    with torch.device("meta"):
        module = RESNET.build(spec)
    assert time.perf_counter() - start < 5
    assert all(parameter.is_meta for parameter in module.parameters())


def test_model_ids_name_every_field_that_is_not_at_its_default() -> None:
    assert RESNET.model_id(STANDARD["resnet18"]) == "resnet-basic-2.2.2.2-w64"
    spec = ResNetSpec(block="bottleneck", blocks=(1, 2, 3, 4), width=8, widen=1.5, side=64, batch=2, classes=10)
    assert RESNET.model_id(spec) == "resnet-bottleneck-1.2.3.4-w8-widen1.5-side64-batch2-classes10"


@settings(max_examples=100)
@given(SMALL, SMALL)
def test_different_specs_have_different_ids(first: ResNetSpec, second: ResNetSpec) -> None:
    assert (first == second) == (RESNET.model_id(first) == RESNET.model_id(second))


def test_spec_of_another_family_is_refused() -> None:
    class OtherSpec(msgspec.Struct, frozen=True):
        depth: int

    for method in (RESNET.build, RESNET.estimate, RESNET.model_id, RESNET.input_shape, RESNET.trace_shape):
        with pytest.raises(SpecError, match="OtherSpec is the spec of another family"):
            method(OtherSpec(depth=3))


def test_specs_survive_a_process_boundary() -> None:
    spec = STANDARD["wide_resnet50_2"]
    assert pickle.loads(pickle.dumps(spec)) == msgspec.convert(msgspec.to_builtins(spec), ResNetSpec) == spec


def test_estimating_needs_no_torch() -> None:
    code = (
        "import sys; from latmod.families import FAMILIES; from latmod.families.resnet import ResNetSpec; "
        "print(FAMILIES['resnet'].estimate(ResNetSpec(block='basic', blocks=(2, 2, 2, 2))).macs); "
        "assert not {'torch', 'torchvision', 'onnx', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
