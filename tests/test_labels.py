import math

import msgspec

from latmod.dataset import KernelTime
from latmod.kernels import FIELDS, Kernel
from latmod.labels import join


def kernel(op: str, inputs=((1, 8, 4, 4), (8, 8, 3, 3)), value: str = "y") -> Kernel:
    return Kernel(
        op=op, kind=op, numbers=(0.0,) * len(FIELDS), nodes=(), label=op, inputs=inputs, outputs=((1, 8, 4, 4),),
        values=(value,),
    )  # fmt: skip


def told(op: str, ns: int, inputs=((1, 8, 4, 4), (8, 8, 3, 3)), count: int = 1, value: str = "") -> KernelTime:
    return KernelTime(op=op, inputs=inputs, outputs=((1, 8, 4, 4),), value=value, count=count, ns=ns)


def test_kernels_match_by_operator_and_shapes_whatever_the_domain_and_small_inputs() -> None:
    times = [told("Conv", 100, inputs=((1, 8, 4, 4), (8, 8, 3, 3), (8,)), count=2), told("Relu", 10, inputs=())]
    expected = [kernel("com.microsoft.nchwc::Conv"), kernel("com.microsoft.nchwc::Conv"), kernel("Add")]
    labels, total, unmatched = join(expected, [times])
    assert labels[:2] == (100.0, 100.0)
    assert math.isnan(labels[2])
    assert (total, unmatched) == (210.0, 10)


def test_kernels_match_by_the_value_where_the_engine_names_it() -> None:
    labels, total, unmatched = join([kernel("Add", value="a"), kernel("Add", value="b")], [[told("", 5, value="b")]])
    assert math.isnan(labels[0])
    assert labels[1] == total == 5.0
    assert unmatched == 0.0


def test_bursts_are_averaged_and_no_burst_is_no_label() -> None:
    labels, _, _ = join([kernel("Add")], [[told("Add", 10)], [told("Add", 20)]])
    assert labels == (15.0,)
    labels, total, _ = join([kernel("Add")], [])
    assert math.isnan(labels[0])
    assert math.isnan(total)


def test_kernels_match_by_the_nodes_that_the_engine_names_or_by_what_these_write() -> None:
    conv, act = (msgspec.structs.replace(kernel(op), nodes=(op,)) for op in ("conv", "act"))
    apart = [KernelTime(op="", inputs=(), outputs=(), value="", count=1, ns=7, nodes=(name,)) for name in ("conv", "y")]
    labels, total, unmatched = join([conv, act], [apart], {"y": "act"})
    assert (labels, total, unmatched) == ((7.0, 7.0), 14.0, 0.0)


def test_what_the_engine_does_in_one_piece_is_told_of_the_kernel_with_most_work() -> None:
    work = tuple(float(field == "macs") for field in FIELDS)
    conv = msgspec.structs.replace(kernel("conv"), nodes=("conv",), numbers=work)
    act, other = (msgspec.structs.replace(kernel(op), nodes=(op,)) for op in ("act", "other"))
    times = [
        KernelTime(op="", inputs=(), outputs=(), value="", count=1, ns=9, nodes=("act", "conv")),
        KernelTime(op="", inputs=(), outputs=(), value="", count=1, ns=2, nodes=("reorder",)),
    ]
    labels, total, unmatched = join([act, conv, other], [times])
    assert labels[:2] == (0.0, 9.0)
    assert math.isnan(labels[2])
    assert (total, unmatched) == (11.0, 2.0)
