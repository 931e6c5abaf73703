"""The recipes' arguments: where a value comes from, and how mistakes are named."""

import dataclasses
import json

import pytest

from lmm_ecr.arguments import (
    DataArguments,
    EcrTrainingArguments,
    ModelArguments,
    TuningArguments,
    parse_arguments,
)
from lmm_ecr.errors import ConfigError

GROUPS = (ModelArguments, DataArguments, TuningArguments, EcrTrainingArguments)


@pytest.fixture
def config(tmp_path):
    """Writes a YAML file and returns the words that name it."""

    def write(text: str | bytes) -> list[str]:
        path = tmp_path / "run.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return ["--config", str(path)]

    return write


def error_of(argv, **options) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_arguments(argv, **options)
    return str(caught.value)


def test_defaults():
    """Modes and rates of the parts are the family's, see tests/training/test_tuning.py."""
    args = parse_arguments([])
    assert all(getattr(args.tuning, part) is None for part in ("vision", "audio", "head", "vision_learning_rate"))
    assert (args.training.num_train_epochs, args.training.lr_scheduler_type) == (1.0, "cosine")
    assert (args.model.pooling, args.data.targets, args.training.loss) == ("mean", ["ECR"], "mse")
    assert args.explicit == set()


def test_command_line_wins_over_file_wins_over_default(config):
    words = config("num_frames: 5\npooling: last\nlearning_rate: 3e-5\n")
    args = parse_arguments([*words, "--pooling", "attention", "--seed=7"])
    assert (args.data.num_frames, args.model.pooling, args.training.learning_rate) == (5, "attention", 3e-5)
    assert (args.training.seed, args.model.head_hidden_size) == (7, 2048)
    assert args.explicit == {"config", "num_frames", "pooling", "learning_rate", "seed"}


def test_embedded_default_applies_to_runs_without_config_and_model(config):
    embedded = {"num_frames": 3, "eval_ablations": ["mute"], "head_dropout": 0.0}
    args = parse_arguments([], embedded=embedded)
    assert (args.data.num_frames, args.training.eval_ablations, args.model.head_dropout) == (3, ["mute"], 0.0)
    assert args.explicit == set(embedded)
    assert parse_arguments(["--num_frames", "4", "--eval_ablations"], embedded=embedded).data.num_frames == 4
    assert parse_arguments(["--eval_ablations"], embedded=embedded).training.eval_ablations == []
    assert parse_arguments(["--model", "some/model"], embedded=embedded).data.num_frames is None
    assert parse_arguments(config("seed: 1"), embedded=embedded).data.num_frames is None


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ([], None),
        (["--resume_from_checkpoint"], "auto"),
        (["--resume_from_checkpoint", "runs/a/checkpoint-3"], "runs/a/checkpoint-3"),
    ],
)
def test_resume_with_and_without_a_directory(words, value):
    args = parse_arguments([*words, "--seed", "3"])
    assert args.training.resume_from_checkpoint == value
    assert args.training.seed == 3


def test_lists_from_file_and_command_line(config):
    words = config("targets: [ECR, NAWP]\neval_ablations: []\n")
    args = parse_arguments(words)
    assert (args.data.targets, args.training.eval_ablations) == (["ECR", "NAWP"], [])
    args = parse_arguments([*words, "--targets", "NAWP", "--eval_ablations", "mute", "blank-text"])
    assert (args.data.targets, args.training.eval_ablations) == (["NAWP"], ["mute", "blank-text"])
    assert parse_arguments(config("targets: NAWP\n")).data.targets == ["NAWP"]


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False), ("yes", True), ("off", False)])
def test_booleans_from_file(config, text, value):
    assert parse_arguments(config(f"group_by_length: {text}\n")).training.group_by_length is value
    assert parse_arguments(config(f"dataloader_drop_last: {text}\n")).training.dataloader_drop_last is value


def test_booleans_from_command_line():
    assert parse_arguments(["--group_by_length"]).training.group_by_length is True
    assert parse_arguments(["--load_best_model_at_end", "False"]).training.load_best_model_at_end is False
    assert parse_arguments(["--no_load_best_model_at_end"]).training.load_best_model_at_end is False


def test_empty_value_is_none_where_none_is_allowed(config):
    """Bug: `vision_learning_rate:` kept 2e-6, although its help says that empty means --learning_rate."""
    words = config("vision_learning_rate:\nhead_learning_rate: null\nnum_train_epochs:\noutput_dir:\n")
    args = parse_arguments(words)
    assert args.tuning.learning_rate("vision", 1e-3) == 1e-3
    assert args.tuning.learning_rate("head", 1e-3) == 1e-3
    assert args.training.num_train_epochs == 1.0
    assert args.explicit == {"config"}
    assert parse_arguments([*words, "--vision_learning_rate", "5e-6"]).tuning.vision_learning_rate == 5e-6


def test_hyphens_are_underscores(config):
    """Bug: `output-dir` of a file was overruled by the default directory."""
    args = parse_arguments([*config("output-dir: runs/x\n"), "--num-frames", "3"])
    assert (args.training.output_dir, args.data.num_frames) == ("runs/x", 3)
    assert args.explicit == {"config", "output_dir", "num_frames"}


def test_mappings_are_for_arguments_that_hold_some(config):
    assert parse_arguments(config("lr_scheduler_kwargs: {num_cycles: 2}\n")).training.lr_scheduler_kwargs == {
        "num_cycles": 2
    }


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--lerning_rate", "1"], "command line: unknown argument 'lerning_rate'; did you mean 'learning_rate'?"),
        (["--num-frame=3"], "unknown argument 'num-frame'; did you mean 'num_frames'?"),
        (["--xyzzy"], "unknown argument 'xyzzy'; see --help for all of them"),
        (["stray"], "command line: 'stray' belongs to no argument"),
        (["--num_frames", "many"], "invalid int value: 'many'"),
        (["--pooling", "max"], "invalid choice: 'max' (choose from"),
        (["--model"], "expected one argument"),
        (["--loss", "mse + foo"], "'foo' is unknown; choose from mse"),
        (["--eval_ablations", "blind"], "ablation 'blind' is unknown; choose from blank-text"),
        (["--targets"], "--targets must name at least one label column"),
        (["--head_hidden_size", "0"], "--head_hidden_size must be at least 1, got 0"),
        (["--head_dropout", "1"], "--head_dropout must lie in [0, 1), got 1.0"),
        (["--eval_fraction", "0"], "--eval_fraction must lie between 0 and 1, got 0.0"),
        (["--lora_rank", "0"], "--lora_rank must be at least 1, got 0"),
        (["--vision_learning_rate=-1"], "--vision_learning_rate must be finite and not negative, got -1.0"),
        (["--head_learning_rate", "nan"], "--head_learning_rate must be finite and not negative, got nan"),
        (["--config", "/no/such.yaml"], "--config /no/such.yaml: no such file"),
    ],
)
def test_mistakes_on_the_command_line(argv, message):
    assert message in error_of(argv)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1\n", "run.yaml: unknown argument 'learning_rat'; did you mean 'learning_rate'?"),
        ("config: other.yaml\n", "run.yaml: unknown argument 'config'"),
        ("1: 2\n", "run.yaml: unknown argument '1'"),
        ("model: {name: x}\n", "run.yaml: 'model' takes one value, not a group of them: the file has one flat level"),
        ("model: [a, b]\n", "run.yaml: 'model' takes one value, not a list"),
        ("num_frames: 8.5\n", "invalid int value: '8.5'"),
        ("bf16: perhaps\n", "bf16"),
        ("- a\n", "run.yaml: expected `name: value` lines"),
        ("", "run.yaml: expected `name: value` lines"),
        ("a: [\n", "run.yaml is no valid YAML"),
        (b"model: caf\xe9\n", "run.yaml is no valid YAML"),
    ],
)
def test_mistakes_in_the_file(config, text, message):
    assert message in error_of(config(text))


def test_mistakes_in_the_embedded_default_are_named():
    assert error_of([], embedded={"num_frame": 3}) == (
        "the embedded default: unknown argument 'num_frame'; did you mean 'num_frames'?"
    )


def test_help_lists_every_argument(capsys):
    """Bug: "95 % intervals" in a help text made --help end in a TypeError."""
    with pytest.raises(SystemExit) as stop:
        parse_arguments(["--help"], description="What it does.")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "What it does." in text
    assert "Resamples behind the 95 % intervals" in " ".join(text.split())
    own = [f.name for group in GROUPS for f in dataclasses.fields(group)]
    assert all(f"--{name}" in text for name in own)


@pytest.mark.parametrize("group", GROUPS)
def test_every_own_field_is_documented_once(group):
    for field in dataclasses.fields(group):
        assert len(field.metadata["help"]) > 10, field.name
    others = {f.name for g in GROUPS if g is not group for f in dataclasses.fields(g)}
    assert not others & {f.name for f in dataclasses.fields(group)}, "one name is one flag"


def test_resolved_values_are_plain_and_without_secrets():
    values = parse_arguments(["--targets", "ECR", "--hub_token", "secret"]).to_dict()
    assert list(values) == ["model", "data", "tuning", "training"]
    assert "secret" not in json.dumps(values)
    assert values["data"]["targets"] == ["ECR"]


def test_runs_without_checkpoints_do_not_ask_for_the_best_one():
    assert parse_arguments(["--eval_strategy", "no"]).training.load_best_model_at_end is False
    assert parse_arguments(["--dataloader_num_workers", "0"]).training.dataloader_persistent_workers is False


def test_contradictions_that_transformers_finds_are_errors_for_the_user():
    """For example bfloat16 asked for on a machine without a GPU used to end in a bare ValueError."""
    words = [
        "--load_best_model_at_end",
        "true",
        "--eval_strategy",
        "steps",
        "--eval_steps",
        "3",
        "--save_strategy",
        "epoch",
    ]
    with pytest.raises(ConfigError, match=r"training arguments: .*strategy"):
        parse_arguments([*words, "--use_cpu"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--gradient_accumulation_steps 0", "--gradient_accumulation_steps must be at least 1, got 0"),
        ("--per_device_eval_batch_size 0", "--per_device_eval_batch_size must be at least 1, got 0"),
        ("--bootstrap_resamples -1", "--bootstrap_resamples must be at least 0, got -1"),
        ("--learning_rate nan", "--learning_rate must be at least 0, got nan"),
        ("--weight_decay -1", "--weight_decay must be at least 0, got -1.0"),
        ("--seed -1", "--seed must be at least 0, got -1"),
        ("--lora_dropout 3", "--lora_dropout must lie in [0, 1), got 3.0"),
        ("--lora_alpha nan", "--lora_alpha must be finite and above 0, got nan"),
        ("--targets ECR ECR", "--targets names a column twice: ECR ECR"),
        (
            "--remove_unused_columns true",
            "--remove_unused_columns is kept at False: the collator's tensors are all used",
        ),
        ("--label_smoothing_factor 0.1", "--label_smoothing_factor is kept at 0.0: labels are numbers, not classes"),
        ("--fp16 true --use_cpu true", "--fp16 has no effect on a CPU"),
        ("--metric_for_best_model final_scor", "no evaluation has 'final_scor'; did you mean 'final_score'?"),
        ("--metric_for_best_model NAWP_srocc", "no evaluation has 'NAWP_srocc'; did you mean 'srocc'?"),
        ("--report_to comet_ml", "--report_to comet_ml: not installed (`pip install comet_ml`)"),
        ("--optim adamw_bnb_8bit", "not installed (`pip install bitsandbytes`)"),
    ],
)
def test_values_that_would_fail_later_are_named_at_once(words, message):
    assert message in error_of(words.split())


def test_an_output_directory_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    assert "is a file; name a directory" in error_of(["--output_dir", str(tmp_path / "run")])


@pytest.mark.parametrize(("metric", "larger"), [("final_score", True), ("rmse", False), ("eval_NAWP_rmse", False)])
def test_the_best_model_by_an_error_is_the_one_with_the_smallest(metric, larger):
    args = parse_arguments(["--metric_for_best_model", metric, "--targets", "ECR", "NAWP"])
    assert args.training.greater_is_better is larger


def test_yaml_words_that_are_booleans_mean_the_words(config):
    args = parse_arguments(config("eval_strategy: no\nsave_strategy: no\nresume_from_checkpoint: false\n"))
    assert (args.training.eval_strategy, args.training.save_strategy) == ("no", "no")
    assert args.training.resume_from_checkpoint is None
    assert parse_arguments(config("resume_from_checkpoint: true\n")).training.resume_from_checkpoint == "auto"


def test_a_key_given_twice_is_refused(config):
    assert "'seed' stands here a second time" in error_of(config("seed: 1\nloss: mse\nseed: 2\n"))


def test_several_reporters(config):
    assert parse_arguments([]).training.report_to == []
    assert parse_arguments(["--report_to", "tensorboard"]).training.report_to == ["tensorboard"]
    assert parse_arguments(config("report_to: [tensorboard]\n")).training.report_to == ["tensorboard"]
    assert parse_arguments(config("report_to: none\n")).training.report_to == []
