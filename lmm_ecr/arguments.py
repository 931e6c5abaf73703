"""The recipes' arguments: dataclasses, filled from an embedded default, a YAML file and the command line, in this order.

Every field is a flag of the same name and a key of the YAML file, where an empty value means None if the field may be None.
Unknown keys are errors that name the closest known one.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from transformers import TrainingArguments

from .argument_checks import check_best_metric, check_training_arguments, larger_is_better
from .argument_parser import ArgumentParser, as_words, unknown_argument
from .data.ablation import check_ablations
from .data.workers import default_num_workers
from .errors import ConfigError
from .label_transforms import TRANSFORMS
from .losses import parse_loss
from .training.launch import check_requirements, join_processes_on_cpu
from .yaml_files import read_mapping

Mode = Literal["train", "freeze", "lora"]


def _option(default: Any, text: str, **metadata) -> Any:
    make = {"default_factory": default} if callable(default) else {"default": default}
    return field(**make, metadata={"help": text.replace("%", "%%"), **metadata})  # argparse formats help with %


@dataclass
class ModelArguments:
    """Which model, and the head on top of it."""

    model: str | None = _option(None, "Hub name or directory of the pretrained LMM; a tiny random one if not given.")
    model_revision: str | None = _option(None, "Branch, tag or commit on the hub.")
    pooling: Literal["mean", "last", "attention"] = _option(
        "mean", "How token states become one vector: mean over real tokens, last real token, or learned attention."
    )
    head_hidden_size: int = _option(2048, "Width of the hidden layer of the regression head.")
    head_dropout: float = _option(0.1, "Dropout before both linear layers of the head.")
    label_transform: Literal["identity", "z-score", "percent", "logit", "rank-normal"] = _option(
        "z-score", "Scale the head is trained on; fitted on the training labels, inverted at prediction."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = _option(
        "auto",
        "Type of the backbone's weights. auto: bfloat16 where they are all frozen or adapted by LoRA (with --bf16) or "
        "DeepSpeed keeps float32 master weights, else float32: AdamW on bfloat16 weights loses small updates.",
    )
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = _option(
        "sdpa", "Attention kernels of the backbone. flash_attention_2 needs the flash-attn package and a GPU."
    )

    def __post_init__(self):
        if self.head_hidden_size < 1:
            raise ConfigError(f"--head_hidden_size must be at least 1, got {self.head_hidden_size}")
        if not 0 <= self.head_dropout < 1:
            raise ConfigError(f"--head_dropout must lie in [0, 1), got {self.head_dropout}")
        if self.label_transform not in TRANSFORMS:
            raise ConfigError(f"--label_transform must be one of {', '.join(TRANSFORMS)}")


@dataclass
class DataArguments:
    """Which clips, and what of them the model sees. None keeps the model family's default."""

    train_data: str | None = _option(
        None,
        "Training table (CSV or Parquet with Id, Title, Description, ECR), or a directory made by `lmm-ecr prepare`; "
        "generated clips if not given.",
    )
    eval_data: str | None = _option(None, "Evaluation table or prepared directory; else --eval_fraction is held out.")
    video_dir: str | None = _option(None, "Folder of <Id>.mp4; default: the folder of the table.")
    eval_video_dir: str | None = _option(None, "Folder of the evaluation clips; default: --video_dir.")
    eval_fraction: float = _option(
        0.1, "Share of the training rows held out (by a hash of the Id) without --eval_data."
    )
    targets: list[str] = _option(lambda: ["ECR"], "Label columns to predict, each in [0, 1].")
    frame_sampling: Literal["first_n_seconds", "uniform", "fps"] | None = _option(None, "Which frames are taken.")
    num_frames: int | None = _option(None, "Frames per clip.")
    frames_per_second: float | None = _option(None, "Frames per second for first_n_seconds and fps sampling.")
    short_clips: Literal["spread", "fewer"] | None = _option(
        None, "Clips too short for the frames: spread them over the clip, or take fewer."
    )
    max_pixels: int | None = _option(
        None, "Most pixels per frame after the resize (families with flexible resolution)."
    )
    image_aspect_ratio: Literal["square", "pad"] | None = _option(
        None, "Frames to the model's square: squeezed, or padded with grey first (families with a fixed resolution)."
    )
    audio_mode: Literal["first_n_seconds", "whole"] | None = _option(None, "Which part of the sound is read.")
    audio_seconds: float | None = _option(None, "Seconds of sound for --audio_mode first_n_seconds.")
    audio_windows: Literal["reference", "all"] | None = _option(
        None, "What is heard of it: eight windows of 2 s spread over it (the published code's choice), or all."
    )
    audio_padding_seconds: float | None = _option(
        None, "Silence is added up to this length and heard like sound; 0 adds none, and batches are padded and masked."
    )
    missing_audio: Literal["no_tokens", "silence"] | None = _option(
        None, "A clip without a sound track: nothing in its place, or silence."
    )
    reference_compatible: bool = _option(
        False, "Preprocessing of the model family's published code, number for number, its rounding included."
    )
    max_title_tokens: int | None = _option(None, "Longer titles are cut (and counted).")
    max_description_tokens: int | None = _option(None, "Longer descriptions are cut (and counted).")
    prompt_template: str | None = _option(None, "The question, with the fields {title} and {description}.")
    cache_dir: str = _option("runs/cache", "Where generated clips and tiny models of runs without arguments are kept.")
    decoder: Literal["pyav", "decord"] = _option(
        "pyav", "Video reader; decord needs the package, and differs a little on 4K scaled down and on 10-bit sources."
    )
    on_error: Literal["fail", "skip"] = _option(
        "fail", "An unreadable clip stops the run, or is left out, counted and listed in rejected.csv."
    )

    def __post_init__(self):
        if not self.targets:
            raise ConfigError("--targets must name at least one label column")
        if len(set(self.targets)) < len(self.targets):
            raise ConfigError(f"--targets names a column twice: {' '.join(self.targets)}")
        if not 0 < self.eval_fraction < 1:
            raise ConfigError(f"--eval_fraction must lie between 0 and 1, got {self.eval_fraction}")


@dataclass
class TuningArguments:
    """How each part of the model is tuned. None keeps the model family's default, and must stay for parts it lacks."""

    vision: Mode | None = _option(None, "Vision encoder: train all weights, freeze, or adapt with LoRA.")
    projector: Mode | None = _option(None, "Projector (merger, connector) from vision to the language model.")
    language_model: Mode | None = _option(None, "Language model.")
    audio: Mode | None = _option(None, "Audio encoder.")
    audio_projector: Mode | None = _option(None, "Projector from sound to the language model.")
    head: Literal["train", "freeze"] | None = _option(None, "Pooling and regression head.")
    vision_learning_rate: float | None = _option(None, "Default: the family's (Qwen2.5-VL 2e-6), or --learning_rate.")
    projector_learning_rate: float | None = _option(None, "Default: --learning_rate.")
    language_model_learning_rate: float | None = _option(None, "Default: --learning_rate.")
    audio_learning_rate: float | None = _option(None, "Default: --learning_rate.")
    audio_projector_learning_rate: float | None = _option(None, "Default: --learning_rate.")
    head_learning_rate: float | None = _option(None, "Default: the family's (Qwen2.5-VL 1e-4), or --learning_rate.")
    lora_rank: int = _option(16, "Rank of the LoRA matrices.")
    lora_alpha: float = _option(32.0, "LoRA updates are scaled by alpha / rank.")
    lora_dropout: float = _option(0.05, "Dropout on the input of the LoRA matrices.")

    def __post_init__(self):
        if self.lora_rank < 1:
            raise ConfigError(f"--lora_rank must be at least 1, got {self.lora_rank}")
        if not 0 <= self.lora_dropout < 1:
            raise ConfigError(f"--lora_dropout must lie in [0, 1), got {self.lora_dropout}")
        if not 0 < self.lora_alpha < math.inf:
            raise ConfigError(f"--lora_alpha must be finite and above 0, got {self.lora_alpha}")
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name.endswith("learning_rate") and value is not None and not 0 <= value < math.inf:
                raise ConfigError(f"--{item.name} must be finite and not negative, got {value}")

    def mode(self, part: str) -> str | None:
        return getattr(self, part)

    def learning_rate(self, part: str, default: float) -> float:
        own = getattr(self, f"{part}_learning_rate")
        return default if own is None else own


@dataclass
class EcrTrainingArguments(TrainingArguments):
    """transformers' TrainingArguments with other defaults, and what this package adds.

    Other defaults: learning_rate 1e-5, cosine schedule with 3 % warm-up, 1 epoch, batch 16 per device for evaluation,
    evaluation and checkpoints once per epoch, best model by final score, at most 2 checkpoints, log every 10 steps.
    """

    loss: str = _option("mse", 'Training loss: mse, l1, huber, plcc, rank, or a sum such as "mse + 0.5*plcc".')
    group_by_length: bool = _option(False, "Batches of clips of similar length: less padding, slightly less random.")
    overwrite_output_dir: bool = _option(False, "Start anew although --output_dir holds an earlier run.")
    resume_from_checkpoint: str | None = _option(
        None,
        "A checkpoint directory, or nothing (or 'auto') for the last complete one in --output_dir, if any.",
        nargs="?",
        const="auto",
    )
    eval_ablations: list[str] = _option(
        list, "Inputs to destroy in extra final evaluations: blank-text, shuffle-frames, mute."
    )
    bootstrap_resamples: int = _option(1000, "Resamples behind the 95 % intervals of the final metrics.")
    learning_rate: float = _option(
        1e-5, "Learning rate of every part without its own. Recipes' default: the family's (VideoLLaMA2 5e-5)."
    )
    lr_scheduler_type: str = _option("cosine", "Learning rate schedule.")
    warmup_steps: float = _option(0.03, "Warm-up: a share of all steps if below 1, else steps.")
    num_train_epochs: float = _option(1.0, "Passes over the training clips.")
    per_device_eval_batch_size: int = _option(16, "Clips per device in evaluation.")
    logging_steps: float = _option(10, "Steps between log lines (a share of all steps if below 1).")
    logging_nan_inf_filter: bool = _option(False, "Kept off: a loss that is not finite stops the run.")
    eval_strategy: str = _option("epoch", "When to evaluate: no, steps, epoch.")
    save_strategy: str = _option("epoch", "When to write checkpoints: no, steps, epoch, best.")
    save_total_limit: int | None = _option(2, "Checkpoints kept, the best one included.")
    load_best_model_at_end: bool = _option(True, "End with the best model, not the last.")
    metric_for_best_model: str | None = _option(
        "final_score", "What 'best' means: final_score, srocc, plcc, krcc or rmse; of another target NAWP_srocc."
    )
    greater_is_better: bool | None = _option(None, "Whether a larger metric is better; default: not for rmse.")
    remove_unused_columns: bool = _option(False, "Kept off: the collator's tensors are all used.")
    dataloader_num_workers: int = _option(default_num_workers, "Processes that decode clips, per device.")
    dataloader_persistent_workers: bool = _option(True, "Keep the workers between epochs.")
    ddp_find_unused_parameters: bool = _option(False, "Not needed: every trained weight gets a gradient in every step.")
    report_to: list[str] = _option(lambda: ["none"], "tensorboard, wandb, trackio, none, ...; several are allowed.")

    def __post_init__(self):
        parse_loss(self.loss)
        check_ablations(self.eval_ablations)
        check_requirements(self.deepspeed, self.use_cpu)
        check_training_arguments(self)
        if self.greater_is_better is None:
            self.greater_is_better = larger_is_better(self.metric_for_best_model)
        if self.use_cpu:
            join_processes_on_cpu(self.ddp_timeout)
        if self.dataloader_num_workers == 0:
            self.dataloader_persistent_workers = False
        if self.eval_strategy == "no" or self.save_strategy == "no":
            self.load_best_model_at_end = False
        try:
            super().__post_init__()
        except ValueError as error:  # how transformers reports settings that contradict each other or the machine
            raise ConfigError(f"training arguments: {error}") from error


@dataclass
class RecipeArguments:
    """All arguments of one run."""

    model: ModelArguments
    data: DataArguments
    tuning: TuningArguments
    training: EcrTrainingArguments
    explicit: set[str]  # names given in the embedded default, in the YAML file or on the command line

    @property
    def generated_clips(self) -> bool:
        """Whether the run is a demonstration on generated clips."""
        return self.data.train_data is None

    def to_dict(self) -> dict[str, Any]:
        """Resolved values by group, as JSON knows them; secrets are left out."""
        values = {
            "model": asdict(self.model),
            "data": asdict(self.data),
            "tuning": asdict(self.tuning),
            "training": {k: v for k, v in self.training.to_dict().items() if not k.endswith("_token")},
        }
        return json.loads(json.dumps(values, default=str))


def parse_arguments(
    argv: Sequence[str] | None = None, *, embedded: dict[str, Any] | None = None, description: str | None = None
) -> RecipeArguments:
    """Read the arguments of a recipe.

    embedded: values used when neither --config nor --model is given (the run without arguments); the command line
    still wins over them. Raises ConfigError for unknown or malformed keys and values.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _recipe_parser(description)
    known, _ = parser.parse_known_args([a for a in argv if a not in ("-h", "--help")])
    layers: list[str] = []
    explicit: set[str] = set()
    if known.config:
        values = read_config(known.config)
        layers += as_words(values, parser, known.config, _types())
        explicit |= {name.replace("-", "_") for name, value in values.items() if value is not None}
    elif known.model is None and embedded:
        layers += as_words(embedded, parser, "the embedded default", _types())
        explicit |= set(embedded)
    explicit |= {a[2:].split("=")[0].replace("-", "_") for a in argv if a.startswith("--")}
    *groups, namespace, unknown = parser.parse_args_into_dataclasses(
        args=layers + argv, return_remaining_strings=True, look_for_args_file=False
    )
    del namespace
    if unknown:
        raise ConfigError(unknown_argument(unknown[0], parser, "command line"))
    model, data, tuning, training = groups
    check_best_metric(training.metric_for_best_model, data.targets)
    return RecipeArguments(model, data, tuning, training, explicit)


def parse_preparation(config: str | Path) -> RecipeArguments:
    """The arguments in a recipe's YAML file as far as its clips depend on them, on a machine that need not suit the run.

    All keys are checked. The defaults stand in for the training arguments, which may ask for a GPU that is not here.
    Raises ConfigError for unknown or malformed keys and values.
    """
    parser = _recipe_parser()
    namespace = parser.parse_args(as_words(read_config(config), parser, str(config), _types()))
    model, data, tuning = (
        kind(**{item.name: getattr(namespace, item.name) for item in fields(kind)})
        for kind in (ModelArguments, DataArguments, TuningArguments)
    )
    return RecipeArguments(model, data, tuning, EcrTrainingArguments(use_cpu=True), set())


def _recipe_parser(description: str | None = None) -> ArgumentParser:
    parser = ArgumentParser(
        (ModelArguments, DataArguments, TuningArguments, EcrTrainingArguments),
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.HelpFormatter,
    )
    for action in parser._actions:
        if action.nargs == "+":  # HfArgumentParser's choice for lists; an empty list must be sayable
            action.nargs = "*"
    parser.add_argument("--config", help="YAML file with any of these arguments; the command line wins.")
    return parser


def read_config(path: str | Path) -> dict[str, Any]:
    """A recipe's YAML file as a flat dict of arguments. Raises ConfigError if it is missing, no mapping, or says a thing
    twice."""
    if not Path(path).is_file():
        raise ConfigError(f"--config {path}: no such file")
    return read_mapping(path)


def _types() -> dict[str, tuple]:
    """Argument name -> the types it admits."""
    hints: dict[str, Any] = {}
    for group in (ModelArguments, DataArguments, TuningArguments, EcrTrainingArguments):
        hints |= get_type_hints(group)
    alternatives = {name: get_args(hint) or (hint,) for name, hint in hints.items()}
    return {name: tuple(get_origin(kind) or kind for kind in kinds) for name, kinds in alternatives.items()}
