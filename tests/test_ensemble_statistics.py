"""What a summary says about members by themselves: the same for every order of rows, also of a million."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lmm_ecr.ensemble import ensemble
from lmm_ecr.ensemble_options import EnsembleOptions
from lmm_ecr.ensemble_statistics import CORRELATION_ROWS, correlation_rows, mean_and_std
from lmm_ecr.ensemble_summary import collapsed_members, identical_members

UNIT = st.floats(0, 1)


@given(values=arrays(np.float64, st.integers(1, 200), elements=UNIT), seed=st.integers(0, 9))
def test_moments_do_not_depend_on_the_order(values, seed):
    mean, std = mean_and_std(values)
    assert mean == pytest.approx(values.mean(), rel=1e-12, abs=1e-15)
    assert std == pytest.approx(values.std(), rel=1e-9, abs=1e-15)
    assert mean_and_std(np.random.default_rng(seed).permutation(values)) == (mean, std)
    assert mean_and_std(np.append(values, np.nan)) == (mean, std)


def test_moments_of_narrow_and_constant_members():
    rng = np.random.default_rng(0)
    narrow = 0.7 + 1e-9 * rng.random(200_000)
    mean, std = mean_and_std(narrow)
    assert mean == pytest.approx(narrow.mean(), rel=1e-15)
    assert std == pytest.approx(np.std((narrow - 0.7) * 1e9) * 1e-9, rel=1e-6)
    assert mean_and_std(np.full(100_001, 0.7)) == (0.7, 0.0)


def test_the_rows_of_correlations_are_chosen_by_id():
    ids = np.array([f"clip{row}" for row in range(CORRELATION_ROWS + 50_000)])
    chosen = correlation_rows(pa.array(ids, pa.large_string()))
    assert len(chosen) == CORRELATION_ROWS
    shuffled = np.random.default_rng(0).permutation(ids)
    np.testing.assert_array_equal(shuffled[correlation_rows(pa.array(shuffled, pa.large_string()))], ids[chosen])
    assert 0.6 < (chosen < 75_000).mean() / 0.5 < 1.4  # not the first rows nor the last


def test_the_summary_of_a_long_table_does_not_depend_on_its_order(tmp_path):
    """Above 100,000 rows every second or third row was looked at, so that a sorted file had another mean."""
    rng = np.random.default_rng(1)
    rows = 150_001
    table = pd.DataFrame({"Id": np.arange(rows).astype(str), "a": rng.random(rows)})
    table["b"] = np.clip(table["a"] + np.where(np.arange(rows) % 2, 0.3, 0.0) * rng.random(rows), 0, 1)
    summaries = []
    for folder, order in (("first", np.arange(rows)), ("second", np.argsort(table["b"].to_numpy()))):
        (tmp_path / folder).mkdir()
        for name in "ab":
            part = table.iloc[order][["Id", name]].rename(columns={name: "ECR"})
            part.to_csv(tmp_path / folder / f"{name}.csv", index=False)
        paths = [tmp_path / folder / f"{name}.csv" for name in "ab"]
        for keep in (True, False):
            summary = ensemble(paths, EnsembleOptions(keep_members=keep)).summary
            summaries.append([summary["correlations"], [(m["mean"], m["std"]) for m in summary["members"]]])
    assert all(summary == summaries[0] for summary in summaries)
    assert summaries[0][1][0] == (pytest.approx(table["a"].mean()), pytest.approx(table["a"].std(ddof=0)))
    assert summaries[0][0]["rows"] == CORRELATION_ROWS
    assert summaries[0][0]["plcc"][0][1] == pytest.approx(table["a"].corr(table["b"]), abs=0.01)


def write(folder, **members):
    paths = []
    for name, values in members.items():
        paths.append(folder / f"{name}.csv")
        pd.DataFrame({"Id": [f"c{row}" for row in range(len(values))], "ECR": values}).to_csv(paths[-1], index=False)
    return paths


def test_every_constant_member_is_pointed_out(tmp_path):
    """The mean of 0.7 and 0.7 and 0.7 is not 0.7: only one of two constant members was found."""
    values = np.random.default_rng(0).random(300)
    half, most = np.full(300, 0.5), np.full(300, 0.7)
    for members in ({"half": half, "most": most}, {"half": half, "most": most, "x": values, "y": values**2}):
        lines = collapsed_members(ensemble(write(tmp_path, **members), EnsembleOptions()).summary)
        assert len(lines) == 2
        assert "half gives every row the same score, 0.5" in lines[0]
        assert "most gives every row the same score, 0.7" in lines[1]


@pytest.mark.parametrize("keep", [True, False])
def test_identical_members_are_pointed_out(tmp_path, keep):
    values = np.random.default_rng(0).random(50)
    paths = write(tmp_path, a=values, b=values**2, c=values, d=values**2, e=values, f=1 - values)
    pd.read_csv(paths[4]).sample(frac=1, random_state=1).to_csv(paths[4], index=False)
    summary = ensemble(paths, EnsembleOptions(keep_members=keep)).summary
    assert summary["identical_members"] == [["a", "c", "e"], ["b", "d"]]
    first, second = identical_members(summary)
    assert "a, c, e have the same predictions" in first
    assert "b, d have the same predictions" in second
    assert identical_members(ensemble(paths[:2], EnsembleOptions(keep_members=keep)).summary) == []


def test_weights_of_any_size(tmp_path):
    """1e308 three times sums to infinity: the weights became 0 and the mean None."""
    values = np.random.default_rng(0).random((3, 40))
    paths = write(tmp_path, a=values[0], b=values[1], c=values[2])
    for scale in (1e308, 5e-324, 1.0):
        result = ensemble(paths, EnsembleOptions(weights=[scale, scale, 1.0 if scale > 1 else 0.0]))
        np.testing.assert_allclose(result.combination.weights, [0.5, 0.5, 0.0], atol=1e-300)
        np.testing.assert_allclose(result.scores, values[:2].mean(axis=0))
