"""Predict an `.onnx` file: ask the predictors that fit it best, those that ship by default."""

from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import TypeVar

from latmod.errors import MachineError, PredictorError
from latmod.graph import Graph, read_graph
from latmod.machine import Machine, read_machine, vector_unit
from latmod.predictor import KernelPredictor, Prediction, Predictor, Query, load_predictor
from latmod.residual import NotResidual, residual_shape
from latmod.timing import Reference

P = TypeVar("P", bound=Predictor)


@cache
def reference_predictors() -> tuple[Predictor, ...]:
    """Return the predictors that ship with the package, by file name; none is an empty tuple. Loaded once."""
    folder = resources.files("latmod") / "predictors"
    if not folder.is_dir():
        return ()
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".onnx")), key=lambda entry: entry.name)
    found = []
    for entry in files:
        with resources.as_file(entry) as path:
            found.append(load_predictor(path))
    return tuple(found)


@cache
def _nearest_here(threads: int) -> tuple[Predictor, ...]:
    """Read what machine this is once, not for every model."""
    return nearest(of_threads(reference_predictors(), threads), read_machine())


def of_threads(predictors: Sequence[Predictor], threads: int) -> tuple[Predictor, ...]:
    """Keep the predictors for a number of threads; raise PredictorError where all are for others."""
    kept = tuple(one for one in predictors if one.card.threads == threads)
    if predictors and not kept:
        have = ", ".join(map(str, sorted({one.card.threads for one in predictors})))
        raise PredictorError(f"no predictor for {threads} threads; there are some for {have}")
    return kept


def nearest(predictors: Sequence[Predictor], here: Machine) -> tuple[Predictor, ...]:
    """Keep for each runtime and number of threads the predictors of the machine that is most like this one."""
    kept: list[Predictor] = []
    for own in _groups(predictors, _setting):
        best = min(_likeness(one, here) for one in own)
        kept += [one for one in own if _likeness(one, here) == best]
    return tuple(kept)


def of_one_machine(predictors: Sequence[Predictor], here: Machine) -> tuple[Predictor, ...]:
    """Keep the predictors of one machine, so that runtimes can be compared.

    That is `here` where it has more than half of all runtimes; else the machine with the most of them, among several
    such the one most like `here`.
    """
    known = len({one.card.runtime for one in predictors})

    def rank(own: Sequence[Predictor]) -> tuple[bool, int, tuple[bool, bool, bool, bool, str]]:
        count = len({one.card.runtime for one in own})
        return own[0].card.machine_id != here.id or 2 * count <= known, -count, _likeness(own[0], here)

    best: Sequence[Predictor] = min(_groups(predictors, _machine_id), key=rank, default=())
    return tuple(best)


def sharpest(predictors: Sequence[KernelPredictor]) -> tuple[KernelPredictor, ...]:
    """Keep for each runtime and number of threads the predictor that erred least on families it had not seen.

    Whatever machine it is for: the answer is the same on every machine.
    """
    return tuple(
        min(own, key=lambda one: (one.card.scores["mape"] or 0.0, one.card.machine_id, one.name))
        for own in _groups(predictors, _setting)
    )


def on_machine(predictors: Sequence[Predictor], machine: str) -> tuple[Predictor, ...]:
    """Keep the predictors of machines whose id is `machine`, or whose description holds it; `all` keeps all.

    Raises MachineError where there is none, or, with another word than `all`, where there are several machines.
    """
    if machine == "all":
        return tuple(predictors)
    kept = [one for one in predictors if one.card.machine_id == machine or machine in one.card.machine]
    found = sorted({f"{one.card.machine_id} is {one.card.machine}" for one in kept or predictors})
    if len({one.card.machine_id for one in kept}) != 1:
        what = "fits several machines" if kept else "fits none of the machines"
        raise MachineError(f"--machine {machine}: {what} that predictors are for: {'; '.join(found)}")
    return tuple(kept)


def _likeness(predictor: Predictor, here: Machine) -> tuple[bool, bool, bool, bool, str]:
    """Rank a predictor's machine by how much it is like another, the smaller the more alike."""
    card = predictor.card
    return (
        card.machine_id != here.id,
        card.machine != here.label,
        vector_unit(card.isa) != vector_unit(here.isa),
        _generation(card.machine) != _generation(here.label),
        card.machine_id,
    )


def _generation(label: str) -> str:
    """Return a processor's name and family, without its model: family 25 of AMD EPYC is Zen 3 and Zen 4."""
    name, _, numbers = label.partition("/model/stepping ")
    return f"{name} {numbers.partition('/')[0]}"


def _machine_id(predictor: Predictor) -> tuple[str]:
    return (predictor.card.machine_id,)


def _setting(predictor: Predictor) -> tuple[str, int]:
    return predictor.card.runtime, predictor.card.threads


def _groups(predictors: Sequence[P], key: Callable[[P], tuple[str | int, ...]]) -> list[list[P]]:
    """Return the predictors that have a key in common, in the order of the keys."""
    return [list(own) for _, own in groupby(sorted(predictors, key=key), key=key)]


def choose(predictors: Sequence[Predictor], query: Query) -> Predictor:
    """Return which of several predictors for the same machine, runtime and setting should answer for a model.

    The order is that of `Standing`, so it never depends on the order of the predictors. Raises `PredictorError` for
    none at all.
    """
    if not predictors:
        raise PredictorError("no predictor for this runtime and setting; make one with `latmod fit`")
    adding = [one for one in predictors if isinstance(one, KernelPredictor)]
    # Features alone are never fitter for what is no residual network, and cost as much as all the rest.
    able = adding if adding and query.reasons else predictors
    return min(able, key=lambda predictor: predictor.standing(query)) if len(able) > 1 else able[0]


def choose_each(predictors: Sequence[Predictor], query: Query) -> tuple[Predictor, ...]:
    """Return one predictor per runtime, number of threads and machine, chosen by `choose`, in the order of those."""
    groups = _groups(predictors, lambda one: (*_setting(one), *_machine_id(one)))
    return tuple(choose(own, query) for own in groups)


def that_can_run(predictors: Sequence[P], query: Query, notify: Callable[[str], None] | None = None) -> tuple[P, ...]:
    """Keep the predictors whose runtime is not known to refuse the model; `notify` is told of each other runtime.

    Raises PredictorError where none is left.
    """
    refusals = [one.refusal(query) for one in predictors]
    lines = {
        one.card.runtime: f"{one.card.runtime} cannot run {query.model}: {refusal}"
        for one, refusal in zip(predictors, refusals, strict=True)
        if refusal
    }
    if predictors and all(refusals):
        raise PredictorError("; ".join(lines.values()))
    if notify is not None:
        for line in lines.values():
            notify(line)
    return tuple(one for one, refusal in zip(predictors, refusals, strict=True) if not refusal)


def ask(graph: Graph, model: str = "") -> Query:
    """Return what a graph asks: what predictors want to know of it, and why it is doubtful."""
    residual = residual_shape(graph)
    return Query(
        graph=graph,
        model=model or graph.name,
        reasons=(residual.reason,) if isinstance(residual, NotResidual) else (),
    )


def predict(
    path: Path | str,
    *,
    predictors: Sequence[Predictor] | None = None,
    shapes: dict[str, tuple[int, ...]] | None = None,
    threads: int = 1,
    state: Reference | None = None,
    notify: Callable[[str], None] | None = None,
) -> list[Prediction]:
    """Predict an `.onnx` file, with or without weights: one answer per runtime, setting and machine of the predictors.

    Without `predictors` those that ship for `threads` are asked, of the machine most like this one; `shapes` sets
    inputs of dynamic shape; `state` as in `Predictor.predict_all`. A runtime that cannot run the model gives no answer,
    and `notify` a line. Raises `GraphError` for a file that cannot be read, `PredictorError` without any predictor.
    """
    known = _nearest_here(threads) if predictors is None else predictors
    if not known:
        raise PredictorError("no predictor at hand; make one with `latmod fit`")
    query = ask(read_graph(Path(path), shapes), Path(path).name)
    return [one.predict_all([query], state=state)[0] for one in choose_each(that_can_run(known, query, notify), query)]
