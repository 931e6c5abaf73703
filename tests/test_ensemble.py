"""`lmm-ecr ensemble` as a function: invariance, honest scores, recipes, contradictions, hostile input."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmm_ecr.ensemble import ensemble, write_ensemble
from lmm_ecr.ensemble_methods import FITTED, METHODS
from lmm_ecr.ensemble_options import EnsembleOptions, parse_weights
from lmm_ecr.errors import ConfigError, DataError, LmmEcrError
from lmm_ecr.metrics import evaluate_predictions

from .ensemble_data import make_project

RELAXED = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("ensemble"))


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


def test_one_file_is_itself(project):
    paths, labels = project
    single = ensemble(paths[:1], options_for("mean", labels))
    assert scores_by_id(single) == dict(pd.read_csv(paths[0]).itertuples(index=False))
    assert single.summary["members"][0]["gain"] is None


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
