"""List the families of models that latmod can generate."""

from collections.abc import Mapping

from latmod.families.family import Estimate, Family
from latmod.families.generated import GeneratedFamily
from latmod.families.published import Light, Torchvision
from latmod.families.resnet import ResNet

GENERATED = (
    "dense",
    "early",
    "grouped",
    "hybrid",
    "inception",
    "largekernel",
    "mobile",
    "plain",
    "reparam",
    "shuffle",
    "transformer",
    "varied",
    "windowed",
)
"""Families of random networks; none holds a published one."""

_ALL: tuple[Family, ...] = (ResNet(), *(GeneratedFamily(name) for name in GENERATED), Torchvision(), Light())
FAMILIES: Mapping[str, Family] = {family.name: family for family in _ALL}

__all__ = ["FAMILIES", "GENERATED", "Estimate", "Family"]
