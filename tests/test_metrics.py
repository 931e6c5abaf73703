"""Metrics against scipy and hand-worked values; the bootstrap against a resample-by-resample loop."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lmm_ecr import bootstrap, metrics
from lmm_ecr.errors import DataError

GOLDENS = Path(__file__).resolve().parents[1] / "../shared/goldens/videollama2_av/losses_metrics.json"

coarse = st.integers(0, 6).map(lambda k: k / 6)  # few distinct values: many ties
tables = st.lists(st.tuples(coarse, coarse), min_size=2, max_size=30)


def noisy(n: int, seed: int = 0, noise: float = 0.2, decimals: int = 12) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.random(n)
    predictions = np.clip(labels + generator.normal(0, noise, n), 0, 1)
    return np.round(predictions, decimals), np.round(labels, decimals)


def test_values_worked_by_hand():
    # predictions ranks 1, 2.5, 2.5, 4; label ranks 1, 2, 4, 3
    x, y = [0.1, 0.4, 0.4, 0.9], [0.0, 0.2, 0.8, 0.6]
    # deviations of ranks: (-1.5, 0, 0, 1.5) and (-1.5, -.5, 1.5, .5): 3 / sqrt(4.5 * 5)
    assert metrics.srocc(x, y) == pytest.approx(3.0 / np.sqrt(22.5), abs=1e-15)
    # pairs: 12+ 13+ 14+ 23 tied 24+ 34-: (4 - 1) / sqrt(5 * 6)
    assert metrics.krcc(x, y) == pytest.approx(3 / np.sqrt(30), abs=1e-15)
    # squared errors .01, .04, .16, .09
    assert metrics.rmse(x, y) == pytest.approx(np.sqrt(0.30 / 4), abs=1e-15)
    # deviations (-.35, -.05, -.05, .45), (-.4, -.2, .4, .2): .22 / sqrt(.33 * .4)
    assert metrics.plcc(x, y) == pytest.approx(0.22 / np.sqrt(0.33 * 0.40), abs=1e-14)
    assert metrics.final_score(0.707, 0.714) == pytest.approx(0.7098)


@settings(deadline=None, max_examples=100)
@given(tables)
def test_agrees_with_scipy_with_ties(rows):
    x, y = np.array(rows).T
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        expected = stats.spearmanr(x, y).statistic, stats.pearsonr(x, y).statistic, stats.kendalltau(x, y).statistic
    got = metrics.srocc(x, y), metrics.plcc(x, y), metrics.krcc(x, y)
    np.testing.assert_allclose(got, expected, atol=1e-12)


@settings(deadline=None, max_examples=50)
@given(tables, st.randoms())
def test_permuting_rows_changes_no_bit(rows, random):
    shuffled = list(rows)
    random.shuffle(shuffled)
    evaluate = [metrics.evaluate_predictions(*np.array(order).T, resamples=50) for order in (rows, shuffled)]
    assert evaluate[0] == evaluate[1]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("x", "y"), [([], []), ([0.5], [0.5]), ([0.3, 0.3, 0.3], [0.1, 0.2, 0.3]), ([0.1, 0.2], [0.7, 0.7])]
)
def test_undefined_correlations_are_nan_without_warning(x, y):
    assert all(np.isnan(f(x, y)) for f in (metrics.srocc, metrics.plcc, metrics.krcc))
    result = metrics.evaluate_predictions(x, y, resamples=20)
    assert result["n"] == len(x)
    assert result["srocc"] is None
    assert result["final_score"] is None
    assert result["ci95"]["srocc"] == [None, None]
    assert (result["rmse"] is None) == (len(x) == 0)
    json.dumps(result, allow_nan=False)


def test_one_row_has_an_rmse():
    assert metrics.rmse([0.25], [0.75]) == 0.5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", metrics.METRICS[:4])
def test_a_number_that_is_not_finite_is_an_error(bad, name):
    with pytest.raises(DataError, match=r"1 of 3 predictions are not finite.*position 1"):
        getattr(metrics, name)([0.1, bad, 0.3], [0.1, 0.2, 0.3])
    with pytest.raises(DataError, match="labels are not finite"):
        getattr(metrics, name)([0.1, 0.2, 0.3], [0.1, bad, 0.3])


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="same length"):
        metrics.srocc([0.1, 0.2], [0.1])


def test_nearly_equal_and_tiny_values_are_still_ordered():
    assert metrics.plcc([1e-200, 2e-200, 3e-200], [0.1, 0.2, 0.3]) == pytest.approx(1)
    low = np.float64(0.5)
    assert metrics.srocc([low, np.nextafter(low, 1)], [0, 1]) == pytest.approx(1)


def test_goldens_of_the_reference_implementation():
    if not GOLDENS.exists():
        pytest.skip(f"{GOLDENS} is not on this machine")
    for case in json.loads(GOLDENS.read_text())["metrics"]:
        x, y = case["prediction"], case["target"]
        assert metrics.srocc(x, y) == pytest.approx(case["SROCC"], abs=1e-9)
        assert metrics.krcc(x, y) == pytest.approx(case["KRCC"], abs=1e-9)
        assert metrics.plcc(x, y) == pytest.approx(case["PLCC_plain"], abs=1e-6)
        assert metrics.rmse(x, y) == pytest.approx(case["RMSE_plain"], abs=1e-5)
        fit = metrics.plcc_logistic(x, y, scale=1)
        assert fit.plcc == pytest.approx(case["PLCC_after_logistic"], abs=5e-4)
        assert fit.rmse == pytest.approx(case["RMSE_after_logistic"], abs=2e-3)


@pytest.mark.parametrize("parameters", [4, 5])
def test_logistic_mapping_undoes_a_sigmoid(parameters):
    labels = np.random.default_rng(2).random(400)
    bent = 0.5 + 0.1 * np.log((labels * 0.98 + 0.01) / (1 - labels * 0.98 - 0.01))
    fit = metrics.plcc_logistic(bent, labels, parameters)
    assert fit.plcc == pytest.approx(1, abs=1e-6)
    assert fit.rmse == pytest.approx(0, abs=1e-4)
    assert fit.plcc > metrics.plcc(bent, labels) + 0.01
    assert len(fit.parameters) == parameters
    assert (fit.converged, fit.note) == (True, "")


@pytest.mark.filterwarnings("error")
@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(coarse, coarse), min_size=0, max_size=12), st.sampled_from([4, 5]))
def test_logistic_mapping_always_ends_with_an_answer_or_a_reason(rows, parameters):
    x, y = np.array(rows).reshape(-1, 2).T
    fit = metrics.plcc_logistic(x, y, parameters)
    if np.isnan(metrics.plcc(x, y)):
        assert np.isnan(fit.plcc)
        assert "undefined" in fit.note
        return
    assert -1 <= fit.plcc <= 1
    assert fit.converged == (fit.note == "")
    line_error = np.std(y) * np.sqrt(1 - min(1, metrics.plcc(x, y) ** 2))  # the 5-parameter form contains the line
    assert parameters == 4 or fit.rmse <= line_error + 1e-5


@pytest.mark.parametrize("decimals", [12, 1])
@pytest.mark.parametrize("n", [12, 300])
def test_bootstrap_equals_a_plain_loop(n, decimals):
    x, y = noisy(n, decimals=decimals)
    z = np.round(y**2, decimals)
    samples = bootstrap.bootstrap_samples([x, z], y, resamples=30, seed=5)
    order = np.lexsort((z, x, y))
    generator = np.random.default_rng(np.random.SeedSequence(5).spawn(2)[0])
    counts = bootstrap.draw_counts(generator, 30, n).astype(int)
    for b in range(30):
        rows = order[np.repeat(np.arange(n), counts[b])]
        assert len(rows) == n
        for c, column in enumerate((x[rows], z[rows])):
            expected = {
                "srocc": stats.spearmanr(column, y[rows]).statistic,
                "plcc": stats.pearsonr(column, y[rows]).statistic,
                "krcc": stats.kendalltau(column, y[rows]).statistic,
                "rmse": np.sqrt(np.mean((column - y[rows]) ** 2)),
            }
            for name, value in expected.items():
                assert samples[name][c, b] == pytest.approx(value, abs=1e-12), name
    np.testing.assert_allclose(samples["final_score"], 0.6 * samples["srocc"] + 0.4 * samples["plcc"])


def test_bootstrap_is_the_same_however_it_is_chunked(monkeypatch):
    x, y = noisy(100)
    whole = metrics.bootstrap_intervals(x, y, resamples=100, seed=1)
    assert whole == metrics.bootstrap_intervals(x, y, resamples=100, seed=1)
    assert whole != metrics.bootstrap_intervals(x, y, resamples=100, seed=2)
    monkeypatch.setattr(bootstrap, "CHUNK", 700)
    chunked = metrics.bootstrap_intervals(x, y, resamples=100, seed=1)
    for name in whole:
        assert chunked[name] == pytest.approx(whole[name], abs=1e-12)


def test_interval_covers_the_truth():
    """Bivariate normal with correlation r: PLCC r, SROCC 6/pi asin(r/2), tau 2/pi asin(r) (Kruskal 1958)."""
    r, n, trials = 0.6, 80, 150
    truth = {"plcc": r, "srocc": 6 / np.pi * np.arcsin(r / 2), "krcc": 2 / np.pi * np.arcsin(r)}
    generator = np.random.default_rng(7)
    covered = dict.fromkeys(truth, 0)
    for trial in range(trials):
        x = generator.normal(size=n)
        y = r * x + np.sqrt(1 - r * r) * generator.normal(size=n)
        intervals = metrics.bootstrap_intervals(x, y, resamples=300, seed=trial, metrics=("plcc", "srocc", "krcc"))
        for name, value in truth.items():
            covered[name] += intervals[name][0] <= value <= intervals[name][1]
    for name, count in covered.items():
        assert 0.87 <= count / trials <= 0.99, name


def test_krcc_interval_of_a_large_table_has_the_right_width():
    """The scaled smaller resamples against the exact bootstrap of the same rows."""
    x, y = noisy(bootstrap.KRCC_EXACT_ROWS * 2)
    low, high = metrics.bootstrap_intervals(x, y, resamples=300, metrics=("krcc",))["krcc"]
    generator = np.random.default_rng(0)
    exact = []
    for _ in range(200):
        rows = generator.integers(0, len(x), len(x))
        exact.append(stats.kendalltau(x[rows], y[rows]).statistic)
    exact_low, exact_high = np.quantile(exact, [0.025, 0.975])
    assert high - low == pytest.approx(exact_high - exact_low, rel=0.25)
    assert low < metrics.krcc(x, y) < high


@pytest.mark.parametrize("resamples", [3, 3000])
def test_intervals_of_a_large_table_have_the_right_width(monkeypatch, resamples):
    """Above EXACT_ROWS the work is bounded; widths and centres are those of the exact bootstrap, pairing is kept."""
    rng = np.random.default_rng(1)
    y = rng.random(4000).round(2)
    x = np.stack([y + 0.3 * rng.normal(size=4000), y + 0.5 * rng.normal(size=4000)])
    exact = bootstrap.bootstrap_samples(x, y, resamples=resamples)
    monkeypatch.setattr(bootstrap, "EXACT_ROWS", 2000)
    monkeypatch.setattr(bootstrap, "SUBSET_ROWS", 1000)
    bounded = bootstrap.bootstrap_samples(x, y, resamples=resamples)
    assert {name: samples.shape for name, samples in bounded.items()} == dict.fromkeys(exact, (2, resamples))
    np.testing.assert_array_equal(bounded["krcc"], exact["krcc"])
    if resamples < 100:
        return
    for name in ("srocc", "plcc", "rmse", "final_score"):
        np.testing.assert_allclose(bounded[name].std(axis=1), exact[name].std(axis=1), rtol=0.08, err_msg=name)
        gap = np.abs(bounded[name].mean(axis=1) - exact[name].mean(axis=1))
        assert (gap < 0.2 * exact[name].std(axis=1)).all(), name
        differences = [samples[name][0] - samples[name][1] for samples in (bounded, exact)]
        assert differences[0].std() == pytest.approx(differences[1].std(), rel=0.08)


def test_paired_bootstrap_sees_a_difference_single_intervals_do_not():
    generator = np.random.default_rng(3)
    labels = generator.random(400)
    shared = labels + generator.normal(0, 0.4, 400)
    better, worse = shared + generator.normal(0, 0.02, 400), shared + generator.normal(0, 0.25, 400)
    result = metrics.paired_bootstrap(better, worse, labels)
    a, b = (metrics.evaluate_predictions(p, labels) for p in (better, worse))
    assert a["ci95"]["final_score"][0] < b["ci95"]["final_score"][1]  # the single intervals overlap
    assert result.difference == pytest.approx(a["final_score"] - b["final_score"], abs=1e-12)
    assert 0 < result.low < result.difference < result.high
    assert result.p_value < 0.05
    back = metrics.paired_bootstrap(worse, better, labels)
    assert back.difference == -result.difference
    assert back.p_value == result.p_value


def test_paired_bootstrap_of_identical_predictions():
    x, y = noisy(50)
    result = metrics.paired_bootstrap(x, x, y, metric="krcc", resamples=50)
    assert (result.difference, result.low, result.high, result.p_value) == (0, 0, 0, 1)
    with pytest.raises(ValueError, match="metric is 'auc'"):
        metrics.paired_bootstrap(x, x, y, metric="auc")


def test_paired_p_value_is_uniform_enough_when_nothing_differs():
    generator = np.random.default_rng(11)
    below = 0
    for trial in range(150):
        labels = generator.random(60)
        a, b = (labels + generator.normal(0, 0.3, 60) for _ in range(2))
        below += metrics.paired_bootstrap(a, b, labels, resamples=200, seed=trial).p_value < 0.1
    assert 0.03 <= below / 150 <= 0.19


def test_evaluate_predictions_has_the_contract_keys():
    x, y = noisy(200)
    result = metrics.evaluate_predictions(x, y)
    assert set(result) == {"n", "srocc", "plcc", "krcc", "rmse", "final_score", "ci95"}
    assert result == metrics.evaluate_predictions(x, y)
    for name in metrics.METRICS:
        low, high = result["ci95"][name]
        assert low < result[name] < high
    wider = metrics.evaluate_predictions(x, y, confidence=0.99)["ci95"]["srocc"]
    assert wider[0] < result["ci95"]["srocc"][0]
    assert wider[1] > result["ci95"]["srocc"][1]
    assert metrics.evaluate_predictions(x, y, resamples=0)["ci95"]["plcc"] == [None, None]
    with pytest.raises(ValueError, match="confidence is 95"):
        metrics.evaluate_predictions(x, y, confidence=95)
