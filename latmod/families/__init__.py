"""List the families of models that latmod can generate."""

from collections.abc import Mapping

from latmod.families.family import Estimate, Family
from latmod.families.file import File
from latmod.families.generated import GeneratedFamily, SeriesFamily, TokenFamily, VolumeFamily
from latmod.families.published import Light, Torchvision
from latmod.families.resnet import ResNet

GENERATED = (
    "dense",
    "detector",
    "early",
    "grouped",
    "hybrid",
    "inception",
    "language",
    "largekernel",
    "mixer",
    "mobile",
    "plain",
    "recent",
    "reparam",
    "sampler",
    "segmenter",
    "sequence",
    "shuffle",
    "slim",
    "transformer",
    "varied",
    "volume",
    "windowed",
)
"""Families of random networks; none holds a published one."""

_NO_IMAGES = {"language": TokenFamily, "sequence": SeriesFamily, "volume": VolumeFamily}

_DRAWN = tuple(_NO_IMAGES.get(name, GeneratedFamily)(name) for name in GENERATED)
_ALL: tuple[Family, ...] = (ResNet(), *_DRAWN, Torchvision(), Light(), File())
FAMILIES: Mapping[str, Family] = {family.name: family for family in _ALL}

__all__ = ["FAMILIES", "GENERATED", "Estimate", "Family"]
