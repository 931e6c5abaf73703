"""Frames, sound and text for VideoLLaMA2.1-AV, with the reference's prompt, resize and choice of sound."""

import logging
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lmm_ecr.data.audio import SAMPLE_RATE, AudioSpec
from lmm_ecr.data.decode import Clip, ClipInfo
from lmm_ecr.data.fbank import FRAME_LENGTH, FRAME_SHIFT, kaldi_fbank, num_fbank_frames, pad_audio, reference_audio
from lmm_ecr.data.processor import (
    ClipProcessor,
    PreprocessingSpec,
    check_tokenizer,
    pad_tokens,
    resolve_directory,
)
from lmm_ecr.data.prompt import PromptSpec, build_prompt, plain_ids
from lmm_ecr.data.sampling import FrameSampling, check_choice, check_positive
from lmm_ecr.errors import ConfigError, DataError
from lmm_ecr.files import read_json, write_json
from lmm_ecr.models.model_files import reading_processor
from lmm_ecr.models.videollama2.configuration import VideoLlama2Config
from lmm_ecr.models.videollama2.conversion import is_reference_checkpoint
from lmm_ecr.models.videollama2.modeling import AUDIO, VIDEO
from lmm_ecr.models.videollama2.reference_config import read_reference_config
from lmm_ecr.models.videollama2.reference_files import ReferenceFiles

ANSWER = "The engagement continuation rate of the video."
PROCESSOR_FILE = "processor_config.json"
REFERENCE_MAX_TOKENS = 2048  # of its whole training input
PADDING_GREY = 127  # SigLIP's mean of 0.5 as the reference truncates it to 8 bits
_MARK = "\x00user text\x00"  # stands for the user's message while the chat template is rendered

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VideoLlama2Spec(PreprocessingSpec):
    """Preprocessing of VideoLLaMA2.1-AV. The defaults hear and see what the reference means to; see `reference`.

    sampling: must give every clip the same number of frames, at least two. Of an odd number the last one has no effect.
    audio: the sound that is read; None for a model without sound.
    audio_windows: "reference" (eight windows of 2 s spread over the sound that was read, 16 s in all; shorter sound is
        repeated) or "all" (what was read, as it is).
    audio_padding_seconds: zeros are appended up to this length and encoded like sound, as in the reference (30). None
        adds none: fewer tokens, and tracks of different lengths are padded in the batch and masked.
    missing_audio: a clip without a sound track gets "no_tokens" (the sequence has none), or "silence" (encoded zeros of
        `audio_padding_seconds`, or of 30 s).
    fbank_dtype: "float32", or "bfloat16" to round the filter bank before it is normalised as the reference does.
    image_aspect_ratio: "square" squeezes a frame to the model's square, "pad" first pads it to a square with grey.
    special_tokens_in_text: "plain" reads look-alikes of special tokens in titles and descriptions as ordinary text,
        "parsed" as special tokens.
    answer: the assistant's sentence, part of the input.

    Raises ConfigError naming the field.
    """

    audio: AudioSpec | None = field(default_factory=lambda: AudioSpec(mode="whole"))
    audio_windows: str = "reference"
    audio_padding_seconds: float | None = 30.0
    missing_audio: str = "no_tokens"
    fbank_dtype: str = "float32"
    image_aspect_ratio: str = "square"
    special_tokens_in_text: str = "plain"
    answer: str = ANSWER

    def __post_init__(self):
        check_choice("audio_windows", self.audio_windows, ("reference", "all"))
        check_choice("missing_audio", self.missing_audio, ("no_tokens", "silence"))
        check_choice("fbank_dtype", self.fbank_dtype, ("float32", "bfloat16"))
        check_choice("image_aspect_ratio", self.image_aspect_ratio, ("square", "pad"))
        check_choice("special_tokens_in_text", self.special_tokens_in_text, ("plain", "parsed"))
        if self.audio_padding_seconds is not None:
            check_positive("audio_padding_seconds", self.audio_padding_seconds)
        sampling = self.sampling
        varies = sampling.mode == "fps" or (sampling.mode == "first_n_seconds" and sampling.short_clips == "fewer")
        if varies or sampling.num_frames < 2:
            raise ConfigError(
                "VideoLLaMA2 needs the same number of frames, at least two, from every clip: use sampling mode 'uniform', "
                f"or 'first_n_seconds' with short_clips 'spread', and num_frames of 2 or more; got {sampling}"
            )

    @classmethod
    def reference(cls, **changes) -> "VideoLlama2Spec":
        """The reference's input number for number, its rounding and its treatment of special cases included.

        The reference cuts no text (in training only the whole input, at 2,048 tokens): titles and descriptions up to that
        length stay as they are. Blank ones become the word None here too.
        """
        spec = cls(
            missing_audio="silence",
            fbank_dtype="bfloat16",
            special_tokens_in_text="parsed",
            prompt=PromptSpec(max_title_tokens=REFERENCE_MAX_TOKENS, max_description_tokens=REFERENCE_MAX_TOKENS),
        )
        return replace(spec, **changes)


class VideoLlama2Processor(ClipProcessor):
    """Frames travel as uint8 and are normalised on the device; sound becomes a filter bank in the worker."""

    family = "videollama2"
    spec_class = VideoLlama2Spec

    def __init__(self, tokenizer, config: VideoLlama2Config, spec: VideoLlama2Spec | None = None):
        """tokenizer: a fast one, with a chat template and a padding token. config: of the backbone, for its sizes."""
        if not getattr(tokenizer, "chat_template", None) or tokenizer.pad_token_id is None:
            raise ConfigError(
                "the checkpoint's tokenizer needs a chat template and a padding token; take the tokenizer files of "
                "VideoLLaMA2.1-7B-AV or Qwen2-7B-Instruct"
            )
        check_tokenizer(tokenizer)
        self.tokenizer = tokenizer
        self.config = config
        self.spec = spec or VideoLlama2Spec()
        self.image_mean, self.image_std = [0.5] * 3, [0.5] * 3
        used = self.spec.sampling.num_frames // config.connector_downsample[0] * config.connector_downsample[0]
        if used == 0:
            raise ConfigError(f"{self.spec.sampling.num_frames} frames are fewer than the connector joins")
        if used != self.spec.sampling.num_frames:
            logger.warning("the connector uses %d of %d frames", used, self.spec.sampling.num_frames)

    @classmethod
    def from_backbone(cls, name_or_path, spec=None, **options) -> "VideoLlama2Processor":
        """For a VideoLLaMA2 backbone or model (directory or hub name), in our layout or the reference's.

        Without `spec` a checkpoint in the reference's layout gets the reference's preprocessing, with its own number of
        frames and aspect ratio. options: `revision` of a hub name.
        """
        from transformers import AutoTokenizer

        directory = resolve_directory(name_or_path, options.pop("revision", None))
        if (directory / PROCESSOR_FILE).is_file():
            with reading_processor(directory):
                config = VideoLlama2Config.from_dict(read_json(directory / PROCESSOR_FILE)["backbone_config"])
        elif is_reference_checkpoint(directory):
            config = read_reference_config(directory, ReferenceFiles(directory).shapes)
            spec = spec or _reference_spec(read_json(directory / "config.json"))
        else:
            with reading_processor(directory):
                config = VideoLlama2Config.from_pretrained(directory, **options)
        with reading_processor(directory):
            tokenizer = AutoTokenizer.from_pretrained(directory, **options)
        return cls(tokenizer, config, spec)

    def _save_files(self, directory: Path) -> None:
        self.tokenizer.save_pretrained(directory)
        values = {"processor_class": type(self).__name__, "backbone_config": self.config.to_dict()}
        write_json(directory / PROCESSOR_FILE, values)

    def max_source_pixels(self) -> int:
        # Frames up to 4K are resized once, from the full picture, as in the reference; only beyond that memory counts.
        return 1920 * 1088

    def clip_spec(self) -> dict[str, Any]:
        return {
            "family": self.family,
            "sampling": self.spec.sampling.to_dict(),
            "image_size": self.config.vision_config.image_size,
            "image_aspect_ratio": self.spec.image_aspect_ratio,
            "audio": None if self.spec.audio is None else self.spec.audio.to_dict(),
        }

    def resize(self, frames: np.ndarray) -> np.ndarray:
        """uint8 [T, H, W, 3] -> uint8 [T, size, size, 3], PIL's bicubic filter, as `image_aspect_ratio` says."""
        size = self.config.vision_config.image_size
        if frames.shape[1:3] == (size, size):
            return frames
        if self.spec.image_aspect_ratio == "pad":
            frames = _pad_to_square(frames)
        resized = [Image.fromarray(frame).resize((size, size), Image.Resampling.BICUBIC) for frame in frames]
        return np.stack([np.asarray(frame) for frame in resized]) if resized else frames

    def encode(self, clip: Clip, title: str | None, description: str | None) -> dict[str, torch.Tensor]:
        """One sample: input_ids and mm_token_type_ids int64 [S], pixel_values_videos uint8 [T, 3, size, size], fbank
        float32 [N, 128] if there is sound to hear, truncated bool scalar. A clip of no frames is sound alone.

        Raises DataError for a clip with neither frames nor sound, or with too few frames.
        """
        sample: dict[str, torch.Tensor] = {}
        types: list[int] = []
        if len(clip.frames):
            num_tokens = self.config.num_video_tokens(len(clip.frames))
            if num_tokens == 0:
                raise DataError(
                    f"{len(clip.frames)} frame is too few: VideoLLaMA2's connector joins neighbouring frames"
                )
            frames = torch.from_numpy(np.ascontiguousarray(self.resize(clip.frames)))
            sample["pixel_values_videos"] = frames.permute(0, 3, 1, 2).contiguous()
            types += [VIDEO] * num_tokens
        fbank = self.fbank(clip.audio)
        if fbank is not None:
            sample["fbank"] = fbank
            types += [AUDIO] * self.config.num_audio_tokens(len(fbank))
        if not types:
            raise DataError("the clip has neither frames nor sound")
        text, truncated = build_prompt(self.spec.prompt, self.tokenizer, title, description)
        before, after = self.text_ids(text)
        placeholders = [self.tokenizer.pad_token_id] * len(types)
        sample["input_ids"] = torch.tensor(before + placeholders + after)
        sample["mm_token_type_ids"] = torch.tensor([0] * len(before) + types + [0] * len(after))
        sample["truncated"] = torch.tensor(truncated)
        return sample

    def text_ids(self, text: str) -> tuple[list[int], list[int]]:
        """Ids before and after the video and audio tokens, for a message `<video>`, line break, `text`."""
        before, after = self._template
        if self.spec.special_tokens_in_text == "parsed":
            return self._ids(before), self._ids("\n" + text + after)
        return self._ids(before), plain_ids(self.tokenizer, "\n" + text) + self._ids(after)

    def fbank(self, audio: np.ndarray | None) -> torch.Tensor | None:
        """Sound float32 [S] at 16 kHz (None: no track) -> filter bank float32 [N, 128], None for no audio tokens."""
        spec = self.spec
        if spec.audio is None:
            return None
        padding = None if spec.audio_padding_seconds is None else round(spec.audio_padding_seconds * SAMPLE_RATE)
        if audio is None or len(audio) == 0:
            if spec.missing_audio == "no_tokens":
                return None
            audio = np.zeros(padding or 30 * SAMPLE_RATE, dtype=np.float32)
        elif spec.audio_windows == "reference":
            audio = reference_audio(audio)
        one_token = FRAME_LENGTH + (self.config.audio_config.patch_size - 1) * FRAME_SHIFT
        fbank = kaldi_fbank(pad_audio(audio, max(padding or 0, one_token)))
        return fbank.bfloat16().float() if spec.fbank_dtype == "bfloat16" else fbank

    def collate(self, samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Batch for `VideoLlama2Model.forward`: tokens padded to [B, S], the clips' frames stacked [clips, T, 3, size,
        size], the filter banks stacked [tracks, N, 128], with fbank_mask bool [tracks, N] if their lengths differ."""
        batch = pad_tokens(
            samples, {"input_ids": self.tokenizer.pad_token_id, "mm_token_type_ids": 0}, self.padding_side
        )
        clips = [sample["pixel_values_videos"] for sample in samples if "pixel_values_videos" in sample]
        if clips:
            if len({len(clip) for clip in clips}) > 1:
                raise DataError(f"clips of {sorted({len(clip) for clip in clips})} frames cannot share a batch")
            batch["pixel_values_videos"] = torch.stack(clips)
        tracks = [sample["fbank"] for sample in samples if "fbank" in sample]
        if len({len(track) for track in tracks}) == 1:
            batch["fbank"] = torch.stack(tracks)
        elif tracks:
            batch |= self._pad_tracks(tracks)
        return batch

    def estimated_tokens(self, info: ClipInfo | None, title: str | None, description: str | None) -> int:
        text = len(self.spec.prompt.template) + sum(len(t.encode()) for t in (title, description) if t)
        tokens = text // 4 + self.config.num_video_tokens(self.spec.sampling.num_frames)
        if self.spec.audio is None or (info is not None and not info.has_audio):
            return tokens
        seconds = 16.0
        if self.spec.audio_windows == "all" and info is not None:
            limit = self.spec.audio.seconds if self.spec.audio.mode == "first_n_seconds" else info.duration
            seconds = min(limit, info.duration)
        seconds = max(seconds, self.spec.audio_padding_seconds or 0.0)
        return tokens + self.config.num_audio_tokens(num_fbank_frames(int(seconds * SAMPLE_RATE)))

    @cached_property
    def _template(self) -> tuple[str, str]:
        """The rendered chat template before and after the user's message."""
        messages = [{"role": "user", "content": _MARK}, {"role": "assistant", "content": self.spec.answer}]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
        if text.count(_MARK) != 1:
            raise ConfigError(f"the chat template must hold the user's message exactly once, unchanged: {text!r}")
        before, after = text.split(_MARK)
        return before, after

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _pad_tracks(self, tracks: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        patch = self.config.audio_config.patch_size  # an incomplete last patch is dropped by the encoder anyway
        lengths = torch.tensor([len(track) // patch * patch for track in tracks])
        fbank = torch.zeros(len(tracks), int(lengths.max()), tracks[0].shape[1])
        for row, track, length in zip(fbank, tracks, lengths.tolist(), strict=True):
            row[:length] = track[:length]
        return {"fbank": fbank, "fbank_mask": torch.arange(fbank.shape[1])[None] < lengths[:, None]}


def _reference_spec(values: dict[str, Any]) -> VideoLlama2Spec:
    ratio = "pad" if values.get("image_aspect_ratio") == "pad" else "square"
    sampling = FrameSampling(num_frames=values.get("num_frames", 8))
    return VideoLlama2Spec.reference(sampling=sampling, image_aspect_ratio=ratio)


def _pad_to_square(frames: np.ndarray) -> np.ndarray:
    count, height, width, channels = frames.shape
    side = max(height, width)
    square = np.full((count, side, side, channels), PADDING_GREY, dtype=np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[:, top : top + height, left : left + width] = frames
    return square
