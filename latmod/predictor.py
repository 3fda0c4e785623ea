"""Predict latency from features with a fitted predictor; needs numpy and onnxruntime, and runs no network."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from latmod.additive import SEEN, Additive, Rates
from latmod.artifact import AnyCard, GraphCard, KernelCard, read_artifact
from latmod.columns import Floats, feature_matrix
from latmod.coverage import Unseen, unseen
from latmod.domain import FAR, TOLERANCE, spread
from latmod.errors import PredictorError
from latmod.factors import Adapted
from latmod.features import graph_features
from latmod.graph import Graph
from latmod.inspection import unknown_share
from latmod.intervals import doubt_of
from latmod.kernels import Kernel, adjusted, channel_block, kernels, nearest_rules, refused
from latmod.kernels.columns import PHYSICAL, Columns, column_matrix
from latmod.load_time import load_ns
from latmod.scores import NORMAL_90, NORMAL_MEDIAN
from latmod.timing import Reference

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

MAX_UNKNOWN_SHARE = 0.05
"""Unknown operators above this share of the bytes moved make an answer out of domain: 5 % is what the regressors err
by."""


MAX_UNSEEN_SHARE = 0.1
"""Kernels outside what was measured above this share of the time make an answer out of domain."""


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """Hold one predicted latency, flat, for tables and JSON."""

    model: str
    runtime: str
    latency_ms: float
    low_ms: float
    high_ms: float
    in_domain: bool
    reasons: tuple[str, ...]
    unknown_share: float
    machine: str
    level: str
    threads: int = 1
    load_ms: float | None = None
    """What opening the model takes, where the predictor knows."""


class Query:
    """Ask for one model: its features or its graph, and why it is doubtful.

    `unknown_share` is the share of its cost that lies in unknown operators, 0 to 1; `reasons` are sentences why it is
    out of domain that the features do not show. What several predictors ask of a graph is computed once, on demand.
    """

    def __init__(
        self,
        *,
        features: Mapping[str, float] | None = None,
        graph: Graph | None = None,
        model: str = "",
        unknown_share: float | None = None,
        reasons: tuple[str, ...] = (),
    ) -> None:
        """Keep what is known; features and the unknown share are those of the graph where they are not given."""
        self.graph = graph
        self.model = model
        self.reasons = reasons
        self._features = features
        self._unknown_share = unknown_share
        self._kernels: dict[tuple[str, int, int], tuple[tuple[Kernel, ...], Columns]] = {}

    @cached_property
    def features(self) -> Mapping[str, float]:
        """Return the features of the graph level."""
        if self._features is not None or self.graph is None:
            return self._features or {}
        return graph_features(self.graph)

    @cached_property
    def unknown_share(self) -> float:
        """Return the share of the cost in operators without a formula."""
        if self._unknown_share is not None or self.graph is None:
            return self._unknown_share or 0.0
        return unknown_share(self.graph)

    def kernels(self, rules: str, isa: tuple[str, ...], threads: int) -> tuple[tuple[Kernel, ...], Columns]:
        """Return the kernels of the graph by a runtime's rules, with their columns.

        Raises PredictorError where there is no graph.
        """
        if self.graph is None:
            raise PredictorError("a sum over kernels predicts graphs, and was given features alone")
        key = (rules, channel_block(isa), threads)
        if key not in self._kernels:
            self._kernels[key] = self._near(rules, isa, threads)
        return self._kernels[key]

    def _near(self, rules: str, isa: tuple[str, ...], threads: int) -> tuple[tuple[Kernel, ...], Columns]:
        """Return what is asked for, made of what rules nearly alike give: a graph is rewritten once for these."""
        assert self.graph is not None
        nearest = nearest_rules(rules, self.graph)
        if nearest == rules:
            found = kernels(self.graph, rules, isa=isa, threads=threads)
            return found, column_matrix(found)
        near, columns = self.kernels(nearest, isa, threads)
        found = adjusted(self.graph, rules, near)
        return (near, columns) if found is near else (found, column_matrix(found))


class Standing(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """Rank how fit a predictor is for a model, the smaller the fitter.

    `tier` is 0 where the model lies inside what the predictor has seen, else 1 (a sum over kernels) or 2 (a map from
    features); then the narrower interval, or the smaller distance, decides, then the wider domain, then the name.
    """

    tier: int
    distance: float
    narrowness: float
    name: str


class Predictor(ABC):
    """Answer for one runtime on one machine under one setting, all told by `card`."""

    card: AnyCard

    def __init__(self, content: bytes, card: AnyCard, name: str) -> None:
        """Hold a checked artifact; the session is made when the first answer is wanted."""
        self.card = card
        self.name = name
        self.content = content

    def predict(
        self,
        features: Mapping[str, float],
        *,
        model: str = "",
        unknown_share: float = 0.0,
        reasons: tuple[str, ...] = (),
        state: Reference | None = None,
    ) -> Prediction:
        """Predict one model from its features; see `Query` and `predict_all`."""
        query = Query(features=features, model=model, unknown_share=unknown_share, reasons=reasons)
        return self.predict_all([query], state=state)[0]

    @abstractmethod
    def predict_all(self, queries: Sequence[Query], *, state: Reference | None = None) -> list[Prediction]:
        """Predict many models in one call.

        `state`, a reference load, states the answers for that state of the machine instead of its nominal one. Raises
        `PredictorError` when the map gives no positive number, or when there is no nominal state to compare with.
        """

    @abstractmethod
    def standing(self, query: Query) -> Standing:
        """Return how fit this predictor is for a model."""

    def refusal(self, query: Query) -> str:
        """Return why the runtime cannot run the model, as far as that is known of it; nothing where it is not."""
        return ""

    def _drift(self, state: Reference | None) -> float:
        """Return by how much this runtime is slower in a state than in the nominal one."""
        if state is None:
            return 1.0
        correction = self.card.correction
        if correction is None:
            raise PredictorError(f"{self.name}: its card has no nominal state of the machine; predict without --here")
        return 1.0 / correction.factor(state)

    def _prediction(
        self,
        query: Query,
        latency_ms: float,
        factor: float,
        *,
        reasons: tuple[str, ...],
        unknown_share: float,
        load_ms: float | None = None,
    ) -> Prediction:
        return Prediction(
            model=query.model,
            runtime=self.card.runtime,
            latency_ms=latency_ms,
            low_ms=latency_ms / factor,
            high_ms=latency_ms * factor,
            in_domain=not reasons,
            reasons=reasons,
            unknown_share=unknown_share,
            machine=self.card.machine,
            level="kernel" if isinstance(self.card, KernelCard) else "graph",
            threads=self.card.threads,
            load_ms=load_ms,
        )

    @cached_property
    def _session(self) -> "InferenceSession":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            return onnxruntime.InferenceSession(self.content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own errors share no base class but this one
            raise PredictorError(f"{self.name}: onnxruntime cannot load it ({str(error).splitlines()[0]})") from error


class GraphPredictor(Predictor):
    """Predict from the features of a graph, by one map."""

    card: GraphCard

    def predict_all(self, queries: Sequence[Query], *, state: Reference | None = None) -> list[Prediction]:
        """Predict many models in one call."""
        if not queries:
            return []
        latencies = self.latency_ms([query.features for query in queries]) * self._drift(state)
        return [self._answer(query, float(latency)) for query, latency in zip(queries, latencies, strict=True)]

    def latency_ms(self, rows: Sequence[Mapping[str, float]]) -> Floats:
        """Return the bare latencies in ms, [N]."""
        matrix = feature_matrix(rows, self.card.features)
        latency = np.asarray(self._session.run(["latency_ms"], {"features": matrix})[0], dtype=np.float64)[:, 0]
        if not np.all(np.isfinite(latency) & (latency > 0.0)):
            raise PredictorError(f"{self.name}: gives no positive latency for these features; refit it")
        return latency

    def distance(self, features: Mapping[str, float]) -> float:
        """Return how far a model lies outside the domain (log2; 0 inside)."""
        return self.card.domain.distance(features)

    def standing(self, query: Query) -> Standing:
        """Inside its domain the narrowest calibrated interval counts; outside, distance, then the domain's size."""
        distance = self.distance(query.features)
        if distance <= TOLERANCE:
            return Standing(tier=0, distance=0.0, narrowness=self._width(0.0), name=self.name)
        return Standing(tier=2, distance=distance, narrowness=-self.card.domain.volume(), name=self.name)

    def _width(self, distance: float) -> float:
        """Return the quantile of |log(measured / predicted)|, of measurements in another sweep than what was fitted to.

        The quantiles are of models of the same sweep. Sweeps two hours and more apart differed by 0.7 to 3.5 times what
        halves of one did, the median 1.05 times (`latmod repeat` of four data sets with those under datasets/checks).
        """
        scatter = (self.card.noise_floor or 0.0) / NORMAL_MEDIAN
        return float(np.hypot(np.log(spread(self.card.quantiles, distance)), NORMAL_90 * scatter))

    def _answer(self, query: Query, latency_ms: float) -> Prediction:
        reasons = self.card.domain.reasons(query.features) + query.reasons
        if query.unknown_share > MAX_UNKNOWN_SHARE:
            reasons += (f"unknown operators make up {query.unknown_share:.0%} of its cost",)
        doubtful = bool(query.reasons) or query.unknown_share > MAX_UNKNOWN_SHARE
        factor = float(np.exp(self._width(max(self.distance(query.features), FAR if doubtful else 0.0))))
        return self._prediction(query, latency_ms, factor, reasons=reasons, unknown_share=query.unknown_share)


class Breakdown(msgspec.Struct, frozen=True, kw_only=True):
    """Hold where a network's time goes: its kernels, what each takes in ns, and those outside what was measured.

    `doubt` is by how much networks differ about a kernel (latmod.intervals).
    """

    kernels: tuple[Kernel, ...]
    kernel_ns: tuple[float, ...]
    run_ns: float
    unseen: tuple[Unseen, ...]
    doubt: float = 0.0

    @property
    def latency_ns(self) -> float:
        """Return the whole."""
        return sum(self.kernel_ns) + self.run_ns

    @property
    def unseen_share(self) -> float:
        """Return the share of the time in kernels outside what was measured."""
        return sum(one.share for one in self.unseen)

    @property
    def never_share(self) -> float:
        """Return the share of the time in kernels of kinds of which nothing was measured."""
        return sum(one.share for one in self.unseen if one.never)


class KernelPredictor(Predictor):
    """Predict any graph as the sum over the kernels that the runtime makes of it."""

    card: KernelCard

    def predict_all(self, queries: Sequence[Query], *, state: Reference | None = None) -> list[Prediction]:
        """Predict many models, one by one. Raises PredictorError for a query without its graph."""
        drift = self._drift(state)
        return [self._answer(query, self.breakdown(query), drift) for query in queries]

    def breakdown(self, query: Query) -> Breakdown:
        """Return where the time of a network goes; the last one asked for is remembered."""
        if self._last is None or self._last[0] is not query:
            found, columns = query.kernels(self.card.rules, self.card.isa, self.card.threads)
            took, doubts = self.prices.doubted_ns(found, columns)
            told = Breakdown(
                kernels=found,
                kernel_ns=tuple(took.tolist()),
                run_ns=self.prices.run_ns,
                unseen=tuple(unseen(found, took, self.card.ranges)),
                doubt=doubt_of(took, doubts),
            )
            self._last = (query, told)
        return self._last[1]

    _last: tuple[Query, Breakdown] | None = None

    def refusal(self, query: Query) -> str:
        """Return why the runtime cannot run the model, by its rules."""
        return "" if query.graph is None else refused(query.graph, self.card.rules)

    def standing(self, query: Query) -> Standing:
        """A model inside counts by its interval, as with features; one outside still comes before features alone."""
        told = self.breakdown(query)
        return Standing(
            tier=int(told.unseen_share > MAX_UNSEEN_SHARE), distance=0.0, narrowness=self._width(told), name=self.name
        )

    def _width(self, told: Breakdown) -> float:
        """Return the quantile of |log(measured / predicted)| for a network."""
        return self.card.widths.of(told.latency_ns, told.unseen_share, told.never_share, told.doubt)

    def _answer(self, query: Query, told: Breakdown, drift: float) -> Prediction:
        reasons: tuple[str, ...] = ()
        if told.unseen_share > MAX_UNSEEN_SHARE:
            worst = "; ".join(f"{one.label}: {one.reason}" for one in told.unseen[:3])
            reasons = (f"{told.unseen_share:.0%} of its time lies in kernels that were never measured ({worst})",)
        factor = float(np.exp(self._width(told)))
        latency_ms = told.latency_ns * drift / 1e6
        return self._prediction(
            query,
            latency_ms,
            factor,
            reasons=reasons,
            unknown_share=told.never_share,
            load_ms=load_ns(told.kernels, self.card.load_prices) / 1e6 if any(self.card.load_prices) else None,
        )

    @cached_property
    def prices(self) -> Additive | Adapted:
        """Return what kernels take.

        Raises PredictorError where they are seen by columns that this latmod does not know.
        """
        card = self.card
        strange = sorted({*card.physical} - {*PHYSICAL} | {*card.seen} - {*SEEN})
        if strange:
            raise PredictorError(f"{self.name}: sees kernels by {strange[0]!r}, unknown to this latmod; make it again")
        rates = [dict(zip(card.physical, row, strict=True)) for row in card.rates]
        positions = [SEEN.index(name) for name in card.seen]
        fitted = Additive(
            rates=Rates(kinds=card.kinds, rates=tuple(tuple(row.get(name, 0.0) for name in PHYSICAL) for row in rates)),
            residual=_Residual(self._session, positions),
            scales=card.scales,
            call_ns=card.call_ns,
            run_ns=card.run_ns,
        )
        return Adapted(prices=fitted, factors=card.factors) if card.factors else fitted


class _Residual:
    """Let an artifact's graph look like a regressor over the columns that this latmod knows."""

    def __init__(self, session: "InferenceSession", positions: Sequence[int]) -> None:
        self._session = session
        self._positions = positions

    def predict(self, x: Columns) -> tuple[Floats, Floats]:
        own = np.ascontiguousarray(x[:, self._positions])
        residual, *doubt = (
            np.asarray(one, dtype=np.float64)[:, 0] for one in self._session.run(None, {"features": own})
        )
        # Predictors made before networks were asked how far they differ have intervals that do not hang on it.
        return residual, doubt[0] if doubt else np.zeros(len(residual))


def load_predictor(path: Path) -> Predictor:
    """Load a predictor file; raise `PredictorError` when it is none, of another schema, changed, or over 50 MB."""
    content, card = read_artifact(path)
    kind = KernelPredictor if isinstance(card, KernelCard) else GraphPredictor
    return kind(content, card, str(path))
