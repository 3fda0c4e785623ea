"""One suite for every runtime that is installed: what a sweep relies on."""

import importlib.util
import os
import time
from pathlib import Path

import numpy as np
import pytest

from latmod.dataset import LOOP
from latmod.errors import RuntimeMissingError, UnsupportedModelError
from latmod.graph import read_graph, strip_weights
from latmod.inputs import image_inputs
from latmod.kernels import kernels
from latmod.labels import join
from latmod.machine import read_machine
from latmod.runtimes import (
    Inputs,
    Model,
    ProfilingSession,
    Runtime,
    Session,
    Settings,
    find_runtimes,
    installed_version,
)

ENGINES = {
    "fake": "numpy", "onnxruntime": "onnxruntime", "torch": "torch",
    "openvino": "openvino", "mnn": "MNN", "ncnn": "ncnn", "tract": "tract", "torch-compile": "torch",
}  # fmt: skip
"""The runtimes, and the module that is there where the engine is installed."""
NAMES = tuple(ENGINES)
REAL = tuple(
    pytest.param(name, marks=pytest.mark.skipif(importlib.util.find_spec(module) is None, reason="not installed"))
    for name, module in ENGINES.items()
    if name != "fake"
)


@pytest.fixture(params=NAMES)
def runtime(request: pytest.FixtureRequest) -> Runtime:
    name = str(request.param)
    if importlib.util.find_spec(ENGINES[name]) is None:
        pytest.skip(f"{name} is not installed")
    return find_runtimes()[name]


@pytest.fixture
def model(exported_graphs: Path) -> Model:
    return Model(path=str(sorted(exported_graphs.glob("*.onnx"))[0]))


@pytest.fixture(scope="session")
def inputs() -> list[Inputs]:
    return [{"input": image} for image in image_inputs((1, 3, 32, 32), 2, seed=0)]


def open_session(runtime: Runtime, model: Model, inputs: list[Inputs], threads: int = 1) -> Session:
    return runtime.open(model, inputs, Settings(threads=threads))


def first_output(runtime: Runtime, model: Model, inputs: list[Inputs]) -> np.ndarray:
    session = open_session(runtime, model, inputs)
    session.infer()
    return session.outputs()[0]


def test_all_declared_runtimes_are_found() -> None:
    assert set(NAMES) <= set(find_runtimes())


def test_a_runtime_says_what_it_is(runtime: Runtime) -> None:
    assert runtime.name in NAMES
    assert runtime.version()
    assert isinstance(runtime.profiles, bool)
    assert runtime.source
    assert 0 < runtime.tolerance <= 1e-2


def test_it_infers_and_gives_the_same_outputs_again(runtime: Runtime, model: Model, inputs: list[Inputs]) -> None:
    session = open_session(runtime, model, inputs)
    session.feed(0)
    session.infer()
    first = [output.copy() for output in session.outputs()]
    session.feed(1)
    session.infer()
    other = [output.copy() for output in session.outputs()]
    session.feed(2)
    session.infer()
    again = session.outputs()
    assert all(np.isfinite(output).all() for output in first)
    np.testing.assert_array_equal(first[0], again[0])
    assert not np.array_equal(first[0], other[0])
    session.close()


def test_it_says_what_settings_it_uses(runtime: Runtime, model: Model, inputs: list[Inputs]) -> None:
    session = open_session(runtime, model, inputs)
    assert session.settings["threads"] == 1
    session.close()


def test_printing_nothing_on_stdout(
    runtime: Runtime, model: Model, inputs: list[Inputs], capfd: pytest.CaptureFixture[str]
) -> None:
    session = open_session(runtime, model, inputs)
    session.infer()
    session.close()
    assert capfd.readouterr().out == ""


def test_parity_against_onnxruntime(exported_graphs: Path, inputs: list[Inputs]) -> None:
    """The same weights and input give the same output: as a family's own module, and as a converted graph."""
    import msgspec

    from latmod.families import FAMILIES
    from latmod.specs import draw, load_space

    runtimes = find_runtimes()
    space = load_space(exported_graphs / "tiny.toml", FAMILIES)
    for name, spec in draw(space, FAMILIES):
        path = str(exported_graphs / f"{name}.onnx")
        fields = msgspec.json.decode(msgspec.json.encode(spec))
        want = first_output(runtimes["onnxruntime"], Model(path=path), inputs)
        for found in (Model(path=path), Model(path=path, family="resnet", spec=fields)):
            got = first_output(runtimes["torch"], found, inputs)
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * float(np.abs(want).max()))


@pytest.mark.parametrize("name", REAL)
def test_parity_on_a_real_network(name: str) -> None:
    path = Path(__file__).parents[2] / "datasets" / "zoo" / "graphs" / "mobilenet_v3_small.onnx"
    images = [{"input": image} for image in image_inputs((1, 3, 224, 224), 1, seed=0)]
    runtimes = find_runtimes()
    want, got = (first_output(runtimes[one], Model(path=str(path)), images) for one in ("onnxruntime", name))
    assert got.size == want.size
    np.testing.assert_allclose(
        got.reshape(want.shape), want, rtol=1e-3, atol=runtimes[name].tolerance * float(np.abs(want).max())
    )


def test_the_telemetry_of_mnn_is_never_imported() -> None:
    sources = (Path(__file__).parents[2] / "latmod").rglob("*.py")
    imports = [line for path in sources for line in path.read_text().splitlines() if "import" in line]
    assert not [line for line in imports if "MNN.tools" in line and not line.lstrip().startswith("`")]


def test_another_weight_seed_gives_another_output(exported_graphs: Path, inputs: list[Inputs]) -> None:
    path = str(sorted(exported_graphs.glob("*.onnx"))[0])
    runtime = find_runtimes()["onnxruntime"]
    one, other = (first_output(runtime, Model(path=path, weight_seed=seed), inputs) for seed in (0, 1))
    assert not np.allclose(one, other)


@pytest.mark.parametrize("name", REAL)
def test_nothing_spins_after_a_run(name: str, model: Model, inputs: list[Inputs]) -> None:
    session = open_session(find_runtimes()[name], model, inputs)
    for _ in range(5):
        session.infer()
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.05
    session.close()


@pytest.mark.parametrize("name", REAL)
def test_memory_is_freed_on_close(name: str, tmp_path: Path, inputs: list[Inputs]) -> None:
    """Eight openings of a network of 45 MB would leave 360 MB behind; an allocator keeps some 100 MB."""
    import msgspec

    from latmod.export import export_spec
    from latmod.families import FAMILIES

    family = FAMILIES["resnet"]
    spec = {"block": "basic", "blocks": [2, 2, 2, 2], "side": 32}
    path = tmp_path / "resnet18.onnx"
    export_spec(family, msgspec.convert(spec, family.spec_type), path)
    runtime = find_runtimes()[name]

    def open_and_close() -> None:
        session = open_session(runtime, Model(path=str(path), family="resnet", spec=spec), inputs)
        session.infer()
        session.close()

    # Compiling takes seconds, and fills caches of its own at first.
    before_openings, openings, limit_bytes = (2, 4, 120e6) if name == "torch-compile" else (1, 8, 250e6)
    for _ in range(before_openings):
        open_and_close()
    before = resident_bytes()
    for _ in range(openings):
        open_and_close()
    assert resident_bytes() - before < limit_bytes


@pytest.mark.parametrize("name", REAL)
def test_an_unknown_operator_is_named(name: str, tmp_path: Path, inputs: list[Inputs]) -> None:
    from onnx import TensorProto, helper, save

    value = [helper.make_tensor_value_info(v, TensorProto.FLOAT, [1, 3, 32, 32]) for v in ("input", "output")]
    node = helper.make_node("Frobnicate", ["input"], ["output"], domain="example.com")
    graph = helper.make_graph([node], "odd", value[:1], value[1:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("example.com", 1)]
    path = tmp_path / "odd.onnx"
    save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    stripped = tmp_path / "stripped.onnx"
    stripped.write_bytes(strip_weights(path))
    with pytest.raises(UnsupportedModelError, match="Frobnicate"):
        open_session(find_runtimes()[name], Model(path=str(stripped)), inputs)


def test_a_missing_engine_names_the_extra() -> None:
    with pytest.raises(RuntimeMissingError, match=r"latmod\[speed\]"):
        installed_version("no-such-engine", "speed")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_profiling_session_tells_what_each_kernel_takes(runtime: Runtime, model: Model, inputs: list[Inputs]) -> None:
    if not runtime.profiles:
        pytest.skip(f"{runtime.name} tells no per-kernel times")
    session = runtime.open(model, inputs, Settings(profile=True))
    assert isinstance(session, ProfilingSession)
    times = session.kernels(0.02)
    assert len(times) > 3
    assert all(time.ns >= 0 and time.count >= 1 for time in times)
    assert all(time.value or time.nodes or (time.op and time.outputs) or time.op.startswith(LOOP) for time in times)
    session.close()
    graph = read_graph(Path(model.path))
    expected = kernels(graph, runtime.rules, isa=read_machine().isa)
    told = join(expected, [times], {name: node.name for node in graph.nodes for name in node.outputs})
    assert abs(told.unmatched_ns) <= 0.1 * told.total_ns
    if any(time.op.startswith(LOOP) for time in times):
        # Loops are told of whatever is no product: products have to be told one by one.
        (looped,) = told.pieces
        products = [place for place, kernel in enumerate(expected) if kernel.number("macs")]
        assert products
        assert not set(looped).intersection(products)
