"""Every configuration in recipes/configs: its keys exist, fit the model they name, and its head says how to run it."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from lmm_ecr.arguments import parse_arguments
from lmm_ecr.models.families import HEAD_PART, get_family
from lmm_ecr.training.setup import backbone_dtype, preprocessing_spec
from lmm_ecr.training.tuning import resolve_tuning

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "recipes/configs").glob("*.yaml"))
# Beginning of the file name -> model type of its backbone (the hub is not asked) and recipe.
KINDS = {"qwen2_5_vl": ("qwen2_5_vl", "qwen_sft.py"), "videollama2": ("videollama2_qwen2", "videollama2_sft.py")}


def parse(path, *words):
    return parse_arguments(["--config", str(path), "--use_cpu", "true", *words])


def kind(path):
    return next(value for start, value in KINDS.items() if path.name.startswith(start))


def head_of(path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = [line.removeprefix("#").strip() for line in lines[: next(i for i, x in enumerate(lines) if x[:1] != "#")]]
    return "\n".join(comment)


def test_there_are_configurations():
    assert {"qwen2_5_vl_7b.yaml", "videollama2_1_7b_av.yaml", "videollama2_1_7b_av_5frames.yaml"} <= {
        path.name for path in CONFIGS
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_settings_fit_the_family(path):
    args = parse(path)
    family = get_family(kind(path)[0])
    assert args.model.model
    tuning = resolve_tuning(args.tuning, family)
    assert {part: tuning.mode(part) for part in family.parts}.keys() <= yaml.safe_load(path.read_text()).keys()
    assert "train" in (tuning.mode(part) for part in [*family.parts, HEAD_PART])
    spec = preprocessing_spec(args, family.processor_class)
    assert spec.sampling.num_frames == args.data.num_frames
    backbone_dtype(args, family)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_head_says_how_to_run_it(path):
    head = head_of(path)
    assert all(word in head for word in ("Download", "Launch", "Override", "Memory (estimate", "Expected hardware"))
    launch = head.split("Launch", 1)[1].split("Override")[0].replace("\\\n", " ")
    words = shlex.split(launch)
    assert words[:2] == ["accelerate", "launch"]
    assert f"recipes/{kind(path)[1]}" in words
    assert f"recipes/configs/{path.name}" in words
    for name in re.findall(r"[\w./]+\.(?:yaml|json|py)", head):
        if "/" in name:
            assert (ROOT / name).is_file(), name
    position = words.index(f"recipes/{kind(path)[1]}") + 1
    arguments = [str(ROOT / w) if w.startswith("recipes/configs/") else w for w in words[position:]]
    assert parse_arguments([*arguments, "--use_cpu", "true"]).data.train_data == "train.csv"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_overrides_that_the_head_suggests_exist(path):
    text = head_of(path).split("Override", 1)[1].split("Memory")[0]
    for flag in re.findall(r"--\w+", text):
        assert flag[2:] in {name for group in vars(parse(path)).values() for name in getattr(group, "__dict__", {})}, (
            flag
        )


@pytest.mark.parametrize("path", [p for p in CONFIGS if p.name.startswith("videollama2")], ids=lambda path: path.stem)
def test_settings_of_the_winning_team(path):
    args = parse(path)
    family = get_family("videollama2_qwen2")
    tuning = resolve_tuning(args.tuning, family)
    modes = {part: tuning.mode(part) for part in [*family.parts, HEAD_PART]}
    assert {part for part, mode in modes.items() if mode == "freeze"} == {"vision"}
    assert {tuning.learning_rate(part, args.training.learning_rate) for part in modes} == {5e-5}
    training = args.training
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps * 4 == 12  # on 4 GPUs
    assert (training.num_train_epochs, training.lr_scheduler_type, training.warmup_steps) == (1, "cosine", 0.03)
    assert (training.loss, training.weight_decay, training.max_grad_norm) == ("mse", 0.0, 1.0)
    assert (args.model.label_transform, args.model.head_hidden_size, args.model.pooling) == ("percent", 1792, "mean")
    # What the model sees and hears is the family's default: the reference's choice.
    spec = preprocessing_spec(args, family.processor_class)
    default = family.processor_class.spec_class()
    assert spec == default.updated(sampling=spec.sampling)
    assert spec.sampling.num_frames == (5 if "5frames" in path.name else 8)
