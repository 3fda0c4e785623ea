"""List the families of models that latmod can generate."""

from collections.abc import Mapping

from latmod.families.family import Estimate, Family
from latmod.families.resnet import ResNet

FAMILIES: Mapping[str, Family] = {family.name: family for family in (ResNet(),)}

__all__ = ["FAMILIES", "Estimate", "Family"]
