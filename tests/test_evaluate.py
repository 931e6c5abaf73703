"""`lmm-ecr evaluate` and the functions below it."""

import csv
import io
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from lmm_ecr import metrics
from lmm_ecr.calibration import Calibration
from lmm_ecr.cli import app
from lmm_ecr.errors import ConfigError, DataError
from lmm_ecr.evaluate import evaluate_files
from lmm_ecr.evaluation_outputs import check_outputs, to_json
from lmm_ecr.evaluation_tables import print_evaluation
from lmm_ecr.predictions import read_labels, write_predictions
from lmm_ecr.segments import split_segments


@pytest.fixture
def folder(tmp_path) -> Path:
    """labels.csv with titles and durations, good.csv and poor.csv (in other row orders, good with one extra id)."""
    generator = np.random.default_rng(0)
    labels = generator.random(120)
    with open(tmp_path / "labels.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["Id", "Title", "ECR", "duration", "kind"])
        for k, value in enumerate(labels):
            writer.writerow([f"{k:04d}", ["", 'a "b",\nc'][k % 2], value, 5 + k / 10, "xyz"[k % 3]])
    for name, noise in (("good", 0.1), ("poor", 0.5)):
        values = np.clip(labels + generator.normal(0, noise, 120), 0, 1)
        order = generator.permutation(120)
        ids = [f"{k:04d}" for k in order] + (["new"] if name == "good" else [])
        write_predictions(tmp_path / f"{name}.csv", ids, {"ECR": [*values[order], *([0.5] * (len(ids) - 120))]})
    return tmp_path


def run(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_json_of_one_file_is_the_inside_of_eval(folder):
    code, output = run(folder / "good.csv", "--labels", folder / "labels.csv", "--json", folder / "e.json")
    content = json.loads((folder / "e.json").read_text())
    assert code == 0
    assert {"n", "srocc", "plcc", "krcc", "rmse", "final_score", "ci95"} <= set(content)
    evaluation = evaluate_files([folder / "good.csv"], folder / "labels.csv")
    expected = metrics.evaluate_predictions(evaluation.files[0].values, evaluation.labels)
    assert {key: content[key] for key in expected} == expected
    assert content["n"] == 120
    assert content["unlabelled_ids"] == 1
    assert "1 of its ids have no label" in output
    assert "'new'" in output
    assert f"{content['srocc']:.4f}" in output


def test_values_are_matched_by_id_not_by_row(folder):
    evaluation = evaluate_files([folder / "good.csv"], folder / "labels.csv", resamples=0)
    with open(folder / "good.csv", newline="") as stream:
        by_id = {row["Id"]: float(row["ECR"]) for row in csv.DictReader(stream)}
    assert [by_id[name] for name in evaluation.ids.to_pylist()] == evaluation.files[0].values.tolist()


def test_row_order_changes_nothing(folder):
    paths = [folder / "good.csv", folder / "poor.csv"]
    before = to_json(evaluate_files(paths, folder / "labels.csv", segments=["kind"], resamples=50))
    for path in paths:
        header, *rows = path.read_text().splitlines()
        random.Random(1).shuffle(rows)
        path.write_text("\n".join([header, *rows]) + "\n")
    assert to_json(evaluate_files(paths, folder / "labels.csv", segments=["kind"], resamples=50)) == before


def test_several_files_side_by_side(folder):
    arguments = [folder / "poor.csv", folder / "good.csv", "--labels", folder / "labels.csv"]
    code, output = run(*arguments, "--json", folder / "m.json", "--plot", folder / "m.png")
    content = json.loads((folder / "m.json").read_text())
    assert code == 0
    assert list(content["files"]) == ["poor", "good"]
    assert content["best"] == "good"
    difference = content["files"]["poor"]["against_best"]
    assert difference["difference"] < difference["high"] < 0
    assert difference["p_value"] < 0.01
    assert "against_best" not in content["files"]["good"]
    assert (folder / "m.png").read_bytes().startswith(b"\x89PNG")
    assert "final vs best" in output


def test_piped_output_is_plain_and_fits_80_columns(folder):
    long = folder / f"{'a_long_name_' * 4}.csv"
    long.write_bytes((folder / "good.csv").read_bytes())
    _, output = run(long, folder / "poor.csv", "--labels", folder / "labels.csv", "--segment", "kind")
    tables = [line for line in output.splitlines() if "note:" not in line and str(folder) not in line]
    assert max(map(len, tables)) <= 80
    assert not re.search(r"[\x1b─│┃━╭]", output)
    assert "".join(line[:20].strip() for line in tables).count("a_long_name_" * 4) >= 1  # folded, not cut


def test_terminal_output_is_styled(folder):
    from rich.console import Console

    console = Console(force_terminal=True, width=80, record=True, file=io.StringIO(), color_system="truecolor")
    print_evaluation(evaluate_files([folder / "good.csv"], folder / "labels.csv", resamples=20), console)
    assert "\x1b[1m" in console.export_text(styles=True)


def test_names_are_not_markup(folder):
    odd = folder / "[red]x[bold].csv"
    odd.write_bytes((folder / "good.csv").read_bytes())
    _, output = run(odd, "--labels", folder / "labels.csv")
    assert "[red]x[bold]" in output


def test_a_label_without_prediction(folder):
    lines = (folder / "good.csv").read_text().splitlines()
    (folder / "part.csv").write_text("\n".join(line for line in lines if not line.startswith(("0003", "0007"))))
    arguments = [folder / "part.csv", folder / "poor.csv"]
    with pytest.raises(
        DataError, match=r"part\.csv: no prediction for 2 of the 120 ids.*'0003', '0007'.*--allow-missing"
    ):
        evaluate_files(arguments, folder / "labels.csv")
    evaluation = evaluate_files(arguments, folder / "labels.csv", allow_missing=True)
    assert len(evaluation.labels) == 118
    assert [len(file.values) for file in evaluation.files] == [118, 118]
    _, output = run(*arguments, "--labels", folder / "labels.csv", "--allow-missing")
    assert "all files are evaluated on the 118 rows" in output


def test_tables_without_a_common_id(folder):
    (folder / "other.csv").write_text("Id,ECR\nzzz,0.5\n")
    with pytest.raises(DataError, match=r"share no id: the first has 'zzz'"):
        evaluate_files([folder / "other.csv"], folder / "labels.csv", allow_missing=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fit-calibration", "isotonic"], "belong together"),
        (["--fit-calibration", "spline", "--calibration-file", "c.json"], "choose one of isotonic, logistic"),
        (["--plot", "p.gif"], "written as png, svg, pdf"),
        (["--segment", "durations"], "did you mean 'duration'"),
        (["--confidence", "95"], "not between 0 and 1"),
        (["--target", "NAWP"], "no column 'NAWP'"),
    ],
)
def test_contradictions_are_explained(folder, options, message):
    with pytest.raises((ConfigError, DataError), match=message):
        run(folder / "good.csv", "--labels", folder / "labels.csv", *options)


def test_inputs_are_never_overwritten(folder):
    before = (folder / "good.csv").read_bytes()
    for option in ("--json", "--calibration-file"):
        extra = ["--fit-calibration", "logistic"] if option == "--calibration-file" else []
        with pytest.raises(DataError, match="also one of the inputs"):
            run(folder / "good.csv", "--labels", folder / "labels.csv", option, folder / "good.csv", *extra)
    assert (folder / "good.csv").read_bytes() == before
    with pytest.raises(ConfigError, match="2 were given"):
        check_outputs(["a", "b", "labels"], None, None, "isotonic", "c.json")
    with pytest.raises(ConfigError, match="given twice"):
        run(folder / "good.csv", folder / "good.csv", "--labels", folder / "labels.csv")


def test_calibration_is_saved_for_predict(folder):
    options = ["--fit-calibration", "logistic", "--calibration-file", folder / "c.json"]
    _, output = run(folder / "good.csv", "--labels", folder / "labels.csv", *options)
    calibration = Calibration.load(folder / "c.json")
    low, high = calibration.interval([0.2, 0.8], 0.9)
    assert (low < calibration.apply([0.2, 0.8])).all()
    assert (calibration.apply([0.2, 0.8]) < high).all()
    assert "logistic map from 60 rows, intervals from 60 others" in output


def test_files_of_the_same_name_are_told_apart(folder):
    for name in ("one", "two"):
        (folder / name).mkdir()
        (folder / name / "preds.csv").write_bytes((folder / "good.csv").read_bytes())
    evaluation = evaluate_files([folder / n / "preds.csv" for n in ("one", "two")], folder / "labels.csv", resamples=20)
    assert [file.name for file in evaluation.files] == ["one/preds", "two/preds"]


def test_constant_predictions_are_reported_not_scored(folder):
    write_predictions(folder / "flat.csv", [f"{k:04d}" for k in range(120)], {"ECR": [0.5] * 120})
    code, output = run(
        folder / "flat.csv", folder / "good.csv", "--labels", folder / "labels.csv", "--json", folder / "f.json"
    )
    content = json.loads((folder / "f.json").read_text())
    assert code == 0
    assert content["files"]["flat"]["final_score"] is None
    assert content["best"] == "good"
    assert "n/a" in output


def test_segments_partition_the_rows(folder):
    table = read_labels(folder / "labels.csv")
    rows = np.arange(10, 110)
    for column, names in {
        "has_title": ["with title", "without title"],
        "kind": ["y", "x", "z"],  # by count, then name: rows 10..109 hold 34 y
        "duration": ["[6, 8.475]", "(8.475, 10.95]", "(10.95, 13.43]", "(13.43, 15.9]"],
    }.items():
        parts = split_segments(table, column, rows)
        assert [part.name for part in parts] == names
        assert sorted(np.concatenate([part.rows for part in parts]).tolist()) == list(range(100))
    titles = split_segments(table, "has_title", rows)[0].rows
    assert set(titles % 2) == {1}
    assert len(split_segments(table, "ECR", rows)) == 4


def test_segments_of_awkward_columns(tmp_path):
    lines = ["Id,ECR,many,some,count"] + [f"{k},0.5,c{k},{'' if k % 2 else k / 7},{k % 3}" for k in range(40)]
    (tmp_path / "l.csv").write_text("\n".join(lines))
    table = read_labels(tmp_path / "l.csv")
    rows = np.arange(40)
    many = split_segments(table, "many", rows)
    assert (len(many), many[-1].name, len(many[-1].rows)) == (21, "(20 others)", 20)
    some = split_segments(table, "some", rows)
    assert (some[-1].name, len(some[-1].rows)) == ("(empty)", 20)
    assert [part.name for part in split_segments(table, "count", rows)] == ["0", "1", "2"]
    with pytest.raises(DataError, match=r"no column 'Title' .*has_title needs it"):
        split_segments(table, "has_title", rows)


def test_segment_figures_are_those_of_the_rows(folder):
    evaluation = evaluate_files([folder / "good.csv"], folder / "labels.csv", segments=["kind"], resamples=20)
    file = evaluation.files[0]
    kinds = np.array(list("xyz"))[np.arange(120) % 3]
    for part in file.segments["kind"]:
        mask = kinds == part["name"]
        assert part["n"] == mask.sum()
        assert part["srocc"] == metrics.srocc(file.values[mask], evaluation.labels[mask])
        assert part["bias"] == pytest.approx(np.mean(file.values[mask] - evaluation.labels[mask]))


def test_progress_counts_every_piece_of_work(folder):
    calls = []
    evaluate_files(
        [folder / "good.csv", folder / "poor.csv"],
        folder / "labels.csv",
        segments=["has_title"],
        resamples=20,
        allow_missing=True,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls[0] == (0, 5)  # two files, one comparison, two breakdowns
    assert calls[-1] == (5, 5)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


@pytest.mark.parametrize("name", ["labels.csv", "link.csv", "hard.csv"])
def test_the_labels_are_not_a_prediction(folder, name):
    (folder / "link.csv").symlink_to(folder / "labels.csv")
    (folder / "hard.csv").hardlink_to(folder / "labels.csv")
    with pytest.raises(DataError, match="the labels are also one of the predictions"):
        run(folder / name, "--labels", folder / "labels.csv")


def test_labels_may_have_another_column(folder):
    (folder / "other.csv").write_text((folder / "labels.csv").read_text().replace("Id,Title,ECR", "Id,Title,measured"))
    arguments = ["--label-column", "measured", "--resamples", 0, "--json"]
    run(folder / "good.csv", "--labels", folder / "labels.csv", "--resamples", 0, "--json", folder / "a.json")
    options = ["--fit-calibration", "identity", "--calibration-file", folder / "c.json"]
    run(folder / "good.csv", "--labels", folder / "other.csv", *arguments, folder / "b.json", *options)
    one, other = (json.loads((folder / name).read_text()) for name in ("a.json", "b.json"))
    assert one == other | {"labels": one["labels"]}
    assert Calibration.load(folder / "c.json").target == "ECR", "of the predictions it is applied to"


def test_json_to_standard_output_is_nothing_but_json(folder, monkeypatch):
    monkeypatch.chdir(folder)
    arguments = ["evaluate", "good.csv", "--labels", "labels.csv", "--resamples", "0", "--json", "-"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert json.loads(result.stdout)["n"] == 120
    assert "SROCC" in result.stderr
    assert not (folder / "-").exists()


@pytest.mark.parametrize("option", ["--plot", "--calibration-file"])
def test_other_outputs_do_not_go_to_standard_output(folder, option):
    extra = ["--fit-calibration", "identity"] if option == "--calibration-file" else []
    with pytest.raises(ConfigError, match=f"{option} - : a file is written"):
        run(folder / "good.csv", "--labels", folder / "labels.csv", option, "-", *extra)


def test_a_file_of_another_kind_is_kept(folder):
    before = (folder / "poor.csv").read_bytes()
    arguments = [
        folder / "good.csv",
        "--labels",
        folder / "labels.csv",
        "--resamples",
        0,
        "--json",
        folder / "poor.csv",
    ]
    with pytest.raises(DataError, match=r"--json writes \.json; .*--force"):
        run(*arguments)
    assert (folder / "poor.csv").read_bytes() == before
    run(*arguments, "--force")
    assert json.loads((folder / "poor.csv").read_text())["n"] == 120


def test_percent_is_not_multiplied_by_100_for_the_logistic_mapping(folder):
    """Bug: labels up to 100 were fitted as up to 10,000, far from where the customary start is meant for."""
    for name in ("good", "labels"):
        with open(folder / f"{name}.csv", newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        write_predictions(
            folder / f"{name}100.csv", [row["Id"] for row in rows], {"ECR": [100 * float(row["ECR"]) for row in rows]}
        )
    share = evaluate_files([folder / "good.csv"], folder / "labels.csv", resamples=0).files[0].logistic
    result = evaluate_files([folder / "good100.csv"], folder / "labels100.csv", resamples=0, allow_out_of_range=True)
    for count, fit in result.files[0].logistic.items():
        assert fit.parameters == pytest.approx(share[count].parameters, rel=1e-3)
        assert fit.rmse == pytest.approx(100 * share[count].rmse, rel=1e-6)
    assert to_json(result)["logistic_scale"] == 1
