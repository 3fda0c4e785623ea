"""Small networks: how they see columns."""

import numpy as np

from latmod.smooth import centred, squashed


def test_inputs_are_centred_bounded_and_tell_the_kind() -> None:
    x = np.float32([[1.0, 10.0, 0.0], [100.0, 10.0, 1.0], [1e30, 10.0, 2.0]])
    seen = centred(x[:2], kinds=2).inputs(x)
    assert seen[:2, 0].sum() == 0.0
    assert seen[2, 0] == 4.0
    np.testing.assert_array_equal(seen[:, 2:], [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])


def test_squashing_is_odd_and_grows() -> None:
    x = np.float32([[-1e9, -1.0, 0.0, 1.0, 1e9]])
    np.testing.assert_allclose(squashed(x), -squashed(-x))
    assert np.all(np.diff(squashed(x)) > 0.0)
