"""`lmm-ecr bench`: counts are right and both ways of stepping run; times are printed, never tested."""

import json

import pytest
from torch import nn
from typer.testing import CliRunner

from lmm_ecr.bench import bench, bench_model
from lmm_ecr.cli import app
from lmm_ecr.errors import ConfigError
from lmm_ecr.models.regression import LmmRegressor


@pytest.fixture(scope="module")
def result(tiny_qwen, tiny_processor):
    model = LmmRegressor.from_backbone(str(tiny_qwen), head_hidden_size=8)
    linear = sum(m.weight.numel() for m in model.backbone.language_model.modules() if isinstance(m, nn.Linear))
    return bench(model, tiny_processor, batch_size=2, steps=1, warmup=0, height=84, width=56), model, linear


def test_counts(result, tiny_processor):
    numbers, model, linear = result
    assert numbers.parameters == sum(p.numel() for p in model.parameters())
    video_tokens = 4 * 6  # 8 frames in pairs, 84 x 56 pixels in squares of 28
    assert video_tokens < numbers.tokens_per_clip < video_tokens + 150
    # Every token passes every linear layer of the language model: 2 FLOP per weight, plus attention and vision encoder.
    lower = 2 * linear * numbers.tokens_per_clip
    assert lower < numbers.flops_per_clip < 3 * lower
    assert numbers.peak_memory_gb > 0
    assert numbers.clips_per_s == pytest.approx(2 / numbers.trainer_step_s)


def test_summary_names_every_number(result):
    text = result[0].describe()
    for word in ("clips/s", "tokens/s", "MFU", "ratio", "GFLOP", "peak memory"):
        assert word in text


def test_command_with_lora(tiny_qwen, tmp_path):
    words = ["--model", tiny_qwen, "--steps", 1, "--batch-size", 1, "--height", 56, "--width", 56, "--lora"]
    done = CliRunner().invoke(app, ["bench", *map(str, words), "--json", str(tmp_path / "out.json")])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "out.json").read_text())["batch_size"] == 1


def test_mistakes():
    with pytest.raises(ConfigError, match="one of them"):
        bench_model(None, None)
    with pytest.raises(ConfigError, match="qwen2_5_vl_3b, qwen2_5_vl_7b"):
        bench_model(None, "qwen2_5_vl_72b")
    with pytest.raises(ConfigError, match="float32 or bfloat16"):
        bench_model(None, "qwen2_5_vl_3b", dtype="float16")


@pytest.mark.parametrize(("size", "parameters"), [("qwen2_5_vl_3b", 3_758_821_377), ("qwen2_5_vl_7b", 7_754_513_409)])
def test_random_models_have_the_real_size(size, parameters):
    """Parameters without the language-model head: 2048- or 3584-wide backbone plus the 2048-wide regression head."""
    from lmm_ecr.models.random_weights import random_regressor

    model, _ = random_regressor(size, device="meta")
    assert sum(p.numel() for p in model.parameters()) == parameters
