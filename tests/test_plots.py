"""Plots: readable files of the promised kind, from any table an evaluation can have."""

import io

import numpy as np
import pytest
from PIL import Image

from lmm_ecr import plots
from lmm_ecr.errors import ConfigError
from lmm_ecr.metrics import evaluate_predictions


def noisy(n: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    labels = generator.random(n)
    return np.clip(labels + generator.normal(0, 0.1, n), 0, 1), labels


@pytest.mark.parametrize("n", [0, 1, 200, plots.POINTS + 1])
def test_scatter_of_any_size(tmp_path, n):
    x, y = noisy(n)
    plots.scatter_plot(x, y, tmp_path / "s.png", "a $title$ with\nlines", evaluate_predictions(x, y, resamples=20))
    with Image.open(tmp_path / "s.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert min(pixels.shape[:2]) > 500
    blue = (pixels[..., 2].astype(int) - pixels[..., 0]) > 40
    assert blue.any() == (n > 0)  # the points


def test_axes_reach_the_data_outside_the_unit_square():
    figure = plots.scatter_figure([plots.Panel(np.array([-0.5, 2.0]), np.array([0.0, 1.0]))])
    low, high = figure.axes[0].get_xlim()
    assert low < -0.5
    assert high > 2
    assert figure.axes[0].get_ylim() == (low, high)
    inside = plots.scatter_figure([plots.Panel(np.array([0.4, 0.5]), np.array([0.4, 0.5]))])
    assert inside.axes[0].get_xlim() == pytest.approx((-0.02, 1.02))


def test_metrics_are_printed_in_full():
    x, y = noisy(100)
    result = evaluate_predictions(x, y, resamples=20)
    text = plots.scatter_figure([plots.Panel(x, y, "t", result)]).axes[0].texts[0].get_text()
    low, high = result["ci95"]["srocc"]
    assert f"SROCC {result['srocc']:.3f} [{low:.3f}, {high:.3f}]" in text
    assert "n     100" in text


def test_several_files_share_axes():
    panels = [plots.Panel(*noisy(50), title=f"file {k}") for k in range(4)]
    figure = plots.scatter_figure(panels)
    assert len(figure.axes) == 4
    assert len({axes.get_xlim() for axes in figure.axes}) == 1


def test_reliability_shows_each_bin(tmp_path):
    x, y = noisy(400)
    curve = plots.reliability(x, y, 8)
    figure = plots.reliability_figure(curve, x)
    drawn = figure.axes[0].containers[0].lines[0].get_xydata()
    np.testing.assert_allclose(drawn, np.stack([curve.mean_prediction, curve.mean_label], axis=1))
    plots.reliability_plot(x, y, tmp_path / "r.svg")
    assert (tmp_path / "r.svg").read_text().count("<svg") == 1
    plots.reliability_plot([0.5], [0.4], tmp_path / "one.png")
    plots.reliability_plot([], [], tmp_path / "none.png")


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_equal_figures_are_equal_bytes(kind):
    first, second = (plots.figure_bytes(plots.scatter_figure([plots.Panel(*noisy(20))]), kind) for _ in range(2))
    assert first == second
    assert io.BytesIO(first).read(4) == {"png": b"\x89PNG", "svg": b"<?xm", "pdf": b"%PDF"}[kind]


def test_unknown_kind_names_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match=r"x\.jpeg2: a plot is written as png, svg, pdf"):
        plots.scatter_plot([0.1], [0.1], tmp_path / "x.jpeg2")
