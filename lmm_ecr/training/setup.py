"""What a recipe does before training: data, preprocessing and model, checked in this order (after the output directory,
see `prepare_output_dir`) so that a mistake is reported before large weights are loaded."""

import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from ..arguments import RecipeArguments
from ..data.audio import AudioSpec
from ..data.cache import PreparedReader, is_prepared, read_prepared_manifest
from ..data.dataset import ClipDataset, FileReader
from ..data.manifest import Manifest, read_manifest
from ..data.processor import ClipProcessor, PreprocessingSpec
from ..data.synthetic import SyntheticSpec, generate_dataset
from ..errors import ConfigError, DataError
from ..label_transforms import fit_label_transform
from ..models.families import Family, family_of
from ..models.regression import LmmRegressor
from ..models.tiny import TINY_VERSION
from ..prepare import prepare
from ..progress import progress_bar
from .launch import uses_deepspeed
from .output_dir import prepare_output_dir as prepare_output_dir  # recipes find all they need here
from .tuning import apply_tuning, resolve_tuning


@dataclass
class Datasets:
    """Training and evaluation clips, and the rows whose files were missing (with --on_error skip)."""

    train: ClipDataset
    eval: ClipDataset


def embedded_dataset(args: RecipeArguments, spec: SyntheticSpec, processor: ClipProcessor) -> Datasets:
    """The generated clips of a run without --train_data, written and decoded once below --cache_dir."""
    cache = Path(args.data.cache_dir)
    with args.training.main_process_first(local=False):
        with progress_bar("Generating clips", unit="clips") as progress:
            root = generate_dataset(cache / "clips", spec, progress=progress)
        digest = hashlib.sha256(repr(sorted(processor.clip_spec().items())).encode()).hexdigest()[:8]
        datasets = []
        for name in ("train", "eval"):
            manifest = read_manifest(root / f"{name}.csv", root / "videos", targets=args.data.targets)
            directory = root / f"{name}-{digest}"
            with progress_bar(f"Decoding {name} clips", unit="clips") as progress:
                prepare(manifest, processor, directory, image_format="png", num_workers=2, progress=progress)
            datasets.append(ClipDataset(manifest, processor, PreparedReader(directory, processor.clip_spec())))
    return Datasets(*datasets)


def load_datasets(args: RecipeArguments, processor: ClipProcessor) -> Datasets:
    """The user's clips: tables with a video folder, or directories made by `lmm-ecr prepare`."""
    data = args.data
    train = _load_dataset(args, data.train_data, data.video_dir, processor)
    if data.eval_data:
        evaluation = _load_dataset(args, data.eval_data, data.eval_video_dir or data.video_dir, processor)
        shared = {row.id for row in train.manifest} & {row.id for row in evaluation.manifest}
        if shared:
            raise DataError(
                f"{len(shared)} clips are in both --train_data and --eval_data (for example {min(shared)!r}); "
                "the evaluation would be too good"
            )
    else:
        train, evaluation = _split(train, data.eval_fraction)
    return Datasets(train, evaluation)


def _load_dataset(args: RecipeArguments, source: str, video_dir: str | None, processor: ClipProcessor) -> ClipDataset:
    targets = args.data.targets
    if is_prepared(source):
        return ClipDataset(
            read_prepared_manifest(source, targets), processor, PreparedReader(source, processor.clip_spec())
        )
    if Path(source).is_dir():
        raise ConfigError(
            f"{source} is a folder without prepared.json: give a table, or finish `lmm-ecr prepare` there"
        )
    missing = "reject" if args.data.on_error == "skip" else "error"
    manifest = read_manifest(source, video_dir, targets=targets, missing_files=missing)
    return ClipDataset(manifest, processor, FileReader(processor, args.data.decoder))


def _split(dataset: ClipDataset, fraction: float) -> tuple[ClipDataset, ClipDataset]:
    """Hold out about `fraction` of the rows by a hash of their Id, so that the split survives reordering and new rows."""

    def held_out(clip_id: str) -> bool:
        return int.from_bytes(hashlib.sha256(clip_id.encode()).digest()[:8], "big") / 2**64 < fraction

    manifest = dataset.manifest
    kept = [row for row in manifest if not held_out(row.id)]
    out = [row for row in manifest if held_out(row.id)]
    if not kept or not out:
        raise DataError(
            f"{manifest.path}: {len(manifest)} rows are too few to hold out a share of {fraction}; give --eval_data"
        )
    rejected = ([r for r in manifest.rejections if held_out(r.id) == side] for side in (False, True))
    parts = (
        replace(manifest, rows=rows, rejections=rejections)
        for rows, rejections in zip((kept, out), rejected, strict=True)
    )
    return tuple(ClipDataset(part, dataset.processor, dataset.reader) for part in parts)


def build_processor(args: RecipeArguments, backbone: str, family: str | None = None) -> ClipProcessor:
    """The processor for `backbone` (a directory or hub name) with the preprocessing that the arguments ask for.

    Also fills what `args` leaves to the model's family: modes and learning rates of its parts. family: the only one that
    is accepted. Raises ConfigError for another one, and for settings that the family does not have.
    """
    found = family_of(backbone, args.model.model_revision)
    if family not in (None, found.name):
        raise ConfigError(f"--model {backbone} is a {found.name} model; this recipe is for {family}")
    args.tuning = resolve_tuning(args.tuning, found)
    if "learning_rate" not in args.explicit:
        args.training.learning_rate = found.learning_rate
    revision = {} if args.model.model_revision is None else {"revision": args.model.model_revision}
    processor = found.processor_class
    return processor.from_backbone(backbone, preprocessing_spec(args, processor), **revision)


# Flags that are fields of a family's preprocessing spec under the same name.
_SPEC_FLAGS = ("max_pixels", "image_aspect_ratio", "audio_windows", "audio_padding_seconds", "missing_audio")


def preprocessing_spec(args: RecipeArguments, processor: type[ClipProcessor]) -> PreprocessingSpec:
    """The default preprocessing of the processor's family with what the arguments change.

    Raises ConfigError for a flag that says something the family does not have.
    """
    data, spec_class, family = args.data, processor.spec_class, processor.family
    if data.reference_compatible and not hasattr(spec_class, "reference"):
        raise ConfigError(f"--reference_compatible: the {family} family has no other preprocessing than its default")
    default = spec_class.reference() if data.reference_compatible else spec_class()
    sampling = {
        "mode": data.frame_sampling,
        "num_frames": data.num_frames,
        "fps": data.frames_per_second,
        "short_clips": data.short_clips,
    }
    prompt = {
        "template": data.prompt_template,
        "max_title_tokens": data.max_title_tokens,
        "max_description_tokens": data.max_description_tokens,
    }
    changes = _given({name: getattr(data, name) for name in _SPEC_FLAGS})
    for name in changes:
        if not hasattr(default, name):
            raise ConfigError(f"--{name}: a {family} model has no such setting")
    if changes.get("audio_padding_seconds") == 0:
        changes["audio_padding_seconds"] = None
    if "max_pixels" in changes:
        changes["min_pixels"] = min(default.min_pixels, data.max_pixels)
    audio = _given({"mode": data.audio_mode, "seconds": data.audio_seconds})
    if audio:
        changes["audio"] = _audio_spec(default, audio, family)
    changes["sampling"] = replace(default.sampling, **_given(sampling))
    changes["prompt"] = replace(default.prompt, **_given(prompt))
    return replace(default, **changes)


def _audio_spec(default: PreprocessingSpec, changes: dict, family: str) -> AudioSpec:
    if default.audio is None:
        raise ConfigError(f"--audio_{next(iter(changes))}: a {family} model hears no sound")
    audio = replace(default.audio, **changes)
    if "seconds" in changes and audio.mode == "whole":
        raise ConfigError("--audio_seconds has no effect on the whole sound: add --audio_mode first_n_seconds")
    return audio


def _given(values: dict) -> dict:
    return {name: value for name, value in values.items() if value is not None}


def build_model(args: RecipeArguments, backbone: str, processor: ClipProcessor, train: Manifest) -> nn.Module:
    """The pretrained LMM with a new head, label transforms fitted on `train`, tuned as asked (see `apply_tuning`)."""
    check_attention(args.model.attn_implementation)
    labels = train.labels
    transforms = {
        name: fit_label_transform(args.model.label_transform, labels[:, column])
        for column, name in enumerate(train.targets)
    }
    torch.manual_seed(args.training.seed)  # the head's weights: the same for every process and every way of starting
    model = LmmRegressor.from_backbone(
        backbone,
        targets=list(train.targets),
        pooling=args.model.pooling,
        head_hidden_size=args.model.head_hidden_size,
        head_dropout=args.model.head_dropout,
        label_transforms=transforms,
        loss=args.training.loss,
        image_mean=processor.image_mean,
        image_std=processor.image_std,
        revision=args.model.model_revision,
        dtype=backbone_dtype(args, family_of(backbone, args.model.model_revision)),
        attn_implementation=args.model.attn_implementation,
    )
    return apply_tuning(model, args.tuning)


def check_attention(implementation: str) -> None:
    """Say before anything is loaded that flash attention is not installed or has no GPU."""
    if implementation == "flash_attention_2":
        if importlib.util.find_spec("flash_attn") is None:
            raise ConfigError("--attn_implementation flash_attention_2: the flash-attn package is missing; use sdpa")
        if not torch.cuda.is_available():
            raise ConfigError("--attn_implementation flash_attention_2 needs a GPU; use sdpa")


def backbone_dtype(args: RecipeArguments, family: Family) -> torch.dtype:
    """dtype of the backbone's weights, see `ModelArguments.dtype`."""
    if args.model.dtype != "auto":
        return getattr(torch, args.model.dtype)
    tuning = resolve_tuning(args.tuning, family)
    no_full_training = "train" not in [tuning.mode(part) for part in family.parts]
    if args.training.bf16 and (no_full_training or uses_deepspeed(args.training)):
        return torch.bfloat16
    return torch.float32


def tiny_checkpoint(args: RecipeArguments, name: str, write: Callable[[Path], object]) -> str:
    """Directory of a tiny random checkpoint below --cache_dir, written once by `write(directory)`."""
    directory = Path(args.data.cache_dir) / f"tiny_{name}-v{TINY_VERSION}"
    with args.training.main_process_first(local=False):
        if not directory.is_dir():
            directory.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}.") as staging:
                write(Path(staging) / directory.name)
                try:
                    os.replace(Path(staging) / directory.name, directory)
                except OSError:
                    if not directory.is_dir():  # else another job was faster; its files are the same
                        raise
    return str(directory)
