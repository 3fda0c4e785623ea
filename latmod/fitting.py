"""Fit predictors to observations: compare regressors by the study's procedure, choose one, write the artifact."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from latmod.dataset import Card, DatasetFolder, Observation, statistic_key
from latmod.drift import Correction
from latmod.errors import DatasetError, MachineError, PredictorError
from latmod.families import FAMILIES
from latmod.findings import (
    Artifact,
    FitReport,
    Group,
    Origin,
    TransferRow,
    Winner,
    chosen_row,
    fit_row,
    make_artifact,
)
from latmod.log import replace_file
from latmod.regressors import Candidate, candidates
from latmod.scores import noise_floor
from latmod.study import Calibration, CrossSeed, Table, calibrate, cross_seed, make_table, run_all, score_transfer
from latmod.table import corrections, observations
from latmod.timing import Statistic

MIN_MODELS = 8
"""Below this, five folds and a quarter for testing leave nothing to fit."""


def fit(
    folders: Sequence[DatasetFolder],
    *,
    runtimes: Sequence[str] = (),
    statistic: Statistic = Statistic.MEDIAN_OF_MINIMA,
    seed: int = 0,
    split_seeds: int = 10,
    regressors: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[FitReport], list[TransferRow]]:
    """Fit every data set, and test what was chosen on each on every other one of the same machine.

    All latencies are stated for the nominal state in the first card. Measurements whose outputs differ between runtimes
    are left out. Raises as `fit_observations` does.
    """
    cards = [folder.read_card() for folder in folders]
    found = []
    for folder, card in zip(folders, cards, strict=True):
        nominal = cards[0].nominal if card.machine.id == cards[0].machine.id else card.nominal
        known = corrections(folder, nominal)
        kept = [
            one
            for one in observations(folder, known)
            if one.parity == "ok" and (not runtimes or one.runtime in runtimes)
        ]
        found.append((_origin(card, known), kept))
    reports = [
        fit_observations(
            kept,
            origin,
            statistic=statistic,
            seed=seed,
            split_seeds=split_seeds,
            regressors=regressors,
            progress=progress,
        )
        for origin, kept in found
    ]
    transfers = [row for report in reports for row in report.transfers]
    for report, (_, trained), card in zip(reports, found, cards, strict=True):
        for (origin, tested), other in zip(found, cards, strict=True):
            same = (card.machine.id, card.runtimes) == (other.machine.id, other.runtimes)
            if same and origin.dataset != report.dataset:
                transfers += fit_transfer(report, trained, tested, test_dataset=origin.dataset, seed=seed)
    return reports, transfers


def by_level(
    folders: Sequence[DatasetFolder], level: str, *, named: bool
) -> tuple[list[DatasetFolder], list[DatasetFolder]]:
    """Return the data sets to fit features of graphs to, and those to fit sums over kernels to.

    With `auto` a data set with per-kernel times, or of several families, goes to the kernels, and published networks,
    unless they are `named`, to neither: they are there to test on.
    """
    if level != "auto":
        return (list(folders), []) if level == "graph" else ([], list(folders))
    graph_sets: list[DatasetFolder] = []
    kernel_sets: list[DatasetFolder] = []
    for folder in folders:
        families = {model.family for model in folder.read_card().models}
        if any(FAMILIES[family].published for family in families) and not named:
            continue
        (kernel_sets if folder.has_kernels or len(families) > 1 else graph_sets).append(folder)
    return graph_sets, kernel_sets


def by_machine(folders: Sequence[DatasetFolder]) -> list[list[DatasetFolder]]:
    """Return the data sets that may be fitted together, of one machine and number of threads; fewer threads first."""
    groups: dict[tuple[str, int], list[DatasetFolder]] = {}
    for folder in folders:
        card = folder.read_card()
        groups.setdefault((card.machine.id, card.protocol.threads), []).append(folder)
    return [groups[key] for key in sorted(groups, key=lambda key: key[1])]


def _origin(card: Card, known: Mapping[str, Correction]) -> Origin:
    return Origin(
        dataset=card.name,
        space=msgspec.json.encode(card.spaces).decode(),
        machine=card.machine.label,
        isa=card.machine.isa,
        settings=card.settings,
        nominal=next(iter(known.values())).nominal,
        drift_weights={name: correction.weights for name, correction in known.items()},
        fault_ns={name: correction.fault_ns for name, correction in known.items()},
    )


def fit_observations(
    observed: Sequence[Observation],
    origin: Origin,
    *,
    statistic: Statistic = Statistic.MEDIAN_OF_MINIMA,
    seed: int = 0,
    split_seeds: int = 10,
    regressor_seeds: int = 5,
    regressors: Sequence[str] = (),
    jobs: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> FitReport:
    """Compare all regressors on one data set and make one artifact per runtime and number of threads.

    `regressors` keeps to these names (all where empty; the baselines always run); `jobs` is the number of processes
    (0: one per core); `progress` is called with how many of all regressors are done. The regressor that ships is the
    one with the smallest MAPE out of fold, baselines excepted.

    Raises `MachineError` when machines, or versions of one runtime, are mixed; `DatasetError` when a runtime has
    fewer than 8 models or one model twice.
    """
    jobs = jobs or os.cpu_count() or 1
    groups = _groups(observed, statistic)
    entrants = _entrants(regressors)
    tasks = [(g, candidate) for g in groups for candidate in entrants]
    evaluate = partial(_evaluate, seed=seed, split_seeds=split_seeds, regressor_seeds=regressor_seeds)
    results = run_all(evaluate, tasks, jobs, progress)
    chosen, artifacts = [], []
    for number, g in enumerate(groups):
        own = results[number * len(entrants) : (number + 1) * len(entrants)]
        found, calibration = min(
            (pair for pair in own if pair[0].candidate.role != "baseline"), key=lambda pair: pair[1].mape
        )
        chosen.append(chosen_row(origin.dataset, g, found, calibration))
        artifacts.append(make_artifact(origin, statistic, seed, g, found, calibration))
    winners = tuple(
        Winner(runtime=g.runtime, threads=g.threads, candidate=found.candidate, params=found.params)
        for (g, _), (found, _) in zip(tasks, results, strict=True)
    )
    halves = [
        (*_halves(g.table), w) for g in groups for w in winners if (w.runtime, w.threads) == (g.runtime, g.threads)
    ]
    return FitReport(
        dataset=origin.dataset,
        statistic=statistic,
        rows=tuple(fit_row(origin.dataset, g, found) for (g, _), (found, _) in zip(tasks, results, strict=True)),
        transfers=_transfers(halves, f"{origin.dataset}: smaller half", f"{origin.dataset}: larger half", seed, jobs),
        chosen=tuple(chosen),
        winners=winners,
        artifacts=tuple(artifacts),
    )


def fit_transfer(
    report: FitReport,
    trained_on: Sequence[Observation],
    tested_on: Sequence[Observation],
    *,
    test_dataset: str,
    seed: int = 0,
    jobs: int = 0,
) -> tuple[TransferRow, ...]:
    """Test what was chosen on one data set (`report` and its observations) on another one, for the runtimes both have.

    Raises `MachineError` when the two come from different machines or versions: that would not test the regressor.
    """
    _check_one_machine([*trained_on, *tested_on])
    train_groups, test_groups = (_groups(side, report.statistic) for side in (trained_on, tested_on))
    tasks = [
        (a.table, _same_columns(b.table, a.table), winner)
        for a in train_groups
        for b in test_groups
        for winner in report.winners
        if (a.runtime, a.threads) == (b.runtime, b.threads) == (winner.runtime, winner.threads)
    ]
    return _transfers(tasks, report.dataset, test_dataset, seed, jobs or os.cpu_count() or 1)


def write_artifact(artifact: Artifact, folder: Path) -> Path:
    """Write one predictor file into a folder and return its path; it is whole or not there at all."""
    path = folder / artifact.file_name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatasetError(f"{folder}: {error.strerror}; choose another folder with --out") from None
    replace_file(path, artifact.content)
    return path


def _entrants(regressors: Sequence[str]) -> tuple[Candidate, ...]:
    known = {candidate.regressor for candidate in candidates() if candidate.role != "baseline"}
    for name in regressors:
        if name not in known:
            raise PredictorError(f"no regressor {name}; there are {', '.join(sorted(known))}")
    return tuple(c for c in candidates() if not regressors or c.role == "baseline" or c.regressor in regressors)


def _groups(observed: Sequence[Observation], statistic: Statistic) -> list[Group]:
    if not observed:
        raise DatasetError("no observations to fit; measure some with `latmod sweep`")
    _check_one_machine(observed)
    names = tuple(observed[0].features)
    found = []
    for runtime, threads in sorted({(o.runtime, o.threads) for o in observed}):
        own = tuple(o for o in observed if (o.runtime, o.threads) == (runtime, threads))
        if len({o.model for o in own}) < len(own):
            raise DatasetError(f"{runtime}, {threads} threads: a model occurs twice; fit one data set at a time")
        if len(own) < MIN_MODELS:
            raise DatasetError(f"{runtime}, {threads} threads: {len(own)} models, at least {MIN_MODELS} are needed")
        latencies = [o.latency_ns(statistic) / 1e6 for o in own]
        found.append(
            Group(
                runtime=runtime,
                threads=threads,
                observations=own,
                table=make_table([o.features for o in own], [o.family for o in own], latencies, names),
                noise_floor=noise_floor([o.round_ns[statistic_key(statistic)] for o in own]),
            )
        )
    return found


def _check_one_machine(observed: Sequence[Observation]) -> None:
    machines = sorted({o.machine_id for o in observed})
    if len(machines) > 1:
        raise MachineError(f"measurements of {len(machines)} machines ({', '.join(machines)}); fit each on its own")
    for runtime in sorted({o.runtime for o in observed}):
        versions = sorted({o.runtime_version for o in observed if o.runtime == runtime})
        if len(versions) > 1:
            raise MachineError(f"{runtime} in {len(versions)} versions ({', '.join(versions)}); fit each on its own")


def _evaluate(
    task: tuple[Group, Candidate], *, seed: int, split_seeds: int, regressor_seeds: int
) -> tuple[CrossSeed, Calibration]:
    g, candidate = task
    found = cross_seed(candidate, g.table, seed=seed, split_seeds=split_seeds, regressor_seeds=regressor_seeds)
    return found, calibrate(candidate, found.params, g.table, seed)


def _halves(table: Table) -> tuple[Table, Table]:
    macs = np.array([row.get("macs", 0.0) for row in table.rows])
    order = np.argsort(macs, kind="stable")
    return table.take(order[: len(order) // 2]), table.take(order[len(order) // 2 :])


def _same_columns(table: Table, like: Table) -> Table:
    return make_table(table.rows, table.families, table.latency_ms.tolist(), like.names)


def _transfers(
    tasks: Sequence[tuple[Table, Table, Winner]], trained_on: str, tested_on: str, seed: int, jobs: int
) -> tuple[TransferRow, ...]:
    work = partial(_transfer, trained_on=trained_on, tested_on=tested_on, seed=seed)
    return tuple(run_all(work, tasks, jobs))


def _transfer(task: tuple[Table, Table, Winner], *, trained_on: str, tested_on: str, seed: int) -> TransferRow:
    training, test, winner = task
    scores = msgspec.structs.asdict(score_transfer(winner.candidate, winner.params, training, test, seed))
    del scores["models"]
    return TransferRow(
        runtime=winner.runtime,
        threads=winner.threads,
        trained_on=trained_on,
        tested_on=tested_on,
        regressor=winner.candidate.regressor,
        role=winner.candidate.role,
        features=winner.candidate.features,
        target=winner.candidate.target,
        train_models=len(training),
        test_models=len(test),
        **scores,
    )
