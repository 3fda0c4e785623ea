"""Draw the details of a random network from its seed, the same on every platform."""

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Choices:
    """Draw one detail after another; only `random.random()` is used, which never changes between Python versions."""

    def __init__(self, family: str, variant: int) -> None:
        """Seed with the family's name and the spec's variant."""
        self._random = random.Random(f"{family}:{variant}")

    def pick(self, values: Sequence[T], weights: Sequence[float] = ()) -> T:
        """Return one of the values, all equally likely unless weights are given."""
        if not weights:
            return values[int(self._random.random() * len(values))]
        point = self._random.random() * sum(weights)
        for value, weight in zip(values, weights, strict=True):
            point -= weight
            if point < 0:
                return value
        return values[-1]

    def chance(self, probability: float) -> bool:
        """Return True with a probability."""
        return self._random.random() < probability

    def between(self, low: float, high: float) -> float:
        """Return a number between two bounds, log-uniformly."""
        return float(low * (high / low) ** self._random.random())

    def channels(self, wanted: float) -> int:
        """Round a number of channels as networks do: nine times of ten to a multiple of 8, else of 4 or 2."""
        multiple = self.pick((8, 4, 2), (0.9, 0.07, 0.03))
        return max(multiple, int(wanted / multiple + 0.5) * multiple)

    def split(self, depth: int, stages: int) -> list[int]:
        """Split a number of blocks over stages, at least one each, the later ones but the last rather deeper."""
        counts = [1] * stages
        shares = [self.between(0.3, 3.0) * (stage + 1 if stage < stages - 1 else 1) for stage in range(stages)]
        for _ in range(max(0, depth - stages)):
            # Always where the share is filled least, which keeps the split close to the shares.
            counts[min(range(stages), key=lambda stage: counts[stage] / shares[stage])] += 1
        return counts
