"""The additive model on kernels whose cost is known."""

import msgspec
import numpy as np
import pytest
from made_kernels import made

from latmod.additive import (
    GROUPS,
    PRIOR,
    SEEN,
    Additive,
    class_of,
    group_of,
    residual_columns,
    residual_to_onnx,
    seen_by,
)
from latmod.kernel_fitting import (
    fit_additive,
    fit_rated,
    merged,
    parted,
    silent_kinds,
    telling_ns,
    training_kernels,
)
from latmod.kernel_study import Held, calibrate_widths, fit_and_hold_out, label_noise
from latmod.kernels import FIELDS, Kernel
from latmod.kernels.columns import OWN, column_matrix
from latmod.labels import LabelledModel
from latmod.total_fitting import without_kernels

KINDS = ("Conv 3x3", "Conv depthwise", "Gemm weights", "Add")


def kernel(rng: np.random.Generator) -> Kernel:
    kind = KINDS[int(rng.integers(len(KINDS)))]
    numbers = dict.fromkeys(FIELDS, 0.0)
    numbers["bytes_in"], numbers["bytes_out"] = (float(rng.integers(1e4, 1e6)) for _ in range(2))
    if kind != "Add":
        numbers["macs"] = numbers["padded_macs"] = float(rng.integers(1e5, 1e8))
        numbers["bytes_weights"] = float(rng.integers(1e3, 1e6))
        numbers["channels_out"] = float(rng.integers(1, 200))
    return made(kind, **numbers)


def true_ns(one: Kernel) -> float:
    odd = 1.5 if one.number("channels_out") % 16 else 1.0
    return 2000.0 + one.number("macs") / 30.0 * odd + (one.number("bytes_in") + one.number("bytes_out")) / 10.0


def models(count: int, telling: float = 0.0, noise: float = 0.02, seed: int = 0) -> list[LabelledModel]:
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        own = tuple(kernel(rng) for _ in range(int(rng.integers(8, 40))))
        times = np.array([true_ns(one) for one in own])
        label = times * np.exp(rng.normal(0.0, noise, len(own))) + telling
        found.append(
            LabelledModel(
                model=f"m{number}", family=f"f{number % 4}", runtime="torch", kernels=own, columns=column_matrix(own),
                kernel_ns=tuple(label.tolist()),
                latency_ns=float(times.sum()), noise=0.01, told_ns=float(label.sum()), unmatched_ns=0.0,
            )
        )  # fmt: skip
    return found


@pytest.fixture(scope="module")
def fitted() -> Additive:
    return fit_additive(models(120, telling=500.0))


def test_networks_of_known_kernels_come_out_right(fitted: Additive) -> None:
    errors = [fitted.latency_ns(m.kernels) / m.latency_ns - 1.0 for m in models(30, seed=9)]
    assert np.median(np.abs(errors)) < 0.03


def test_kernels_sum_to_the_whole(fitted: Additive) -> None:
    one = models(1, seed=4)[0]
    assert fitted.kernel_ns(one.kernels).sum() + fitted.run_ns == pytest.approx(fitted.latency_ns(one.kernels))


def test_what_the_telling_costs_is_taken_off() -> None:
    assert telling_ns(models(60, telling=500.0, noise=0.0)) == pytest.approx(500.0, rel=0.1)
    assert telling_ns(models(60, telling=-300.0, noise=0.0)) == pytest.approx(-300.0, rel=0.1)


def test_what_all_networks_differ_by_is_no_cost_of_telling() -> None:
    """Where kernels were told hours later, the machine was in another state."""
    slower = [msgspec.structs.replace(one, told_ns=1.2 * one.told_ns) for one in models(60, telling=500.0, noise=0.0)]
    assert telling_ns(slower) == pytest.approx(1.2 * 500.0, rel=0.1)
    assert telling_ns(slower[:3]) == 0.0


def test_a_kind_that_an_engine_never_tells_of_is_left_with_the_call() -> None:
    large = made("Reorder", bytes_in=1e7, bytes_out=1e7)
    whole = models(40)
    phantom = [
        msgspec.structs.replace(
            one,
            kernels=(*one.kernels, large),
            columns=column_matrix((*one.kernels, large)),
            kernel_ns=(*one.kernel_ns, float("nan")),
        )
        for one in whole
    ]
    assert silent_kinds(whole) == []
    assert silent_kinds(phantom) == ["Reorder"]
    fitted = fit_rated(phantom)
    assert fitted.kernel_ns([large])[0] < 1000.0 < fit_rated(whole).kernel_ns([large])[0]
    assert silent_kinds(without_kernels(phantom)) == []


def test_kernels_that_are_told_in_pairs_keep_their_prices() -> None:
    whole = models(80, noise=0.0)
    pairs = []
    for one in whole:
        pieces = tuple((first, first + 1) for first in range(0, len(one.kernels) - 1, 4))
        told, rough = np.array(one.kernel_ns), PRIOR.kernel_ns(one.kernels)
        for piece in map(list, pieces):
            told[piece] = told[piece].sum() * rough[piece] / rough[piece].sum()
        pairs.append(msgspec.structs.replace(one, kernel_ns=tuple(told.tolist()), pieces=pieces))
    apart, joined = (parted(pairs, fit_rated(own)) for own in (whole, pairs))
    for one, same, told_apart, told_joined in zip(whole, pairs, apart, joined, strict=True):
        assert sum(told_joined.kernel_ns) == pytest.approx(sum(one.kernel_ns))
        assert told_joined.pieces == same.pieces
        assert np.allclose(told_joined.kernel_ns, told_apart.kernel_ns, rtol=0.2)


def test_kernels_that_nothing_tells_apart_stand_as_one() -> None:
    """One kernel, told of as 1, 2 and 4 and once not at all, takes what is between, in each model for itself."""
    rng = np.random.default_rng(3)
    same, last = made("Add", bytes_in=1e6), kernel(rng)
    own = (same, same, same, same, last)
    nothing = float("nan")
    labels = (1e4, 2e4, 4e4, nothing, 5e4)
    plain = models(1)[0]
    model = msgspec.structs.replace(
        plain, kernels=own, columns=column_matrix(own), kernel_ns=labels, latency_ns=nothing, told_ns=nothing
    )
    told = training_kernels([plain, model, model])
    # Without what ran before each, which tells them apart here.
    one = merged(msgspec.structs.replace(told, columns=told.columns[:, : len(FIELDS)]))
    first = len(plain.kernels)
    assert one.starts.tolist() == [0, first, first + 2]
    assert one.counts.tolist() == [1.0] * first + [4.0, 1.0] * 2
    assert one.counts.sum() == len(told.kinds)
    np.testing.assert_allclose(one.weights.sum(), told.weights.sum())
    weights = np.sqrt(labels[:3])
    assert np.log(one.label_ns[first]) == pytest.approx(np.average(np.log(labels[:3]), weights=weights))
    assert one.label_ns[first + 1] == pytest.approx(5e4)


def test_unknown_kinds_cost_what_their_bytes_do(fitted: Additive) -> None:
    rng = np.random.default_rng(1)
    one = kernel(rng)
    strange = Kernel(
        op="Strange", kind="Strange", numbers=one.numbers, nodes=(), label="s", inputs=(), outputs=(), values=()
    )
    assert fitted.rates.index(["Strange"]) == fitted.rates.index(["other element-wise"])
    assert fitted.rates.index(["Conv 3x3/strange"]) == fitted.rates.index(["Conv 3x3"])
    assert fitted.kernel_ns([strange])[0] > 1000.0


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("com.microsoft.nchwc::Conv 3x3", "convolutions"),
        ("Conv depthwise/strided", "convolutions"),
        ("Gemm weights", "products"),
        ("com.microsoft.nchwc::ReorderInput", "movements"),
        ("Transpose", "movements"),
        ("com.microsoft.nchwc::MaxPool", "reductions"),
        ("LayerNormalization", "reductions"),
        ("BatchNormalization", "element-wise"),
        ("Clip/one bound", "element-wise"),
    ],
)
def test_classes(kind: str, expected: str) -> None:
    assert class_of(kind) == expected


def test_the_artifacts_graph_says_what_the_networks_say(fitted: Additive) -> None:
    ort = pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(2)
    some = [kernel(rng) for _ in range(200)]
    columns = column_matrix(some)
    kinds = [one.kind for one in some]
    seen = residual_columns(columns, fitted.rates.index(kinds), fitted.rates.ns(kinds, columns))
    assert seen.shape == (200, len(SEEN))
    written, names = residual_to_onnx(fitted)
    session = ort.InferenceSession(written.SerializeToString(), providers=["CPUExecutionProvider"])
    assert fitted.residual is not None
    told = session.run(["residual", "doubt"], {"features": seen[:, [SEEN.index(name) for name in names]]})
    for one, own in zip(told, fitted.residual.predict(seen), strict=True):
        np.testing.assert_allclose(one[:, 0], own, atol=1e-5)


def test_columns_of_one_runtime_are_hidden_from_others() -> None:
    everyone = {SEEN[place] for place in seen_by("torch")}
    assert everyone == {*SEEN} - {*OWN}
    for runtime in {*OWN.values()}:
        own = {SEEN[place] for place in seen_by(runtime)}
        assert own - everyone == {name for name, owner in OWN.items() if owner == runtime}
        assert own > everyone


def test_groups() -> None:
    kinds = ("com.microsoft.nchwc::Conv 3x3", "Conv depthwise/strided", "FusedMatMul activations", "MaxPool")
    assert [GROUPS[group_of(kind)] for kind in kinds] == list(GROUPS)


def test_families_are_held_out_one_by_one() -> None:
    own = models(48)
    found = fit_and_hold_out(own, judged=False)
    held = found.held
    assert not found.known
    assert sorted(found.folds) == sorted({model.family for model in own})
    assert [one.model for one in held] == [one.model for one in own]
    widths = calibrate_widths(held)
    assert list(widths.quantiles) == sorted(widths.quantiles)
    assert widths.quantiles[0] > 0.0
    inside = [
        one
        for one in held
        if abs(one.log_error) <= widths.of(one.predicted_ns, one.unseen_share, one.never_share, one.doubt) + 1e-12
    ]
    assert len(inside) / len(held) >= 0.9


def test_what_labels_scatter_by_is_told_from_their_halves() -> None:
    rng = np.random.default_rng(5)
    count, own, burst = 20000, 0.03, 0.04
    halves = rng.normal(0.0, burst, (2, count))
    labels = rng.normal(0.0, own, count) + halves.mean(axis=0)
    held = [
        Held(
            model="m", family="f", kernels=1, latency_ns=float(np.exp(label)), predicted_ns=1.0, kernel_sum_ns=1.0,
            noise=float(abs(np.expm1(odd - even))), unseen_share=0.0, never_share=0.0, doubt=0.02,
            unmatched_share=0.0,
        )
        for label, odd, even in zip(labels, *halves, strict=True)
    ]  # fmt: skip
    scatter = burst / np.sqrt(2.0)
    assert label_noise(held) == pytest.approx(scatter, rel=0.05)
    widths = calibrate_widths(held)
    assert np.mean(np.abs(labels) <= widths.quantiles[0]) == pytest.approx(0.9, abs=0.01)
    assert widths.scatter == pytest.approx(1.6449 * scatter, rel=0.05)
    silent = [msgspec.structs.replace(one, noise=float("nan")) for one in held]
    assert calibrate_widths(silent).scatter == 0.0


def test_networks_of_known_families_are_held_out_in_quarters() -> None:
    own = models(48)
    found = fit_and_hold_out(own)
    held = found.known
    assert [one.model for one in held] == [one.model for one in own]
    assert 0.0 < np.mean([abs(one.log_error) for one in held]) < 0.05
    again = fit_and_hold_out(own, jobs=2)
    assert again.known == held
    assert again.held == found.held
    assert list(again.folds) == list(found.folds)


def test_a_network_of_two_data_sets_is_left_out_of_both() -> None:
    """One of a kind that nothing else has: what its twin took would tell what it takes."""
    *own, one = models(24)
    kernels = tuple(msgspec.structs.replace(kernel, kind="odd") for kernel in one.kernels)
    odd = msgspec.structs.replace(
        one,
        kernels=kernels,
        kernel_ns=tuple(5.0 * ns for ns in one.kernel_ns),
        latency_ns=5.0 * one.latency_ns,
        told_ns=5.0 * one.told_ns,
    )
    held = fit_and_hold_out([*own, odd, odd]).known
    assert [found.model for found in held[23:]] == [one.model] * 2
    assert min(found.log_error for found in held[23:]) > 0.7
