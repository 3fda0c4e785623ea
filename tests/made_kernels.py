"""Kernels of a kind, of numbers that a test chooses."""

from latmod.kernels import FIELDS, Kernel


def made(kind: str, **numbers: float) -> Kernel:
    return Kernel(
        op=kind.split()[0], kind=kind, numbers=tuple(numbers.get(field, 0.0) for field in FIELDS), nodes=("n",),
        label="n", inputs=(), outputs=(), values=(),
    )  # fmt: skip
