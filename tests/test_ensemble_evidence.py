"""Scores of an ensemble are of rows it has not seen: recipes that meet their own labels, out-of-fold scores."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from lmm_ecr.calibration import Calibration
from lmm_ecr.cli import app
from lmm_ecr.ensemble import ensemble, write_ensemble
from lmm_ecr.ensemble_evidence import gain_over_best, score_columns
from lmm_ecr.ensemble_fit import cross_validate, fit
from lmm_ecr.ensemble_methods import FITTED, combine
from lmm_ecr.ensemble_options import EnsembleOptions
from lmm_ecr.ensemble_summary import evidence
from lmm_ecr.errors import ConfigError, DataError
from lmm_ecr.metrics import evaluate_predictions

from .ensemble_data import make_project


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("ensemble"))


@pytest.fixture(scope="module")
def fitted(project, tmp_path_factory):
    """A recipe fitted to the first 200 labels: its path, the result, the labels it saw and all labels."""
    paths, labels = project
    folder = tmp_path_factory.mktemp("recipe")
    some = folder / "some.csv"
    pd.read_csv(labels).head(200).to_csv(some, index=False)
    result = ensemble(paths, EnsembleOptions("weighted", labels=some, resamples=0))
    write_ensemble(result, folder / "out.csv", save=folder / "recipe.json")
    return folder / "recipe.json", result, some, labels


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_a_recipe_is_scored_on_new_rows_only(project, fitted, tmp_path):
    """The score on the rows of the fit was shown as if it were of new clips."""
    paths, _ = project
    recipe, fit, _, labels = fitted
    result = ensemble(paths, EnsembleOptions(labels=labels, apply=recipe, resamples=0))
    assert result.summary["labels"]["rows_of_the_fit"] == 200
    assert result.summary["labels"]["rows"] == 90
    truth = pd.read_csv(labels).set_index("Id")["ECR"].iloc[200:290]
    scores = pd.Series(result.scores, result.members.ids.to_pylist())[truth.index]
    expected = evaluate_predictions(scores, truth, resamples=0)
    assert result.summary["ensemble"] == expected
    assert result.summary["members"][0]["n"] == 90
    assert result.summary["recipe_fit"]["cv_final_score"] == fit.summary["fit"]["cv_final_score"]
    printed = run("ensemble", *paths, "--labels", labels, "--apply", recipe, "--output", tmp_path / "out.csv")
    assert printed.exit_code == 0, printed.output
    assert "200 more rows were used for the fit of the recipe and are not scored" in " ".join(printed.output.split())


def test_a_recipe_on_the_rows_of_its_fit_gives_the_cross_validated_score(project, fitted, tmp_path):
    paths, _ = project
    recipe, fit, some, _ = fitted
    arguments = ["ensemble", *paths, "--labels", some, "--apply", recipe, "--output", tmp_path / "out.csv"]
    printed = run(*arguments, "--json", tmp_path / "out.json")
    assert printed.exit_code == 0, printed.output
    words = " ".join(printed.output.split())
    assert "all 200 rows with a label were used for the fit of the recipe" in words
    assert f"cross-validated final score when it was fitted: {fit.summary['fit']['cv_final_score']:.3f}" in words
    summary = json.loads((tmp_path / "out.json").read_text())
    assert summary["ensemble"] is None
    assert summary["gain_over_best"] is None
    assert "id_hashes" not in (tmp_path / "out.json").read_text()
    refused = run(*arguments, "--force", "--report", tmp_path / "report.html")
    assert isinstance(refused.exception, DataError)
    assert "used for the fit" in str(refused.exception)


def test_a_recipe_saved_again_remembers_its_fit(project, fitted, tmp_path):
    paths, _ = project
    recipe, _, some, _ = fitted
    again = tmp_path / "again.json"
    write_ensemble(ensemble(paths, EnsembleOptions(apply=recipe)), tmp_path / "out.csv", save=again)
    assert json.loads(again.read_text())["fit"] == json.loads(recipe.read_text())["fit"]
    result = ensemble(paths, EnsembleOptions(labels=some, apply=again, resamples=0))
    assert result.summary["ensemble"] is None
    stored = json.loads(again.read_text())["fit"]["id_hashes"]
    assert len(stored) == 8 * 200  # eight characters per row


@pytest.mark.parametrize("damage", [3, "????????", "AAAA"])
def test_a_damaged_list_of_rows_is_refused(project, fitted, tmp_path, damage):
    paths, _ = project
    recipe = json.loads(fitted[0].read_text())
    recipe["fit"]["id_hashes"] = damage
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(DataError, match="id_hashes"):
        ensemble(paths, EnsembleOptions(apply=tmp_path / "recipe.json"))


def test_a_recipe_that_does_not_know_its_rows_says_so(project, fitted, tmp_path):
    paths, labels = project
    recipe = json.loads(fitted[0].read_text())
    del recipe["fit"]["id_hashes"]
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    printed = run(
        *("ensemble", *paths, "--labels", labels, "--apply", tmp_path / "recipe.json"), "--output", tmp_path / "o.csv"
    )
    assert "does not say which rows it was fitted to" in " ".join(printed.output.split())


@pytest.mark.parametrize("method", FITTED)
def test_out_of_fold_scores_are_a_prediction_file(project, tmp_path, method):
    paths, labels = project
    options = ["--labels", labels, "--method", method, "--resamples", 0, "--output", tmp_path / "out.csv"]
    done = run("ensemble", *paths, *options, "--oof", tmp_path / "oof.csv", "--json", tmp_path / "out.json")
    assert done.exit_code == 0, done.output
    assert "oof.csv" in done.output
    table = pd.read_csv(tmp_path / "oof.csv", float_precision="round_trip")
    assert list(table) == ["Id", "ECR"]
    result = ensemble(paths, EnsembleOptions(method, labels=labels, resamples=0))
    expected = dict(zip(result.members.ids.take(result.labelled_rows).to_pylist(), result.evaluated, strict=True))
    assert dict(table.itertuples(index=False)) == expected
    in_file = [name for name in pd.read_csv(paths[0])["Id"] if name in expected]
    assert table["Id"].tolist() == in_file
    summary = json.loads((tmp_path / "out.json").read_text())
    evaluated = run(
        *("evaluate", tmp_path / "oof.csv", "--labels", labels, "--allow-missing"), "--json", tmp_path / "e.json"
    )
    assert evaluated.exit_code == 0, evaluated.output
    assert f"{summary['ensemble']['final_score']:.3f}" in evaluated.output


def test_out_of_fold_scores_are_for_fitted_methods(project, fitted, tmp_path):
    paths, labels = project
    for more in (["--labels", labels], ["--weights", "1,1,1"], ["--labels", labels, "--apply", fitted[0]]):
        refused = run("ensemble", *paths, *more, "--output", tmp_path / "out.csv", "--oof", tmp_path / "oof.csv")
        assert isinstance(refused.exception, ConfigError), refused.output
        assert "--method weighted, greedy or stack" in str(refused.exception)
    same = ["--labels", labels, "--method", "greedy", "--output", tmp_path / "out.csv", "--oof", tmp_path / "out.csv"]
    assert "name the same file" in str(run("ensemble", *paths, *same).exception)
    assert not (tmp_path / "out.csv").exists()


def test_intervals_calibrated_on_out_of_fold_scores_cover_what_they_promise():
    """Calibrated on the scores of the rows it was fitted to, `weighted` covered 0.86 of new labels instead of 0.9.

    20 members, each with a part of what the labels are made of, on 200 clips; means over 16 draws, 2,000 new labels
    each.
    """
    covered = {"oof": [], "own": []}
    for seed in range(16):
        rng = np.random.default_rng(seed)
        parts = rng.normal(size=(20, 2200))
        labels = np.clip(0.5 + 0.47 * parts.mean(axis=0) + 0.1 * rng.normal(size=2200), 0, 1)
        values = np.clip(0.5 + 0.12 * parts, 0, 1)
        combination = fit("weighted", values[:, :200], labels[:200])
        scores = combine(values, combination)
        crossed = cross_validate("weighted", values[:, :200], labels[:200], np.arange(200) % 5)
        for name, some in (("oof", crossed), ("own", scores[:200])):
            low, high = Calibration.fit(some, labels[:200], "identity").interval(scores[200:], 0.9)
            covered[name].append(((labels[200:] >= low) & (labels[200:] <= high)).mean())
    assert np.mean(covered["oof"]) == pytest.approx(0.9, abs=0.015)
    assert np.mean(covered["own"]) < 0.88


def test_a_fitted_ensemble_is_calibrated_by_three_commands(project, fitted, tmp_path):
    paths, labels = project
    calibration = tmp_path / "calibration.json"
    fit_options = ["--labels", fitted[2], "--method", "weighted", "--save", tmp_path / "recipe.json"]
    first = ["ensemble", *paths, *fit_options, "--oof", tmp_path / "oof.csv", "--output", tmp_path / "a.csv"]
    second = ["evaluate", tmp_path / "oof.csv", "--labels", fitted[2], "--fit-calibration", "identity"]
    second += ["--calibration-file", calibration]
    third = ["ensemble", *paths, "--apply", tmp_path / "recipe.json", "--calibrate", calibration, "--interval", 0.9]
    for command in (first, second, [*third, "--output", tmp_path / "b.csv"]):
        done = run(*command)
        assert done.exit_code == 0, done.output
    table = pd.read_csv(tmp_path / "b.csv").set_index("Id")
    new = pd.read_csv(labels).set_index("Id")["ECR"].iloc[200:290]
    inside = new.between(table["ECR_lo"][new.index], table["ECR_hi"][new.index])
    assert 0.8 < inside.mean() < 0.99  # 90 clips


def test_a_calibration_is_read_before_the_work_and_never_replaced(project, tmp_path):
    paths, _ = project
    calibration = tmp_path / "calibration.json"
    calibration.write_text("{}")
    arguments = ["ensemble", *paths, "--output", tmp_path / "out.csv", "--calibrate", calibration]
    for more in (["--json", calibration], ["--save", calibration], ["--output", calibration, "--force"]):
        refused = run(*arguments, *more)
        assert isinstance(refused.exception, DataError), refused.output
        assert "one of the inputs" in str(refused.exception)
    missing = ["ensemble", *paths, tmp_path / "nowhere.csv", "--output", tmp_path / "out.csv"]
    assert "calibration" in str(run(*missing, "--calibrate", calibration).exception)  # before nowhere.csv is missed


def test_significant_is_what_the_p_value_says(project):
    """With 10 resamples p cannot fall below 0.18, and yet "significant" was printed beside it."""
    paths, labels = project
    for resamples in (10, 99, 100, 1000):
        summary = ensemble(paths, EnsembleOptions("weighted", labels=labels, resamples=resamples)).summary
        gain = summary["gain_over_best"]
        verdict = evidence(summary)[0]
        if resamples < 100:
            assert gain["significant"] is None
            assert f"{resamples} resamples are too few to tell" in verdict
        else:
            assert gain["significant"] == (gain["p_value"] < 0.05)
            assert ("not significant" in verdict) != gain["significant"]


@pytest.mark.parametrize(("better", "significant"), [(0.3, True), (0.0, False)])
def test_a_difference_that_is_there_is_significant(better, significant):
    rng = np.random.default_rng(0)
    labels = rng.random(400)
    noise = rng.normal(size=(2, 400))
    members = np.stack([labels + 0.6 * noise[0], labels + 0.6 * noise[1]])
    combined = labels + (0.6 - better) * noise[1]
    scores = score_columns([*members], labels, resamples=0)
    gain = gain_over_best(combined, members, ["a", "b"], scores, labels, resamples=200)
    assert gain["significant"] is significant
    assert (gain["p_value"] < 0.05) is significant
