"""Calibration maps, conformal coverage on held-out rows, reliability by hand, and the file."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmm_ecr import calibration
from lmm_ecr.calibration import Calibration, reliability
from lmm_ecr.errors import ConfigError, DataError


def overconfident(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores spread too far from 1/2 around the labels' expectation."""
    generator = np.random.default_rng(seed)
    expectation = generator.beta(4, 4, n)
    labels = np.clip(expectation + generator.normal(0, 0.1, n), 0, 1)
    return np.clip(0.5 + 1.8 * (expectation - 0.5), 0, 1), labels


@pytest.mark.parametrize("method", ["isotonic", "logistic"])
def test_recalibration_halves_the_error_on_new_rows(method):
    fitted = Calibration.fit(*overconfident(2000), method)
    values, labels = overconfident(2000, seed=1)
    before, after = reliability(values, labels).error, reliability(fitted.apply(values), labels).error
    assert before > 0.08
    assert after < before / 2


@pytest.mark.parametrize("method", calibration.METHODS)
@pytest.mark.parametrize("level", [0.5, 0.9])
def test_coverage_is_what_was_promised(method, level):
    """Average over tables of the share of covered new labels: between level and level + 1 / (n + 1), up to noise."""
    shares = []
    for seed in range(60):
        values, labels = overconfident(400, seed)
        fitted = Calibration.fit(values[:200], labels[:200], method, seed=seed)
        low, high = fitted.interval(values[200:], level)
        assert 0 <= low.min() <= high.max() <= 1
        assert (low <= high).all()
        shares.append(np.mean((labels[200:] >= low) & (labels[200:] <= high)))
    standard_error = np.std(shares) / np.sqrt(len(shares))
    assert level - 3 * standard_error < np.mean(shares) < level + 0.02 + 3 * standard_error


def test_the_quantile_by_hand():
    """Residuals 0.01, 0.02, ..., 0.20: n = 20; level 0.9 takes rank ceil(21 * 0.9) = 19, level 20/21 rank 20."""
    values = np.full(20, 0.5)
    labels = 0.5 + np.arange(1, 21) / 100
    fitted = Calibration.fit(values, labels, "identity")
    assert fitted.half_width(0.9) == pytest.approx(0.19)
    assert fitted.half_width(20 / 21) == pytest.approx(0.20)
    assert fitted.half_width(0.01) == pytest.approx(0.01)
    low, high = fitted.interval([0.5, 0.95], 0.9)
    assert low == pytest.approx([0.31, 0.76])
    assert high == pytest.approx([0.69, 1.0])
    with pytest.raises(ConfigError, match=r"needs at least 99 held-out calibration rows, this calibration has 20"):
        fitted.half_width(0.99)
    for level in (0, 1, 90, -0.5):
        with pytest.raises(ConfigError, match="not between 0 and 1"):
            fitted.half_width(level)


def test_thinned_residuals_round_outwards(monkeypatch):
    values, labels = overconfident(500)
    exact = Calibration.fit(values, labels, "identity")
    monkeypatch.setattr(calibration, "STORED_RESIDUALS", 50)
    thinned = Calibration.fit(values, labels, "identity")
    assert len(thinned.residuals) == 50
    for level in np.linspace(0.01, 0.99, 99):
        assert exact.half_width(level) <= thinned.half_width(level) <= exact.half_width(min(level + 0.025, 0.998))


def test_isotonic_by_hand(monkeypatch):
    """Scores 0, 1/2, 1 in equal numbers, mean labels 0.2, 0.1, 0.9: the first two are pooled at (1/4, 0.15)."""
    x, y = np.repeat([0.0, 0.5, 1.0], 10), np.repeat([0.2, 0.1, 0.9], 10)
    parameters = calibration._fit_isotonic(x, y)
    assert parameters["x"] == pytest.approx([0.25, 1.0])
    assert parameters["y"] == pytest.approx([0.15, 0.9])


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=40, max_size=60),
    st.lists(st.floats(-2, 2), min_size=2),
    st.sampled_from(calibration.METHODS),
    st.randoms(),
)
def test_maps_are_monotone_bounded_and_blind_to_row_order(rows, new, method, random):
    fitted = Calibration.fit(*np.array(rows).T, method)
    mapped = fitted.apply(np.sort(new))
    assert (np.diff(mapped) >= -1e-15).all()
    assert 0 <= mapped.min() <= mapped.max() <= 1
    random.shuffle(rows)
    assert (Calibration.fit(*np.array(rows).T, method).apply(np.sort(new)) == mapped).all()


@pytest.mark.parametrize("method", calibration.METHODS)
def test_file_round_trip_is_exact(tmp_path, method):
    fitted = Calibration.fit(*overconfident(300), method, target="NAWP")
    fitted.save(tmp_path / "c.json")
    loaded = Calibration.load(tmp_path / "c.json")
    values = np.random.default_rng(5).random(50)
    assert (loaded.apply(values) == fitted.apply(values)).all()
    assert loaded.half_width(0.8) == fitted.half_width(0.8)
    assert (loaded.method, loaded.target, loaded.fitted_rows, loaded.conformal_rows) == (
        method,
        "NAWP",
        0 if method == "identity" else 150,
        300 if method == "identity" else 150,
    )


def test_files_that_are_not_calibrations(tmp_path):
    path = tmp_path / "c.json"
    with pytest.raises(ConfigError, match=r"c\.json: cannot be read"):
        Calibration.load(path)
    for content in ("", "[]", "{}", '{"format": "lmm_ecr.calibration", "version": 1}'):
        path.write_text(content)
        with pytest.raises(ConfigError, match="not a calibration file"):
            Calibration.load(path)
    Calibration.fit(*overconfident(100)).save(path)
    good = json.loads(path.read_text())
    for change in (
        {"version": 2},
        {"method": "spline"},
        {"map": {"x": [0, 1], "y": [0.9, 0.1]}},
        {"conformal": {"rows": 3, "ranks": [1, 2], "residuals": [0.1, 0.2]}},
        {"conformal": {"rows": 2, "ranks": [1, 2], "residuals": [0.3, 0.2]}},
    ):
        path.write_text(json.dumps(good | change))
        with pytest.raises(ConfigError, match=r"c\.json|choose one of"):
            Calibration.load(path)


def test_what_cannot_be_calibrated():
    with pytest.raises(DataError, match="30 rows with labels are too few"):
        Calibration.fit(*overconfident(30))
    with pytest.raises(DataError, match=r"score 1 is nan"):
        Calibration.fit([0.1, np.nan], [0.1, 0.2])
    with pytest.raises(DataError, match=r"from 0\.0 to 2\.0"):
        Calibration.fit(np.zeros(50), np.repeat([0, 2], 25))
    with pytest.raises(ConfigError, match="choose one of"):
        Calibration.fit(*overconfident(50), "platt")
    with pytest.raises(DataError, match="score 0 is inf"):
        Calibration.fit(*overconfident(50)).apply([np.inf])


def test_reliability_by_hand():
    curve = reliability([0.1, 0.3, 0.6, 0.8], [0.0, 0.2, 0.9, 0.9], bins=2)
    assert curve.counts.tolist() == [2, 2]
    assert curve.mean_prediction == pytest.approx([0.2, 0.7])
    assert curve.mean_label == pytest.approx([0.1, 0.9])
    assert curve.standard_error == pytest.approx([0.1, 0.0])  # std 0.1 * sqrt(2), over sqrt(2)
    assert curve.error == pytest.approx(0.15)
    assert curve.bias == pytest.approx(-0.05)


def test_reliability_keeps_ties_together_and_takes_tiny_tables():
    curve = reliability([0.5] * 30 + [0.9] * 10, np.linspace(0, 1, 40), bins=10)
    assert curve.counts.tolist() == [30, 10]
    assert reliability([0.5], [0.7]).counts.tolist() == [1]
    assert reliability([], []).counts.tolist() == []
    assert np.isnan(reliability([], []).error)
