"""Pooling and regression head: padding never matters, and the score is computed in float32."""

import pytest
import torch

from lmm_ecr.errors import ConfigError
from lmm_ecr.models.head import POOLINGS, Pooling, RegressionHead

HIDDEN = 6


def ragged(dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.randn(length, HIDDEN).to(dtype) for length in (5, 1, 3)]


def padded(rows, side, width=7, fill=float("nan")):
    """The rows in one tensor [batch, width, hidden] with `fill` in the padding, and the mask."""
    states = torch.full((len(rows), width, rows[0].shape[1]), fill, dtype=rows[0].dtype)
    mask = torch.zeros(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        span = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        states[i, span], mask[i, span] = row, 1
    return states, mask


def pooling(kind):
    module = Pooling(kind, HIDDEN)
    if module.query is not None:
        torch.manual_seed(1)
        torch.nn.init.normal_(module.query)
    return module


def by_hand(kind, row, query=None):
    row = row.double()
    if kind == "last":
        return row[-1]
    if kind == "mean":
        return row.sum(0) / len(row)
    weights = torch.exp(row @ query.double() / HIDDEN**0.5)
    return (weights[:, None] * row).sum(0) / weights.sum()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", POOLINGS)
def test_pooling_by_hand_whatever_the_padding_holds(kind, side):
    """NaN in the padding must not reach a score: it does happen with attention kernels that skip masked rows."""
    module = pooling(kind)
    rows = ragged()
    pooled = module(*padded(rows, side))
    assert pooled.shape == (3, HIDDEN)
    assert pooled.dtype == torch.float32
    expected = torch.stack([by_hand(kind, row, module.query) for row in rows])
    torch.testing.assert_close(pooled, expected.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", POOLINGS)
def test_gradients_stay_finite_and_off_the_padding(kind, side):
    states, mask = padded(ragged(), side, fill=float("inf"))
    states.requires_grad_()
    module = pooling(kind)
    module(states, mask).square().sum().backward()
    assert states.grad.isfinite().all()
    assert (states.grad[mask == 0] == 0).all()
    if module.query is not None:
        assert module.query.grad.isfinite().all()


@pytest.mark.parametrize("kind", POOLINGS)
def test_a_row_pools_the_same_alone_and_in_a_batch(kind):
    module, rows = pooling(kind), ragged()
    together = module(*padded(rows, "right", width=9))
    for row, pooled in zip(rows, together, strict=True):
        torch.testing.assert_close(module(*padded([row], "left", width=len(row)))[0], pooled, rtol=0, atol=1e-6)


def test_attention_pooling_starts_as_the_mean():
    states, mask = padded(ragged(), "right")
    torch.testing.assert_close(
        Pooling("attention", HIDDEN)(states, mask), Pooling("mean", HIDDEN)(states, mask), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("kind", POOLINGS)
@pytest.mark.parametrize("autocast", [False, True])
def test_pooling_of_bfloat16_states_is_computed_in_float32(kind, autocast):
    """The mean of 1 and 1 + 2^-7 lies between two bfloat16 numbers."""
    rows = [torch.tensor([[1.0] * HIDDEN, [1.0 + 2**-7] * HIDDEN]).to(torch.bfloat16)]
    module = Pooling(kind, HIDDEN).to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        pooled = module(*padded(rows, "right"))
    assert pooled.dtype == torch.float32
    expected = 1 + (2**-7 if kind == "last" else 2**-8)
    assert pooled[0].tolist() == pytest.approx([expected] * HIDDEN, rel=1e-7)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_head_computes_in_float32_under_bfloat16_weights_and_autocast(weights, autocast):
    """A bfloat16 head ties scores: 1000 close inputs must give 1000 different, exact outputs."""
    torch.manual_seed(0)
    head = RegressionHead(HIDDEN, 16, dropout=0.0).to(weights)
    features = torch.ones(1000, HIDDEN) * torch.linspace(1, 1.01, 1000)[:, None]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        scores = head(features)
    assert scores.dtype == torch.float32
    w1, b1, w2, b2 = (p.double() for p in (head.fc1.weight, head.fc1.bias, head.fc2.weight, head.fc2.bias))
    expected = (features.double() @ w1.T + b1).relu() @ w2.T + b2
    torch.testing.assert_close(scores.double(), expected, rtol=1e-6, atol=1e-6)
    assert scores.unique().numel() > 900


def test_head_has_one_score_per_target_and_trains_in_any_dtype():
    head = RegressionHead(HIDDEN, 16, num_targets=3, dropout=0.0).to(torch.bfloat16)
    scores = head(torch.randn(4, HIDDEN, dtype=torch.bfloat16))
    assert scores.shape == (4, 3)
    scores.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_dropout_acts_in_training_only():
    head = RegressionHead(HIDDEN, 64, dropout=0.5)
    features = torch.randn(2, HIDDEN)
    torch.manual_seed(0)
    first, second = head(features), head(features)
    assert not torch.equal(first, second)
    head.eval()
    assert torch.equal(head(features), head(features))


def test_unknown_pooling_is_refused_with_the_choices():
    with pytest.raises(ConfigError, match="'max' is unknown; choose one of mean, last, attention"):
        Pooling("max", HIDDEN)
