"""Count what a module costs by running it on torch's meta device."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from latmod.families.family import FLOAT_BYTES, MEMORY_FACTOR, Estimate

S = TypeVar("S")


def trace_estimate(
    build: Callable[[S], nn.Module], spec: S, shape: tuple[int, ...], dtype: str = "float32"
) -> Estimate:
    """Return MACs (torch's own FLOP counter, halved), parameters, and an upper bound of memory in bytes.

    What must be held is the weights and the activations on both sides of the largest operator, and as much again for
    shortcuts.
    """
    with torch.device("meta"):
        module = build(spec).eval()
        largest = 0

        def note(_: nn.Module, inputs: Any, output: Any) -> None:
            nonlocal largest
            largest = max(largest, 2 * (_numel(inputs) + _numel(output)))

        hooks = [part.register_forward_hook(note) for part in module.modules() if not any(part.children())]
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(torch.zeros(shape, dtype=getattr(torch, dtype)))
        for hook in hooks:
            hook.remove()
    params = sum(parameter.numel() for parameter in module.parameters())
    return Estimate(
        macs=counter.get_total_flops() // 2,
        params=params,
        peak_memory_bytes=MEMORY_FACTOR * FLOAT_BYTES * (params + largest),
    )


def _numel(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel()
    if isinstance(value, tuple | list):
        return sum(_numel(one) for one in value)
    return 0
