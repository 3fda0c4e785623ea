"""Make weights for a weight-free graph: seeded, at a sane scale, without denormals, each tensor in memory of its own.

Latency depends on shapes, not on values (design section 3), as long as no activation overflows or becomes denormal. So
convolutions and matrices are He normal, and batch norms near identity with a gain of one half, which keeps the
activations of a residual network of 200 blocks within float32.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator

import numpy as np

from latmod.graph import Tensor, WeightSlot

_POOL_SIZE = 1 << 20
_BATCH_NORM = {1: (0.5, 0.02), 2: (0.0, 0.02), 3: (0.0, 0.02), 4: (1.0, 0.05)}
"""Mean and deviation of scale, bias, running mean and running variance, by input position."""


class WeightMaker:
    """Make the weights of a graph from a seed; the same seed and tensor name give the same values in every runtime."""

    def __init__(self, seed: int) -> None:
        """Draw the pool of standard normals that all tensors are cut from (4 MB)."""
        self._seed = seed
        pool = np.random.default_rng(seed).standard_normal(_POOL_SIZE, dtype=np.float32)
        pool[np.abs(pool) < 1e-6] = 1e-6
        self._pool = pool

    def make(self, slots: Iterable[WeightSlot]) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (name, values) for every slot."""
        for slot in slots:
            yield slot.tensor.name, self._values(slot)

    def _values(self, slot: WeightSlot) -> np.ndarray:
        tensor = slot.tensor
        if np.dtype(tensor.dtype).kind != "f":
            return self._integers(tensor)
        mean, deviation = _distribution(slot)
        values = np.empty(tensor.numel, dtype=np.float32)
        self._fill(values, self._offset(tensor.name))
        values *= np.float32(deviation)
        if mean:
            values += np.float32(mean)
        return values.reshape(tensor.shape).astype(tensor.dtype, copy=False)

    def _integers(self, tensor: Tensor) -> np.ndarray:
        """Return small integers: 0 and 1 are valid as bits, as indices and as quantised weights alike."""
        values = np.empty(tensor.numel, dtype=np.float32)
        self._fill(values, self._offset(tensor.name))
        return (values > 0).reshape(tensor.shape).astype(tensor.dtype)

    def _fill(self, out: np.ndarray, offset: int) -> None:
        done = 0
        while done < out.size:
            count = min(_POOL_SIZE - offset, out.size - done)
            out[done : done + count] = self._pool[offset : offset + count]
            done += count
            offset = 0

    def _offset(self, name: str) -> int:
        digest = hashlib.blake2b(f"{self._seed}:{name}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") % _POOL_SIZE


def _distribution(slot: WeightSlot) -> tuple[float, float]:
    """Return mean and standard deviation (He et al. 2015, arXiv 1502.01852, for anything with a fan-in)."""
    if slot.op == "BatchNormalization" and slot.position in _BATCH_NORM:
        return _BATCH_NORM[slot.position]
    # What is normalised may be a weight itself (weight standardisation, arXiv 1903.10520).
    if slot.op.endswith("Normalization") and slot.position > 0:
        return (1.0, 0.02) if slot.position == 1 else (0.0, 0.02)
    if len(slot.tensor.shape) < 2:
        return 0.0, 0.02
    return 0.0, math.sqrt(2.0 / max(1, _fan_in(slot)))


def _fan_in(slot: WeightSlot) -> int:
    shape = slot.tensor.shape
    if slot.op == "MatMul":
        return shape[-2]
    if slot.op == "Gemm" and not slot.transposed:
        return shape[0]
    return math.prod(shape[1:])
