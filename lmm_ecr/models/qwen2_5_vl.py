"""Qwen2.5-VL: loading the library's own model, and the preprocessing of frames and text for it."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jinja2 import TemplateError

from ..data.decode import Clip, ClipInfo
from ..data.processor import ClipProcessor, PreprocessingSpec, check_tokenizer, pad_tokens
from ..data.prompt import build_prompt, plain_ids
from ..data.sampling import frame_interval
from ..errors import ClipError, ConfigError
from .families import check_loading, normalise_pixels
from .model_files import reading_processor, reading_weights

TOKEN_PIXELS = 28 * 28  # one language-model token covers 2 x 2 patches of 14 x 14 pixels
MAX_ASPECT_RATIO = 200  # of qwen_vl_utils' smart_resize
VIDEO_TOKEN_TYPE = 2  # `mm_token_type_ids`: 0 text, 1 image, 2 video
PROMPT_MARK = "\x00prompt\x00"  # stands for the user text while the chat template is rendered


def load_backbone(path: str, **options):
    """The library's `Qwen2_5_VLModel` (no language-model head, so no vocabulary logits) with every weight accounted for."""
    from transformers import AutoModel

    with reading_weights(path):
        model, info = AutoModel.from_pretrained(path, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    check_loading(info, path, allowed_unexpected=("lm_head.",))
    return model


def backbone_inputs(config, inputs: dict) -> dict:
    """Where the model runs: normalise uint8 patches, and turn grid and clock into position ids (see `mrope_positions`)."""
    patches = inputs.get("pixel_values_videos")
    if patches is None:
        return inputs
    if inputs.get("second_per_grid_ts") is None:
        raise ValueError("second_per_grid_ts is missing: the model would silently assume one second per grid step")
    if patches.dtype == torch.uint8:
        dtype = config.backbone_config.dtype or torch.float32
        patches = normalise_pixels(
            patches, config.image_mean, config.image_std, patches.shape[-1] // len(config.image_mean), dtype
        )
    vision = config.backbone_config.vision_config
    positions = mrope_positions(
        inputs["attention_mask"],
        inputs["mm_token_type_ids"],
        inputs["video_grid_thw"],
        inputs["second_per_grid_ts"],
        tokens_per_second=vision.tokens_per_second,
        merge_size=vision.spatial_merge_size,
    )
    # The library would work the positions out itself if it got the clock, differently from version to version.
    clock = ("second_per_grid_ts", "mm_token_type_ids")
    kept = {name: value for name, value in inputs.items() if name not in clock}
    return {**kept, "pixel_values_videos": patches, "position_ids": positions}


def mrope_positions(
    attention_mask: torch.Tensor,
    token_types: torch.Tensor,
    grid: torch.Tensor,
    seconds_per_step: torch.Tensor,
    *,
    tokens_per_second: float,
    merge_size: int = 2,
) -> torch.Tensor:
    """Positions of M-RoPE for text, one video, text: int64 [3 (time, height, width), batch, tokens], 0 at padding.

    attention_mask, token_types (2 = video) [batch, tokens]; grid int64 [batch, 3] in patches; seconds_per_step float32
    [batch] between temporal grid steps. A text token has its index on all three axes. A video token has, counted from the
    first video position, floor(step * tokens_per_second * seconds_per_step) in time and its row and column in space. Text
    after the video goes on max(rows, columns) after that first position (Qwen2.5-VL technical report, section 2.1.3;
    transformers 5.23). Computed here because transformers 5.17 rounds the seconds down to whole numbers, and without
    waiting for the device.
    """
    is_real, is_video = attention_mask.bool(), token_types == VIDEO_TOKEN_TYPE
    index = is_real.long().cumsum(dim=1) - 1
    first = torch.where(is_video, index, index.shape[1]).amin(dim=1, keepdim=True)
    rows, columns = (grid[:, axis, None] // merge_size for axis in (1, 2))
    num_video = is_video.sum(dim=1, keepdim=True)
    text = torch.where(index < first, index, index - num_video + torch.maximum(rows, columns))
    inside = (index - first).clamp(min=0)
    step = inside // (rows * columns)
    time = (step * (tokens_per_second * seconds_per_step[:, None])).long()
    video = first + torch.stack([time, inside % (rows * columns) // columns, inside % columns])
    return torch.where(is_video, video, text).masked_fill(~is_real, 0)


@dataclass(frozen=True)
class Qwen25VLSpec(PreprocessingSpec):
    """Preprocessing of Qwen2.5-VL.

    max_pixels, min_pixels: area of a frame after the one resize that keeps its aspect ratio (sides are multiples of 28);
    768 * 28 * 28 is 768 tokens per pair of frames. system_prompt: replaces the chat template's own one.
    """

    max_pixels: int = 768 * TOKEN_PIXELS
    min_pixels: int = 4 * TOKEN_PIXELS
    system_prompt: str | None = None

    def __post_init__(self):
        if not TOKEN_PIXELS <= self.min_pixels <= self.max_pixels:
            raise ConfigError(
                f"min_pixels ({self.min_pixels}) and max_pixels ({self.max_pixels}) must satisfy "
                f"{TOKEN_PIXELS} <= min_pixels <= max_pixels"
            )
        if self.audio is not None:
            raise ConfigError("Qwen2.5-VL hears no sound: leave the audio settings out, or use a VideoLLaMA2 recipe")


class Qwen25VLProcessor(ClipProcessor):
    """Frames and text for Qwen2.5-VL. Patches travel as uint8 and are normalised on the device."""

    family = "qwen2_5_vl"
    spec_class = Qwen25VLSpec

    def __init__(self, processor, spec: Qwen25VLSpec | None = None):
        """processor: the library's `Qwen2_5_VLProcessor` of the checkpoint."""
        self.processor = processor
        self.spec = spec or Qwen25VLSpec()
        self.tokenizer = processor.tokenizer
        check_tokenizer(self.tokenizer)
        video = processor.video_processor
        self.image_mean, self.image_std = list(video.image_mean), list(video.image_std)
        self.patch_size, self.merge_size = video.patch_size, video.merge_size
        self.temporal_patch_size = video.temporal_patch_size
        _ = self._template_ids  # a template that cannot be used is said here, not by the first worker

    @classmethod
    def from_backbone(cls, name_or_path, spec=None, **options):
        from transformers import AutoProcessor

        with reading_processor(name_or_path):
            processor = AutoProcessor.from_pretrained(name_or_path, **options)
        return cls(processor, spec)

    def _save_files(self, directory: Path) -> None:
        self.processor.save_pretrained(directory)

    @cached_property
    def _template_ids(self) -> tuple[list[int], list[int]]:
        """Token ids of the rendered chat template before and after the user's text."""
        messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": PROMPT_MARK}]}]
        if self.spec.system_prompt is not None:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": self.spec.system_prompt}]})
        where = f"the chat template of {self.tokenizer.name_or_path or 'the checkpoint'} (chat_template.jinja)"
        try:
            text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except (ValueError, TypeError, TemplateError) as error:  # absent; cut off
            raise ConfigError(f"{where} is missing or damaged ({error}); copy or download it again") from error
        before, mark, after = text.partition(PROMPT_MARK)
        if before.count(self.processor.video_token) != 1 or not mark or PROMPT_MARK in after:
            raise ConfigError(
                f"{where} must hold {self.processor.video_token} and then the text exactly once for a video "
                f"message, got {text!r}"
            )
        return tuple(self.tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, after))

    def frame_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a frame after the resize: multiples of 28 within the pixel limits, aspect ratio kept.

        Raises ClipError aspect_ratio for a frame more than 200 times as long as wide, as the family's code refuses it.
        """
        from qwen_vl_utils import smart_resize

        if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
            detail = f"{width}x{height} pixels; one side may be at most {MAX_ASPECT_RATIO} times the other"
            raise ClipError("clip", "aspect_ratio", detail)
        factor = self.patch_size * self.merge_size
        sides = smart_resize(
            height, width, factor=factor, min_pixels=self.spec.min_pixels, max_pixels=self.spec.max_pixels
        )
        if min(sides) == 0:  # a narrow frame under a low limit is rounded down to nothing on its short side
            longest = self.spec.max_pixels // factor // factor * factor
            sides = tuple(min(max(side, factor), longest) for side in sides)
        return sides

    def max_source_pixels(self) -> int:
        return self.spec.max_pixels

    def clip_spec(self):
        size = {"max_pixels": self.spec.max_pixels, "min_pixels": self.spec.min_pixels}
        return {"family": self.family, "sampling": self.spec.sampling.to_dict(), **size}

    def resize(self, frames: np.ndarray) -> np.ndarray:
        size = self.frame_size(*frames.shape[1:3])
        if tuple(frames.shape[1:3]) == tuple(size):
            return frames
        from torchvision.transforms.v2 import InterpolationMode
        from torchvision.transforms.v2.functional import resize

        images = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
        images = resize(images, list(size), interpolation=InterpolationMode.BICUBIC, antialias=True)
        return images.permute(0, 2, 3, 1).contiguous().numpy()

    def encode(self, clip: Clip, title, description):
        """input_ids, mm_token_type_ids int64 [tokens]; pixel_values_videos uint8 [patches, 1176]; video_grid_thw int64 [3];
        second_per_grid_ts float32 scalar; truncated bool scalar."""
        frames = self.resize(clip.frames)
        patches, grid = self._patchify(frames)
        text, truncated = build_prompt(self.spec.prompt, self.tokenizer, title, description)
        before, after = self._template_ids
        video_token = self.processor.video_token_id
        position = before.index(video_token)
        num_video_tokens = int(np.prod(grid)) // self.merge_size**2
        ids = torch.tensor(
            before[:position]
            + [video_token] * num_video_tokens
            + before[position + 1 :]
            + plain_ids(self.tokenizer, text)
            + after
        )
        token_types = torch.zeros_like(ids)
        token_types[position : position + num_video_tokens] = VIDEO_TOKEN_TYPE
        interval = frame_interval(self.spec.sampling, clip.timestamps, clip.duration)
        return {
            "input_ids": ids,
            "mm_token_type_ids": token_types,
            "pixel_values_videos": patches,
            "video_grid_thw": torch.tensor(grid),
            "second_per_grid_ts": torch.tensor(self.temporal_patch_size * interval, dtype=torch.float32),
            "truncated": torch.tensor(truncated),
        }

    def _patchify(self, frames: np.ndarray) -> tuple[torch.Tensor, tuple[int, int, int]]:
        """uint8 [T, H, W, 3] to patches uint8 [patches, 3 * t * p * p] in the order of the library's video processor.

        An odd number of frames repeats the last one, as the library does.
        """
        video = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).unsqueeze(0)
        patches, *grid = self.processor.video_processor.patchify(
            video, self.patch_size, self.merge_size, self.temporal_patch_size
        )
        return patches[0], tuple(grid)

    def collate(self, samples):
        batch = pad_tokens(
            samples, {"input_ids": self.tokenizer.pad_token_id, "mm_token_type_ids": 0}, self.padding_side
        )
        batch["pixel_values_videos"] = torch.cat([s["pixel_values_videos"] for s in samples])
        batch["video_grid_thw"] = torch.stack([s["video_grid_thw"] for s in samples])
        batch["second_per_grid_ts"] = torch.stack([s["second_per_grid_ts"] for s in samples])
        return batch

    def estimated_tokens(self, info: ClipInfo | None, title, description) -> int:
        text = len(self.spec.prompt.template) + sum(len(t.encode()) for t in (title, description) if t)
        frames = self.spec.sampling.num_frames
        if info is None:
            return text // 4 + frames
        height, width = self.frame_size(info.height, info.width)
        return text // 4 + -(-frames // self.temporal_patch_size) * height * width // TOKEN_PIXELS
