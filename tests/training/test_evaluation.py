"""Metrics during training and the alarms about predictions that are of no use."""

import math

import numpy as np
import pytest
from scipy import stats

from lmm_ecr.training.evaluation import prediction_alarm, regression_metrics

RNG = np.random.default_rng(0)
LABELS = RNG.uniform(size=200)
GOOD = LABELS + RNG.normal(0, 0.1, 200)


def column(values):
    return np.asarray(values, dtype=np.float64)[:, None]


def test_metrics_are_scipys():
    metrics, alarms = regression_metrics(column(GOOD), column(LABELS), ["ECR"])
    srocc, plcc = stats.spearmanr(GOOD, LABELS).statistic, stats.pearsonr(GOOD, LABELS).statistic
    assert metrics == {
        "srocc": pytest.approx(srocc),
        "plcc": pytest.approx(plcc),
        "krcc": pytest.approx(stats.kendalltau(GOOD, LABELS).statistic),
        "rmse": pytest.approx(np.sqrt(np.mean((GOOD - LABELS) ** 2))),
        "final_score": pytest.approx(0.6 * srocc + 0.4 * plcc),
    }
    assert alarms == []


def test_targets_have_their_own_names_and_rows():
    """The first target is plain, the others are prefixed; unknown labels leave a row out for that target only."""
    predictions = np.stack([GOOD, -GOOD], axis=1)
    labels = np.stack([LABELS, LABELS], axis=1)
    labels[:150, 1] = math.nan
    labels[10, 0] = math.nan
    metrics, alarms = regression_metrics(predictions, labels, ["ECR", "NAWP"])
    assert set(metrics) == {p + n for p in ("", "NAWP_") for n in ("srocc", "plcc", "krcc", "rmse", "final_score")}
    assert metrics["NAWP_srocc"] == pytest.approx(-stats.spearmanr(GOOD[150:], LABELS[150:]).statistic)
    keep = np.arange(200) != 10
    assert metrics["srocc"] == pytest.approx(stats.spearmanr(GOOD[keep], LABELS[keep]).statistic)
    assert alarms == []


def test_constant_predictions_raise_an_alarm_and_never_win():
    metrics, alarms = regression_metrics(column(np.full(200, 0.5)), column(LABELS), ["ECR"])
    assert alarms == ["ECR: all predictions equal 0.5000; correlations are undefined and count as -1"]
    assert [metrics[k] for k in ("srocc", "plcc", "krcc", "final_score")] == [-1.0] * 4
    assert metrics["rmse"] == pytest.approx(np.sqrt(np.mean((0.5 - LABELS) ** 2)))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_predictions_that_are_no_numbers_raise_an_alarm_not_an_error(bad):
    predictions = GOOD.copy()
    predictions[[3, 7]] = bad
    metrics, alarms = regression_metrics(column(predictions), column(LABELS), ["ECR"])
    assert alarms == ["ECR: 2 of 200 predictions are NaN or infinite"]
    assert metrics["final_score"] == -1.0
    assert math.isnan(metrics["rmse"])


def test_a_bad_prediction_without_a_label_does_not_matter():
    predictions, labels = GOOD.copy(), LABELS.copy()
    predictions[5] = labels[5] = math.nan
    metrics, alarms = regression_metrics(column(predictions), column(labels), ["ECR"])
    assert alarms == []
    assert metrics["final_score"] > 0.5


def test_collapsed_predictions():
    """Their spread is a hundredth of the labels': the ranking may be perfect, the scores are not."""
    alarm = prediction_alarm(0.5 + 0.01 * LABELS, LABELS)
    assert alarm.startswith("predictions have collapsed: their spread 0.00")
    assert prediction_alarm(0.5 + 0.2 * LABELS, LABELS) is None


def test_ties_of_low_precision():
    """Rounded to steps of 1/128 the 200 predictions have some ties, to steps of 1/16 most are ties."""
    assert prediction_alarm(np.round(GOOD * 128) / 128, LABELS) is None
    alarm = prediction_alarm(np.round(GOOD * 16) / 16, LABELS)
    assert alarm.endswith("% of the predictions are ties; was the head run in low precision?")


def test_labels_that_are_all_equal_are_said_so():
    """Bug: the metrics were -1 and nothing told why."""
    metrics, alarms = regression_metrics(column(GOOD), column(np.full(200, 0.25)), ["ECR"])
    assert alarms == ["ECR: all labels equal 0.2500; correlations are undefined and count as -1"]
    assert metrics["final_score"] == -1.0
    assert metrics["rmse"] > 0


def test_no_labelled_clip():
    metrics, alarms = regression_metrics(np.zeros((4, 1)), np.full((4, 1), math.nan), ["ECR"])
    assert alarms == ["ECR: no labelled clip was evaluated"]
    assert metrics["final_score"] == -1.0
    metrics, alarms = regression_metrics(np.zeros((0, 1)), np.zeros((0, 1)), ["ECR"])
    assert alarms == ["ECR: no labelled clip was evaluated"]


@pytest.mark.parametrize("rows", [1, 2])
def test_tiny_evaluations_do_not_crash(rows):
    metrics, _ = regression_metrics(column(GOOD[:rows]), column(LABELS[:rows]), ["ECR"])
    assert metrics["rmse"] == pytest.approx(np.sqrt(np.mean((GOOD[:rows] - LABELS[:rows]) ** 2)))
    assert -1 <= metrics["final_score"] <= 1
