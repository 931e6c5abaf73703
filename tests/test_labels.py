"""Labels from watch logs: values worked out by hand, and the promise that order, chunks and file format change
nothing."""

import gzip
import json
import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from typer.testing import CliRunner

from lmm_ecr.cli import app
from lmm_ecr.errors import ConfigError, DataError, LmmEcrError
from lmm_ecr.labels import (
    compute_labels,
    describe,
    fit_top_watch_line,
    normalised_watch,
    rank_normalise,
    wilson_interval,
)
from lmm_ecr.watch_logs import LogFormat
from lmm_ecr.watch_totals import add_up

RELAXED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write_log(path, rows, header="Id,watch_seconds,duration"):
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n", encoding="utf-8")
    return path


def test_a_small_log_by_hand(tmp_path):
    """b: 2, 5 and 8 s of a 10 s video: AWT 5, and only the 8 s view exceeds 5 s, so ECR 1/3. a: 6, 12 (a loop): AWT
    9, ECR 1. c has one view and is left out. Two videos give no line: the larger AWT / d is a's 9 / 10, so NAWP is
    AWT / (0.9 d)."""
    log = write_log(
        tmp_path / "log.csv",
        [("b", 2, 10), ("a", 6, 10), ("b", 5, 10), ("a", 12, 10), ("c", 9, 20), ("b", 8, 10)],
    )
    labels = compute_labels([log], min_views=2)
    assert labels.columns["Id"] == ["a", "b"]
    assert labels.columns["views"].tolist() == [2, 3]
    assert labels.columns["AWT"].tolist() == [9.0, 5.0]
    assert labels.columns["ECR"].tolist() == [1.0, 1 / 3]
    assert labels.columns["ECR_rank"].tolist() == [1.0, 0.0]
    np.testing.assert_allclose(labels.columns["NAWP"], [1.0, 5 / 9], rtol=1e-15)
    assert labels.columns["duration"].tolist() == [10.0, 10.0]
    summary = labels.summary
    assert (summary["rows"], summary["videos_seen"], summary["videos"]) == (6, 3, 2)
    assert summary["videos_below_min_views"] == 1
    assert summary["looped_rows"] == 1
    assert (summary["line_kind"], summary["beta"]) == ("proportional", 0.0)
    assert summary["alpha"] == pytest.approx(0.9)


def test_wilson_interval_is_that_of_scipy():
    for successes, trials in [(0, 1), (1, 1), (0, 2000), (2000, 2000), (733, 2000), (1, 3)]:
        lower, upper = wilson_interval([successes], [trials])
        expected = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
        assert lower[0] == pytest.approx(expected.low, abs=1e-12)
        assert upper[0] == pytest.approx(expected.high, abs=1e-12)
        assert 0 <= lower[0] <= successes / trials <= upper[0] <= 1


def test_the_line_of_nawp_recovers_a_planted_one():
    """In each second of duration 200 videos; the best 6 (3 %) watch exactly 0.7 d + 2 seconds, the others less."""
    duration = np.repeat(np.arange(5.0, 60.0), 200)
    reference = 0.7 * duration + 2
    awt = np.where(np.arange(len(duration)) % 200 < 6, reference, reference * 0.4)
    line = fit_top_watch_line(duration, awt)
    assert (line.kind, line.groups, line.videos) == ("line", 55, 55 * 6)
    assert line.alpha == pytest.approx(0.7, abs=1e-12)
    assert line.beta == pytest.approx(2.0, abs=1e-10)
    nawp = normalised_watch(awt, duration, line)
    np.testing.assert_allclose(nawp, np.where(np.arange(len(duration)) % 200 < 6, 1.0, 0.4), rtol=1e-12)


def test_sparse_durations_are_joined_into_groups():
    """100 videos, one per second of duration: groups of 34 need 34 seconds each; the 32 left over join the last
    group."""
    line = fit_top_watch_line(np.arange(1.0, 101.0), np.linspace(1, 50, 100))
    assert (line.groups, line.videos) == (2, 1 + 2)


@pytest.mark.parametrize("awt", [[0.0, 0.0, 0.0], [3.0, 0.0, 1.0]])
def test_few_videos_still_have_a_nawp_between_0_and_1(awt):
    duration = np.array([10.0, 20.0, 30.0])
    line = fit_top_watch_line(duration, np.array(awt))
    nawp = normalised_watch(np.array(awt), duration, line)
    assert line.kind == "proportional"
    assert nawp.min() == 0
    assert nawp.max() == (1 if max(awt) else 0)


def test_rank_normalise_ties_and_single():
    assert rank_normalise(np.array([0.2, 0.9, 0.2, 0.5])).tolist() == [1 / 6, 1.0, 1 / 6, 2 / 3]
    assert rank_normalise(np.array([0.3])).tolist() == [0.5]


LOG_ROWS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", "d é", 'e"', "f,g"]),
        st.floats(0, 60, allow_subnormal=False).map(lambda seconds: round(seconds, 3)),
    ),
    min_size=1,
    max_size=60,
)
DURATIONS = {"a": 7.5, "b": 10.0, "c": 10.0, "d é": 31.25, 'e"': 5.0, "f,g": 59.9}


@RELAXED
@given(rows=LOG_ROWS, seed=st.integers(0, 2**31), chunk_rows=st.integers(1, 70), cut=st.integers(0, 60))
def test_order_chunks_files_and_format_change_nothing(tmp_path, rows, seed, chunk_rows, cut):
    table = pd.DataFrame(rows, columns=["Id", "watch_seconds"])
    table["duration"] = table["Id"].map(DURATIONS)
    table.to_csv(tmp_path / "log.csv", index=False)
    reference = compute_labels([tmp_path / "log.csv"], min_views=1)
    shuffled = table.sample(frac=1, random_state=seed)
    shuffled.iloc[:cut].to_parquet(tmp_path / "one.parquet")
    shuffled.iloc[cut:].to_csv(tmp_path / "two.csv", index=False)
    other = compute_labels([tmp_path / "two.csv", tmp_path / "one.parquet"], min_views=1, chunk_rows=chunk_rows)
    assert other.columns["Id"] == reference.columns["Id"]
    for name in reference.columns:
        np.testing.assert_array_equal(other.columns[name], reference.columns[name], err_msg=name)
    assert other.summary == reference.summary


def test_sums_agree_with_pandas_over_many_merges(tmp_path, monkeypatch):
    """More partial sums than one merge holds, so that states are merged with states."""
    monkeypatch.setattr("lmm_ecr.watch_totals._MERGE_ROWS", 50)
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {"Id": rng.integers(0, 97, 5000).astype(str), "watch_seconds": rng.exponential(6, 5000).round(3)}
    )
    table["duration"] = 12.0
    table.to_csv(tmp_path / "log.csv", index=False)
    totals = add_up([tmp_path / "log.csv"], chunk_rows=61)
    expected = table.groupby("Id")["watch_seconds"]
    assert totals.ids == sorted(set(table["Id"]))
    assert totals.views.tolist() == expected.count().tolist()
    np.testing.assert_allclose(totals.watch_microseconds / 1e6, expected.sum(), rtol=1e-12)
    assert totals.views_beyond.tolist() == expected.apply(lambda watch: (watch > 5).sum()).tolist()


BAD_ROWS = {
    "empty_id": (("", 3, 10), "id is empty"),
    "watch_not_a_number": (("a", "soon", 10), "not a finite number"),
    "watch_negative": (("a", -0.5, 10), "negative"),
    "watch_too_long": (("a", 2e6, 10), "milliseconds"),
    "duration_not_a_number": (("a", 3, "nan"), "not a finite number"),
    "duration_not_positive": (("a", 3, 0), "not above 0"),
    "duration_too_long": (("a", 3, 1e7), "milliseconds"),
    "malformed_row": (("a", 3), "2 fields"),
}


@pytest.mark.parametrize("reason", BAD_ROWS)
def test_a_row_that_cannot_be_used_is_named_or_counted(tmp_path, reason):
    row, words = BAD_ROWS[reason]
    log = write_log(tmp_path / "log.csv", [("a", 3, 10), ("a", 4, 10), row, ("a", 8, 10)])
    with pytest.raises(DataError, match=words) as caught:
        compute_labels([log], min_views=1)
    assert str(log) in str(caught.value)
    assert "row 3:" in str(caught.value)
    labels = compute_labels([log], min_views=1, log_format=LogFormat(on_error="skip"))
    assert labels.summary["skipped_rows"] == {reason: 1}
    assert labels.summary["rows"] == 4
    assert labels.columns["views"].tolist() == [3]
    assert labels.columns["AWT"].tolist() == [5.0]


def test_an_empty_cell_of_a_parquet_log_is_named(tmp_path):
    table = pa.table({"Id": ["a", "a"], "watch_seconds": [1.0, None], "duration": [9.0, 9.0]})
    pa.parquet.write_table(table, tmp_path / "log.parquet")
    with pytest.raises(DataError, match=r"log.parquet, row 2: the watch time is not a finite number"):
        compute_labels([tmp_path / "log.parquet"], min_views=1)


def test_durations_that_contradict_each_other(tmp_path):
    one = write_log(tmp_path / "one.csv", [("a", 3, 10), ("b", 3, 7), ("a", 3, 10.05)])
    two = write_log(tmp_path / "two.csv", [("b", 3, 7), ("a", 4, 12.5)])
    with pytest.raises(DataError, match=r"two.csv, row 2: video 'a' has a duration of 12.5 s, earlier rows say 10 s"):
        compute_labels([one, two], min_views=1)
    labels = compute_labels([one, two], min_views=1, log_format=LogFormat(on_error="skip"))
    assert labels.columns["Id"] == ["b"]
    assert labels.summary["videos_with_contradicting_durations"] == 1
    assert labels.summary["videos_seen"] == 2
    within = compute_labels([one], min_views=1)
    assert within.columns["duration"].tolist() == [10.05, 7.0]


def test_files_that_are_no_watch_logs(tmp_path):
    empty = tmp_path / "empty.csv"
    empty.write_bytes(b"")
    header = write_log(tmp_path / "header.csv", [])
    wrong = write_log(tmp_path / "wrong.csv", [("a", 1, 2)], "Id,watch_second,duration")
    twice = write_log(tmp_path / "twice.csv", [("a", 1, 2, 3)], "Id,watch_seconds,duration,duration")
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"Id,watch_seconds,duration\n\xff\xfe,1,2\n")
    fake = tmp_path / "fake.parquet"
    fake.write_bytes(b"PAR0")
    good = write_log(tmp_path / "good.csv", [("a", 1, 2)])
    for paths, words in [
        ([], "no watch log"),
        ([tmp_path / "nowhere.csv"], "cannot be read"),
        ([empty], "empty"),
        ([header], "no rows"),
        ([wrong], r"did you mean 'watch_second'.*--watch-column"),
        ([twice], "2 times"),
        ([binary], "cannot be read as a watch log"),
        ([fake], "cannot be read as a watch log"),
        ([good, tmp_path / "." / "good.csv"], "given twice"),
    ]:
        with pytest.raises(DataError, match=words):
            compute_labels(paths, min_views=1)
    with pytest.raises(
        DataError, match=r"none of the 1 videos has 2000 views.*the most watched one has 1.*--min-views"
    ):
        compute_labels([good])
    for settings_ in [{"min_views": 0}, {"ecr_seconds": -1.0}, {"ecr_seconds": float("nan")}, {"chunk_rows": 0}]:
        with pytest.raises(ConfigError):
            compute_labels([good], **settings_)
    with pytest.raises(ConfigError, match="three different"):
        LogFormat(watch_column="Id")
    with pytest.raises(ConfigError, match="stop or skip"):
        LogFormat(on_error="ignore")


@RELAXED
@given(
    text=st.one_of(
        st.text(max_size=200),
        st.lists(st.text(alphabet='a1.,"\n -nif', max_size=20)).map(
            lambda lines: "\n".join(["Id,watch_seconds,duration", *lines])
        ),
    ),
    on_error=st.sampled_from(["stop", "skip"]),
)
def test_no_text_crashes_the_reader(tmp_path, text, on_error):
    log = tmp_path / "log.csv"
    log.write_bytes(text.encode("utf-8", errors="surrogatepass"))
    try:
        labels = compute_labels([log], min_views=1, log_format=LogFormat(on_error=on_error))
    except LmmEcrError:
        return
    for name in ("ECR", "ECR_lo", "ECR_hi", "NAWP", "ECR_rank"):
        assert ((labels.columns[name] >= 0) & (labels.columns[name] <= 1)).all()
    assert (labels.columns["AWT"] >= 0).all()


def test_the_command(tmp_path):
    log = write_log(tmp_path / "log.csv", [("a", 6, 10), ("b", 2, 12), ("a", 7, 10)], "clip,seen,length")
    output, summary = tmp_path / "labels.csv", tmp_path / "labels.json"
    arguments = ["labels", str(log), "--output", str(output), "--json", str(summary), "--min-views", "1"]
    arguments += ["--id-column", "clip", "--watch-column", "seen", "--duration-column", "length"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "2 videos with at least 1 views" in result.output
    table = pd.read_csv(output)
    assert list(table) == ["Id", "views", "AWT", "ECR", "ECR_lo", "ECR_hi", "NAWP", "ECR_rank", "duration"]
    assert table["ECR"].tolist() == [1.0, 0.0]
    assert json.loads(summary.read_text())["alpha"] > 0
    again = CliRunner().invoke(app, arguments)
    assert isinstance(again.exception, DataError)
    assert "--force" in str(again.exception)
    assert CliRunner().invoke(app, [*arguments, "--force"]).exit_code == 0
    onto_input = [*arguments[:3], str(log), *arguments[4:], "--force"]
    assert "one of the inputs" in str(CliRunner().invoke(app, onto_input).exception)


def test_compressed_logs_give_the_same_labels(tmp_path):
    rows = [(video, k % 13, 10) for k in range(500) for video in ("a", "b")]
    log = write_log(tmp_path / "log.csv", rows, header="\ufeffId,watch_seconds,duration")
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(log.read_bytes()))
    (tmp_path / "broken.csv.gz").write_bytes(gzip.compress(log.read_bytes())[:-8])
    plain, compressed = (compute_labels([tmp_path / name], min_views=2) for name in ("log.csv", "log.csv.gz"))
    assert compressed.summary == plain.summary
    assert compressed.columns["AWT"].tolist() == plain.columns["AWT"].tolist()
    with pytest.raises(DataError, match=r"broken\.csv\.gz: cannot be read"):
        compute_labels([tmp_path / "broken.csv.gz"], min_views=2)
    log.rename(tmp_path / "plain.csv.gz")
    with pytest.raises(DataError, match=r"plain\.csv\.gz: cannot be read"):
        compute_labels([tmp_path / "plain.csv.gz"], min_views=2)


def test_bad_rows_of_a_compressed_log_are_named(tmp_path):
    log = write_log(tmp_path / "log.csv", [("a", 1, 10), ("a", "x", 10)])
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(log.read_bytes()))
    with pytest.raises(DataError, match=r"log\.csv\.gz, row 2: the watch time is not a finite number"):
        compute_labels([tmp_path / "log.csv.gz"], min_views=1)


@pytest.mark.parametrize("number", ["１２", "٣", "1_0", "१"])
def test_digits_of_other_scripts_are_not_numbers(tmp_path, number):
    """As in prediction tables: what one reader takes and the next refuses is no number."""
    log = write_log(tmp_path / "log.csv", [("a", 1, 10), ("a", number, 10)])
    with pytest.raises(DataError, match=r"row 2: the watch time is not a finite number"):
        compute_labels([log], min_views=1)


def test_logs_that_can_be_read_only_once_are_refused(tmp_path):
    os.mkfifo(tmp_path / "log.csv")
    for path, words in ((tmp_path / "log.csv", "read only once"), ("-", "not read from standard input")):
        with pytest.raises(DataError, match=words):
            compute_labels([path], min_views=1)


def test_a_line_fitted_before_is_used_as_it_is(tmp_path):
    log = write_log(tmp_path / "log.csv", [("a", 6, 10), ("a", 12, 10), ("b", 9, 20)])
    labels = compute_labels([log], min_views=1, line=(0.5, 13.0))
    np.testing.assert_allclose(labels.columns["NAWP"], [9 / 18, 9 / 23], rtol=1e-15)
    summary = labels.summary
    assert (summary["alpha"], summary["beta"], summary["line_kind"]) == (0.5, 13.0, "given")
    assert "given with --alpha and --beta" in describe(labels, "-")
    with pytest.raises(ConfigError, match="is not positive for a duration of 10 s"):
        compute_labels([log], min_views=1, line=(1.0, -10.0))
    with pytest.raises(ConfigError, match="finite"):
        compute_labels([log], min_views=1, line=(float("nan"), 0.0))


def test_a_line_on_the_command_line_reproduces_the_fitted_labels(tmp_path):
    log = write_log(tmp_path / "log.csv", [("a", 6, 10), ("a", 12, 10), ("b", 9, 20)])
    arguments = ["labels", str(log), "--min-views", "1"]
    first, second = tmp_path / "1.csv", tmp_path / "2.csv.gz"
    CliRunner().invoke(app, [*arguments, "--output", str(first), "--json", str(tmp_path / "1.json")])
    line = json.loads((tmp_path / "1.json").read_text())
    given = ["--alpha", repr(line["alpha"]), "--beta", repr(line["beta"])]
    assert CliRunner().invoke(app, [*arguments, "--output", str(second), *given]).exit_code == 0
    assert gzip.decompress(second.read_bytes()) == first.read_bytes()
    alone = CliRunner().invoke(app, [*arguments, "--output", str(tmp_path / "3.csv"), "--alpha", "1"])
    assert "--alpha and --beta belong together" in str(alone.exception)


def test_the_summary_keeps_to_its_kind_of_file(tmp_path):
    log = write_log(tmp_path / "log.csv", [("a", 6, 10)])
    arguments = ["labels", str(log), "--min-views", "1", "--output", str(tmp_path / "o.csv"), "--json"]
    for json_path, words in (("-", "--json - : a file is written"), (str(tmp_path / "o.txt"), "--json writes .json")):
        assert words in str(CliRunner().invoke(app, [*arguments, json_path]).exception)
