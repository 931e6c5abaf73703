"""What turns a clip and its texts into model input, the same in training and prediction, saved with the checkpoint.

A `ClipProcessor` belongs to one family of LMMs. Its `PreprocessingSpec` says everything that would change a score: frame
sampling, resolution, sound, prompt. `save_pretrained` writes it as `preprocessing.json` next to the tokenizer files.
"""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, get_args, get_type_hints

import numpy as np
import torch
from transformers.utils import PushToHubMixin

from ..errors import ConfigError
from ..files import read_json, write_json
from .audio import AudioSpec
from .decode import Clip, ClipInfo
from .prompt import PromptSpec
from .sampling import FrameSampling, check_keys

SPEC_FILE = "preprocessing.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class PreprocessingSpec:
    """Everything between a file and the model that would change a score.

    sampling: which frames. prompt: the text. audio: which sound, None for a silent model. Families add their own fields.
    """

    sampling: FrameSampling = field(default_factory=FrameSampling)
    prompt: PromptSpec = field(default_factory=PromptSpec)
    audio: AudioSpec | None = None

    nested: ClassVar[dict[str, type]] = {"sampling": FrameSampling, "prompt": PromptSpec, "audio": AudioSpec}

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "PreprocessingSpec":
        """Inverse of `to_dict`. Raises ConfigError naming unknown keys and the closest known one."""
        values = dict(values)
        check_keys("preprocessing", values, cls)
        for name, kind in cls.nested.items():
            if isinstance(values.get(name), dict):
                values[name] = kind.from_dict(values[name])
        return cls(**values)

    def updated(self, **changes) -> "PreprocessingSpec":
        """A copy with other values; None leaves a field as it is."""
        return replace(self, **{name: value for name, value in changes.items() if value is not None})


class ClipProcessor(PushToHubMixin, ABC):
    """Base of the families' processors.

    A sample is a dict of tensors without a batch axis (`encode`); `collate` pads samples into a batch that
    `LmmRegressor.forward` takes. `encode` is deterministic, and safe in dataloader workers.
    """

    family: ClassVar[str]
    spec_class: ClassVar[type[PreprocessingSpec]] = PreprocessingSpec
    spec: PreprocessingSpec
    tokenizer: Any
    image_mean: list[float]
    image_std: list[float]
    padding_side: str = "right"

    @abstractmethod
    def resize(self, frames: np.ndarray) -> np.ndarray:
        """Frames uint8 [T, H, W, 3] to the size the model sees, uint8 [T, h, w, 3]. A second call changes nothing."""

    @abstractmethod
    def encode(self, clip: Clip, title: str | None, description: str | None) -> dict[str, torch.Tensor]:
        """One sample: at least input_ids int64 [tokens]. `clip.frames` may be resized already."""

    @abstractmethod
    def collate(self, samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Pad samples to one batch: input_ids and attention_mask int64 [batch, tokens], plus the family's tensors."""

    @abstractmethod
    def estimated_tokens(self, info: ClipInfo | None, title: str | None, description: str | None) -> int:
        """Length of the sample without decoding the clip; orders batches only, so it need not be exact."""

    @abstractmethod
    def max_source_pixels(self) -> int | None:
        """Pixels per frame beyond which a source frame may be scaled down while decoding (bounds memory)."""

    @abstractmethod
    def clip_spec(self) -> dict[str, Any]:
        """The settings that decide what is in a prepared clip (frames, their size, sound); plain JSON values."""

    @abstractmethod
    def _save_files(self, directory: Path) -> None:
        """Write tokenizer, processor and chat template files."""

    @classmethod
    @abstractmethod
    def from_backbone(cls, name_or_path: str, spec: PreprocessingSpec | None = None, **options) -> "ClipProcessor":
        """The processor for a pretrained LMM, with `spec` or the family's default preprocessing."""

    def save_pretrained(self, directory: str | Path, **_) -> None:
        """Write everything `from_pretrained` needs into `directory`."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._save_files(directory)
        write_json(
            directory / SPEC_FILE, {"format": FORMAT_VERSION, "family": self.family, "spec": self.spec.to_dict()}
        )

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> "ClipProcessor":
        """The processor saved in a checkpoint directory; the family is read from the directory.

        A checkpoint in another code base's layout gets that code's preprocessing. Raises ConfigError if preprocessing.json
        is missing, of a newer format or malformed.
        """
        from ..models.families import FAMILIES, foreign_family

        directory = resolve_directory(directory)
        path = directory / SPEC_FILE
        if not path.is_file() and (family := foreign_family(directory)):
            return family.processor_class.from_backbone(str(directory))
        if not path.is_file():
            raise ConfigError(f"{directory} is no model directory of this package: {SPEC_FILE} is missing")
        saved = read_json(path)
        if not isinstance(saved, dict):
            raise ConfigError(f"{path} is damaged: it holds no JSON object")
        if saved.get("format") != FORMAT_VERSION:
            raise ConfigError(f"{path}: format {saved.get('format')!r}, this version reads {FORMAT_VERSION}")
        family = next((f for f in FAMILIES if f.name == saved.get("family")), None)
        if family is None:
            raise ConfigError(f"{path}: unknown family {saved.get('family')!r}; known: {[f.name for f in FAMILIES]}")
        processor = family.processor_class
        try:
            check_complete("spec", saved.get("spec"), processor.spec_class)
            spec = processor.spec_class.from_dict(saved["spec"])
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
        return processor.from_backbone(str(directory), spec)


def check_complete(name: str, values: Any, kind: type) -> None:
    """Refuse a saved dataclass `kind` that lacks a field or has one of another type: a default in its place would change
    scores without a word. Raises ConfigError naming the field."""
    if not isinstance(values, dict):
        raise ConfigError(f"{name} must be an object of settings, got {values!r}")
    hints = get_type_hints(kind)
    check_keys(name, values, kind)
    for item in fields(kind):
        if item.name not in values:
            raise ConfigError(
                f"{name} has no field {item.name!r}, which every saved model has: the file was cut or edited"
            )
        value, options = values[item.name], get_args(hints[item.name]) or (hints[item.name],)
        nested = next((option for option in options if is_dataclass(option)), None)
        if nested and value is not None:
            check_complete(f"{name}.{item.name}", value, nested)
        elif not any(_fits(value, option) for option in options):
            expected = " or ".join("null" if option is type(None) else option.__name__ for option in options)
            raise ConfigError(f"{name}.{item.name} must be {expected}, got {value!r}")


def _fits(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def check_tokenizer(tokenizer) -> None:
    """Refuse a tokenizer without its vocabulary or padding token: transformers builds one from a directory without
    tokenizer.json, and every text would be lost. Raises ConfigError naming the file."""
    source = tokenizer.name_or_path or "the checkpoint"
    ids = tokenizer("the title of a video", add_special_tokens=False)["input_ids"]
    if not ids or set(ids) == {tokenizer.unk_token_id}:
        raise ConfigError(
            f"the tokenizer of {source} turns plain text into nothing: tokenizer.json is missing or of another model; "
            "copy or download it again"
        )
    if tokenizer.pad_token_id is None:
        raise ConfigError(
            f"the tokenizer of {source} has no padding token: tokenizer_config.json is missing or of another model; "
            "copy or download it again"
        )


def resolve_directory(name_or_path: str | Path, revision: str | None = None) -> Path:
    """A model directory as it is, or the local copy of a hub repository. Raises ConfigError if it is neither."""
    path = Path(name_or_path)
    if path.is_dir():
        return path
    if path.exists() or str(name_or_path).count("/") != 1:
        raise ConfigError(f"{name_or_path}: no such model directory")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(str(name_or_path), revision=revision))
    except (RepositoryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError) as error:
        raise ConfigError(
            f"{name_or_path}: no such directory here, and it cannot be fetched from the hub ({type(error).__name__})"
        ) from error


def pad_tokens(
    samples: list[dict[str, torch.Tensor]], pad_values: dict[str, int], padding_side: str
) -> dict[str, torch.Tensor]:
    """Pad the 1-D tensors named in `pad_values` to one length and add `attention_mask`.

    Worked example, right padding, pad_values {"input_ids": 0}: [5, 6, 7] and [8] become input_ids [[5, 6, 7], [8, 0, 0]]
    and attention_mask [[1, 1, 1], [1, 0, 0]].
    """
    lengths = [len(sample["input_ids"]) for sample in samples]
    width = max(lengths)
    batch = {
        name: torch.full((len(samples), width), value, dtype=samples[0][name].dtype)
        for name, value in pad_values.items()
    }
    batch["attention_mask"] = torch.zeros(len(samples), width, dtype=torch.int64)
    for row, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
        span = slice(width - length, width) if padding_side == "left" else slice(0, length)
        batch["attention_mask"][row, span] = 1
        for name in pad_values:
            batch[name][row, span] = sample[name]
    return batch
