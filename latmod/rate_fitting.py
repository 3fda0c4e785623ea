"""Fit non-negative rates of physical quantities to labelled kernels: of each kind, of each class, and of the rest."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from latmod.additive import APART, FLOOR_NS, OTHER, Rates, class_of, group_of, others_of
from latmod.kernels.columns import PHYSICAL, Columns, physical_part

Floats = NDArray[np.float64]

_FEW_OF_A_CLASS = 12
"""Kernels below which nothing is said of a class."""
_FEW_OF_A_KIND = 3
"""Kernels of one kind below which it is priced as others of its class are; so few are drawn to that strongly."""
_STREAMED_NS_PER_BYTE = 0.2
"""What a product reads and writes in a row goes at 5 GB a second at least."""
_MAX_NS_PER_BYTE = 0.5
"""A core reads at least 2 GB a second from memory, page faults included."""
_MAX_NS_PER_WEIGHT_BYTE = 4.0
"""Nothing reads a weight longer than that; convolutions by channel, which do little else, take as long in tract.

Where all that was seen adds a constant of one number, that explains whatever a call takes: at 488 ns a byte a map of
positions, added once, was priced at 26 ms (EdgeNeXt in tract; kernels-more-zen5).
"""
_FEW_BEYOND, _HELD = 3, 1e3
"""Kernels below which nothing says what lies beyond a cache, and how strongly its rate is held where it was then.

One product of 39 MB, slow for another reason, priced AlexNet's layers at 2 GB a second (OpenVINO, kernels-engines-spr).
"""
_PRODUCT_OVER_CONVOLUTION = 1.5
"""A product's multiply-add takes at most so many times what a convolution's does, and its bytes what memory allows.

Where only rows times weights were seen, all quantities are in proportion, and nothing tells which of them takes the
time: products of activations, of quite other proportions, were priced ten times too high (ncnn, transformers left out).
"""

_MULTIPLY_ADDS = ("macs", "padded_macs")
_MOVED = ("steps", "bytes_in", "bytes_out", "bytes_weights", "unfolded_bytes", "numel_out")
_CONVOLUTIONS, _PRODUCTS = "other convolutions", "other products"

_RIDGE = 1e-4
"""Shares between columns that say the same, in rows of data per row."""
_LABEL_NOISE = 0.2
"""How far labels of small kernels scatter: against it stands that rates within a class differ by a factor of 2."""
_LEAST_PART = 0.01
"""A rate that adds nothing in the class may add so much of a kernel's time in a kind."""
_UNLIKE = 3.0
"""How many times dearer or cheaper a kind is than its class, from where on it only resembles it in proportions.

tract takes 183 ns an element for a GELU whose third power is a Pow, and 1 or less for what else goes by element;
drawn to that, a few such kernels leave a small part of it. Priced by 3, 6 or 12 kernels drawn at random, kinds that
are so unlike had mean errors of the logarithm of 0.76, 0.72 and 0.77 instead of 1.08, 1.00 and 0.92, all kinds 0.47,
0.43 and 0.42 instead of 0.54, 0.48 and 0.45; by their smallest alone, all kinds 0.94, 0.96 and 0.92 instead of 0.93,
0.96 and 0.91 (kernels-zen1, kernels-engines-zen4 and -spr). Without this bound the smallest would mislead.
"""
_MOST_FOR_UNLIKE = 12
"""As so many kernels at most the proportions of a class count in a kind that is quite unlike it.

tract reads maps at computed places at 234 ns an element, which 97 kernels tell within 5 %; drawn to the proportions of
its class, which knew of calls alone, they were priced at 0.3 to 1.0 of that, and RAFT at 24 times what it takes
(rare-zen5).
"""


def fit_rates(
    kinds: Sequence[str], columns: Columns, label_ns: Floats, weights: Floats, silent: Sequence[str]
) -> Rates:
    """Fit rates of every kind to kernels, [N], of labels in ns; `silent` kinds are left the call alone.

    Kinds that are hardly seen are drawn to the rates of their class, and those never seen have these. Fitted to
    logarithms by Huber's weights, classes by themselves price kinds left out better (five engines, 223 kinds: mean
    error of the logarithm 0.52 for 0.59), but whole networks of families left out no better once the residual is
    fitted: on kernels and kernels-engines-zen4 5.2 % for 4.8 in onnxruntime, 5.8 for 5.8 in torch, 6.1 for 5.7 in
    OpenVINO, 9.7 for 8.6 in MNN, 10.8 for 11.1 in tract, 16.3 for 15.8 in ncnn.
    """
    physical = physical_part(columns)
    positions: dict[str, list[int]] = {}
    for position, kind in enumerate(kinds):
        positions.setdefault(kind, []).append(position)
    # What is of no known class moves bytes: rates of everything that is neither a convolution nor a product.
    ordinary = [own for kind, own in positions.items() if group_of(kind) == 3 and class_of(kind) != APART]
    light = [place for own in ordinary for place in own] or list(range(len(kinds)))
    other = _non_negative(physical[light], label_ns[light], weights[light])
    classes: dict[str, list[int]] = {}
    for kind, own in sorted(positions.items()):
        classes.setdefault(others_of(kind), []).extend(own)
    # Every kind of a class counts alike, however often it was seen: the next one may be like any.
    alike = np.array([weights[place] / len(positions[kind]) for place, kind in enumerate(kinds)])
    priors: dict[str, tuple[float, ...]] = {}
    # In this order convolutions, which bound products, come before them.
    for name, own in sorted(classes.items()):
        if len(own) >= _FEW_OF_A_CLASS:
            most = _most_ns_per_mac(name, priors)
            priors[name] = _non_negative(physical[own], label_ns[own], alike[own], most_ns_per_mac=most)
    found: dict[str, tuple[float, ...]] = {}
    for kind, own in sorted(positions.items()):
        if len(own) >= _FEW_OF_A_KIND:
            told = physical[own], label_ns[own], weights[own]
            prior = priors.get(others_of(kind))
            like = _at_its_level(prior, *told)
            most = _most_ns_per_mac(others_of(kind), priors)
            found[kind] = _non_negative(*told, like, most, _MOST_FOR_UNLIKE if like is not prior else np.inf)
    # All that is left of a silent kind is the call, which no rate is below.
    found |= priors | {OTHER: other} | dict.fromkeys(silent, (0.0,) * len(PHYSICAL))
    return Rates(kinds=tuple(found), rates=tuple(found.values()))


def _at_its_level(
    prior: tuple[float, ...] | None, physical: Floats, label_ns: Floats, weights: Floats
) -> tuple[float, ...] | None:
    """Return the rates of a class in proportion, at the level of a kind that is quite unlike it.

    What no kernel of the kind has, say weights, is left as the class has it: nothing tells that it is dearer, too.
    """
    if prior is None:
        return None
    by_class_ns = np.maximum(physical @ np.array(prior), FLOOR_NS)
    level = float(np.exp(np.average(np.log(label_ns / by_class_ns), weights=weights)))
    if max(level, 1.0 / level) <= _UNLIKE:
        return prior
    return tuple(np.where(np.any(physical > 0.0, axis=0), level, 1.0) * np.array(prior))


def _most_ns_per_mac(name: str, priors: Mapping[str, tuple[float, ...]]) -> float | None:
    """Return what each rate of a class's multiply-adds may be at most, by the rates of convolutions; None for any."""
    if name != _PRODUCTS or _CONVOLUTIONS not in priors:
        return None
    per_mac = sum(priors[_CONVOLUTIONS][PHYSICAL.index(quantity)] for quantity in _MULTIPLY_ADDS)
    return _PRODUCT_OVER_CONVOLUTION * per_mac / len(_MULTIPLY_ADDS)


def _non_negative(
    physical: Floats,
    label_ns: Floats,
    weights: Floats,
    prior: tuple[float, ...] | None = None,
    most_ns_per_mac: float | None = None,
    counting: float = np.inf,
) -> tuple[float, ...]:
    """Fit non-negative rates on relative error; columns are brought to the same norm.

    A ridge shares between alikes; with a `prior`, rates of the class, it draws each rate to that by their ratio: a kind
    that was seen small alone is priced large as its class is; it counts for `counting` kernels at most.
    What lies beyond a cache is bounded by the slowest that memory can be, and stays as the class has it (or nothing)
    where hardly any kernel tells it: few kernels are so large, and one of them with a disturbed label would price all
    larger ones.
    """
    from scipy.optimize import lsq_linear  # type: ignore[import-untyped]

    root = np.sqrt(weights / weights.mean())[:, None]
    scaled = physical / label_ns[:, None] * root
    norms = np.linalg.norm(scaled, axis=0)
    norms[norms == 0.0] = 1.0
    # In these units a column that explains all of the labels has the root of their number.
    whole = np.sqrt(len(scaled))
    if prior is None:
        start, pull = np.zeros(len(PHYSICAL)), np.full(len(PHYSICAL), np.sqrt(_RIDGE) * whole)
    else:
        start = np.array(prior) * norms
        pull = _LABEL_NOISE / (start / whole + _LEAST_PART) * np.sqrt(min(1.0, counting / len(scaled)))
    beyond = np.array(["_over_" in name for name in PHYSICAL])
    pull[beyond & (np.count_nonzero(physical, axis=0) < _FEW_BEYOND)] = _HELD * whole
    left = np.concatenate([scaled / norms * whole, np.diag(pull)])
    right = np.concatenate([root[:, 0] * whole, pull * start])
    most = np.full(len(PHYSICAL), np.inf)
    most[beyond] = _MAX_NS_PER_BYTE
    most[PHYSICAL.index("bytes_weights")] = _MAX_NS_PER_WEIGHT_BYTE
    if most_ns_per_mac:
        most[[PHYSICAL.index(name) for name in _MULTIPLY_ADDS]] = most_ns_per_mac
        most[[PHYSICAL.index(name) for name in _MOVED]] = _STREAMED_NS_PER_BYTE
        most[PHYSICAL.index("calls")] = FLOOR_NS
    solution = lsq_linear(left, right, bounds=(0.0, most * norms), method="bvls").x
    return tuple((np.maximum(solution, 0.0) / norms).tolist())
