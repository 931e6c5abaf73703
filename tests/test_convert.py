"""`lmm-ecr convert`: reference checkpoints to this package's layout, tensor by tensor and score by score."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer
from typer.testing import CliRunner

from lmm_ecr.cli import app
from lmm_ecr.convert import convert_checkpoint
from lmm_ecr.errors import ConfigError
from lmm_ecr.models.regression import LmmRegressor
from lmm_ecr.models.videollama2 import VideoLlama2Spec, load_reference_checkpoint
from lmm_ecr.predictor import Predictor

from .models.videollama2_reference import (
    golden_config,
    golden_state,
    write_fine_tuned,
    write_reference_checkpoint,
)


@pytest.fixture(scope="module")
def tokenizer(tiny_videollama2):
    return AutoTokenizer.from_pretrained(tiny_videollama2)


def test_fine_tuned_weights_become_a_run_directory(tmp_path, tokenizer, tiny_manifest):
    source = write_fine_tuned(tmp_path / "theirs", tokenizer)
    result = CliRunner().invoke(app, ["convert", "--model", str(source), "--output", str(tmp_path / "ours")])
    assert result.exit_code == 0, result.output
    assert f"lmm-ecr predict --model {tmp_path / 'ours'}" in result.output.replace("\n", "")
    backbone, head = load_reference_checkpoint(source)
    converted = LmmRegressor.from_pretrained(tmp_path / "ours")
    expected = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    expected |= {f"regression_head.{name}": value for name, value in head.items()}
    state = converted.state_dict()
    assert set(state) == set(expected)
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    saved = json.loads((tmp_path / "ours" / "preprocessing.json").read_text())
    assert VideoLlama2Spec.from_dict(saved["spec"]) == VideoLlama2Spec.reference()
    clips = [{"video": row.video, "title": row.title} for row in tiny_manifest.rows[:3]]
    scores = [Predictor.from_pretrained(d, device="cpu").predict(clips) for d in (source, tmp_path / "ours")]
    np.testing.assert_allclose(scores[1], scores[0], rtol=0, atol=1e-7)
    assert not list(tmp_path.glob(".*"))


def test_public_weights_become_a_backbone(tmp_path, tokenizer):
    state = {name: value for name, value in golden_state().items() if not name.startswith("lm_head_reg.")}
    source = write_reference_checkpoint(tmp_path / "theirs", state, golden_config())
    tokenizer.save_pretrained(source)
    conversion = convert_checkpoint(source, tmp_path / "new" / "ours")
    assert not conversion.has_head
    assert "cannot predict before a recipe has trained a head" in conversion.describe()
    expected = load_reference_checkpoint(source)[0]
    heads = []
    for directory in (source, tmp_path / "new" / "ours"):
        torch.manual_seed(0)
        model = LmmRegressor.from_backbone(str(directory), head_hidden_size=8)
        heads.append(model.regression_head.fc1.weight)
    assert torch.equal(*heads)  # a new head does not depend on how the backbone was loaded
    assert conversion.num_parameters == expected.num_parameters()
    assert set(model.backbone.state_dict()) == set(expected.state_dict())
    assert all(torch.equal(model.backbone.state_dict()[n], v) for n, v in expected.state_dict().items())
    assert AutoTokenizer.from_pretrained(tmp_path / "new" / "ours").chat_template == tokenizer.chat_template
    with pytest.raises(ConfigError, match="without a regression head"):
        LmmRegressor.from_pretrained(tmp_path / "new" / "ours")


@pytest.mark.parametrize(("asked", "stored"), [("auto", torch.bfloat16), ("float32", torch.float32)])
def test_precision_of_the_written_weights(tmp_path, tokenizer, asked, stored):
    """The head stays in float32 whatever the backbone is stored in."""
    source = write_fine_tuned(tmp_path / "theirs", tokenizer, dtype=torch.bfloat16)
    convert_checkpoint(source, tmp_path / "ours", asked)
    from safetensors.torch import load_file

    weights = load_file(tmp_path / "ours" / "model.safetensors")
    backbone = {value.dtype for name, value in weights.items() if name.startswith("backbone.")}
    assert backbone == {stored}
    assert {v.dtype for n, v in weights.items() if n.startswith("regression_head.")} == {torch.float32}
    original, head = load_reference_checkpoint(source, dtype=torch.float32)
    again = LmmRegressor.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    assert all(torch.equal(again.backbone.state_dict()[n], v) for n, v in original.state_dict().items())
    assert torch.equal(again.regression_head.fc1.weight, head["fc1.weight"])


def test_nothing_is_left_behind_by_a_broken_checkpoint(tmp_path, tokenizer):
    state = golden_state()
    del state["model.mm_projector.sampler.0.weight"]
    source = write_reference_checkpoint(tmp_path / "theirs", state, golden_config())
    tokenizer.save_pretrained(source)
    with pytest.raises(ConfigError, match=r"1 tensors missing: connector\.sampler\.weight"):
        convert_checkpoint(source, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("checkpoint", ["tiny_qwen", "tiny_videollama2"])
def test_what_needs_no_conversion(tmp_path, checkpoint, request):
    with pytest.raises(ConfigError, match="not in a layout that needs conversion"):
        convert_checkpoint(request.getfixturevalue(checkpoint), tmp_path / "ours")


def test_mistakes_are_named(tmp_path, tiny_videollama2):
    with pytest.raises(ConfigError, match="no such model directory"):
        convert_checkpoint(tmp_path / "nowhere", tmp_path / "ours")
    with pytest.raises(ConfigError, match="--dtype must be auto"):
        convert_checkpoint(tiny_videollama2, tmp_path / "ours", "int8")
    with pytest.raises(ConfigError, match="exists; choose a new directory"):
        convert_checkpoint(tiny_videollama2, tmp_path)
