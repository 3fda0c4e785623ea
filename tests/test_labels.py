import math

import msgspec
import numpy as np
import pytest

from latmod.dataset import LOOP, KernelTime
from latmod.kernels import FIELDS, Kernel
from latmod.kernels.columns import column_matrix
from latmod.labels import LabelledModel, Told, join, possible, stacked


def kernel(op: str, inputs=((1, 8, 4, 4), (8, 8, 3, 3)), value: str = "y") -> Kernel:
    return Kernel(
        op=op, kind=op, numbers=(0.0,) * len(FIELDS), nodes=(), label=op, inputs=inputs, outputs=((1, 8, 4, 4),),
        values=(value,),
    )  # fmt: skip


def told(op: str, ns: int, inputs=((1, 8, 4, 4), (8, 8, 3, 3)), count: int = 1, value: str = "") -> KernelTime:
    return KernelTime(op=op, inputs=inputs, outputs=((1, 8, 4, 4),), value=value, count=count, ns=ns)


def named(ns: int, *nodes: str) -> KernelTime:
    return KernelTime(op="", inputs=(), outputs=(), value="", count=1, ns=ns, nodes=nodes)


def test_kernels_match_by_operator_and_shapes_whatever_the_domain_and_small_inputs() -> None:
    times = [told("Conv", 100, inputs=((1, 8, 4, 4), (8, 8, 3, 3), (8,)), count=2), told("Relu", 10, inputs=())]
    expected = [kernel("com.microsoft.nchwc::Conv"), kernel("com.microsoft.nchwc::Conv"), kernel("Add")]
    found = join(expected, [times])
    assert found.kernel_ns[:2] == (100.0, 100.0)
    assert math.isnan(found.kernel_ns[2])
    assert (found.total_ns, found.unmatched_ns) == (210.0, 10)


def test_kernels_match_by_the_value_where_the_engine_names_it() -> None:
    found = join([kernel("Add", value="a"), kernel("Add", value="b")], [[told("", 5, value="b")]])
    assert math.isnan(found.kernel_ns[0])
    assert found.kernel_ns[1] == found.total_ns == 5.0
    assert found.unmatched_ns == 0.0


def test_what_no_core_can_do_was_not_told() -> None:
    work = tuple(1e6 * (field == "macs") for field in FIELDS)
    conv = msgspec.structs.replace(kernel("Conv"), numbers=work)
    first, second, third = possible([conv] * 3, (0.0, 900.0, 1100.0))
    assert math.isnan(first)
    assert math.isnan(second)
    assert third == 1100.0
    assert possible([kernel("Reshape")], (0.0,)) == (0.0,), "it does no multiply-adds"


def test_bursts_are_averaged_and_no_burst_is_no_label() -> None:
    assert join([kernel("Add")], [[told("Add", 10)], [told("Add", 20)]]).kernel_ns == (15.0,)
    nothing = join([kernel("Add")], [])
    assert math.isnan(nothing.kernel_ns[0])
    assert math.isnan(nothing.total_ns)


def test_kernels_match_by_the_nodes_that_the_engine_names_or_by_what_these_write() -> None:
    conv, act = (msgspec.structs.replace(kernel(op), nodes=(op,)) for op in ("conv", "act"))
    found = join([conv, act], [[named(7, "conv"), named(7, "y")]], {"y": "act"})
    assert found == Told(kernel_ns=(7.0, 7.0), total_ns=14.0, unmatched_ns=0.0)


def test_what_the_engine_does_in_one_piece_is_parted_by_rough_prices() -> None:
    work = tuple(1e9 * (field == "macs") for field in FIELDS)
    conv = msgspec.structs.replace(kernel("conv"), nodes=("conv",), numbers=work)
    act, other = (msgspec.structs.replace(kernel(op), nodes=(op,)) for op in ("act", "other"))
    found = join([act, conv, other], [[named(9, "act", "conv")]])
    assert found.pieces == ((0, 1),)
    assert found.kernel_ns[0] + found.kernel_ns[1] == pytest.approx(9.0)
    assert found.kernel_ns[0] < 0.01
    assert math.isnan(found.kernel_ns[2])
    assert found.unmatched_ns == pytest.approx(0.0)


def test_pieces_that_share_a_kernel_are_one() -> None:
    kernels = [msgspec.structs.replace(kernel(op), nodes=(op,)) for op in "abcd"]
    found = join(kernels, [[named(1, "a", "b"), named(2, "d"), named(3, "c"), named(4, "b", "c")]])
    assert sorted(map(sorted, found.pieces)) == [[0, 1, 2]]
    assert found.kernel_ns[3] == 2.0
    assert sum(found.kernel_ns) == pytest.approx(found.total_ns)


def test_what_a_volume_took_may_be_told_of_what_reads_it() -> None:
    """MNN makes many convolutions of one over volumes, and names them after the addition, or the pool, behind it."""
    work = tuple(1e9 * (field == "macs") for field in FIELDS)
    volume = ((1, 8, 4, 4, 4),)
    conv, short, add, pool = (
        msgspec.structs.replace(kernel(name, value=f"{name}'s"), nodes=(name,), outputs=volume)
        for name in ("conv", "short", "add", "pool")
    )
    conv, short = (msgspec.structs.replace(one, numbers=work) for one in (conv, short))
    readers = {"conv's": ["add"], "short's": ["add"], "add's": ["pool"], "x": ["conv", "short"]}
    found = join([conv, short, add, pool], [[named(90, "add"), named(3, "pool")]], {}, readers)
    assert found.pieces == ((2, 0, 1),)
    assert found.kernel_ns[0] == found.kernel_ns[1] > found.kernel_ns[2] > 0.0
    assert sum(found.kernel_ns) == pytest.approx(93.0)
    assert found.kernel_ns[3] == 3.0
    flat = msgspec.structs.replace(conv, outputs=((1, 8, 4, 4),))
    assert math.isnan(join([flat, short, add, pool], [[named(90, "add")]], {}, readers).kernel_ns[0])
    told_itself = join([conv, add], [[named(50, "conv"), named(5, "add")]], {}, readers)
    assert told_itself.kernel_ns == (50.0, 5.0)


def test_recurrent_sequences_are_told_one_for_each_direction() -> None:
    """OpenVINO names them by numbers of its own; they come in the order of the graph."""
    shapes = ((9, 1, 4), (2, 12, 4), (2, 12, 3))
    both, one = (
        msgspec.structs.replace(kernel("LSTM", inputs=inputs, value=name), nodes=(name,))
        for name, inputs in (("both", shapes), ("one", ((9, 1, 6), (1, 12, 6), (1, 12, 3))))
    )
    turned = msgspec.structs.replace(kernel("Transpose"), nodes=("turned",))
    told_of = [
        KernelTime(op="RNNSeq", inputs=(), outputs=(), value="", count=1, ns=ns, nodes=(f"LSTMSequence_{ns}",))
        for ns in (40, 50, 30)
    ]
    found = join([both, one, turned], [[*told_of[:2], named(2, "turned"), told_of[2]]])
    assert found.kernel_ns == (90.0, 30.0, 2.0)
    assert found.unmatched_ns == 0.0


def test_what_an_engine_puts_in_counts_to_what_follows() -> None:
    kernels = [msgspec.structs.replace(kernel(op), nodes=(op,)) for op in "ab"]
    found = join(kernels, [[named(1, ""), named(2, "a"), named(3, "reorder"), named(4, "b"), named(5, "last")]])
    assert found == Told(kernel_ns=(3.0, 7.0), total_ns=15.0, unmatched_ns=5.0)


def test_what_moves_a_value_is_the_kernel_that_the_rules_put_there_and_else_a_part_of_what_follows() -> None:
    product, following = (msgspec.structs.replace(kernel(op), nodes=(op,)) for op in ("product", "following"))
    mover = kernel("Reshape", value="rows")
    burst = [
        named(5, "product"),
        told("Reshape", 70, value="rows"),
        told("Permute", 2, value="other"),
        named(1, "following"),
    ]
    found = join([product, mover, following], [burst])
    assert found.kernel_ns == (5.0, 70.0, 3.0)
    assert found.unmatched_ns == 0.0


def test_what_is_told_last_without_a_name_brings_the_result_out_of_its_blocks() -> None:
    conv = msgspec.structs.replace(kernel("conv"), nodes=("conv",), values=("blocked",))
    burst = [named(5, "conv"), named(40, "")]
    assert join([conv, kernel("Reorder")], [burst]) == Told(kernel_ns=(5.0, 40.0), total_ns=45.0, unmatched_ns=0.0)
    # Of two nobody knows which it was.
    found = join([conv, kernel("Reorder"), kernel("Reorder", value="z")], [burst])
    assert found.kernel_ns[0] == 5.0
    assert all(math.isnan(ns) for ns in found.kernel_ns[1:])
    assert found.unmatched_ns == 40.0


def test_products_are_told_by_their_elements_and_loops_of_all_else() -> None:
    """As an engine sees them that flattens rows, packs weights, and names no value."""
    work = tuple(1e6 * (field == "macs") for field in FIELDS)
    shapes = ((2, 3, 5), (5, 7)), ((2, 3, 7),)
    product = msgspec.structs.replace(kernel("Gemm"), numbers=work, inputs=shapes[0], outputs=shapes[1])
    expected = [product, kernel("Relu"), product, kernel("Softmax"), kernel("Mul")]
    times = [
        KernelTime(op="mm", inputs=((6, 5), (7, 5)), outputs=((6, 7),), value="", count=1, ns=ns) for ns in (10, 20)
    ]
    unknown = KernelTime(op="mm", inputs=((6, 4), (4, 8)), outputs=((6, 7),), value="", count=1, ns=2)
    names = {"add_softmax": 8, "mul_relu": 3, "native_layer_norm": 1}
    loops = [KernelTime(op=LOOP + op, inputs=(), outputs=(), value="", count=1, ns=ns) for op, ns in names.items()]
    found = join(expected, [[*times, unknown, *loops]])
    assert (found.kernel_ns[0], found.kernel_ns[2]) == (15.0, 15.0)
    assert found.pieces == ((1, 3, 4),)
    assert sum(found.kernel_ns[place] for place in (1, 3, 4)) == pytest.approx(12.0)
    assert (found.total_ns, found.unmatched_ns) == (44.0, pytest.approx(2.0))


def test_what_is_padded_before_a_product_is_the_same_product() -> None:
    work = tuple(1e6 * (field == "macs") for field in FIELDS)
    conv = msgspec.structs.replace(kernel("Conv"), numbers=work)
    wider = KernelTime(op="conv", inputs=((1, 8, 5, 5), (8, 8, 3, 3)), outputs=((1, 8, 4, 4),), value="", count=1, ns=9)
    pad = KernelTime(op=f"{LOOP}constant_pad_nd", inputs=(), outputs=(), value="", count=1, ns=2)
    found = join([conv, kernel("Relu")], [[wider, pad]])
    assert found == Told(kernel_ns=(9.0, 2.0), total_ns=11.0, unmatched_ns=0.0)


def test_models_side_by_side_keep_what_is_seen_of_each() -> None:
    def model(*kernels: Kernel) -> LabelledModel:
        return LabelledModel(
            model="m", family="f", runtime="torch", kernels=kernels, columns=column_matrix(kernels),
            kernel_ns=(1.0,) * len(kernels), latency_ns=1.0, noise=0.0, told_ns=1.0, unmatched_ns=0.0,
        )  # fmt: skip

    small, large = model(kernel("Conv")), model(kernel("Relu"), kernel("Add"))
    found, columns, starts = stacked([small, large])
    assert [one.op for one in found] == ["Conv", "Relu", "Add"]
    assert starts.tolist() == [1]
    np.testing.assert_array_equal(columns, np.concatenate([small.columns, large.columns]))
