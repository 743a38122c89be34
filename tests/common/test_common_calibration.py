"""Calibration error: by hand, against scikit-learn's curve, and what no bins can change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.calibration import expected_calibration_error, reliability

PREDICTIONS = st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=40)


def test_by_hand() -> None:
    """Guo et al. 2017, eq. 3: |accuracy - confidence| of each bin, weighted by its share of the predictions."""
    assert expected_calibration_error([0.9] * 4, [1, 1, 1, 0], 5) == pytest.approx(0.15)
    assert expected_calibration_error([0.55, 0.95], [1, 0], 5) == pytest.approx(0.7)  # (0.45 + 0.95) / 2
    assert expected_calibration_error([0.55, 0.95], [1, 0], 1) == pytest.approx(0.25)  # |0.5 - 0.75|
    # Halves of equal numbers: |0.5 - 0.65| and |1 - 0.85|; of equal width all four are in one: |0.75 - 0.75|.
    four = [0.6, 0.7, 0.8, 0.9], [1, 0, 1, 1]
    assert expected_calibration_error(*four, 2, "quantile") == pytest.approx((0.15 + 0.15) / 2)
    assert expected_calibration_error(*four, 2) == pytest.approx(0)
    assert expected_calibration_error([0.0, 1.0], [0, 1], 15) == 0


def test_a_bin_goes_up_to_its_edge_and_no_further() -> None:
    """Guo et al. 2017, section 2: the intervals ((m - 1) / M, m / M]."""
    bins = reliability([0.0, 0.5, 0.500001, 1.0], [0, 0, 1, 1], 2)
    assert [(each.low, each.high, each.num, each.accuracy) for each in bins] == [(0, 0.5, 2, 0), (0.5, 1, 2, 1)]
    assert [each.num for each in reliability([0.1, 0.9], [1, 1], 10)] == [1, 1]  # empty ones are left out


@settings(deadline=None)
@given(PREDICTIONS, st.integers(1, 12), st.sampled_from(["uniform", "quantile"]))
def test_bins_are_those_of_scikit_learn(predictions: list[tuple[float, bool]], num: int, by: str) -> None:
    from sklearn.calibration import calibration_curve

    p, right = np.array([each[0] for each in predictions], float), np.array([each[1] for each in predictions])
    shares = np.linspace(0, 1, num + 1)[1:-1]
    if np.isclose(p[:, None], shares if by == "uniform" else np.quantile(p, shares)).any():
        return  # its edges are rounded otherwise, so that what stands on one may be on its other side
    true, predicted = calibration_curve(right, p, n_bins=num, strategy=by)
    bins = reliability(p, right, num, by)
    if len(true) == len(bins):  # scikit-learn drops the lowest bin's edge case of equal values
        assert [each.accuracy for each in bins] == pytest.approx(true)
        assert [each.confidence for each in bins] == pytest.approx(predicted)
    assert sum(each.num for each in bins) == len(p)


@settings(deadline=None)
@given(PREDICTIONS, st.integers(1, 12), st.sampled_from(["uniform", "quantile"]))
def test_more_bins_never_hide_the_overall_error(predictions: list[tuple[float, bool]], num: int, by: str) -> None:
    """It is at least |accuracy - mean confidence|, which is one bin's, and at most 1."""
    p, right = [each[0] for each in predictions], [each[1] for each in predictions]
    error = expected_calibration_error(p, right, num, by)
    assert abs(np.mean(right) - np.mean(p)) - 1e-9 <= error <= 1 + 1e-9
    shuffled = np.random.default_rng(0).permutation(len(p))
    again = expected_calibration_error(np.array(p)[shuffled], np.array(right)[shuffled], num, by)
    assert again == pytest.approx(error)


def test_what_cannot_be_binned_is_said() -> None:
    for arguments, message in (
        (([], [], 5), "of 0 values"),
        (([0.5], [1], 5, "equal"), "by 'equal'"),
        (([0.5], [1], 0), "at least 1"),
        (([0.5], [1, 0], 5), "1 confidences but 2 outcomes"),
    ):
        with pytest.raises(ValueError, match=message):
            expected_calibration_error(*arguments)
