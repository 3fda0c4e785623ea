import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from latmod.errors import LatmodError
from latmod.graph import Tensor
from latmod.inputs import image_inputs, is_image, random_inputs

PIL = pytest.importorskip("PIL.Image")
IMAGES = Path(__file__).parent.parent / "latmod" / "images"


@pytest.mark.parametrize("crop", [224, 64, 32, 299])
def test_pixels_are_torchvisions(tmp_path: Path, crop: int) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    oracle = transforms.Compose(
        [
            transforms.Resize(round(crop * 256 / 224)),
            transforms.CenterCrop(crop),
            transforms.ToTensor(),
            transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )
    for image in sorted(IMAGES.glob("*.jpg")):
        (folder := tmp_path / image.stem).mkdir()
        (folder / image.name).write_bytes(image.read_bytes())
        (made,) = image_inputs((1, 3, crop, crop), 1, 0, folder)
        expected = oracle(PIL.open(image).convert("RGB")).numpy()[None]
        assert made.dtype == np.float32
        assert made.flags.c_contiguous
        np.testing.assert_allclose(made, expected, atol=2e-6)


def test_images_are_several_and_a_seed_picks_the_same_ones() -> None:
    first = image_inputs((1, 3, 64, 64), 8, 7)
    again, other = image_inputs((1, 3, 64, 64), 8, 7), image_inputs((1, 3, 64, 64), 8, 8)
    assert len({image.tobytes() for image in first}) == 8
    assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
    assert not all(np.array_equal(one, two) for one, two in zip(first, other, strict=True))


def test_a_batch_holds_different_images_and_may_be_larger_than_the_collection() -> None:
    (batch,) = image_inputs((5, 3, 48, 32), 1, 0)
    assert batch.shape == (5, 3, 48, 32)
    assert len({image.tobytes() for image in batch}) == 5
    count = len(list(IMAGES.glob("*.jpg")))
    (large,) = image_inputs((2 * count + 1, 3, 32, 32), 1, 0)
    assert len({image.tobytes() for image in large[:count]}) == count


def test_collection_is_small_and_every_photograph_is_credited() -> None:
    photographs = sorted(IMAGES.glob("*.jpg"))
    credits = (IMAGES / "CREDITS.md").read_text(encoding="utf-8")
    assert len(photographs) >= 12
    assert sum(photograph.stat().st_size for photograph in photographs) < 500_000
    for photograph in photographs:
        assert max(PIL.open(photograph).size) <= 320
        assert f"`{photograph.name}`" in credits


def test_images_of_any_mode_and_format_are_taken(tmp_path: Path) -> None:
    PIL.new("L", (50, 90), 128).save(tmp_path / "grey.PNG")
    PIL.new("RGBA", (90, 50), (255, 0, 0, 9)).save(tmp_path / "alpha.webp")
    (tmp_path / "notes.txt").write_text("not an image")
    grey, alpha = sorted(image_inputs((1, 3, 32, 32), 2, 0, tmp_path), key=lambda image: float(np.ptp(image)))
    assert grey.shape == alpha.shape == (1, 3, 32, 32)


@pytest.mark.parametrize("content", [b"", b"not a picture", (IMAGES / "cat.jpg").read_bytes()[:3000]])
def test_unreadable_image_gives_one_line_that_names_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.jpg").write_bytes(content)
    with pytest.raises(LatmodError, match=r"broken.jpg: not a readable image") as caught:
        image_inputs((1, 3, 32, 32), 1, 0, tmp_path)
    assert "\n" not in str(caught.value)


def test_bad_folders_give_one_line(tmp_path: Path) -> None:
    with pytest.raises(LatmodError, match="nowhere: not a folder"):
        image_inputs((1, 3, 32, 32), 1, 0, tmp_path / "nowhere")
    with pytest.raises(LatmodError, match="no image in this folder"):
        image_inputs((1, 3, 32, 32), 1, 0, tmp_path)


def test_images_are_recognised_by_type_and_shape() -> None:
    def tensor(dtype: str, *shape: int) -> Tensor:
        return Tensor(name="x", dtype=dtype, shape=shape)

    assert is_image(tensor("float32", 2, 3, 64, 48))
    assert not is_image(tensor("int64", 2, 3, 64, 64))
    assert not is_image(tensor("float16", 2, 3, 64, 64))
    assert not is_image(tensor("float32", 1, 3, 2, 2))
    assert not is_image(tensor("float32", 1, 4, 64, 64))
    assert not is_image(tensor("float32", 1, 3))


def test_random_inputs_have_the_types_and_shapes_and_repeat() -> None:
    tensors = (
        Tensor(name="features", dtype="float32", shape=(4, 100)),
        Tensor(name="half", dtype="float16", shape=(100,)),
        Tensor(name="ids", dtype="int64", shape=(2, 50)),
        Tensor(name="mask", dtype="bool", shape=(50,)),
        Tensor(name="scalar", dtype="float64", shape=()),
    )
    made = random_inputs(tensors, 3, 5)
    for inputs in made:
        assert {name: (str(value.dtype), value.shape) for name, value in inputs.items()} == {
            tensor.name: (tensor.dtype, tensor.shape) for tensor in tensors
        }
        assert set(np.unique(inputs["ids"])) <= {0, 1}
    assert not np.array_equal(made[0]["features"], made[1]["features"])
    again = random_inputs(tensors, 3, 5)
    assert all(np.array_equal(one[name], two[name]) for one, two in zip(made, again, strict=True) for name in one)


@pytest.mark.parametrize("dtype", ["string", "float8e4m3fn"])
def test_random_inputs_refuse_other_types(dtype: str) -> None:
    with pytest.raises(LatmodError, match="input text: no random values of type"):
        random_inputs([Tensor(name="text", dtype=dtype, shape=(1,))], 1, 0)


def test_making_images_needs_no_torch() -> None:
    code = (
        "import sys; from latmod.inputs import image_inputs; image_inputs((1, 3, 32, 32), 1, 0); "
        "assert not {'torch', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
