from pathlib import Path

import msgspec
import pytest

from latmod.errors import SpecError
from latmod.export import export_model, export_spec
from latmod.families import FAMILIES, GENERATED
from latmod.families.choices import Choices
from latmod.families.generated import GeneratedSpec
from latmod.families.published import PublishedSpec
from latmod.features import graph_features
from latmod.graph import read_graph
from latmod.plan import bundled_spaces
from latmod.specs import draw, load_space

torch = pytest.importorskip("torch")

ANY = GeneratedSpec(variant=0, width=16, depth=4, side=64)
IMAGES = [name for name in GENERATED if FAMILIES[name].input_shape(ANY) == (1, 3, 64, 64)]


@pytest.mark.parametrize("name", [name for name in IMAGES if name not in ("detector", "segmenter", "slim")])
@pytest.mark.parametrize("variant", range(6))
def test_every_variant_classifies_images(name: str, variant: int) -> None:
    family = FAMILIES[name]
    spec = GeneratedSpec(variant=variant, width=24, depth=5, side=(64, 96, 112)[variant % 3], classes=7)
    with torch.device("meta"):
        module = family.build(spec).eval()
        assert module(torch.zeros(family.input_shape(spec))).shape == (1, 7)


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("variant", range(3))
def test_activating_in_place_changes_no_result(name: str, variant: int) -> None:
    module = FAMILIES[name].build(GeneratedSpec(variant=variant, width=16, depth=4, side=64, classes=7)).eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        for value in module.parameters():
            value.normal_(0.0, 0.1)
        found = module(image.clone())
        for part in module.modules():
            if getattr(part, "inplace", False):
                part.inplace = False
        torch.testing.assert_close(module(image), found, rtol=0.0, atol=0.0)


def test_convolutions_are_followed_by_activations_in_place_as_published_ones_are() -> None:
    published = FAMILIES["torchvision"].build(PublishedSpec(network="mobilenet_v3_small"))
    generated = FAMILIES["mobile"].build(GeneratedSpec(variant=0, width=16, depth=8, side=64))
    for module in (published, generated):
        units = [part for part in module.modules() if isinstance(part, torch.nn.Sequential)]
        acts = [
            part for unit in units for part in unit if type(part).__name__ in ("ReLU", "ReLU6", "Hardswish", "SiLU")
        ]
        assert acts
        assert all(act.inplace for act in acts)


@pytest.mark.parametrize("name", GENERATED)
def test_the_estimate_is_what_the_exported_graph_costs(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    # What a graph costs counts weights at every use; language networks of variant 3 use theirs several times.
    variant = 2 if name == "language" else 3
    spec = GeneratedSpec(variant=variant, width=32, depth=4, side=64, classes=10)
    path = tmp_path / "model.onnx"
    export_spec(family, spec, path)
    features, needs = graph_features(read_graph(path)), family.estimate(spec)
    assert features["macs"] == pytest.approx(needs.macs, rel=0.02)
    assert features["params"] == pytest.approx(needs.params, rel=0.05)
    assert path.stat().st_size < 200_000


@pytest.mark.parametrize("variant", range(12))
def test_language_networks_take_token_ids_and_run_in_both_runtimes(variant: int, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    from latmod.graph import explicit_model, weight_slots
    from latmod.runtimes.conversion import convert_graph
    from latmod.weights import WeightMaker

    path = tmp_path / "model.onnx"
    spec = GeneratedSpec(variant=variant, width=64, depth=2, side=24, batch=2, classes=7)
    export_spec(FAMILIES["language"], spec, path)
    graph = read_graph(path)
    assert [(tensor.dtype, tensor.shape) for tensor in graph.inputs] == [("int64", (2, 24))]
    ids = torch.randint(0, 2, (2, 24))
    model = explicit_model(path, WeightMaker(0).make(weight_slots(path))).SerializeToString()
    (expected,) = ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"input": ids.numpy()})
    with torch.inference_mode():
        found = convert_graph(path, 0)(ids)
    assert found.shape[0] == 2
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("variant", range(24))
def test_detectors_make_maps_or_rows_at_every_side_that_can_be_halved_twice(variant: int) -> None:
    family = FAMILIES["detector"]
    side = (64, 96, 112, 100)[variant % 4]
    spec = GeneratedSpec(variant=variant, width=12, depth=5, side=side, batch=2)
    with torch.device("meta"):
        shape = family.build(spec).eval()(torch.zeros(family.input_shape(spec))).shape
    assert shape[0] == 2
    if len(shape) == 4:
        # A map of classes is as large as the input; an image becomes two or four times what it was shrunk to.
        assert shape[2] == shape[3]
        assert shape[2] in ((side,) if shape[1] != 3 else (side // 2, side))
    else:
        # Boxes and scores of all places, in columns or in rows.
        assert len(shape) == 3
        assert shape[1] in (5, 24, 84) or shape[2] in (6, 25, 85)


@pytest.mark.parametrize("variant", range(24))
def test_segmenters_make_a_mask_as_large_as_the_input(variant: int) -> None:
    family = FAMILIES["segmenter"]
    spec = GeneratedSpec(variant=variant, width=12, depth=5, side=(64, 96, 112, 100)[variant % 4], batch=2)
    with torch.device("meta"):
        module = family.build(spec).eval()
        shape = module(torch.zeros(family.input_shape(spec))).shape
    assert (shape[0], *shape[2:]) == (2, spec.side, spec.side)
    assert shape[1] in (2, 8, 19, 21, 60, 150)
    assert any(one.dilation != (1, 1) for one in module.modules() if isinstance(one, torch.nn.Conv2d))


def test_slim_networks_classify_images_or_each_pixel() -> None:
    shapes = set()
    for variant in range(24):
        spec = GeneratedSpec(variant=variant, width=16, depth=6, side=(64, 96, 112)[variant % 3], classes=7)
        with torch.device("meta"):
            found = FAMILIES["slim"].build(spec).eval()(torch.zeros(FAMILIES["slim"].input_shape(spec))).shape
        assert found == (1, 7) or (len(found) == 4 and found[2] == found[3] in (spec.side, spec.side // 2)), variant
        shapes.add(len(found))
    assert shapes == {2, 4}


def test_of_more_than_a_thousand_classes_each_is_a_word() -> None:
    """What else a network has does not hang on that; texts are told apart into a thousand classes at most."""
    outputs = set()
    for variant in range(24):
        spec = GeneratedSpec(variant=variant, width=64, depth=1, side=16, classes=20_000)
        with torch.device("meta"):
            module = FAMILIES["language"].build(spec).eval()
            outputs.add(tuple(module(torch.zeros((1, 16), dtype=torch.int64)).shape))
        assert module.embedding.words.weight.shape[0] == 20_000
    assert outputs == {(1, 1000), (1, 16, 1000), (1, 16, 20_000)}


def test_detectors_refuse_sides_that_cannot_be_halved() -> None:
    with pytest.raises(SpecError, match="side = 65"):
        FAMILIES["detector"].build(GeneratedSpec(variant=0, width=8, depth=5, side=65))


@pytest.mark.parametrize("variant", range(24))
def test_networks_over_sound_classify_it_or_make_it_longer(variant: int) -> None:
    family = FAMILIES["sequence"]
    spec = GeneratedSpec(variant=variant, width=24, depth=4, side=64, batch=2)
    with torch.device("meta"):
        module = family.build(spec).eval()
        shape = module(torch.zeros(family.input_shape(spec))).shape
    assert shape[0] == 2
    if any(isinstance(part, torch.nn.ConvTranspose1d) for part in module.modules()):
        assert shape[1] == 1
        assert shape[2] > 64
    else:
        assert shape[-1] in (10, 30, 64, 500)


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
@pytest.mark.parametrize("both", [False, True])
def test_recurrent_layers_are_one_operator_that_computes_what_torch_does(op: str, both: bool, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    from latmod.families.recurrent import Recurrent

    path = tmp_path / "layers.onnx"
    module = Recurrent(6, 5, 2, op, both=both).eval()
    for value in module.parameters():
        torch.nn.init.normal_(value, 0.0, 0.5)
    x = torch.rand(2, 6, 9)
    torch.onnx.export(module, (x,), str(path), dynamo=False, opset_version=17, input_names=["input"])
    assert [node.op for node in read_graph(path).nodes].count(op) == 2
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"input": x.numpy()})
    with torch.inference_mode():
        torch.testing.assert_close(module(x), torch.from_numpy(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", range(24))
def test_networks_over_volumes_classify_them_or_each_of_their_places(variant: int) -> None:
    family = FAMILIES["volume"]
    spec = GeneratedSpec(variant=variant, width=12, depth=6, side=48, batch=2, classes=7)
    frames = family.input_shape(spec)[2]
    assert frames in (4, 8, 16)
    with torch.device("meta"):
        shape = family.build(spec).eval()(torch.zeros(family.input_shape(spec))).shape
    assert shape == (2, 7) or (shape[0] == 2 and shape[2:] == (frames, 48, 48))


@pytest.mark.parametrize("side", [96, 128, 160, 192, 224, 240, 288, 320])
def test_early_networks_export_at_every_side(side: int, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    ops: set[str] = set()
    for variant in (side, side + 1):
        export_spec(FAMILIES["early"], GeneratedSpec(variant=variant, width=24, depth=4, side=side), path)
        ops |= {node.op for node in read_graph(path).nodes}
    assert {"Conv", "MaxPool", "Gemm"} <= ops


def test_local_norms_are_one_operator(tmp_path: Path) -> None:
    from latmod.families.early import LocalNorm

    path = tmp_path / "norm.onnx"
    export_model(LocalNorm(5), (1, 8, 4, 4), path)
    (node,) = read_graph(path).nodes
    assert (node.op, node.attributes["size"], node.attributes["alpha"]) == ("LRN", 5, pytest.approx(1e-4))
    x = torch.rand(1, 8, 4, 4)
    torch.testing.assert_close(LocalNorm(5)(x), torch.nn.LocalResponseNorm(5)(x))


@pytest.mark.parametrize("name", GENERATED)
def test_a_spec_names_one_network(name: str) -> None:
    family = FAMILIES[name]
    spec = GeneratedSpec(variant=5, width=24, depth=4, side=64)
    shapes = []
    for _ in range(2):
        with torch.device("meta"):
            shapes.append([tuple(value.shape) for value in family.build(spec).parameters()])
    assert shapes[0] == shapes[1]
    assert family.model_id(spec) == f"{name}-5-w24-d4-s64"
    assert family.model_id(msgspec.structs.replace(spec, batch=2, classes=5)) == f"{name}-5-w24-d4-s64-batch2-classes5"


def test_the_specs_of_another_family_are_refused() -> None:
    with pytest.raises(SpecError, match="another family"):
        FAMILIES["mobile"].build(PublishedSpec(network="resnet18"))


def test_the_space_of_every_family_draws() -> None:
    spaces = sorted(
        path
        for folder in ("big", "kernels", "mixer", "rare", "segmenter", "slim")
        for path in bundled_spaces()[folder].glob("*.toml")
    )
    assert {load_space(path, FAMILIES).family for path in spaces} == {*GENERATED, "resnet"}
    names = [name for path in spaces for name, _ in draw(load_space(path, FAMILIES), FAMILIES)]
    assert len(set(names)) == len(names) >= 300


def test_choices_are_the_same_everywhere() -> None:
    one = Choices("mobile", 7)
    assert [one.pick("abcd"), one.chance(0.5), one.channels(37.0), one.split(9, 4)] == _drawn()
    assert sum(Choices("x", 1).split(30, 4)) == 30


def _drawn() -> list[object]:
    two = Choices("mobile", 7)
    return [two.pick("abcd"), two.chance(0.5), two.channels(37.0), two.split(9, 4)]


def test_published_networks_are_known_and_never_fitted() -> None:
    spaces = sorted(bundled_spaces()["zoo"].glob("*.toml"))
    drawn = [model for path in spaces for model in draw(load_space(path, FAMILIES), FAMILIES)]
    assert len(drawn) >= 39
    assert all(FAMILIES[name].published for name in ("torchvision", "light"))
    with pytest.raises(SpecError, match="no_such"):
        FAMILIES["light"].estimate(PublishedSpec(network="no_such"))
    with pytest.raises(SpecError, match="no_such"):
        FAMILIES["torchvision"].build(PublishedSpec(network="no_such"))


def test_a_light_network_is_taken_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "squeezenet.onnx"
    spec = PublishedSpec(network="squeezenet")
    export_spec(FAMILIES["light"], spec, path)
    graph = read_graph(path)
    assert graph.inputs[0].shape == FAMILIES["light"].input_shape(spec)
    assert graph_features(graph)["macs"] == FAMILIES["light"].estimate(spec).macs
