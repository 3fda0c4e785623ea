"""Networks that come as files: planned, measured and judged as those of any other family."""

import shutil
from pathlib import Path

import onnx
import pytest
from command import latmod

from latmod.dataset import DatasetFolder, Protocol
from latmod.errors import GraphError, SpecError
from latmod.evaluating import family_of
from latmod.export import export_spec
from latmod.families import FAMILIES
from latmod.families.file import FileSpec
from latmod.features import graph_features
from latmod.graph import read_graph
from latmod.plan import find_spaces, plan_sweep
from latmod.sweeping import sweep
from latmod.table import observations


@pytest.fixture
def networks(exported_graphs: Path, tmp_path: Path) -> Path:
    """Return a folder of two networks of one's own, one of them of free batch."""
    folder = tmp_path / "own"
    folder.mkdir()
    first, second = sorted(exported_graphs.glob("*.onnx"))[:2]
    shutil.copy(first, folder / "tinynet_a.onnx")
    model = onnx.load(second, load_external_data=False)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]
    onnx.save(model, folder / "tinynet_b.onnx")
    return folder


def test_a_folder_of_networks_is_planned_by_what_their_graphs_say(exported_graphs: Path) -> None:
    files = sorted(exported_graphs.glob("*.onnx"))
    card = plan_sweep(files, ["fake"], Protocol(), name="t")
    assert [model.model for model in card.models] == [path.stem for path in files]
    for model, path in zip(card.models, files, strict=True):
        known = graph_features(read_graph(path))
        assert (model.family, model.macs) == ("file", known["macs"])
        assert model.params == pytest.approx(known["params"], rel=0.05)


def test_a_folder_of_spaces_is_one_of_spaces_though_networks_lie_there(exported_graphs: Path, tmp_path: Path) -> None:
    assert find_spaces([str(exported_graphs)]) == [exported_graphs / "tiny.toml"]
    shutil.copy(next(exported_graphs.glob("*.onnx")), tmp_path / "x.onnx")
    assert find_spaces([str(tmp_path)]) == [tmp_path / "x.onnx"]


def test_free_dims_are_asked_for_and_set(networks: Path) -> None:
    files = find_spaces([str(networks)])
    with pytest.raises(GraphError, match=r"tinynet_b\.onnx.*batch"):
        plan_sweep(files, ["fake"], Protocol(), name="t")
    single, double = (
        plan_sweep(files[1:], ["fake"], Protocol(), name="t", shapes=[f"batch={size}"]).models[0] for size in (1, 2)
    )
    assert double.macs == 2 * single.macs
    with pytest.raises(SpecError, match="--shape size: no input"):
        plan_sweep(files, ["fake"], Protocol(), name="t", shapes=["batch=1", "size=2"])
    with pytest.raises(GraphError, match="NAME=1x3x224x224"):
        plan_sweep(files, ["fake"], Protocol(), name="t", shapes=["batch"])


def test_a_shape_without_a_file_is_refused(tiny_space: Path) -> None:
    with pytest.raises(SpecError, match="--shape is for"):
        plan_sweep([tiny_space], ["fake"], Protocol(), name="t", shapes=["batch=1"])


def test_two_files_of_one_name_are_refused(networks: Path, tmp_path: Path) -> None:
    other = tmp_path / "tinynet_a.onnx"
    shutil.copy(networks / "tinynet_a.onnx", other)
    with pytest.raises(SpecError, match="tinynet_a is listed twice"):
        plan_sweep([networks / "tinynet_a.onnx", other], ["fake"], Protocol(), name="t")


def test_no_file_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"no such file"):
        find_spaces([str(tmp_path / "none.onnx")])
    with pytest.raises(SpecError, match=r"no \.toml and no \.onnx file"):
        find_spaces([str(tmp_path)])


def test_what_is_measured_has_the_free_dims_set(networks: Path, tmp_path: Path) -> None:
    spec = FileSpec(path=str(networks / "tinynet_b.onnx"), shapes=("batch=3",))
    family = FAMILIES["file"]
    export_spec(family, spec, tmp_path / "b.onnx")
    assert read_graph(tmp_path / "b.onnx").inputs[0].shape == family.input_shape(spec) == (3, 3, 32, 32)
    with pytest.raises(SpecError, match="not modules"):
        family.build(spec)


def test_a_sweep_over_files_gives_a_data_set_whose_families_are_names(networks: Path, tmp_path: Path) -> None:
    protocol = Protocol(rounds=1, burst_seconds=0.01)
    result = sweep([networks], tmp_path / "data", runtimes=["fake"], protocol=protocol, shapes=["batch=1"])
    assert (result.measured, result.failed) == (2, ())
    found = observations(DatasetFolder(tmp_path / "data"))
    assert {(one.model, family_of(one)) for one in found} == {("tinynet_a", "tinynet"), ("tinynet_b", "tinynet")}
    again = sweep([networks], tmp_path / "data", runtimes=["fake"], protocol=protocol, shapes=["batch=1"])
    assert again.measured == 2


def test_the_command_takes_a_folder(networks: Path, tmp_path: Path) -> None:
    (networks / "tinynet_b.onnx").unlink()
    found = latmod("sweep", networks, "--runtime", "fake", "--rounds", 1, "--dry-run", "--out", tmp_path / "d")
    assert found.returncode == 0, found.stderr
    assert "1 models" in found.stderr
    assert "tinynet_a" in found.stdout
    refused = latmod("sweep", networks, "--runtime", "fake", "--shape", "batch=1", "--out", tmp_path / "d")
    assert refused.returncode == 1
    assert "--shape batch: no input and no free dim" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
