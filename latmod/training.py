"""Train the small networks of `latmod.smooth` on kernels and whole networks at once.

What is wanted is right sums: the error of a sum is felt by every kernel in it by its share, so kernels of an engine
that tells nothing of them can learn, and those of one that does are corrected where telling disturbed them. It is plain
numpy: the sum over a model's kernels stands between the networks and what is known, which ready-made regressors do not
offer.

4-fold cross-validation over the data sets of the Intel machine, against boosted trees averaged with networks trained on
kernels alone (for ncnn and tract: against rates alone), MAPE: onnxruntime 3.4 % for 3.6 %, torch 4.5 for 5.0, OpenVINO
7.9 for 8.6, MNN 8.8 for 11.2, ncnn 10.9 for 11.1, tract 11.2 for 13.3 (onnxruntime with 4 networks and 60 passes, torch
with 3 and 50, the others with 2 and 30).
"""

import msgspec
import numpy as np
from numpy.typing import NDArray

from latmod.columns import Features, Floats
from latmod.smooth import Layer, Smooth, centred

_NETWORKS = 3
_HIDDEN = 64
_PASSES = 40
"""Data of Zen 4, families left out, MAPE with 32, 40 and 50: onnxruntime 5.0, 4.9 and 4.7 %, torch 5.9, 5.8 and 5.8.
With other networks left out 2.4, 2.3, 2.3 and 3.2, 3.2, 3.2. The fits take 2.6, 2.8 and 3.5 minutes, 3.2, 3.4 and 4.7
(the last of either before each step was made faster).
"""
_BATCH = 8
"""Models of one step. With four, and a rate of 4e-3, errors are the same to 0.2 points (both runtimes of kernels)."""
_RATE = 3e-3
_DECAY = 1e-3
_SLOW, _FAST = 0.99, 0.9
"""Adam's memory of squares and of gradients (Kingma & Ba 2015, with a shorter one of squares: steps are few)."""
_LABELS = 1.0
"""What a kernel's squared error counts beside a model's."""
_PULL = 0.02
"""How strongly a kernel is drawn to its physics, by its share of the model."""
_FAR_SUM, _FAR_LABEL = 0.2, 0.5
"""Errors beyond count as if they were so large (Huber): a disturbed measurement does not lead."""

Weights = NDArray[np.float32]


class Lesson(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what to learn from: K kernels in a row, those of a model side by side, and N models.

    `x` are the columns that networks see, [K, D], the last of them one of `kinds` categories; `counts` how many alike
    each stands for; `physics_ns` what one of them takes without a residual; `target` its logarithm as told, nan where
    nothing was, `weights` how much it counts, of all alike; `starts` each model's first kernel, `latency_ns` what it
    takes, nan where nobody knows, `run_ns` of it once per run. `forms`, [F, K], are the forms that models are shown in:
    which of its kernels make up each, and have to sum to what it takes. What is in several is computed once.
    """

    x: Features
    kinds: int
    counts: Floats
    physics_ns: Floats
    target: Floats
    weights: Floats
    starts: NDArray[np.int64]
    forms: NDArray[np.bool_]
    latency_ns: Floats
    run_ns: float
    bound: float
    """Of the residual, either way."""


class _Room(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the large arrays of a step, for more rows than any has.

    Made anew in each they would cost a third of the training: the system clears what it gives.
    """

    x: Weights
    first: Weights
    early: Weights
    first_positive: NDArray[np.bool_]
    second: Weights
    middle: Weights
    second_positive: NDArray[np.bool_]

    @classmethod
    def of(cls, rows: int, columns: int) -> "_Room":
        """Return room for so many rows of so many columns."""
        wide, deep = (rows, _NETWORKS * _HIDDEN), (_NETWORKS, rows, _HIDDEN)
        return cls(
            x=np.empty((rows, columns), np.float32),
            first=np.empty(wide, np.float32),
            early=np.empty(wide, np.float32),
            first_positive=np.empty(wide, np.bool_),
            second=np.empty(deep, np.float32),
            middle=np.empty(deep, np.float32),
            second_positive=np.empty(deep, np.bool_),
        )

    def rows(self, count: int) -> "_Room":
        """Return the part of it for the first rows."""
        return _Room(
            x=self.x[:count],
            first=self.first[:count],
            early=self.early[:count],
            first_positive=self.first_positive[:count],
            second=self.second[:, :count],
            middle=self.middle[:, :count],
            second_positive=self.second_positive[:, :count],
        )


class _Parts(msgspec.Struct, frozen=True):
    """Hold the weights of all networks, or their slopes: views of one vector, `every`, which is descended at once.

    Those of the first layer, [columns, networks * hidden] and [kinds, networks * hidden], read the same rows, so they
    are one product; those of the others are [networks, in, out]. A kind's weights are its bias: there is no other.
    """

    every: Weights
    columns: Weights
    kinds: Weights
    second: Weights
    last: Weights
    second_bias: Weights
    last_bias: Weights

    @classmethod
    def of(cls, columns: int, kinds: int) -> "_Parts":
        """Return parts that are all 0."""
        shapes = (
            (columns, _NETWORKS * _HIDDEN),
            (kinds, _NETWORKS * _HIDDEN),
            (_NETWORKS, _HIDDEN, _HIDDEN),
            (_NETWORKS, _HIDDEN, 1),
            (_NETWORKS, 1, _HIDDEN),
            (_NETWORKS, 1, 1),
        )
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
        every = np.zeros(ends[-1], np.float32)
        parts = np.split(every, ends[:-1])
        return cls(every, *(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)))

    @property
    def weights(self) -> Weights:
        """Return the part of the vector that decays: all but the biases."""
        return self.every[: -(self.second_bias.size + self.last_bias.size)]

    def network(self, number: int) -> tuple[Layer, ...]:
        """Return the layers of one network."""
        own = slice(number * _HIDDEN, (number + 1) * _HIDDEN)
        first = np.concatenate([self.columns[:, own], self.kinds[:, own]])
        layers = (
            (first, np.zeros(_HIDDEN)),
            (self.second[number], self.second_bias[number, 0]),
            (self.last[number], self.last_bias[number, 0]),
        )
        return tuple((weights.astype(np.float16), bias.astype(np.float16)) for weights, bias in layers)


def train(lesson: Lesson, seed: int = 0) -> Smooth:
    """Return networks that learnt the lesson."""
    empty = centred(lesson.x, lesson.kinds)
    plain = np.ascontiguousarray(empty.scaled(lesson.x), np.float32)
    parts = _train(lesson, plain, np.random.default_rng(seed))
    return msgspec.structs.replace(empty, networks=tuple(map(parts.network, range(_NETWORKS))))


def _train(lesson: Lesson, plain: Weights, rng: np.random.Generator) -> _Parts:
    """Train on the columns that are no category.

    All networks see the same models in the same order, and differ by where they began.
    """
    parts, slopes = _start(plain.shape[1], lesson.kinds, rng), _Parts.of(plain.shape[1], lesson.kinds)
    descent = _Descent.of(len(parts.every))
    kinds = lesson.x[:, -1].astype(np.int64)
    count = len(lesson.latency_ns)
    ends = np.append(lesson.starts[1:], len(plain))
    lengths = ends - lesson.starts
    room = _Room.of(int(np.sort(lengths)[-_BATCH:].sum()), plain.shape[1])
    steps = _PASSES * -(-count // _BATCH)
    step = 0
    for _ in range(_PASSES):
        order = rng.permutation(count)
        for place in range(0, count, _BATCH):
            models = order[place : place + _BATCH]
            rows = np.concatenate([np.arange(lesson.starts[model], ends[model]) for model in models])
            owner = np.repeat(np.arange(len(models)), lengths[models])
            step += 1
            rate = _RATE * 0.5 * (1.0 + np.cos(np.pi * step / steps)) + 1e-5
            own = room.rows(len(rows))
            np.take(plain, rows, axis=0, out=own.x, mode="clip")
            _find_slopes(lesson, kinds[rows], parts, models, rows, owner, own, slopes)
            descent.descend(parts.every, slopes.every, step, rate)
            parts.weights[:] *= np.float32(1.0 - rate * _DECAY)
    return parts


class _Descent(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what Adam remembers of slopes, and room to work in."""

    mean: Weights
    square: Weights
    move: Weights
    size: Weights

    @classmethod
    def of(cls, count: int) -> "_Descent":
        """Return what remembers nothing, for so many weights."""
        mean, square, move, size = np.zeros((4, count), np.float32)
        return cls(mean=mean, square=square, move=move, size=size)

    def descend(self, weights: Weights, slopes: Weights, step: int, rate: float) -> None:
        """Move weights by their slopes, in place."""
        mean, square, move, size = self.mean, self.square, self.move, self.size
        np.subtract(slopes, mean, out=move)
        move *= np.float32(1.0 - _FAST)
        mean += move
        np.multiply(slopes, slopes, out=move)
        move -= square
        move *= np.float32(1.0 - _SLOW)
        square += move
        np.multiply(square, np.float32(1.0 / (1.0 - _SLOW**step)), out=size)
        np.sqrt(size, out=size)
        size += np.float32(1e-8)
        np.divide(mean, size, out=move)
        move *= np.float32(rate / (1.0 - _FAST**step))
        weights -= move


def _start(columns: int, kinds: int, rng: np.random.Generator) -> _Parts:
    """Return weights and biases of three layers (He normal); the last begins near nothing."""

    def drawn(before: int, after: int, share: float = 1.0) -> Weights:
        made: Weights = rng.standard_normal((_NETWORKS, before, after)).astype(np.float32)
        made *= np.float32(np.sqrt(2.0 / before) * share)
        return made

    first = drawn(columns + kinds, _HIDDEN).transpose(1, 0, 2).reshape(columns + kinds, -1)
    parts = _Parts.of(columns, kinds)
    parts.columns[:], parts.kinds[:] = first[:columns], first[columns:]
    parts.second[:], parts.last[:] = drawn(_HIDDEN, _HIDDEN), drawn(_HIDDEN, 1, share=0.1)
    return parts


def _find_slopes(
    lesson: Lesson,
    kinds: NDArray[np.int64],
    parts: _Parts,
    models: NDArray[np.int64],
    rows: NDArray[np.int64],
    owner: NDArray[np.int64],
    room: _Room,
    slopes: _Parts,
) -> None:
    """Write the gradient of the loss over some models by each part into `slopes`.

    `owner` says whose each of the `rows` is; the room is theirs, and its `x` holds their columns.
    """
    from scipy.sparse import csr_array  # type: ignore[import-untyped]

    count = len(rows)
    entered = np.matmul(room.x, parts.columns, out=room.first)
    entered += np.take(parts.kinds, kinds, axis=0, out=room.early, mode="clip")
    np.maximum(entered, 0.0, out=entered)
    first = _by_network(entered)
    second = np.matmul(first, parts.second, out=room.second)
    second += parts.second_bias
    np.maximum(second, 0.0, out=second)
    own = (second @ parts.last + parts.last_bias)[:, :, 0].astype(np.float64)
    last = _loss_slopes(lesson, own, models, rows, owner).astype(np.float32)[:, :, None]
    middle = np.multiply(last, parts.last.transpose(0, 2, 1), out=room.middle)
    middle *= np.greater(second, 0.0, out=room.second_positive)
    np.matmul(middle, parts.second.transpose(0, 2, 1), out=_by_network(room.early))
    early = room.early
    early *= np.greater(entered, 0.0, out=room.first_positive)
    ones = np.ones(count, np.float32)
    np.matmul(room.x.T, early, out=slopes.columns)
    slopes.kinds[:] = csr_array((ones, kinds, np.arange(count + 1)), shape=(count, lesson.kinds)).T @ early
    np.matmul(first.transpose(0, 2, 1), middle, out=slopes.second)
    np.matmul(second.transpose(0, 2, 1), last, out=slopes.last)
    # A product with ones adds rows up three times faster than a sum over them does.
    np.matmul(ones, middle, out=slopes.second_bias[:, 0])
    np.sum(last, axis=1, keepdims=True, out=slopes.last_bias)


def _loss_slopes(
    lesson: Lesson, own: Floats, models: NDArray[np.int64], rows: NDArray[np.int64], owner: NDArray[np.int64]
) -> Floats:
    """Return the gradient of the loss by each network's answer for each of the rows, [networks, rows]."""
    residual = np.clip(own, -lesson.bound, lesson.bound)
    counts = lesson.counts[rows]
    price = np.exp(residual) * (lesson.physics_ns[rows] * counts)
    slope = np.zeros_like(price)
    forms = lesson.forms[:, rows].astype(np.float64)
    begins = np.searchsorted(owner, np.arange(len(models)))
    for form in forms:
        own_ns = price * form
        total = np.add.reduceat(own_ns, begins, axis=1) + lesson.run_ns
        error = np.nan_to_num(np.clip(np.log(total / lesson.latency_ns[models]), -_FAR_SUM, _FAR_SUM))
        share = own_ns / (total * (len(forms) * len(models))).take(owner, axis=1)
        slope += (error.take(owner, axis=1) + _PULL * own) * share
    uses = forms.sum(axis=0)
    target = lesson.target[rows]
    weights = np.where(np.isfinite(target), uses * lesson.weights[rows], 0.0) * (_LABELS / (uses * counts).sum())
    slope += weights * np.clip(residual - np.nan_to_num(target), -_FAR_LABEL, _FAR_LABEL)
    return slope


def _by_network(x: Weights) -> Weights:
    """Return a view of [rows, networks * hidden] as [networks, rows, hidden]."""
    return x.reshape(len(x), _NETWORKS, _HIDDEN).transpose(1, 0, 2)
