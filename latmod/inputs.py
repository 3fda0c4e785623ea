"""Make inputs for a model: photographs prepared as for ImageNet where it takes images, random numbers elsewhere."""

import random
from collections.abc import Iterable
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from latmod.errors import LatmodError
from latmod.graph import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

# As in torchvision's presets for ImageNet: the short side is resized to 256 for a crop of 224.
RESIZE_PER_CROP = 256 / 224
MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)
SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


def is_image(tensor: Tensor) -> bool:
    """Tell whether an input takes images: float32, batch x 3 x height x width, at least 8 pixels each way."""
    shape = tensor.shape
    return tensor.dtype == "float32" and len(shape) == 4 and shape[1] == 3 and min(shape[2:]) >= 8


def image_inputs(
    shape: tuple[int, ...], count: int, seed: int, folder: Path | None = None
) -> list[NDArray[np.float32]]:
    """Return `count` float32 tensors of `shape`, batch x 3 x height x width, made from images picked with `seed`.

    The images are those of `folder`, or the photographs that ship with latmod. No image is picked again before all of
    them have been used. Raises LatmodError if the folder has no image or one cannot be read.
    """
    batch, _, height, width = shape
    images = _list_images(folder)
    generator = random.Random(seed)
    order: list[Traversable] = []
    while len(order) < count * batch:
        # random.shuffle may change between Python versions; a sort by random() does not.
        order += sorted(images, key=lambda _: generator.random())
    made: dict[str, NDArray[np.float32]] = {}
    for image in order[: count * batch]:
        if image.name not in made:
            made[image.name] = _prepare(image, height, width)
    return [
        np.stack([made[image.name] for image in order[first : first + batch]])
        for first in range(0, count * batch, batch)
    ]


def random_inputs(tensors: Iterable[Tensor], count: int, seed: int) -> list[dict[str, NDArray[np.generic]]]:
    """Return `count` sets of inputs by name: standard normals for floats; 0 or 1 for whole numbers and booleans.

    0 and 1 are valid as indices, token ids and masks alike. Raises LatmodError for a type that numpy does not have.
    """
    generator = np.random.default_rng(seed)
    wanted = tuple(tensors)
    return [{tensor.name: _random(tensor, generator) for tensor in wanted} for _ in range(count)]


def _random(tensor: Tensor, generator: np.random.Generator) -> NDArray[np.generic]:
    try:
        dtype = np.dtype(tensor.dtype)
    except TypeError:
        raise LatmodError(f"input {tensor.name}: no random values of type {tensor.dtype} can be made") from None
    if dtype.kind == "f":
        return generator.standard_normal(tensor.shape, dtype=np.float32).astype(dtype)
    if dtype.kind in "iub":
        return generator.integers(0, 2, tensor.shape).astype(dtype)
    raise LatmodError(f"input {tensor.name}: no random values of type {tensor.dtype} can be made")


def _list_images(folder: Path | None) -> list[Traversable]:
    """Return the images in order of their names, so that a seed picks the same ones everywhere."""
    if folder is None:
        place: Traversable = resources.files("latmod") / "images"
    elif folder.is_dir():
        place = folder
    else:
        raise LatmodError(f"{folder}: not a folder of images; give one, or leave --images out")
    try:
        images = [entry for entry in place.iterdir() if Path(entry.name).suffix.lower() in SUFFIXES]
    except OSError as error:
        raise LatmodError(f"{folder}: cannot be listed: {error.strerror}") from error
    if not images:
        raise LatmodError(f"{place}: no image in this folder ({', '.join(sorted(SUFFIXES))})")
    return sorted(images, key=lambda image: image.name)


def _prepare(file: Traversable, height: int, width: int) -> NDArray[np.float32]:
    """Return one image as 3 x height x width: resized, cropped about its centre, normalised."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise LatmodError('images need pillow; install it with: pip install "latmod[torch]"') from error
    try:
        with file.open("rb") as stream, Image.open(stream) as opened:
            image = _crop(_resize(opened.convert("RGB"), min(height, width)), height, width)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise LatmodError(f"{file}: not a readable image; remove it from the folder ({error})") from error
    pixels = np.asarray(image, dtype=np.float32) / np.float32(255)
    return np.ascontiguousarray(((pixels - MEAN) / STD).transpose(2, 0, 1))


def _resize(image: "Image", crop: int) -> "Image":
    from PIL.Image import Resampling

    short = round(crop * RESIZE_PER_CROP)
    long = int(short * max(image.size) / min(image.size))
    size = (short, long) if image.width <= image.height else (long, short)
    return image.resize(size, Resampling.BILINEAR)


def _crop(image: "Image", height: int, width: int) -> "Image":
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))
