"""Hold predictions against a data set that was measured: network by network."""

from collections.abc import Sequence

import msgspec

from latmod.dataset import DatasetFolder
from latmod.errors import MachineError, PredictorError
from latmod.predictor import Predictor, Query, choose_each
from latmod.table import observations, split_half


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what was predicted and what was measured of one model in one runtime; `error` is a fraction of the truth."""

    model: str
    runtime: str
    predicted_ms: float
    low_ms: float
    high_ms: float
    measured_ms: float
    error: float
    in_domain: bool
    noise: float


def evaluate(folder: DatasetFolder, predictors: Sequence[Predictor]) -> list[Verdict]:
    """Predict every model of a data set, in the runtimes that predictors are at hand for.

    The truth is stated for the nominal state that the predictors are stated for. Raises MachineError where none of the
    predictors is for the machine of the data set, PredictorError where none is for its runtimes and threads.
    """
    card = folder.read_card()
    own = [one for one in predictors if one.card.machine_id == card.machine.id]
    if not own:
        raise MachineError(f"{folder.path}: measured on {card.machine.label}; no predictor at hand is for that machine")
    threads = card.protocol.threads
    usable = [one for one in own if one.card.runtime in card.runtimes and one.card.threads == threads]
    if not usable:
        raise PredictorError(f"{folder.path}: no predictor for {', '.join(card.runtimes)} with {threads} threads")
    found = []
    for one in observations(folder, nominal=usable[0].card.nominal):
        for predictor in choose_each([p for p in usable if p.card.runtime == one.runtime], one.features):
            answer = predictor.predict_all([Query(features=one.features, model=one.model)])[0]
            measured_ms = one.latency_ns() / 1e6
            found.append(
                Verdict(
                    model=one.model,
                    runtime=one.runtime,
                    predicted_ms=answer.latency_ms,
                    low_ms=answer.low_ms,
                    high_ms=answer.high_ms,
                    measured_ms=measured_ms,
                    error=answer.latency_ms / measured_ms - 1.0,
                    in_domain=answer.in_domain,
                    noise=split_half(one.round_ns["min"]),
                )
            )
    return found
