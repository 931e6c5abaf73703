"""Losses against values by hand, autograd and the reference implementation's recorded values."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmm_ecr.errors import ConfigError
from lmm_ecr.losses import (
    BATCH_WISE,
    LOSSES,
    RegressionLoss,
    huber_loss,
    l1_loss,
    mse_loss,
    parse_loss,
    plcc_loss,
    rank_loss,
)

P = torch.tensor([0.0, 1.0, 3.0, 0.0])
Y = torch.tensor([0.0, 2.0, 1.0, 0.5])


def test_pointwise_losses_by_hand():
    """Errors are 0, -1, 2, -0.5."""
    assert mse_loss(P, Y).item() == pytest.approx((0 + 1 + 4 + 0.25) / 4)
    assert l1_loss(P, Y).item() == pytest.approx((0 + 1 + 2 + 0.5) / 4)
    assert huber_loss(P, Y).item() == pytest.approx((0 + 0.5 + 1.5 + 0.125) / 4)


def test_plcc_loss_by_hand():
    """p = (-1, 0, 1) and y = (-1, 1, 0) are centred with equal spread, and r = 1/2: (1 - r)(3 + r) / 8 = 7 / 32."""
    p, y = torch.tensor([4.0, 5.0, 6.0]), torch.tensor([10.0, 30.0, 20.0])
    assert plcc_loss(p, y).item() == pytest.approx(7 / 32, rel=1e-6)
    assert plcc_loss(p, 7 * p - 3).item() == pytest.approx(0, abs=1e-6)
    assert plcc_loss(p, -p).item() == pytest.approx(0.5, rel=1e-6)


@settings(deadline=None, max_examples=50)
@given(st.integers(3, 40), st.integers(0, 2**31 - 1))
def test_plcc_loss_is_its_formula_and_ignores_scale(size, seed):
    rng = np.random.default_rng(seed)
    p, y = rng.normal(size=(2, size))
    r = np.corrcoef(p, y)[0, 1]
    loss = plcc_loss(torch.tensor(p), torch.tensor(y)).item()
    assert loss == pytest.approx((1 - r) * (3 + r) / 8, rel=1e-5, abs=1e-7)
    assert plcc_loss(torch.tensor(5 * p + 2), torch.tensor(0.1 * y - 4)).item() == pytest.approx(loss, abs=1e-6)


def test_rank_loss_by_hand():
    """Labels 2 > 1 > 0 with scores 1, 1, 0: pairs (2,1), (2,0), (1,0) have margins 0, 1, 1. Equal labels are no pair."""
    scores = torch.tensor([0.0, 1.0, 1.0])
    expected = (math.log(2) + 2 * math.log1p(math.exp(-1))) / 3
    assert rank_loss(scores, torch.tensor([0.0, 1.0, 2.0])).item() == pytest.approx(expected, rel=1e-6)
    assert rank_loss(scores, torch.tensor([1.0, 1.0, 1.0])).item() == 0
    assert rank_loss(torch.tensor([0.0, 1.0, 5.0]), torch.tensor([0.0, 1.0, 1.0])).item() == pytest.approx(
        (math.log1p(math.exp(-1)) + math.log1p(math.exp(-5))) / 2, rel=1e-6
    )


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_agree_with_finite_differences(name):
    rng = np.random.default_rng(0)
    p = torch.tensor(rng.normal(size=7), requires_grad=True)
    y = torch.tensor(rng.normal(size=7))
    assert torch.autograd.gradcheck(lambda v: LOSSES[name](v, y), (p,))


@pytest.mark.parametrize("name", LOSSES)
def test_losses_do_not_depend_on_the_order_of_clips(name):
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(LOSSES[name](P, Y), LOSSES[name](P[order], Y[order]))


def test_plcc_loss_of_equal_predictions_or_labels_has_a_finite_gradient():
    for p, y in ((torch.full((4,), 0.3), Y), (P.clone(), torch.full((4,), 0.3))):
        p.requires_grad_()
        loss = plcc_loss(p, y)
        loss.backward()
        assert loss.isfinite()
        assert p.grad.isfinite().all()


@pytest.mark.parametrize("name", sorted(BATCH_WISE))
def test_a_single_clip_has_nothing_to_compare(name):
    p = torch.tensor([0.4], requires_grad=True)
    loss = LOSSES[name](p, torch.tensor([0.9]))
    loss.backward()
    assert loss.item() == 0
    assert p.grad.tolist() == [0.0]


def test_mse_and_plcc_equal_the_reference_values(shared_dir):
    path = shared_dir / "goldens/videollama2_av/losses_metrics.json"
    if not path.is_file():
        pytest.skip(f"no reference values at {path}")
    cases = [c for c in json.loads(path.read_text())["losses"] if "prediction" in c]
    assert cases
    for case in cases:
        for loss, name, gradient_name in (
            (plcc_loss, "plcc_loss", "plcc_loss_gradient"),
            (mse_loss, "mse_loss", "mse_gradient"),
        ):
            p = torch.tensor(case["prediction"], dtype=torch.float32, requires_grad=True)
            value = loss(p, torch.tensor(case["target"], dtype=torch.float32))
            value.backward()
            assert value.item() == pytest.approx(case[name], rel=1e-5, abs=1e-7), (case["case"], name)
            expected = torch.tensor(case[gradient_name], dtype=torch.float32)
            tolerance = 1e-5 * expected.abs().max().item() + 1e-8
            torch.testing.assert_close(p.grad, expected, rtol=1e-4, atol=tolerance)


@pytest.mark.parametrize(
    ("expression", "weights"),
    [
        ("mse", {"mse": 1.0}),
        ("mse+0.5*plcc", {"mse": 1.0, "plcc": 0.5}),
        ("  mse  +  0.5 * plcc ", {"mse": 1.0, "plcc": 0.5}),
        ("2e-1*plcc + l1", {"plcc": 0.2, "l1": 1.0}),
        ("1e+1*mse + .5*rank", {"mse": 10.0, "rank": 0.5}),
        ("1.e+1*mse+3*huber", {"mse": 10.0, "huber": 3.0}),
        ("2*mse\n+ 1*l1", {"mse": 2.0, "l1": 1.0}),
    ],
)
def test_sums_of_losses_are_read(expression, weights):
    assert parse_loss(expression) == weights


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("mse+foo", "'foo' is unknown; choose from mse, l1"),
        ("mse + mse", "'mse' appears twice"),
        ("-1*mse", "cannot read '-1\\*mse'"),
        ("mse - plcc", "cannot read 'mse - plcc'"),
        ("0*mse", "weight of 'mse' must be above 0"),
        ("1e999*mse", "weight of 'mse' must be above 0 and finite"),
        ("nan*mse", "cannot read"),
        ("mse*0.5", "cannot read"),
        ("mse + ", "cannot read ''"),
        ("", "cannot read ''"),
        ("mse plcc", "cannot read 'mse plcc'"),
        ("MSE", "cannot read 'MSE'"),
        ("__import__('os')", "cannot read"),
    ],
)
def test_mistakes_in_loss_expressions_are_named(expression, message):
    with pytest.raises(ConfigError, match=message):
        parse_loss(expression)
    with pytest.raises(ConfigError, match="--loss"):
        RegressionLoss(expression)


def test_weighted_sum_over_two_targets_with_unknown_labels():
    """Target 0 knows clips 0, 1; target 1 knows clips 1, 2. The NaN rows give no loss and no gradient."""
    nan = math.nan
    p = torch.tensor([[0.5, 9.0], [1.0, 2.0], [7.0, 0.0]], requires_grad=True)
    y = torch.tensor([[0.0, nan], [3.0, 1.0], [nan, 4.0]])
    loss = RegressionLoss("2*mse + l1")(p, y)
    first = 2 * (0.25 + 4) / 2 + (0.5 + 2) / 2
    second = 2 * (1 + 16) / 2 + (1 + 4) / 2
    assert loss.item() == pytest.approx((first + second) / 2)
    loss.backward()
    assert p.grad[0, 1] == 0
    assert p.grad[2, 0] == 0
    assert p.grad.isfinite().all()


def test_no_known_label_gives_zero_that_is_connected_to_the_graph():
    p = torch.ones(3, 1, requires_grad=True)
    loss = RegressionLoss("mse + plcc + rank")(p, torch.full((3, 1), math.nan))
    loss.backward()
    assert loss.item() == 0
    assert p.grad.tolist() == [[0.0]] * 3


def test_a_nan_prediction_is_not_hidden():
    p = torch.tensor([[math.nan], [0.5]])
    assert RegressionLoss("mse")(p, torch.tensor([[0.1], [0.2]])).isnan()


def test_loss_is_float32_for_bfloat16_predictions():
    """1 + 2^-7 is the neighbour of 1 in bfloat16; its squared error 2^-14 survives only in a wider type."""
    p = torch.tensor([[1.0 + 2**-7]], dtype=torch.bfloat16)
    loss = RegressionLoss("mse")(p, torch.tensor([[1.0]], dtype=torch.float64))
    assert loss.dtype == torch.float32
    assert loss.item() == 2**-14


def test_which_losses_need_the_whole_batch():
    assert not RegressionLoss("mse + l1 + huber").batch_wise
    assert RegressionLoss("mse + 0.1*plcc").batch_wise
    assert RegressionLoss("rank").batch_wise


@pytest.mark.parametrize(("p", "y"), [((3,), (3,)), ((3, 1), (3,)), ((3, 2), (3, 1))])
def test_wrong_shapes_are_refused_instead_of_broadcast(p, y):
    with pytest.raises(ValueError, match="clips, targets"):
        RegressionLoss("mse")(torch.zeros(p), torch.zeros(y))
