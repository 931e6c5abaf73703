"""Label transforms: round trips, monotony, what is stored, and what they refuse."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lmm_ecr.errors import ConfigError, DataError
from lmm_ecr.label_transforms import (
    QUANTILE_KNOTS,
    TRANSFORMS,
    LogitTransform,
    RankNormalTransform,
    fit_label_transform,
    label_transform_from_dict,
)

NAMES = list(TRANSFORMS)
labels_strategy = st.lists(st.floats(0, 1, width=32), min_size=2, max_size=200).filter(lambda v: max(v) - min(v) > 1e-3)


def inside(name: str, transform, values: np.ndarray) -> np.ndarray:
    """The part of the fitted range on which the transform promises to be invertible."""
    return np.clip(values, transform.eps, 1 - transform.eps) if name == "logit" else values


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(deadline=None, max_examples=60)
@given(values=labels_strategy, shares=st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_round_trip_inside_the_fitted_range(name, dtype, values, shares):
    transform = fit_label_transform(name, values)
    between = min(values) + np.array(shares) * (max(values) - min(values))
    # a rank-normal value next to a tie may lie in a jump of the distribution only by rounding: test labels and gaps apart
    asked = np.array(values) if name == "rank-normal" and len(set(values)) < len(values) else np.append(between, values)
    asked = torch.tensor(inside(name, transform, asked), dtype=dtype)
    scores = transform.forward(asked)
    assert scores.dtype == dtype
    assert scores.isfinite().all()
    np.testing.assert_allclose(transform.inverse(scores).double(), asked.double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=60)
@given(values=labels_strategy)
def test_forward_and_inverse_never_change_the_order(name, values):
    transform = fit_label_transform(name, values)
    grid = torch.linspace(0, 1, 301, dtype=torch.float64)
    assert (transform.forward(grid).diff() >= 0).all()
    scores = torch.linspace(-5, 5, 301, dtype=torch.float64)
    assert (transform.inverse(scores).diff() >= -1e-15).all()


def test_rank_normal_gives_tied_labels_the_same_bits():
    """Bug: between two equal knots, v (1 - w) + v w is not always v: ties came back in a random order."""
    transform = RankNormalTransform([0.0, 0.1, 0.96875, 0.96875, 0.96875, 0.96875, 1.0])
    assert transform.inverse(torch.linspace(-0.36, 0.79, 500, dtype=torch.float64)).unique().tolist() == [0.96875]


@pytest.mark.parametrize("name", NAMES)
def test_unknown_labels_stay_unknown_and_are_left_out_of_the_fit(name):
    nan = math.nan
    values = [0.1, nan, 0.4, 0.9, nan, 0.3]
    transform = fit_label_transform(name, values)
    assert transform.to_dict() == fit_label_transform(name, [0.1, 0.4, 0.9, 0.3]).to_dict()
    scores = transform.forward(torch.tensor([[nan, 0.4], [0.1, nan]]))
    assert scores.isnan().tolist() == [[True, False], [False, True]]
    assert transform.inverse(torch.tensor([nan, 0.0])).isnan().tolist() == [True, False]


@pytest.mark.parametrize("name", NAMES)
def test_saved_transform_gives_the_same_bits(name):
    rng = np.random.default_rng(0)
    transform = fit_label_transform(name, rng.beta(2, 5, 3000))
    again = label_transform_from_dict(json.loads(json.dumps(transform.to_dict())))
    assert type(again) is type(transform)
    values = torch.tensor(rng.uniform(size=50), dtype=torch.float32)
    assert torch.equal(again.forward(values), transform.forward(values))
    assert torch.equal(again.inverse(values * 6 - 3), transform.inverse(values * 6 - 3))
    assert again.initial_bias == transform.initial_bias


@pytest.mark.parametrize("name", NAMES)
def test_scores_come_back_inside_the_unit_interval(name):
    transform = fit_label_transform(name, [0.0, 0.2, 0.7, 1.0])
    back = transform.inverse(torch.tensor([-1e9, -50.0, 0.0, 50.0, 1e9, math.inf, -math.inf]))
    assert ((back >= 0) & (back <= 1)).all()


@pytest.mark.parametrize("name", ["identity", "z-score", "logit"])
def test_the_first_bias_is_the_score_of_the_mean_label(name):
    values = [0.1, 0.2, 0.9]
    transform = fit_label_transform(name, values)
    mean = torch.tensor(np.mean(values), dtype=torch.float64)
    assert transform.initial_bias == pytest.approx(transform.forward(mean).item(), abs=1e-12)


def test_z_score_by_hand():
    transform = fit_label_transform("z-score", [0.2, 0.4, 0.6, 0.8])
    assert transform.forward(torch.tensor([0.5, 0.8], dtype=torch.float64)).tolist() == pytest.approx(
        [0.0, 0.3 / math.sqrt(0.05)]
    )
    assert transform.inverse(torch.tensor([100.0])).item() == 1.0


def test_logit_limits_the_ends():
    transform = LogitTransform.fit([0.0, 1.0, 0.25])
    scores = transform.forward(torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64))
    top = math.log((1 - transform.eps) / transform.eps)
    assert scores.tolist() == pytest.approx([-top, math.log(1 / 3), 0.0, top])


def test_rank_normal_gives_plotting_positions_and_standard_normal_scores():
    """Without ties, label i of N gets the normal quantile of (i + 1/2) / N; their mean is the initial bias, 0."""
    values = np.array([0.9, 0.1, 0.5, 0.3, 0.35])
    transform = fit_label_transform("rank-normal", values)
    expected = stats.norm.ppf((np.argsort(np.argsort(values)) + 0.5) / 5)
    np.testing.assert_allclose(transform.forward(torch.tensor(values)), expected, atol=1e-12)
    assert transform.forward(torch.tensor(values)).mean().item() == pytest.approx(transform.initial_bias, abs=1e-12)

    large = np.random.default_rng(1).beta(1, 8, 20_000)
    scores = fit_label_transform("rank-normal", large).forward(torch.tensor(large)).numpy()
    assert scores.mean() == pytest.approx(0, abs=1e-3)
    assert scores.std() == pytest.approx(1, abs=0.01)
    assert stats.skew(scores) == pytest.approx(0, abs=0.01)


def test_rank_normal_brings_the_lowest_and_highest_label_back():
    """Bug: the ends were cut at half a knot, so of 12 labels the lowest came back almost halfway to its neighbour."""
    values = torch.linspace(0, 1, 12, dtype=torch.float64)
    transform = fit_label_transform("rank-normal", values.numpy())
    np.testing.assert_allclose(transform.inverse(transform.forward(values)), values, atol=1e-12)
    assert transform.forward(values).unique().numel() == 12


def test_rank_normal_ties_share_their_middle_rank():
    values = [0.0] * 6 + [0.5, 0.7, 0.8, 1.0]
    transform = fit_label_transform("rank-normal", values)
    scores = transform.forward(torch.tensor(values, dtype=torch.float64))
    assert scores[:6].unique().numel() == 1
    assert scores[0].item() == pytest.approx(stats.norm.ppf(3 / 10))  # middle of ranks 1 to 6: (2.5 + 1/2) / 10
    np.testing.assert_allclose(transform.inverse(scores), values, atol=1e-12)


def test_rank_normal_ties_of_shares_keep_their_middle_rank_as_float32():
    """Labels reach the transform as float32, where 0.3 is not the 0.3 of float64."""
    values = np.random.default_rng(0).integers(0, 21, 5000) / 20
    transform = fit_label_transform("rank-normal", values)
    exact = transform.forward(torch.tensor(values)).numpy()
    single = transform.forward(torch.tensor(values, dtype=torch.float32)).numpy()
    np.testing.assert_allclose(single, exact, atol=1e-6)
    ranks = (stats.rankdata(values) - 0.5) / len(values)
    np.testing.assert_allclose(single, stats.norm.ppf(ranks), atol=0.01)
    assert abs(single.mean()) < 0.01


def test_rank_normal_keeps_a_bounded_number_of_knots_and_float32_order():
    """106,192 training labels that are evenly spaced ranks: neighbours 1e-3 apart stay apart in float32."""
    values = np.linspace(0, 1, 106_192)
    transform = fit_label_transform("rank-normal", values)
    assert len(transform.knots) == QUANTILE_KNOTS
    grid = torch.linspace(0, 1, 1001, dtype=torch.float32)
    scores = transform.forward(grid)
    assert scores.dtype == torch.float32
    assert (scores.diff() > 0).all()
    assert (transform.inverse(scores) - grid).abs().max() <= 1e-6
    precise = transform.forward(grid.double())
    assert (scores.double() - precise).abs().max() <= 2.5e-7 * precise.abs().max()


@pytest.mark.parametrize("name", ["z-score", "rank-normal"])
@pytest.mark.parametrize("values", [[0.5], [0.1] * 3, [0.7] * 1001])
def test_labels_without_spread_are_refused(name, values):
    """Bug: 0.1 three times has a standard deviation of 1.4e-17, not 0, and z-score divided by it."""
    with pytest.raises(DataError, match=r"all \d+ training labels equal .* use --label_transform identity"):
        fit_label_transform(name, values)


@pytest.mark.parametrize("name", ["identity", "logit"])
def test_labels_without_spread_are_fine_where_none_is_needed(name):
    transform = fit_label_transform(name, [0.25] * 3)
    assert transform.inverse(torch.tensor(transform.initial_bias)).item() == pytest.approx(0.25)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("values", [[], [math.nan, math.nan], [math.inf]])
def test_no_labels_at_all_are_refused(name, values):
    with pytest.raises(DataError, match="no training labels"):
        fit_label_transform(name, values)


def test_unknown_names_are_refused_with_the_choices():
    with pytest.raises(ConfigError, match="'zscore' is unknown; choose one of identity, z-score"):
        fit_label_transform("zscore", [0.1, 0.2])
    with pytest.raises(ConfigError, match=r"'boxcox' in the checkpoint is unknown"):
        label_transform_from_dict({"name": "boxcox"})


@pytest.mark.parametrize(
    "state", [{"name": "z-score", "mean": 0.5, "sdt": 1.0}, {"name": "rank-normal"}, {"name": "logit", "eps": "x"}]
)
def test_a_malformed_saved_transform_is_named(state):
    """Bug: it ended in a TypeError from a constructor."""
    with pytest.raises(ConfigError, match=f"{state['name']!r} in the checkpoint is malformed"):
        label_transform_from_dict(state)
    with pytest.raises(ConfigError, match="must be a mapping"):
        label_transform_from_dict(None)


def test_rank_normal_stores_plain_numbers():
    state = RankNormalTransform.fit(np.array([0.1, 0.5, 0.2], dtype=np.float32)).to_dict()
    assert all(type(v) is float for v in (state["mean"], *state["knots"]))
