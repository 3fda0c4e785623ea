"""Small neural networks over squashed columns: what the residual of kernels is made of.

They say smoothly how a price moves between the sizes that were measured, and outside them stay what they were.
"""

import msgspec
import numpy as np
from numpy.typing import NDArray

from latmod.columns import Features, Floats, Writer

_FAR = 4.0
"""Columns farther from their mean than so many deviations count as that far: outside, the answer stays what it was."""

Half = NDArray[np.float16]
Layer = tuple[Half, Half]


class Smooth(msgspec.Struct, frozen=True, kw_only=True):
    """Average networks of ReLU layers (weights [in, out] and biases); the last column is one of `kinds` categories.

    Their weights are kept with the 11 bits of float16, which makes predictors half as large; sums are in float64.
    """

    kinds: int
    mean: Floats
    scale: Floats
    networks: tuple[tuple[Layer, ...], ...]

    def predict(self, x: Features) -> tuple[Floats, Floats]:
        """Return the answers, [N], to columns [N, D], and the standard deviation between networks, [N]."""
        answers = self._answers(x)
        mean = answers.mean(axis=0)
        return mean, np.sqrt(((answers - mean) ** 2).sum(axis=0) / max(1, len(answers) - 1))

    def _answers(self, x: Features) -> Floats:
        """Return what each network answers, [networks, N]."""
        inputs = self.inputs(x)
        answers = []
        for layers in self.networks:
            value = inputs
            for weights, bias in layers[:-1]:
                value = np.maximum(value @ weights + bias, 0.0)
            answers.append((value @ layers[-1][0] + layers[-1][1])[:, 0])
        return np.array(answers)

    def inputs(self, x: Features) -> Floats:
        """Return what the first layer sees, [N, D - 1 + kinds], of columns [N, D]."""
        kind = x[:, -1:].astype(np.float64)
        return np.concatenate([self.scaled(x), (kind == np.arange(self.kinds)).astype(np.float64)], axis=1)

    def scaled(self, x: Features) -> Floats:
        """Return the part of this that is no category, [N, D - 1]."""
        return np.asarray(np.clip((squashed(x[:, :-1]) - self.mean) / self.scale, -_FAR, _FAR))

    def write(self, out: Writer, x: str) -> tuple[str, str]:
        """Add nodes that compute what `predict` gives for `x`, float64 [N, D]; return two float64 [N, 1]."""
        count = len(self.mean)
        plain, kind = out.gather(x, range(count)), out.gather(x, [count])
        size = out.add("Log", out.add("Add", out.add("Abs", plain), out.constant(1.0)))
        shifted = out.add("Sub", out.add("Mul", out.add("Sign", plain), size), out.constant(self.mean))
        scaled = out.add("Div", shifted, out.constant(self.scale))
        bounded = out.add("Clip", scaled, out.constant(-_FAR), out.constant(_FAR))
        category = out.add("Equal", kind, out.constant(np.arange(self.kinds, dtype=np.float64)))
        inputs = out.add("Concat", bounded, out.cast(category, "float64"), axis=1)
        answers = []
        for layers in self.networks:
            value = inputs
            for weights, bias in layers[:-1]:
                value = out.add("Relu", out.add("Gemm", value, _wide(out, weights), _wide(out, bias)))
            answers.append(out.add("Gemm", value, *(_wide(out, part) for part in layers[-1])))
        mean = out.add("Mul", out.add("Sum", *answers), out.constant(1.0 / len(answers)))
        apart = [out.add("Sub", answer, mean) for answer in answers]
        squares = out.add("Sum", *(out.add("Mul", one, one) for one in apart))
        return mean, out.add("Sqrt", out.add("Mul", squares, out.constant(1.0 / max(1, len(answers) - 1))))


def centred(x: Features, kinds: int) -> Smooth:
    """Return what has no networks yet, for columns [N, D] like these, of which the last is one of `kinds`.

    A column that is the same everywhere is not seen: of what it says where it differs, nothing was learnt.
    """
    plain = squashed(x[:, :-1])
    scale = plain.std(axis=0)
    scale[scale < 1e-9] = np.inf
    return Smooth(kinds=kinds, mean=plain.mean(axis=0), scale=scale, networks=())


def _wide(out: Writer, values: Half) -> str:
    """Add weights, kept as float16 and used as float64."""
    return out.cast(out.constant(values), "float64")


def squashed(x: Features) -> Floats:
    """Return sign(x) log(1 + |x|): counts over nine orders of magnitude as numbers of the same size."""
    wide = x.astype(np.float64)
    return np.asarray(np.sign(wide) * np.log(np.abs(wide) + 1.0))
