"""Tell how far a network lies outside what a predictor was fitted on, and say so in sentences."""

import math
from collections.abc import Mapping, Sequence

import msgspec

TOLERANCE = math.log2(1.1)
"""Up to a tenth beyond the range seen counts as inside: ranges of a few hundred draws end a little before the space
does."""

FAR = 1.0
"""Up to a factor of two beyond the range is near, more is far (distances are in log2)."""

GROUPS = ("inside", "near", "far")

_CHECKED = {
    "block_bottleneck": "block type",
    "blocks1": "blocks in stage 1",
    "blocks2": "blocks in stage 2",
    "blocks3": "blocks in stage 3",
    "blocks4": "blocks in stage 4",
    "width": "base width",
    "widen": "widening of the inner convolutions",
    "side": "input side",
    "batch": "batch",
    "classes": "classes",
    "macs": "MACs",
    "params": "parameters",
    "activation_bytes": "bytes of activations",
    "weight_bytes": "bytes of weights",
}
"""What is compared with the range seen. The remaining features follow from these within a family."""

_BLOCK = {0.0: "basic", 1.0: "bottleneck"}


class Range(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the smallest and the largest value of one feature among the models seen."""

    feature: str
    low: float
    high: float

    def distance(self, value: float) -> float:
        """Return by how much a value lies outside, in log2 of value + 1; 0 inside."""
        if value > self.high:
            return math.log2((value + 1.0) / (self.high + 1.0))
        if value < self.low:
            return math.log2((self.low + 1.0) / (max(value, 0.0) + 1.0))
        return 0.0

    def sentence(self, value: float) -> str:
        """Say that a value lies outside."""
        label = _CHECKED[self.feature]
        if self.feature == "block_bottleneck":
            return f"{label} {_BLOCK.get(value, value)} was not among the models seen"
        side = "above" if value > self.high else "below"
        seen = f"{self.low:.4g}" if self.low == self.high else f"{self.low:.4g} to {self.high:.4g}"
        return f"{label} {value:.4g} is {side} what was seen ({seen})"


class Domain(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the ranges that a predictor was fitted on, and the families."""

    families: tuple[str, ...]
    ranges: tuple[Range, ...]

    def distance(self, row: Mapping[str, float]) -> float:
        """Return the largest distance over all features, infinite for what is not a residual network."""
        if not is_residual(row):
            return math.inf
        return max((r.distance(row[r.feature]) for r in self.ranges if r.feature in row), default=0.0)

    def reasons(self, row: Mapping[str, float]) -> tuple[str, ...]:
        """Say in what respects a network lies outside; empty when it lies inside."""
        if not is_residual(row):
            return (f"not a network of the families seen ({', '.join(self.families)})",)
        return tuple(
            r.sentence(row[r.feature])
            for r in self.ranges
            if r.feature in row and r.distance(row[r.feature]) > TOLERANCE
        )

    def volume(self) -> float:
        """Return the size of the domain, to prefer the wider of two: the sum of its extents in log2."""
        return sum(math.log2((r.high + 1.0) / (r.low + 1.0)) for r in self.ranges)


def observe_domain(families: Sequence[str], rows: Sequence[Mapping[str, float]]) -> Domain:
    """Return the domain that a set of models spans."""
    names = [name for name in _CHECKED if all(name in row for row in rows)]
    return Domain(
        families=tuple(sorted(set(families))),
        ranges=tuple(
            Range(feature=name, low=min(row[name] for row in rows), high=max(row[name] for row in rows))
            for name in names
        ),
    )


def is_residual(row: Mapping[str, float]) -> bool:
    """Tell whether the features come from a residual network."""
    return row.get("is_residual", 0.0) > 0.0


def group(distance: float) -> int:
    """Return the position in `GROUPS` of a distance."""
    return 0 if distance <= TOLERANCE else 1 if distance <= FAR else 2


def spread(quantiles: Sequence[float], distance: float) -> float:
    """Return the factor by which a latency may be off, given the quantiles of |log error| of the groups.

    Far from the domain the logarithm grows with the distance, up to four times: errors of an extrapolation do, and a
    quantile of models that were a little farther than near would promise too much.
    """
    where = group(distance)
    return math.exp(quantiles[where] * (min(max(distance / FAR, 1.0), 4.0) if where == 2 else 1.0))
