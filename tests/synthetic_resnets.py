"""A data set of residual networks whose true latency is known in closed form, for tests of fitting.

The latency has the form that engines show: a rate per kind of convolution, which drops where channels do not fill a
vector register; bytes moved; a cost per node; all times log-normal noise of 1 % per round.
"""

import math

import numpy as np

from latmod.cost import Cost
from latmod.dataset import Observation
from latmod.features import CONV_CLASSES, FEATURES, Conv

MAX_BLOCKS = (12, 32, 144, 12)


def convolutions(bottleneck: bool, blocks: list[int], width: int, side: int) -> list[tuple[int, int, int, int, int]]:
    """List (stage, kernel, channels in, channels out, output side) of every convolution."""
    found = [(1, 7, 3, width, side // 2)]
    channels, size = width, side // 4
    for stage, count in enumerate(blocks, start=1):
        inner = width * 2 ** (stage - 1)
        outer = inner * 4 if bottleneck else inner
        for block in range(count):
            before = size
            if block == 0 and stage > 1:
                size = size // 2
            if bottleneck:
                found += [
                    (stage, 1, channels, inner, before),
                    (stage, 3, inner, inner, size),
                    (stage, 1, inner, outer, size),
                ]
            else:
                found += [(stage, 3, channels, inner, size), (stage, 3, inner, inner, size)]
            if block == 0 and (channels != outer or stage > 1):
                found.append((stage, 1, channels, outer, size))
            channels = outer
    return found


def features_of(bottleneck: bool, blocks: list[int], width: int, side: int = 224) -> dict[str, float]:
    """Compute features like those of `latmod.features`, in closed form, under the same names."""
    row = dict.fromkeys(FEATURES, 0.0)
    row |= {"is_residual": 1.0, "block_bottleneck": float(bottleneck), "width": float(width), "widen": 1.0}
    row |= {"side": float(side), "batch": 1.0, "classes": 1000.0}
    row |= {f"blocks{i}": float(count) for i, count in enumerate(blocks, start=1)}
    before = side
    for _, kernel, cin, cout, size in convolutions(bottleneck, blocks, width, side):
        macs = float(kernel * kernel * cin * cout * size * size)
        activations = 4.0 * (before * before * cin + size * size * cout)
        weights = 4.0 * kernel * kernel * cin * cout
        parts = {"macs": macs, "count": 1.0, "activation_bytes": activations, "weight_bytes": weights}
        conv = Conv(
            cost=Cost(macs=int(macs)),
            batch=1,
            channels_in=cin,
            channels_out=cout,
            group=1,
            kernel=(kernel, kernel),
            stride=max(1, before // size),
            dilation=1,
            input_numel=cin * before * before,
            octave=round(math.log2(side / size)),
        )
        for name in ["conv", *(name for name, (_, belongs) in CONV_CLASSES.items() if belongs(conv))]:
            for quantity, value in parts.items():
                if f"{quantity}_{name}" in row:
                    row[f"{quantity}_{name}"] += value
        for pad in (8, 16):
            row[f"macs_padded{pad}"] += macs * math.ceil(cin / pad) * math.ceil(cout / pad) * pad * pad / (cin * cout)
        row["params"] += kernel * kernel * cin * cout + cout
        row["macs"] += macs
        row["activation_bytes"] += activations
        row["weight_bytes"] += weights
        row["max_activation_bytes"] = max(row["max_activation_bytes"], activations)
        row["max_weight_bytes"] = max(row["max_weight_bytes"], weights)
        row["weight_bytes_over_l2"] += max(0.0, weights - 512 * 1024)
        row["nodes"] += 2
        row["depth"] += 1
        before = size
    return row


def true_ms(bottleneck: bool, blocks: list[int], width: int, side: int = 224, speed: float = 1.0) -> float:
    """Compute the latency without noise."""
    total = 0.05
    for _, kernel, cin, cout, size in convolutions(bottleneck, blocks, width, side):
        macs = kernel * kernel * cin * cout * size * size
        aligned = cin % 4 == 0 and cin >= 8
        padded = math.ceil(cout / 8) * 8 / cout if aligned else math.ceil(cout / 16) * 16 / cout
        rate = {1: 32e6, 3: 45e6, 7: 25e6}[kernel] * (1.0 if aligned else 0.5) / padded
        rate *= cout / (cout + 12.0) * (size * size) / (size * size + 20.0)
        streamed = 4.0 * kernel * kernel * cin * cout
        total += macs / rate + 4.0 * size * size * (cin + cout) / 8e6 + streamed / 6e6 + 0.004
    return total / speed


def resnets(
    count: int,
    *,
    seed: int = 0,
    width: int | None = None,
    runtime: str = "alpha",
    speed: float = 1.0,
    noise: float = 0.01,
) -> list[Observation]:
    """Draw networks log-uniformly and observe each in five rounds; `width` fixes the base width."""
    rng = np.random.default_rng(seed)
    found: list[Observation] = []
    while len(found) < count:
        bottleneck = bool(rng.integers(2))
        blocks = [int(np.exp(rng.uniform(0.0, np.log(top + 0.99)))) for top in MAX_BLOCKS]
        base = width or int(np.exp(rng.uniform(0.0, np.log(192.99))))
        truth = true_ms(bottleneck, blocks, base, speed=speed)
        if truth > 6000.0:
            continue
        rounds = truth * 1e6 * np.exp(rng.normal(0.0, noise, 5))
        values = {"min": rounds, "mean": rounds * 1.03, "p50": rounds * 1.01, "p90": rounds * 1.06}
        found.append(
            Observation(
                model=f"resnet-{seed}-{len(found)}",
                family="resnet",
                runtime=runtime,
                threads=1,
                batch=1,
                spec={"block": "bottleneck" if bottleneck else "basic", "width": base},
                features=features_of(bottleneck, blocks, base),
                round_ns={name: tuple(float(v) for v in row) for name, row in values.items()},
                machine_id="0123456789ab",
                runtime_version="1.0",
            )
        )
    return found
