"""The `lmm-ecr ensemble` command: files in, files out, and what it prints."""

import io
import json
import re

import pandas as pd
import pytest
from typer.testing import CliRunner

from lmm_ecr.cli import app
from lmm_ecr.ensemble import ensemble
from lmm_ecr.ensemble_options import EnsembleOptions
from lmm_ecr.ensemble_summary import print_summary
from lmm_ecr.errors import ConfigError, LmmEcrError

from .ensemble_data import make_project


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("ensemble"))


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
    assert max(map(len, fitted.output.splitlines())) <= 100
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
        (["--output", output, "--json", output, "--force"], "name the same file"),
        (["--output", output, "--json", str(tmp_path / "summary.txt")], "--json writes .json"),
        (["--output", str(tmp_path)], "is a directory"),
        (["--output", f"{labels}/out.csv"], "cannot be written"),
        (["--output", output, "--json", f"{labels}/deep/out.json"], "cannot be written"),
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


def test_many_files(project, tmp_path):
    paths, _ = project
    many = []
    for number in range(12):
        many.append(str(tmp_path / f"member_{number}.csv"))
        pd.read_csv(paths[number % 3]).to_csv(many[-1], index=False)
    result = CliRunner().invoke(app, ["ensemble", *many, "--output", str(tmp_path / "out.csv")])
    assert result.exit_code == 0, result.output
    assert "PLCC of 66 pairs" in result.output


@pytest.fixture(scope="module")
def worse(project, tmp_path_factory):
    """Members that are worth nothing or less, under names that mean something to a terminal or to the ensemble."""
    paths, labels = project
    folder = tmp_path_factory.mktemp("worse")
    tables = [pd.read_csv(path) for path in paths]
    names = ["ensemble", "ensemble, CV", "b\\[x]", "x:smile:", "[red]r"]
    for number, name in enumerate(names):
        table = tables[number % 3]
        table.assign(ECR=1 - table["ECR"] if number != 1 else 0.5).to_csv(folder / f"{name}.csv", index=False)
    return [folder / f"{name}.csv" for name in names], labels


def test_the_report_is_about_the_ensemble_whatever_members_are_called(worse, tmp_path):
    paths, labels = worse
    for method, name in (("mean", "combined ensemble"), ("greedy", "ensemble (cross-validated)")):
        arguments = ["ensemble", *map(str, paths[:2]), "--labels", str(labels), "--method", method, "--resamples", "0"]
        arguments += ["--output", str(tmp_path / f"{method}.csv"), "--report", str(tmp_path / "report.html")]
        result = CliRunner().invoke(app, [*arguments, "--json", str(tmp_path / "out.json")])
        assert result.exit_code == 0, result.output
        page = (tmp_path / "report.html").read_text(encoding="utf-8")
        heading = page[page.index("<h2>") : page.index("<dl")]
        assert f"<h2>{name}" in heading
        final = json.loads((tmp_path / "out.json").read_text())["ensemble"]["final_score"]
        shown = page[page.index("<dl") : page.index("</dl>")]
        assert f"<strong>{final:.3f}</strong>" in shown
        rows = [line.split("  ")[0] for line in result.output.splitlines()]
        assert rows.count("ensemble") == rows.count("ensemble, CV") == 1
        assert ("combined ensemble" if method == "mean" else "combined ensemble, CV") in rows


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
@pytest.mark.parametrize("terminal", [False, True])
def test_no_number_is_cut_off_and_names_are_literal(worse, tmp_path, columns, terminal):
    paths, labels = worse
    summary = ensemble(paths, EnsembleOptions("weighted", labels=labels, resamples=100)).summary
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))
        patch.setenv("TERM", "xterm-256color")
        print_summary(summary, "out.csv", stream)
    printed = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    assert "…" not in printed
    for entry in [*summary["members"], summary["ensemble"]]:
        for name in ("srocc", "plcc", "krcc", "rmse", "final_score"):
            if entry[name] is not None:
                assert f"{entry[name]:.3f}" in printed
                for bound in entry["ci95"][name]:
                    assert f"{bound:.3f}".replace("0.", ".") in printed
        if entry.get("gain") is not None:
            assert f"{entry['gain']:+.4f}" in printed
    if columns >= 80:
        for path in paths:
            assert path.name.removesuffix(".csv") in printed


def test_a_terminal_of_80_columns_is_wide_enough(worse):
    paths, labels = worse
    summary = ensemble(paths, EnsembleOptions("weighted", labels=labels, resamples=100)).summary
    stream = io.StringIO()
    stream.isatty = lambda: True
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "80")
        patch.setenv("TERM", "dumb")
        print_summary(summary, "out.csv", stream)
    assert max(map(len, stream.getvalue().splitlines())) <= 80
