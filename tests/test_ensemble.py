"""`lmm-ecr ensemble` from files to files: invariance, honest scores, recipes, contradictions, the summary."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from lmm_ecr.cli import app
from lmm_ecr.ensemble import ensemble, write_ensemble
from lmm_ecr.ensemble_methods import FITTED, METHODS
from lmm_ecr.ensemble_options import EnsembleOptions, parse_weights
from lmm_ecr.errors import ConfigError, DataError, LmmEcrError
from lmm_ecr.metrics import evaluate_predictions

RELAXED = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Three members of different quality over 300 clips, each in an order of its own, and labels for 290 of them."""
    folder = tmp_path_factory.mktemp("ensemble")
    rng = np.random.default_rng(0)
    ids = [rng.bytes(8).hex() for _ in range(300)]
    truth = rng.random(300)
    paths = []
    for seed, (name, noise) in enumerate({"good": 0.12, "fair": 0.2, "poor": 0.6}.items()):
        table = pd.DataFrame({"Id": ids, "ECR": np.clip(0.3 + 0.4 * truth + noise * rng.normal(size=300), 0, 1)})
        paths.append(folder / f"{name}.csv")
        table.sample(frac=1, random_state=seed).to_csv(paths[-1], index=False)
    labels = folder / "labels.csv"
    pd.DataFrame({"Id": [*ids[:290], "elsewhere"], "Title": "a,b", "ECR": [*truth[:290], 0.5]}).to_csv(
        labels, index=False
    )
    return paths, labels


def scores_by_id(result):
    return dict(zip(result.members.ids.to_pylist(), result.scores.tolist(), strict=True))


def options_for(method, labels, **more):
    return EnsembleOptions(method, labels=labels, resamples=more.pop("resamples", 0), **more)


@pytest.mark.parametrize("method", METHODS)
def test_order_of_rows_and_files_changes_no_bit(project, tmp_path, method):
    paths, labels = project
    reference = ensemble(paths, options_for(method, labels))
    shuffled = []
    for seed, path in enumerate(paths):
        shuffled.append(tmp_path / path.name)
        pd.read_csv(path, dtype=str).sample(frac=1, random_state=seed + 9).to_csv(shuffled[-1], index=False)
    other_labels = tmp_path / "labels.csv"
    pd.read_csv(labels, dtype=str).sample(frac=1, random_state=3).to_csv(other_labels, index=False)
    other = ensemble(shuffled[::-1], options_for(method, other_labels))
    assert scores_by_id(other) == scores_by_id(reference)
    np.testing.assert_array_equal(other.evaluated, reference.evaluated)
    assert other.summary["ensemble"] == reference.summary["ensemble"]
    assert [m["gain"] for m in other.summary["members"]] == [m["gain"] for m in reference.summary["members"]]
    assert (np.array(list(scores_by_id(other).values())) >= 0).all()


@RELAXED
@given(data=st.data(), method=st.sampled_from(["mean", "median", "rank", "logit"]))
def test_any_order_of_the_command_line(project, data, method):
    paths, _ = project
    order = data.draw(st.permutations(paths))
    assert scores_by_id(ensemble(order, EnsembleOptions(method))) == scores_by_id(
        ensemble(paths, EnsembleOptions(method))
    )


def test_a_streamed_mean_is_the_same_mean(project, tmp_path):
    paths, _ = project
    same_order = []  # two files in one order of rows, the third in another
    for path in paths[:2]:
        same_order.append(tmp_path / path.name)
        pd.read_csv(path, dtype=str).sort_values("Id").to_csv(same_order[-1], index=False)
    for files in (paths, paths[::-1], [*same_order, paths[2]], paths[:1]):
        kept, streamed = (ensemble(files, EnsembleOptions(keep_members=keep)) for keep in (True, False))
        np.testing.assert_array_equal(streamed.scores, kept.scores)
        assert streamed.members.ids == kept.members.ids
        assert streamed.summary == kept.summary
        assert streamed.members.values is None
    write_ensemble(kept, tmp_path / "out.csv", save=tmp_path / "recipe.json")
    with pytest.raises(DataError, match="missing: good"):
        ensemble(paths[1:2], EnsembleOptions(apply=tmp_path / "recipe.json", keep_members=False))
    short = tmp_path / "short.csv"
    pd.read_csv(paths[1]).iloc[1:].to_csv(short, index=False)
    with pytest.raises(DataError, match=r"short.csv lacks 1 of the 300 ids of .*good.csv"):
        ensemble([paths[0], short], EnsembleOptions(keep_members=False))


@pytest.mark.parametrize("method", FITTED)
def test_the_score_of_a_fit_is_cross_validated(project, method):
    paths, labels = project
    result = ensemble(paths, options_for(method, labels))
    assert len(result.labels) == 290
    on_fitted_rows = evaluate_predictions(result.scores[result.labelled_rows], result.labels, resamples=0)
    reported = evaluate_predictions(result.evaluated, result.labels, resamples=0)
    assert result.summary["ensemble"] == reported
    assert result.summary["fit"]["cv_final_score"] == reported["final_score"] != on_fitted_rows["final_score"]
    assert len(result.summary["fit"]["cv_final_score_by_fold"]) == 5
    best = max(member["final_score"] for member in result.summary["members"])
    assert reported["final_score"] > best - 0.01


@pytest.mark.parametrize("method", METHODS)
def test_a_recipe_reproduces_the_output(project, tmp_path, method):
    paths, labels = project
    options = options_for(method, labels if method in FITTED else None)
    first = ensemble(paths, options)
    write_ensemble(first, tmp_path / "first.csv", save=tmp_path / "recipe.json", with_std=True)
    again = ensemble(paths[::-1], EnsembleOptions(apply=tmp_path / "recipe.json"))
    assert again.combination.method == method
    assert scores_by_id(again) == scores_by_id(first)
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    assert recipe["members"] == ["fair", "good", "poor"]
    if method in FITTED:
        assert recipe["fit"]["cv_final_score"] == first.summary["ensemble"]["final_score"]
    table = pd.read_csv(tmp_path / "first.csv")
    assert list(table) == ["Id", "ECR", "ECR_std"]
    np.testing.assert_array_equal(table["ECR"], first.scores)


def test_a_recipe_is_for_its_members_only(project, tmp_path):
    paths, labels = project
    write_ensemble(ensemble(paths, options_for("greedy", labels)), tmp_path / "out.csv", save=tmp_path / "recipe.json")
    renamed = tmp_path / "great.csv"
    renamed.write_bytes(paths[0].read_bytes())
    apply = EnsembleOptions(apply=tmp_path / "recipe.json")
    with pytest.raises(DataError, match="missing: good; unknown: great"):
        ensemble([renamed, *paths[1:]], apply)
    with pytest.raises(DataError, match="missing: poor"):
        ensemble(paths[:2], apply)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "other"}, "not a recipe"),
        ({"format_version": 2}, "version 2"),
        ({"method": "magic"}, "unknown method 'magic'"),
        ({"members": ["a", "a"]}, "different file names"),
        ({"weights": [0.5, float("nan"), 0.5]}, "finite numbers"),
        ({"weights": [0.5, 0.5]}, "3 members"),
        ({"weights": None}, "weights None"),
        ({"weights": ["a", 0.5, 0.5]}, "finite numbers"),
        ({"scale": None, "weights": [1.0, -0.5, 0.5]}, "negative"),
        ({"scale": [1.0]}, "centre, width, slope and intercept"),
        ({"scale": {"centre": [0, 0, 0], "width": [1, 0, 1], "slope": 1, "intercept": 0}}, "width must be positive"),
        ({"scale": {"centre": [0, 0], "width": [1, 1, 1], "slope": 1, "intercept": 0}}, "2 centre for 3 members"),
        ({"scale": {"centre": [0, 0, 0], "width": [1, 1, 1], "intercept": 0}}, "slope and intercept must be finite"),
        ({"method": "mean", "weights": None}, "mean has no `scale`"),
        ({"weights": [1.0, -0.5, 0.5]}, "negative"),
        ({"target": 3}, "target"),
    ],
)
def test_a_damaged_recipe_is_refused(project, tmp_path, change, words):
    paths, labels = project
    recipe_path = tmp_path / "recipe.json"
    write_ensemble(ensemble(paths, options_for("weighted", labels)), tmp_path / "out.csv", save=recipe_path)
    recipe = json.loads(recipe_path.read_text())
    recipe_path.write_text(json.dumps({**recipe, **change}))
    with pytest.raises(DataError, match=words):
        ensemble(paths, EnsembleOptions(apply=recipe_path))
    for text in ("", "[1]", "{"):
        recipe_path.write_text(text)
        with pytest.raises(DataError, match="not a recipe"):
            ensemble(paths, EnsembleOptions(apply=recipe_path))
    with pytest.raises(DataError, match="cannot be read"):
        ensemble(paths, EnsembleOptions(apply=tmp_path / "nowhere.json"))


def test_given_weights_belong_to_the_files_as_given(project):
    paths, _ = project
    poor_only = ensemble([paths[2], paths[0]], EnsembleOptions(weights=[3.0, 0.0]))
    assert poor_only.combination.method == "weighted"
    expected = pd.read_csv(paths[2])
    assert scores_by_id(poor_only) == dict(zip(expected["Id"], expected["ECR"], strict=True))
    with pytest.raises(ConfigError, match="3 numbers for 2 files"):
        ensemble(paths[:2], EnsembleOptions(weights=[1, 1, 1]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "average"}, "choose mean, median"),
        ({"method": "weighted"}, "needs --weights 0.3,0.7 or --labels"),
        ({"method": "greedy"}, "needs --labels"),
        ({"method": "stack"}, "needs --labels"),
        ({"method": "mean", "weights": [1.0]}, "contradicts --method mean"),
        ({"weights": [0.5, 0.5], "labels": "x.csv"}, "leave out one"),
        ({"weights": [0.5, -0.5]}, "not negative"),
        ({"weights": [0.5, float("nan")]}, "finite"),
        ({"weights": [0.0, 0.0]}, "all zero"),
        ({"apply": "r.json", "method": "mean"}, "--method contradicts --apply"),
        ({"apply": "r.json", "weights": [1.0]}, "--weights contradicts --apply"),
        ({"label_column": "y"}, "--labels"),
        ({"resamples": -1}, "--resamples"),
    ],
)
def test_contradictions_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        EnsembleOptions(**options)


def test_weights_as_text():
    assert parse_weights(None) is None
    assert parse_weights("0.3, 0.7") == [0.3, 0.7]
    with pytest.raises(ConfigError, match="'a' is not a number"):
        parse_weights("0.3,a")


def test_labels_that_cannot_be_used(project, tmp_path):
    paths, labels = project
    table = pd.read_csv(labels)
    for name, changed, words in [
        ("few", table.head(10), "only 10 rows have a label"),
        ("constant", table.assign(ECR=0.5), "all labels are 0.5"),
        ("other", table.assign(Id=[f"x{row}" for row in range(len(table))]), "are they of one data set"),
    ]:
        changed.to_csv(tmp_path / f"{name}.csv", index=False)
        with pytest.raises(DataError, match=words):
            ensemble(paths, options_for("weighted", tmp_path / f"{name}.csv"))


def test_labels_among_the_members_are_refused(project):
    paths, labels = project
    with pytest.raises(DataError, match="the labels are also one of the members"):
        ensemble([*paths, labels], options_for("mean", labels))


def test_the_command_writes_table_json_recipe_and_summary(project, tmp_path, monkeypatch):
    paths, labels = project
    monkeypatch.chdir(tmp_path)
    files = [str(path) for path in paths]
    plain = CliRunner().invoke(app, ["ensemble", *files])
    assert plain.exit_code == 0, plain.output
    assert "mean of 3 files, 300 rows" in plain.output
    table = pd.read_csv(tmp_path / "ensemble.csv")
    assert table["Id"].tolist() == pd.read_csv(paths[0])["Id"].tolist()
    again = CliRunner().invoke(app, ["ensemble", *files])
    assert "--force" in str(again.exception)
    arguments = ["--force", "--method", "weighted", "--labels", str(labels), "--resamples", "200"]
    arguments += ["--json", "summary.json", "--save", "recipe.json"]
    fitted = CliRunner().invoke(app, ["ensemble", *files, *arguments], env={"COLUMNS": "80"})
    assert fitted.exit_code == 0, fitted.output
    assert max(map(len, fitted.output.splitlines())) <= 80
    assert "\x1b" not in fitted.output
    for words in (
        "290 rows scored",
        "10 rows have no label",
        "1 labels have no prediction",
        "ensemble, CV",
        "significant",
    ):
        assert words in " ".join(fitted.output.split()), words
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {member["name"] for member in summary["members"]} == {"good", "fair", "poor"}
    low, high = summary["ensemble"]["ci95"]["final_score"]
    assert low < summary["ensemble"]["final_score"] < high
    assert summary["gain_over_best"]["best_member"] == "good"
    assert summary["correlations"]["srocc"][0][0] == 1.0
    assert sum(member["weight"] for member in summary["members"]) == pytest.approx(1)
    to_pipe = CliRunner().invoke(app, ["ensemble", *files, "--apply", "recipe.json", "--output", "-"])
    assert to_pipe.stdout == (tmp_path / "ensemble.csv").read_text()
    assert "weighted of 3 files" in to_pipe.stderr


def test_outputs_do_not_overwrite_inputs_or_each_other(project, tmp_path):
    paths, labels = project
    files = [str(path) for path in paths]
    output = str(tmp_path / "out.csv")
    for arguments, words in [
        (["--output", files[1], "--force"], "one of the inputs"),
        (["--output", output, "--json", files[0]], "one of the inputs"),
        (["--output", output, "--labels", str(labels), "--save", str(labels)], "one of the inputs"),
        (["--output", output, "--json", output], "name the same file"),
        (["--output", str(tmp_path)], "is a directory"),
        (["--output", f"{labels}/out.csv"], "is a file, not a directory"),
        (["--output", output, "--json", f"{labels}/deep/out.json"], "is a file, not a directory"),
        (["--output", output, "--weights", "1,x,2"], "not a number"),
    ]:
        result = CliRunner().invoke(app, ["ensemble", *files, *arguments])
        assert isinstance(result.exception, LmmEcrError), (arguments, result.output)
        assert words in str(result.exception)
    assert not (tmp_path / "out.csv").exists()


def test_the_report_shows_members_and_ensemble(project, tmp_path):
    paths, labels = project
    arguments = ["ensemble", *map(str, paths), "--output", str(tmp_path / "out.csv"), "--resamples", "50"]
    arguments += ["--report", str(tmp_path / "report.html")]
    without = CliRunner().invoke(app, arguments)
    assert "--report" in str(without.exception)
    assert not (tmp_path / "out.csv").exists()
    result = CliRunner().invoke(app, [*arguments, "--labels", str(labels), "--method", "greedy"])
    assert result.exit_code == 0, result.output
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for words in ("ensemble (cross-validated)", "good", "Ensemble of 3 files, method greedy", "gain in final score"):
        assert words in page
    assert "against the best member, good" in page
    refused = CliRunner().invoke(app, [*arguments[:-2], "--video-dir", str(tmp_path), "--force"])
    assert "--video-dir" in str(refused.exception)


def test_an_ensemble_can_be_calibrated(project, tmp_path):
    """Fitted on half of the clips, intervals cover the labels of the other half as often as promised."""
    paths, labels = project
    truth = pd.read_csv(labels).set_index("Id")["ECR"].drop("elsewhere")
    for name, ids in (("fit", truth.index[::2]), ("new", truth.index[1::2])):
        for path in paths:
            table = pd.read_csv(path)
            folder = tmp_path / name
            folder.mkdir(exist_ok=True)
            table[table["Id"].isin(ids)].to_csv(folder / path.name, index=False)
    truth[::2].to_csv(tmp_path / "fit_labels.csv")
    calibration, output = str(tmp_path / "c.json"), str(tmp_path / "new.csv")

    def run(*arguments):
        return CliRunner().invoke(app, [*map(str, arguments)])

    members = {name: [tmp_path / name / path.name for path in paths] for name in ("fit", "new")}
    assert run("ensemble", *members["fit"], "--output", tmp_path / "fit.csv").exit_code == 0
    fit = ["--fit-calibration", "isotonic", "--calibration-file", calibration]
    fitted = run("evaluate", tmp_path / "fit.csv", "--labels", tmp_path / "fit_labels.csv", "--resamples", 0, *fit)
    assert fitted.exit_code == 0, fitted.output
    arguments = ["ensemble", *members["new"], "--output", output, "--with-std"]
    done = run(*arguments, "--calibrate", calibration, "--interval", 0.9)
    assert done.exit_code == 0, done.output
    assert "calibrated by" in done.output
    table = pd.read_csv(output).set_index("Id")
    assert list(table) == ["ECR", "ECR_lo", "ECR_hi", "ECR_std"]
    inside = truth[table.index].between(table["ECR_lo"], table["ECR_hi"])
    assert 0.82 < inside.mean() < 0.98  # 145 clips
    for more, words in (
        (["--interval", 0.9], "--interval needs --calibrate"),
        (["--calibrate", calibration, "--interval", 0.999], "needs at least 999"),
        (["--calibrate", labels], "not a calibration file"),
        (["--calibrate", tmp_path / "no.json"], "cannot be read"),
    ):
        refused = run(*arguments, "--force", *more)
        assert isinstance(refused.exception, ConfigError), refused.output
        assert words in str(refused.exception)


def test_a_collapsed_member_is_pointed_out(project, tmp_path):
    paths, labels = project
    flat = tmp_path / "flat.csv"
    table = pd.read_csv(paths[0])
    table.assign(ECR=0.5 + 0.003 * (table["ECR"] - 0.5)).to_csv(flat, index=False)
    for more in ([], ["--labels", str(labels), "--method", "weighted", "--resamples", "50"]):
        arguments = ["ensemble", *map(str, paths), str(flat), "--output", str(tmp_path / "out.csv"), "--force", *more]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        assert "flat hardly varies" in result.output
        assert "good hardly varies" not in result.output
    assert pd.read_csv(tmp_path / "out.csv")["ECR"].std() > 0.1


def test_missing_ids_are_counted_in_the_summary(project, tmp_path):
    paths, _ = project
    short = tmp_path / "short.csv"
    pd.read_csv(paths[0]).iloc[5:].to_csv(short, index=False)
    arguments = ["ensemble", str(paths[1]), str(short), "--output", str(tmp_path / "out.csv"), "--force"]
    dropped = CliRunner().invoke(app, [*arguments, "--missing", "drop"])
    assert "missing ids: short 5; 5 rows dropped" in dropped.output
    assert len(pd.read_csv(tmp_path / "out.csv")) == 295
    filled = CliRunner().invoke(app, [*arguments, "--missing", "mean", "--with-std"])
    assert "5 values are the mean of the other members" in filled.output
    table = pd.read_csv(tmp_path / "out.csv")
    assert len(table) == 300
    assert (table["ECR_std"] == 0).sum() == 5


def test_one_file_and_many_files(project, tmp_path):
    paths, labels = project
    single = ensemble(paths[:1], options_for("mean", labels))
    assert scores_by_id(single) == dict(pd.read_csv(paths[0]).itertuples(index=False))
    assert single.summary["members"][0]["gain"] is None
    many = []
    for number in range(12):
        many.append(str(tmp_path / f"member_{number}.csv"))
        pd.read_csv(paths[number % 3]).to_csv(many[-1], index=False)
    result = CliRunner().invoke(app, ["ensemble", *many, "--output", str(tmp_path / "out.csv")])
    assert result.exit_code == 0, result.output
    assert "PLCC of 66 pairs" in result.output


CSV_TEXT = st.one_of(
    st.text(max_size=150),
    st.lists(st.text(alphabet='ab01.,"\n -ne', max_size=12), max_size=8).map(lambda rows: "\n".join(["Id,ECR", *rows])),
    st.lists(st.tuples(st.sampled_from("abcd"), st.floats(0, 1)), max_size=4, unique_by=lambda row: row[0]).map(
        lambda rows: "\n".join(["Id,ECR", *(f"{name},{value}" for name, value in rows)])
    ),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(CSV_TEXT, min_size=1, max_size=3),
    labels=st.none() | CSV_TEXT,
    method=st.sampled_from(METHODS),
    missing=st.sampled_from(["error", "drop", "mean"]),
)
def test_no_text_crashes_the_command(tmp_path, texts, labels, method, missing):
    paths = []
    for number, text in enumerate(texts):
        paths.append(tmp_path / f"{number}.csv")
        paths[-1].write_bytes(text.encode("utf-8", errors="surrogatepass"))
    if labels is not None:
        (tmp_path / "labels.csv").write_bytes(labels.encode("utf-8", errors="surrogatepass"))
    try:
        options = EnsembleOptions(
            method, labels=None if labels is None else tmp_path / "labels.csv", missing=missing, resamples=20
        )
        result = ensemble(paths, options)
    except LmmEcrError:
        return
    assert ((result.scores >= 0) & (result.scores <= 1)).all()
    write_ensemble(result, tmp_path / "out.csv", with_std=True, json_path=tmp_path / "out.json")
    read_back = pd.read_csv(tmp_path / "out.csv", dtype={"Id": str}, keep_default_na=False)
    assert len(read_back) == len(result.scores)
