"""What regressors see of kernels: sizes, remainders, and what ran before."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latmod.kernels import FIELDS, Kernel
from latmod.kernels.columns import COLUMNS, column_matrix


def kernel(bytes_in: int, bytes_out: int, side: float = 8.0) -> Kernel:
    numbers = {"bytes_in": float(bytes_in), "bytes_out": float(bytes_out), "side_out": side}
    return Kernel(
        op="Relu", kind="Relu", numbers=tuple(numbers.get(field, 0.0) for field in FIELDS), nodes=("n",), label="n",
        inputs=(), outputs=(), values=(),
    )  # fmt: skip


def column(name: str, *kernels: Kernel) -> list[float]:
    return [float(value) for value in column_matrix(kernels)[:, COLUMNS.index(name)]]


def test_what_ran_before_is_told_in_bytes() -> None:
    four = [kernel(3, 4), kernel(7, 8), kernel(15, 16), kernel(31, 32)]
    assert column("bytes_before", *four) == pytest.approx(np.log2([1, 8, 16, 32]))
    assert column("bytes_lately", *four) == pytest.approx(np.log2([1, 8, 23, 54]))
    many = [kernel(1, 0)] * 9
    assert column("bytes_lately", *many)[-1] == pytest.approx(np.log2(4 + 1))


def test_outputs_of_one_size_know_of_each_other_around_the_end_of_the_run() -> None:
    three = [kernel(10, 4), kernel(20, 6), kernel(30, 4)]
    assert column("alike", *three) == pytest.approx(np.log2([3, 2, 3]))
    # Before the first of a run comes the last of the run before: nothing lies between.
    assert column("bytes_since_alike", *three) == pytest.approx(np.log2([1, 74 - 26 + 1, 26 + 1]))


def test_planes_off_a_vectors_boundary_are_told() -> None:
    sides = [kernel(4, 4, side) for side in (31.0, 32.0, 14.0)]
    assert column("pixel_rest4", *sides) == [1.0, 0.0, 0.0]
    assert column("pixel_rest16", *sides) == [1.0, 0.0, 4.0]


@pytest.mark.parametrize(
    ("rows", "columns", "size", "wide"),
    [
        (784, 256, 3, 1.0),
        (3136, 224, 3, 0.0),
        (1296, 224, 3, 0.0),
        (1024, 160, 1, 1.0),
        (400, 160, 1, 0.0),
        (196, 384, 0, 1.0),
        (144, 320, 0, 0.0),
        (1600, 160, 0, 1.0),
    ],
)
def test_the_tiles_that_tract_takes_are_told(rows: float, columns: float, size: float, wide: float) -> None:
    """As measured on Zen 4: 45 to 52 multiply-adds a nanosecond with the wide ones, 31 to 41 with the others."""
    own = kernel(4, 4).with_numbers(rows=rows, columns=columns, kernel_h=size, kernel_w=size)
    assert column("wide_tiles", own) == [wide]


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)), max_size=12))
def test_columns_are_finite_however_large_kernels_are(sizes: list[tuple[int, int]]) -> None:
    own = [kernel(*size) for size in sizes]
    found = column_matrix(own)
    assert found.shape == (len(own), len(COLUMNS))
    assert np.isfinite(found).all()


def test_weights_over_a_cache_pass_through_it_at_every_step() -> None:
    """As of a recurrent layer in both directions; a product with weights alone reads them once."""
    steps, row_bytes, rows = 2 * 50.0, 4 * 512, 1024
    twice = float(2 * row_bytes * rows)
    layer = kernel(4, 4).with_numbers(products=steps, inner=512, columns=rows, bytes_weights=twice)
    once = kernel(4, 4).with_numbers(products=1.0, inner=512, columns=2.0 * rows, bytes_weights=twice)
    over = row_bytes * rows - 1024 * 1024
    assert column("weights_over_l2", layer, once) == [steps * over, twice - 1024 * 1024]
