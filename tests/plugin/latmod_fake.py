"""A runtime as a third party would write it, except that it computes its latency instead of running anything.

Latency = 2 us + 20 us per node + MACs / 10 G/s + bytes / 10 GB/s, times seeded noise of 1 %. It has a clock of its own,
so that a sweep over it takes no time and gives the same numbers everywhere.
"""

import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from latmod.cost import Cost, cost
from latmod.dataset import KernelTime
from latmod.errors import UnsupportedModelError
from latmod.features import graph_features
from latmod.graph import read_graph
from latmod.runtimes import Inputs, Model, Settings

NOISE = 0.01


def latency_ns(features: dict[str, float]) -> float:
    """Return the noise-free latency of a model."""
    return 2e3 + 2e4 * features["nodes"] + features["macs"] / 10 + features["activation_bytes"] / 10


def kernel_ns(spent: Cost) -> int:
    """Return what one node takes of that."""
    return 20_000 + (spent.macs + spent.bytes_activations) // 10


class Fake:
    name = "fake"
    extra = "fake"
    rules = "torch"
    source = "the graph"
    tolerance = 1e-3
    profiles = True

    def __init__(self) -> None:
        self._now_ns = 0

    def version(self) -> str:
        return "1.0"

    def simulated_clock(self) -> int:
        return self._now_ns

    def advance(self, ns: int) -> None:
        self._now_ns += ns

    def open(self, model: Model, inputs: Sequence[Inputs], settings: Settings) -> "FakeSession":
        misbehave(model)
        graph = read_graph(Path(model.path))
        session = FakeSession(self, latency_ns(graph_features(graph)), random.Random(Path(model.path).stem), inputs)
        session.kernel_times = tuple(
            KernelTime(op="", inputs=(), outputs=(), value=node.outputs[0], count=1, ns=kernel_ns(spent))
            for node in graph.nodes
            for spent in [cost(node, graph)]
            if spent.flops
        )
        return session


class FakeSession:
    def __init__(self, runtime: Fake, latency: float, rng: random.Random, inputs: Sequence[Inputs]) -> None:
        self.settings: dict[str, str | int | bool] = {"threads": 1}
        self._runtime = runtime
        self._latency_ns = latency
        self._rng = rng
        self._inputs = inputs
        self._fed = inputs[0]
        self.kernel_times: tuple[KernelTime, ...] = ()

    def feed(self, index: int) -> None:
        self._fed = self._inputs[index % len(self._inputs)]

    def infer(self) -> None:
        self._runtime.advance(round(self._latency_ns * (1 + NOISE * abs(self._rng.gauss(0, 1)))))

    def outputs(self) -> list[np.ndarray]:
        return [np.array([value.sum() for value in self._fed.values()], dtype=np.float32)]

    def kernels(self, seconds: float) -> tuple[KernelTime, ...]:
        return self.kernel_times

    def close(self) -> None:
        return


def misbehave(model: Model) -> None:
    """Do what the variable LATMOD_FAKE asks for (`die:TEXT`, ...) when TEXT is part of the model's path: engines do."""
    what, _, text = os.environ.get("LATMOD_FAKE", "").partition(":")
    if not text or text not in model.path:
        return
    match what:
        case "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "hang":
            time.sleep(3600)
        case "memory":
            hog = [bytearray(64 << 20) for _ in range(10_000)]
            raise AssertionError(len(hog))
        case "unsupported":
            raise UnsupportedModelError(f"fake cannot run {model.path}: no operator Conv")
        case "slow":
            time.sleep(0.2)
