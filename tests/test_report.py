"""The HTML report: complete, self-contained, and safe against what titles and ids may hold."""

import base64
import csv
import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from lmm_ecr.cli import app
from lmm_ecr.errors import ClipError, ConfigError, DataError
from lmm_ecr.evaluate import evaluate_files
from lmm_ecr.predictions import write_predictions
from lmm_ecr.report import Recipe, render_report, write_report
from lmm_ecr.report_clips import clip_path, read_thumbnails

CLIPS = Path(__file__).resolve().parents[1] / "../shared/data/snapugc"
EVIL = ['<script>alert("1")</script>', "\"><img src=x onerror='alert(2)'>", "{{ 7 * 7 }}{% raw %}", "&lt;b&gt; שלום 😀"]


class Page(HTMLParser):
    """Elements with their attributes, and the text between them."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)

    def all_text(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture
def folder(tmp_path) -> Path:
    """60 labelled clips; the four with the largest errors have hostile titles, the first a hostile id too."""
    generator = np.random.default_rng(0)
    labels = generator.uniform(0.3, 0.7, 60)
    ids = [f"clip{k:02d}" for k in range(60)]
    ids[0] = EVIL[0]
    with open(tmp_path / "labels.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["Id", "Title", "Description", "ECR", "duration"])
        for k in range(60):
            writer.writerow([ids[k], EVIL[k] if k < 4 else "", EVIL[-1 - k] if k < 4 else "words", labels[k], k])
    for name, noise in (("a & <b>", 0.05), ("poor", 0.2)):
        values = np.clip(labels + generator.normal(0, noise, 60), 0, 1)
        values[:4] = [1.0, 0.99, 0.98, 0.97]
        write_predictions(tmp_path / f"{name}.csv", ids, {"ECR": values})
    return tmp_path


def evaluation(folder: Path, names=("a & <b>", "poor"), **options):
    return evaluate_files([folder / f"{n}.csv" for n in names], folder / "labels.csv", resamples=30, **options)


def test_untrusted_text_is_shown_and_never_becomes_markup(folder):
    page = Page(render_report(evaluation(folder), title="<script>t</script>"))
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "iframe", "object", "embed", "link", "base", "form", "b"}
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
    text = page.all_text()
    for evil in [*EVIL, "a & <b>", "<script>t</script>"]:
        assert evil in text


def test_nothing_comes_from_the_network(folder):
    html = render_report(evaluation(folder))
    page = Page(html)
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset", "data", "action"):
            assert attributes.get(name, "data:").startswith("data:")
    assert "http:" not in html
    assert "https:" not in html
    assert "url(" not in html
    assert "@import" not in html
    policy = next(a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    assert any(t == "meta" and a.get("name") == "viewport" for t, a in page.elements)


def test_numbers_plots_and_sections(folder):
    result = evaluation(folder)
    page = Page(render_report(result))
    text = page.all_text()
    for file in result.files:
        for name in ("srocc", "plcc", "krcc", "rmse", "final_score"):
            assert f"{file.metrics[name]:.3f}" in text
        low, high = file.metrics["ci95"]["srocc"]
        assert f"{low:.3f} to {high:.3f}" in text
    pictures = [a for t, a in page.elements if t == "img"]
    assert len(pictures) == 4  # scatter and reliability of two files
    for picture in pictures:
        with Image.open(io.BytesIO(base64.b64decode(picture["src"].split(",")[1]))) as image:
            assert image.format == "PNG"
        assert "plot" in picture["alt"] or "curve" in picture["alt"]
    for heading in ("All files", "has_title", "has_description", "duration", "Largest errors", "Correlation between"):
        assert heading in text


def test_single_file_has_no_comparison(folder):
    text = Page(render_report(evaluation(folder, ["poor"]))).all_text()
    assert "All files" not in text
    assert "Correlation between" not in text
    assert "poor" in text


def test_worst_errors_come_first_and_are_counted(folder):
    text = Page(render_report(evaluation(folder, ["poor"]), worst=4)).all_text()
    errors = text[text.index("Largest errors") :]
    assert errors.count("label 0.") == 4
    assert text.index(EVIL[0]) < text.index("How to read")
    assert "Largest errors" not in Page(render_report(evaluation(folder, ["poor"]), worst=0)).all_text()


def test_equal_inputs_give_equal_files(folder):
    assert render_report(evaluation(folder)) == render_report(evaluation(folder))


def test_undefined_metrics_are_not_numbers(folder):
    ids = (folder / "poor.csv").read_bytes()
    rows = list(csv.reader(io.StringIO(ids.decode(), newline="")))[1:]
    write_predictions(folder / "flat.csv", [row[0] for row in rows], {"ECR": [0.5] * len(rows)})
    text = Page(render_report(evaluation(folder, ["flat"]))).all_text()
    assert "n/a" in text
    assert "nan" not in text.lower()


def test_command(folder):
    output = folder / "out" / "r.html"
    arguments = ["report", str(folder / "poor.csv"), "--labels", str(folder / "labels.csv"), "--output", str(output)]
    result = CliRunner().invoke(app, [*arguments, "--resamples", "20", "--segment", "duration"])
    assert result.exit_code == 0, result.output
    assert output.read_text(encoding="utf-8").startswith("<!doctype html>")
    refused = CliRunner().invoke(app, [*arguments[:-1], str(folder / "poor.csv")])
    assert isinstance(refused.exception, DataError)
    for more, words in ((["--video-dir", str(folder / "no")], "no such directory"), (["--worst", "-1"], "--worst")):
        refused = CliRunner().invoke(app, [*arguments, *more])
        assert isinstance(refused.exception, ConfigError)
        assert words in str(refused.exception)


def test_the_file_in_focus_comes_first_and_says_how_it_was_made(folder):
    recipe = Recipe([("<i>a</i>", 0.25, 0.01), ("b", 0.75, None)], ["made by <hand>"])
    page = Page(render_report(evaluation(folder), focus=1, recipe=recipe))
    text = page.all_text()
    for words in ("<i>a</i>", "0.250", "+0.0100", "made by <hand>", "2 prediction files and the ensemble"):
        assert words in text
    pictures = [a["alt"] for t, a in page.elements if t == "img" and "Scatter" in a["alt"]]
    assert pictures[0].endswith("poor")
    assert text.index("poor") < text.index("All files")


def test_clips_that_cannot_be_read_show_their_reason(folder):
    videos = folder / "videos"
    videos.mkdir()
    (videos / "clip01.mp4").write_text("not a video")
    result = evaluation(folder, ["poor"])
    text = Page(render_report(result, video_dir=videos, worst=4)).all_text()
    assert text.count("No picture:") == 4
    assert "no file clip02.mp4 in the video directory" in text
    assert read_thumbnails(videos, "clip01").reason not in ("", "no file clip01.mp4 in the video directory")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "..\\x", "C:\\x", "x\0y"])
def test_ids_do_not_leave_the_video_directory(tmp_path, name):
    with pytest.raises(ClipError, match="unsafe_id"):
        clip_path(tmp_path, name)
    assert read_thumbnails(tmp_path, name).reason.startswith("unsafe_id")
    assert clip_path(tmp_path, name, "sub/v.webm") == tmp_path / "sub/v.webm"


def test_thumbnails_of_real_clips(tmp_path):
    if not CLIPS.exists():
        pytest.skip(f"{CLIPS} is not on this machine")
    with open(CLIPS / "clips.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    write_predictions(tmp_path / "p.csv", [row["Id"] for row in rows], {"ECR": [0.5, 0.1, 0.9, 0.4, 0.2]})
    result = evaluate_files([tmp_path / "p.csv"], CLIPS / "clips.csv", resamples=20)
    write_report(result, tmp_path / "r.html", video_dir=CLIPS / "videos")
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    frames = [a["src"] for t, a in page.elements if t == "img" and "Frame" in a["alt"]]
    assert len(frames) == 3 * len(rows)
    with Image.open(io.BytesIO(base64.b64decode(frames[0].split(",")[1]))) as image:
        assert (image.format, image.height) == ("JPEG", 150)
    assert (tmp_path / "r.html").stat().st_size < 1_000_000


def test_a_prediction_file_never_becomes_a_report(folder):
    before = (folder / "poor.csv").read_bytes()
    arguments = ["report", str(folder / "a & <b>.csv"), "--labels", str(folder / "labels.csv"), "--resamples", "0"]
    for output, words in ((str(folder / "poor.csv"), "--output writes .html"), ("-", "--output - : a file is written")):
        refused = CliRunner().invoke(app, [*arguments, "--output", output])
        assert isinstance(refused.exception, DataError | ConfigError)
        assert words in str(refused.exception)
    assert (folder / "poor.csv").read_bytes() == before


def test_labels_of_another_column_make_the_same_report(folder):
    renamed = (folder / "labels.csv").read_text(encoding="utf-8").replace("Description,ECR", "Description,measured")
    (folder / "other.csv").write_text(renamed, encoding="utf-8")
    arguments = ["report", str(folder / "poor.csv"), "--resamples", "0", "--worst", "3", "--labels"]
    texts = []
    for more in (["labels.csv"], ["other.csv", "--label-column", "measured"]):
        output = folder / f"{more[0]}.html"
        words = [*arguments, str(folder / more[0]), *more[1:], "--output", str(output)]
        result = CliRunner().invoke(app, words, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        texts.append(Page(output.read_text(encoding="utf-8")).all_text())
    assert texts[0] == texts[1].replace("other.csv", "labels.csv").replace("measured", "ECR")
