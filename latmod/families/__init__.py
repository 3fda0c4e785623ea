"""List the families of models that latmod can generate."""

from collections.abc import Mapping

from latmod.families.family import Estimate, Family
from latmod.families.generated import GeneratedFamily, TokenFamily
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
    "mobile",
    "plain",
    "reparam",
    "shuffle",
    "transformer",
    "varied",
    "windowed",
)
"""Families of random networks; none holds a published one."""

_TOKENS = frozenset({"language"})


def _generated(name: str) -> GeneratedFamily:
    return TokenFamily(name) if name in _TOKENS else GeneratedFamily(name)


_ALL: tuple[Family, ...] = (ResNet(), *(_generated(name) for name in GENERATED), Torchvision(), Light())
FAMILIES: Mapping[str, Family] = {family.name: family for family in _ALL}

__all__ = ["FAMILIES", "GENERATED", "Estimate", "Family"]
