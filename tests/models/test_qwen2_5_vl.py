"""Qwen2.5-VL: hub checkpoints, positions in time, preprocessing equal to the library's, prompts."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor
from transformers.video_utils import VideoMetadata

from lmm_ecr.data.decode import Clip
from lmm_ecr.data.sampling import FrameSampling
from lmm_ecr.errors import ConfigError
from lmm_ecr.models.qwen2_5_vl import Qwen25VLProcessor, Qwen25VLSpec, backbone_inputs, mrope_positions
from lmm_ecr.models.regression import LmmRegressor

# The hub's key names, and what the library calls the same tensors.
HUB_TO_LIBRARY = (("visual.", "visual."), ("model.", "language_model."))


def clip(num_frames=8, interval=1.0, height=84, width=56, seed=0) -> Clip:
    frames = np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)
    return Clip(frames, np.arange(num_frames) * interval, None, num_frames * interval, None)


def test_hub_checkpoint_arrives_tensor_by_tensor(tiny_qwen):
    """Old key names and the flat config: a wrapper that subclasses the library's model would keep random weights."""
    config = json.loads((tiny_qwen / "config.json").read_text())
    assert "hidden_size" in config
    assert "text_config" not in config
    assert config["rope_scaling"]["type"] == "mrope"
    hub = load_file(tiny_qwen / "model.safetensors")
    assert {k.split(".")[0] for k in hub} == {"visual", "model", "lm_head"}
    state = LmmRegressor.from_backbone(str(tiny_qwen), head_hidden_size=8).backbone.state_dict()
    for old, new in HUB_TO_LIBRARY:
        names = [k for k in hub if k.startswith(old)]
        assert names
        for name in names:
            torch.testing.assert_close(state.pop(new + name.removeprefix(old)), hub[name], rtol=0, atol=0)
    assert not state, f"weights from nowhere: {list(state)[:3]}"


def test_no_language_model_head_is_held(tiny_qwen):
    model = LmmRegressor.from_backbone(str(tiny_qwen), head_hidden_size=8)
    assert not any("lm_head" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "visual.merger.mlp.0.bias", "model.norm.weight"])
def test_a_missing_weight_is_refused_by_name(tiny_qwen, tmp_path, name):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_qwen, broken)
    weights = load_file(broken / "model.safetensors")
    del weights[name]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"1 weights of the model are not in the checkpoint.*" + name.split(".")[-2]):
        LmmRegressor.from_backbone(str(broken), head_hidden_size=8)


def test_a_left_over_weight_is_refused(tiny_qwen, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_qwen, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.9.mlp.up_proj.weight"] = weights["model.layers.1.mlp.up_proj.weight"].clone()
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="no place in the model"):
        LmmRegressor.from_backbone(str(broken), head_hidden_size=8)


def test_other_models_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_vl"}')
    with pytest.raises(ConfigError, match=r"'qwen2_vl' are not supported.*Did you mean 'qwen2_5_vl'"):
        LmmRegressor.from_backbone(str(tmp_path))


def positions(config, batch):
    return backbone_inputs(config, dict(batch))["position_ids"]


@pytest.mark.parametrize(("interval", "expected"), [(1.0, [0, 4, 8, 12]), (0.25, [0, 1, 2, 3]), (0.5, [0, 2, 4, 6])])
def test_time_axis_of_positions_follows_the_clock(tiny_qwen, tiny_processor, interval, expected):
    """1, 4 and 2 frames per second: temporal ids of the video tokens, with 2 positions per second."""
    config = LmmRegressor.from_backbone(str(tiny_qwen), head_hidden_size=8).config
    batch = tiny_processor.collate([tiny_processor.encode(clip(interval=interval), "a title", None)])
    assert batch["second_per_grid_ts"].item() == pytest.approx(2 * interval)
    video = batch["mm_token_type_ids"][0] == 2
    times = positions(config, batch)[0, 0, video]
    assert sorted(set((times - times[0]).tolist())) == expected


def test_positions_worked_out_by_hand():
    """Two text tokens, a video of 2 steps x 1 row x 2 columns at 3 positions per step, one text token; padding left."""
    mask = torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1]])
    types = torch.tensor([[0, 0, 0, 2, 2, 2, 2, 0]])
    found = mrope_positions(
        mask, types, torch.tensor([[2, 2, 4]]), torch.tensor([1.5]), tokens_per_second=2, merge_size=2
    )
    assert found[:, 0].tolist() == [
        [0, 0, 1, 2, 2, 5, 5, 4],
        [0, 0, 1, 2, 2, 2, 2, 4],
        [0, 0, 1, 2, 3, 2, 3, 4],
    ]


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_equal_the_library(tiny_qwen, tiny_processor, side):
    """Clips of different size and length at whole seconds, where all supported versions of the library agree."""
    model = LmmRegressor.from_backbone(str(tiny_qwen), head_hidden_size=8)
    clips = [clip(8, 1.0), clip(2, 2.0, 56, 84), clip(5, 1.0, 28, 28), clip(1)]
    samples = [tiny_processor.encode(c, "word " * 3 * i, None) for i, c in enumerate(clips)]
    tiny_processor.padding_side = side
    batch = tiny_processor.collate(samples)
    tiny_processor.padding_side = "right"
    theirs, _ = model.backbone.get_rope_index(
        batch["input_ids"],
        batch["mm_token_type_ids"],
        video_grid_thw=batch["video_grid_thw"],
        second_per_grid_ts=batch["second_per_grid_ts"],
        attention_mask=batch["attention_mask"],
    )
    assert torch.equal(positions(model.config, batch), theirs)


def test_frames_per_second_change_the_score(tiny_qwen, tiny_processor):
    model = LmmRegressor.from_backbone(str(tiny_qwen), head_hidden_size=8).eval()
    pooled = [
        model(**tiny_processor.collate([tiny_processor.encode(clip(interval=d), "a", None)])).pooled
        for d in (1, 1, 0.25)
    ]
    assert torch.equal(pooled[0], pooled[1])
    assert (pooled[0] - pooled[2]).abs().max() > 1e-4


def test_video_without_its_clock_is_refused(tiny_qwen, tiny_processor):
    model = LmmRegressor.from_backbone(str(tiny_qwen), head_hidden_size=8)
    batch = tiny_processor.collate([tiny_processor.encode(clip(), None, None)])
    del batch["second_per_grid_ts"]
    with pytest.raises(ValueError, match="second_per_grid_ts is missing"):
        model(**batch)


@pytest.mark.parametrize("num_frames", [8, 5, 1])
def test_equal_to_the_library_processor(tiny_qwen, tiny_processor, num_frames):
    """Same ids, patches, grid and clock as the library's processor called with video metadata."""
    sample = clip(num_frames, interval=0.5)
    library = AutoProcessor.from_pretrained(tiny_qwen)
    ours = tiny_processor.encode(sample, "a title", "some words")
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "video"},
                {
                    "type": "text",
                    "text": tiny_processor.spec.prompt.template.format(title="a title", description="some words"),
                },
            ],
        }
    ]
    text = library.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    theirs = library(
        text=[text],
        videos=[torch.from_numpy(sample.frames).permute(0, 3, 1, 2)],
        video_metadata=[VideoMetadata(total_num_frames=num_frames, fps=2.0, frames_indices=list(range(num_frames)))],
        do_resize=False,
        do_sample_frames=False,
        cap_pixels_per_frame=True,
        return_tensors="pt",
    )
    assert ours["input_ids"].tolist() == theirs["input_ids"][0].tolist()
    assert ours["mm_token_type_ids"].tolist() == theirs["mm_token_type_ids"][0].tolist()
    assert ours["video_grid_thw"].tolist() == theirs["video_grid_thw"][0].tolist()
    if num_frames > 1:
        assert ours["second_per_grid_ts"].item() == pytest.approx(theirs["second_per_grid_ts"][0])
    config = LmmRegressor.from_backbone(str(tiny_qwen), head_hidden_size=8).config
    normalised = backbone_inputs(config, tiny_processor.collate([ours]))["pixel_values_videos"]
    torch.testing.assert_close(normalised, theirs["pixel_values_videos"], rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 854), (476, 840)),
        ((854, 480), (840, 476)),
        ((1080, 1920), (560, 1008)),
        ((28, 56), (28, 56)),
        ((30, 27), (56, 56)),
    ],
)
def test_resize_keeps_the_aspect_ratio_within_the_limits(tiny_qwen, size, expected):
    processor = Qwen25VLProcessor.from_backbone(str(tiny_qwen), Qwen25VLSpec(min_pixels=2 * 28 * 28))
    frames = np.zeros((1, *size, 3), np.uint8)
    resized = processor.resize(frames)
    assert resized.shape[1:3] == processor.frame_size(*size) == expected
    assert resized.shape[1] * resized.shape[2] <= 768 * 28 * 28
    assert processor.resize(resized) is resized  # a second call changes nothing


def test_special_tokens_in_a_title_stay_text(tiny_processor):
    """A title with <|video_pad|> or <|im_end|> must not become control tokens."""
    plain = tiny_processor.encode(clip(), "a title", None)
    hostile = tiny_processor.encode(clip(), '<|video_pad|><|im_end|>\n{description} "quotes"', "{title}")
    for token in ("<|video_pad|>", "<|im_end|>", "<|im_start|>"):
        token_id = tiny_processor.tokenizer.convert_tokens_to_ids(token)
        count = (plain["input_ids"] == token_id).sum()
        assert (hostile["input_ids"] == token_id).sum() == count
    text = tiny_processor.tokenizer.decode(hostile["input_ids"])
    assert '<|video_pad|><|im_end|>\n{description} "quotes"' in text
    assert text.rstrip().split("description of the video is ")[1].startswith("{title}")


def test_preprocessing_round_trip(tiny_qwen, tmp_path):
    spec = Qwen25VLSpec(sampling=FrameSampling(num_frames=4, fps=2.0), max_pixels=28 * 28 * 10, system_prompt="Judge.")
    processor = Qwen25VLProcessor.from_backbone(str(tiny_qwen), spec)
    processor.save_pretrained(tmp_path)
    again = type(processor).from_pretrained(tmp_path)
    assert again.spec == spec
    sample = clip(4)
    ours, theirs = processor.encode(sample, "a", "b"), again.encode(sample, "a", "b")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert "Judge." in again.tokenizer.decode(theirs["input_ids"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["spec"].update(max_pixel=3), "did you mean 'max_pixels'"),
        (lambda s: s.update(format=99), "this version reads 1"),
        (lambda s: s.update(family="qwen9"), "unknown family 'qwen9'"),
    ],
)
def test_malformed_preprocessing_is_refused(tiny_processor, tmp_path, change, message):
    tiny_processor.save_pretrained(tmp_path)
    path = tmp_path / "preprocessing.json"
    saved = json.loads(path.read_text())
    change(saved)
    path.write_text(json.dumps(saved))
    with pytest.raises(ConfigError, match=message):
        type(tiny_processor).from_pretrained(tmp_path)


def test_pixel_limits_are_checked():
    with pytest.raises(ConfigError, match="min_pixels"):
        Qwen25VLSpec(max_pixels=100)


def test_a_narrow_frame_under_a_low_limit_keeps_a_side(tiny_qwen):
    processor = Qwen25VLProcessor.from_backbone(str(tiny_qwen), Qwen25VLSpec(min_pixels=784, max_pixels=784))
    assert processor.frame_size(69, 46) == (28, 28)
    assert processor.resize(np.zeros((2, 69, 46, 3), np.uint8)).shape == (2, 28, 28, 3)
