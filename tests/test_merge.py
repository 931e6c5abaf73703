"""`lmm-ecr merge` refuses what it cannot merge (that merged scores are equal is tested with the recipe)."""

import pytest

from lmm_ecr.errors import ConfigError
from lmm_ecr.merge import merge_adapter
from lmm_ecr.models.regression import LmmRegressor


def test_a_plain_checkpoint_is_refused(tiny_qwen, tiny_processor, tmp_path):
    LmmRegressor.from_backbone(str(tiny_qwen), head_hidden_size=8).save_pretrained(tmp_path / "plain")
    tiny_processor.save_pretrained(tmp_path / "plain")
    with pytest.raises(ConfigError, match="plain checkpoint already"):
        merge_adapter(tmp_path / "plain", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_existing_output_is_kept(tiny_qwen, tiny_processor, tmp_path):
    from lmm_ecr.arguments import TuningArguments
    from lmm_ecr.training.tuning import apply_tuning

    model = LmmRegressor.from_backbone(str(tiny_qwen), head_hidden_size=8)
    tuned = apply_tuning(model, TuningArguments(language_model="lora", vision="freeze", lora_rank=1))
    tuned.save_pretrained(tmp_path / "lora")
    model.config.save_pretrained(tmp_path / "lora")
    tiny_processor.save_pretrained(tmp_path / "lora")
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="choose a new directory"):
        merge_adapter(tmp_path / "lora", tmp_path / "out")
    merge_adapter(tmp_path / "lora", tmp_path / "merged", dtype="bfloat16")
    again = LmmRegressor.from_pretrained(tmp_path / "merged")
    assert str(again.backbone.dtype) == "torch.bfloat16"
    assert str(again.regression_head.fc1.weight.dtype) == "torch.float32"
