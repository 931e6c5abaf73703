"""Model directories with a file missing, damaged or edited: a ConfigError that names it, never another score."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmm_ecr import LmmRegressor, Predictor
from lmm_ecr.data.processor import ClipProcessor
from lmm_ecr.errors import ConfigError, DataError, LmmEcrError
from lmm_ecr.files import read_json, write_json
from lmm_ecr.models.qwen2_5_vl import Qwen25VLProcessor
from lmm_ecr.models.videollama2 import VideoLlama2Processor

DAMAGE = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "binary": lambda data: b"\xff\xfe" * 80,
}


@pytest.fixture(scope="module")
def model_dir(tiny_qwen, tiny_processor, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    LmmRegressor.from_backbone(str(tiny_qwen), head_hidden_size=16).save_pretrained(directory)
    tiny_processor.save_pretrained(directory)
    return directory


@pytest.fixture
def copied(model_dir, tmp_path) -> Path:
    return shutil.copytree(model_dir, tmp_path / "copy")


FILES = (
    "chat_template.jinja",
    "config.json",
    "model.safetensors",
    "preprocessing.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(copied, name, damage):
    """Bug: most ended in an error from inside transformers, tokenizers or safetensors."""
    path = copied / name
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(LmmEcrError, match=name):
        Predictor.from_pretrained(copied, device="cpu")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_an_error_for_the_user(copied, name):
    """Bug: without tokenizer.json a tokenizer of eight tokens read every text as nothing."""
    (copied / name).unlink()
    message = "Can't load image processor" if name == "processor_config.json" else name
    with pytest.raises(ConfigError, match=message):
        Predictor.from_pretrained(copied, device="cpu")


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "processor_config.json", "preprocessing.json"])
def test_a_file_that_holds_a_list_is_named(copied, name):
    (copied / name).write_text("[1]")
    with pytest.raises(ConfigError, match=f"{name} is damaged: it holds no JSON object"):
        Predictor.from_pretrained(copied, device="cpu")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_videollama2_needs_its_tokenizer_files_too(tiny_videollama2, tmp_path, name):
    copy = shutil.copytree(tiny_videollama2, tmp_path / "copy")
    (copy / name).unlink()
    with pytest.raises(ConfigError, match=r"tokenizer"):
        VideoLlama2Processor.from_backbone(str(copy))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "processor_config.json", "model.safetensors"])
def test_a_damaged_backbone_is_named(tiny_qwen, tmp_path, name):
    copy = shutil.copytree(tiny_qwen, tmp_path / "copy")
    (copy / name).write_bytes(b"")
    with pytest.raises(ConfigError, match=name):
        LmmRegressor.from_backbone(str(copy)) if name == "model.safetensors" else Qwen25VLProcessor.from_backbone(
            str(copy)
        )


def fields_of(values: dict, prefix: tuple = ()) -> list[tuple]:
    return [
        path
        for name, value in values.items()
        for path in ((*prefix, name), *(fields_of(value, (*prefix, name)) if isinstance(value, dict) else ()))
    ]


def test_every_field_of_the_preprocessing_must_be_there(copied):
    """Bug: without max_pixels a model trained with 4,704 pixels read frames of 602,112."""
    path = copied / "preprocessing.json"
    whole = read_json(path)
    found = fields_of(whole["spec"])
    assert {("max_pixels",), ("sampling", "fps"), ("prompt", "template"), ("audio",)} <= set(found)
    for *parents, name in found:
        values = read_json(path)
        place = values["spec"]
        for parent in parents:
            place = place[parent]
        del place[name]
        write_json(path, values)
        with pytest.raises(ConfigError, match=rf"preprocessing\.json: spec.* has no field '{name}'"):
            ClipProcessor.from_pretrained(copied)
        place[name] = []
        write_json(path, values)
        with pytest.raises(ConfigError, match=rf"preprocessing\.json: spec.*\.{name} must be .*, got \[\]"):
            ClipProcessor.from_pretrained(copied)
        write_json(path, whole)
    ClipProcessor.from_pretrained(copied)
    write_json(path, {**whole, "spec": {**whole["spec"], "max_pixels": True}})
    with pytest.raises(ConfigError, match=r"spec\.max_pixels must be int, got True"):
        ClipProcessor.from_pretrained(copied)
    write_json(path, {"format": 1, "family": whole["family"]})
    with pytest.raises(ConfigError, match=r"preprocessing\.json: spec must be an object of settings"):
        ClipProcessor.from_pretrained(copied)


def test_a_configuration_without_its_label_transforms_is_refused(copied):
    """Bug: the identity took their place, and scores on the training scale were cut off at 0 and 1."""
    path = copied / "config.json"
    whole = read_json(path)
    write_json(path, {k: v for k, v in whole.items() if k != "label_transforms"})
    with pytest.raises(ConfigError, match=r"config\.json has no 'label_transforms'"):
        LmmRegressor.from_pretrained(copied)
    write_json(path, {**whole, "label_transforms": {}})
    with pytest.raises(ConfigError, match=r"config\.json has no label transform for ECR"):
        LmmRegressor.from_pretrained(copied)


@pytest.mark.parametrize("part", ["regression_head.fc1.weight", "backbone.language_model.norm.weight"])
def test_a_weight_of_another_shape_is_named_and_nothing_runs(copied, part):
    """Bug: "You set `ignore_mismatched_sizes` to `False`" did not say which."""
    weights = load_file(copied / "model.safetensors")
    weights[part] = weights[part][:-1].clone()
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=rf"1 weights have another shape \({part}: \(\d+.*\) instead of \(\d+"):
        LmmRegressor.from_pretrained(copied)


def test_a_backbone_weight_of_another_shape_is_named(tiny_qwen, tmp_path):
    copy = shutil.copytree(tiny_qwen, tmp_path / "copy")
    weights = load_file(copy / "model.safetensors")
    name = next(key for key in weights if key.endswith("norm.weight") and "layers" not in key and "visual" not in key)
    weights[name] = torch.zeros(3)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"norm\.weight: \(3,\) instead of \(64,\)"):
        LmmRegressor.from_backbone(str(copy))


def test_json_that_is_none_is_named(tmp_path):
    (tmp_path / "v.json").write_text('{"a": 1')
    with pytest.raises(DataError, match=r"v\.json is damaged or incomplete: no valid JSON"):
        read_json(tmp_path / "v.json")
