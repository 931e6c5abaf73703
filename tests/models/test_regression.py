"""`LmmRegressor`: a score depends on its clip alone; checkpoints keep every bit; the head stays in float32."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from lmm_ecr.data.dataset import ClipDataset, Collator, split_batch
from lmm_ecr.errors import ConfigError
from lmm_ecr.label_transforms import ZScoreTransform, fit_label_transform
from lmm_ecr.models.regression import LmmRegressor


@pytest.fixture(scope="module")
def samples(tiny_manifest, tiny_processor):
    """Encoded clips of several lengths: titles from none to very long."""
    dataset = ClipDataset(tiny_manifest, tiny_processor)
    encoded = []
    for index, title in enumerate([None, "funny", "wow " * 30, "my dog in the garden", "ü漢😀 " * 5]):
        clip = dataset.reader(tiny_manifest[index])
        encoded.append(tiny_processor.encode(clip, title, None))
    assert len({len(s["input_ids"]) for s in encoded}) > 3
    return encoded


def make(tiny_qwen, **options) -> LmmRegressor:
    torch.manual_seed(0)
    model = LmmRegressor.from_backbone(str(tiny_qwen), head_hidden_size=16, **options).eval()
    nn.init.normal_(model.regression_head.fc1.weight, std=0.5)  # a head that reacts, so that differences would show
    nn.init.normal_(model.regression_head.fc2.weight, std=0.5)
    if model.pooling.query is not None:
        nn.init.normal_(model.pooling.query)
    return model


@torch.no_grad()
def scores(model, processor, samples, side="right"):
    processor.padding_side = side
    try:
        return model(**processor.collate(samples)).scores
    finally:
        processor.padding_side = "right"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("pooling", ["mean", "last", "attention"])
def test_a_score_does_not_depend_on_its_batch(tiny_qwen, tiny_processor, samples, pooling, attention):
    model = make(tiny_qwen, pooling=pooling, attn_implementation=attention)
    alone = torch.cat([scores(model, tiny_processor, [sample]) for sample in samples])
    assert alone.std() > 1e-2
    for side in ("right", "left"):
        torch.testing.assert_close(scores(model, tiny_processor, samples, side), alone, rtol=0, atol=1e-5)
        torch.testing.assert_close(scores(model, tiny_processor, samples[::-1], side), alone.flip(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_backbone_keeps_its_attention_implementation(tiny_qwen, attention):
    """Building the wrapper's configuration once reset the backbone's to None: attention then ran without masks."""
    model = make(tiny_qwen, attn_implementation=attention)
    for config in (model.backbone.config, model.backbone.language_model.config, model.backbone.visual.config):
        assert config._attn_implementation == attention


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_save_load_score(tiny_qwen, tiny_processor, samples, tmp_path, pooling):
    transform = fit_label_transform("rank-normal", np.linspace(0.1, 0.9, 50))
    model = make(tiny_qwen, pooling=pooling, targets=["ECR", "NAWP"], label_transforms={"ECR": transform})
    model.save_pretrained(tmp_path)
    again = LmmRegressor.from_pretrained(tmp_path).eval()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=0)
    batch = tiny_processor.collate(samples)
    with torch.no_grad():
        ours, theirs = model(**batch), again(**batch)
    torch.testing.assert_close(ours.predictions, theirs.predictions, rtol=0, atol=0)
    assert ours.predictions.shape == (5, 2)
    assert again.config.targets == ["ECR", "NAWP"]


def test_a_checkpoint_without_head_weights_is_refused(tiny_qwen, tmp_path):
    from safetensors.torch import load_file, save_file

    make(tiny_qwen).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["regression_head.fc2.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"regression_head\.fc2\.weight"):
        LmmRegressor.from_pretrained(tmp_path)


def test_a_plain_backbone_is_no_regressor(tiny_qwen, tmp_path):
    with pytest.raises(ConfigError, match="without a regression head"):
        LmmRegressor.from_pretrained(tiny_qwen)
    with pytest.raises(ConfigError, match=r"config\.json is missing"):
        LmmRegressor.from_pretrained(tmp_path)


def test_head_and_output_stay_float32_on_a_bfloat16_backbone(tiny_qwen, tiny_processor, samples, tmp_path):
    """A bfloat16 score has 128 steps between 0.5 and 1: ties."""
    model = make(tiny_qwen, dtype=torch.bfloat16)
    assert model.backbone.dtype == torch.bfloat16
    assert model.regression_head.fc1.weight.dtype == torch.float32
    output = model(**tiny_processor.collate(samples))
    assert output.scores.dtype == output.predictions.dtype == output.pooled.dtype == torch.float32
    assert not torch.equal(output.scores, output.scores.bfloat16().float())
    model.save_pretrained(tmp_path)
    again = LmmRegressor.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert again.backbone.dtype == torch.bfloat16
    assert again.regression_head.fc1.weight.dtype == torch.float32


def test_new_head_starts_at_the_label_mean(tiny_qwen, tiny_processor, samples):
    transform = ZScoreTransform(mean=0.3, std=0.2)
    model = LmmRegressor.from_backbone(str(tiny_qwen), label_transforms={"ECR": transform}).eval()
    assert model.regression_head.fc2.bias.item() == 0.0
    weights = model.regression_head.fc1.weight
    assert weights.std().item() == pytest.approx(0.02, rel=0.1)
    nn.init.zeros_(model.regression_head.fc2.weight)
    with torch.no_grad():
        predictions = model(**tiny_processor.collate(samples)).predictions
    torch.testing.assert_close(predictions, torch.full_like(predictions, 0.3))


def test_loss_is_on_the_training_scale(tiny_qwen, tiny_processor, samples):
    model = make(tiny_qwen, label_transforms={"ECR": ZScoreTransform(0.5, 0.25)}, loss="mse")
    labels = torch.tensor([[0.25], [0.5], [0.75], [1.0], [float("nan")]])
    output = model(**tiny_processor.collate(samples), labels=labels)
    z = torch.tensor([-1.0, 0.0, 1.0, 2.0])
    assert output.loss.item() == pytest.approx((output.scores[:4, 0] - z).square().mean().item(), rel=1e-6)
    expected = (output.scores[:, 0] * 0.25 + 0.5).clamp(0, 1)
    torch.testing.assert_close(output.predictions[:, 0], expected)


def test_uint8_and_normalised_pixels_are_the_same_input(tiny_qwen, tiny_processor, samples):
    from lmm_ecr.models.qwen2_5_vl import backbone_inputs

    model = make(tiny_qwen)
    batch = tiny_processor.collate(samples)
    pixels = backbone_inputs(model.config, dict(batch))["pixel_values_videos"]
    with torch.no_grad():
        torch.testing.assert_close(
            model(**{**batch, "pixel_values_videos": pixels}).scores, model(**batch).scores, rtol=0, atol=0
        )


def test_gradient_checkpointing_gives_the_same_gradients(tiny_qwen, tiny_processor, samples):
    gradients = []
    for checkpointing in (False, True):
        model = make(tiny_qwen, head_dropout=0.0).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            assert model.backbone.is_gradient_checkpointing
        model(
            **tiny_processor.collate(samples), labels=torch.rand(5, 1, generator=torch.Generator().manual_seed(0))
        ).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, rtol=1e-4, atol=1e-6)


def test_label_transform_of_an_unknown_target_is_refused(tiny_qwen):
    with pytest.raises(ConfigError, match="targets are"):
        LmmRegressor.from_backbone(str(tiny_qwen), label_transforms={"NAWP": ZScoreTransform()})


def test_config_is_plain_json(tiny_qwen, tmp_path):
    make(tiny_qwen, label_transforms={"ECR": fit_label_transform("z-score", [0.1, 0.2, 0.4])}).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["label_transforms"]["ECR"]["name"] == "z-score"
    assert math.isclose(config["label_transforms"]["ECR"]["mean"], 0.7 / 3)
    assert config["backbone_config"]["model_type"] == "qwen2_5_vl"


def test_push_to_hub_uploads_model_and_processor(tiny_qwen, tiny_processor, monkeypatch):
    """The hub is out of reach in tests: what would be uploaded is looked at instead."""
    from huggingface_hub import HfApi, ModelCard
    from transformers.utils import hub

    uploads = set()

    def create_commit(self, repo_id, operations, **_):
        assert repo_id == "someone/model"
        uploads.update(operation.path_in_repo for operation in operations)

    monkeypatch.setattr(hub, "create_and_tag_model_card", lambda *_, **__: ModelCard("card"))
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    make(tiny_qwen).push_to_hub("someone/model")
    tiny_processor.push_to_hub("someone/model")
    assert {"config.json", "model.safetensors", "preprocessing.json", "tokenizer.json"} <= uploads


def test_batch_of_the_collator_runs(tiny_qwen, tiny_processor, tiny_manifest):
    dataset = ClipDataset(tiny_manifest, tiny_processor)
    inputs, notes = split_batch(Collator(tiny_processor)([dataset[0], dataset[1]]))
    output = make(tiny_qwen)(**inputs)
    assert output.loss.isfinite()
    assert notes["row_index"].tolist() == [0, 1]
