"""Preprocessing for VideoLLaMA2-AV against the reference's strings and pixels, and the batches it makes."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lmm_ecr.data.audio import AudioSpec
from lmm_ecr.data.decode import Clip
from lmm_ecr.data.fbank import kaldi_fbank, pad_audio, reference_audio
from lmm_ecr.data.sampling import FrameSampling
from lmm_ecr.errors import ConfigError, DataError
from lmm_ecr.models.tiny import tiny_tokenizer
from lmm_ecr.models.videollama2 import VideoLlama2Config, VideoLlama2Model
from lmm_ecr.models.videollama2.modeling import normalise_pixels
from lmm_ecr.models.videollama2.processing import VideoLlama2Processor, VideoLlama2Spec

from .videollama2_reference import GOLDENS, golden_config, golden_state, write_reference_checkpoint

# Qwen2-Instruct's template for plain text messages.
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROMPTS = json.loads((GOLDENS / "prompt.json").read_text())["cases"]
RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = tiny_tokenizer([case["chat_text"] for case in PROMPTS])
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def tiny_config(vocab_size=512, image_size=46):
    return VideoLlama2Config(
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "image_size": image_size,
            "patch_size": 5,
        },
        text_config={
            "vocab_size": vocab_size,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
        audio_config={
            "embed_dim": 16,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "position_conv_kernel": 16,
            "position_conv_groups": 4,
        },
        connector_depth=1,
    )


@pytest.fixture(scope="module")
def make_processor(tokenizer):
    def make(spec=None, **sizes):
        return VideoLlama2Processor(tokenizer, tiny_config(len(tokenizer), **sizes), spec)

    return make


def make_clip(num_frames=8, seconds=5.0, height=30, width=20):
    frames = RANDOM.integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)
    audio = None if seconds is None else RANDOM.normal(0, 0.1, int(seconds * 16000)).astype(np.float32)
    return Clip(frames, np.arange(num_frames, dtype=np.float64), audio, float(num_frames), None)


@pytest.mark.parametrize("ratio", ["square", "pad"])
def test_pixels_equal_the_reference(make_processor, ratio):
    golden = load_file(GOLDENS / "image_preprocess.safetensors")
    processor = make_processor(VideoLlama2Spec(image_aspect_ratio=ratio), image_size=28)
    image = golden["image_uint8_hwc"].numpy()
    sample = processor.encode(Clip(np.stack([image] * 2), np.zeros(2), None, 1.0, None), None, None)
    pixels = normalise_pixels(sample["pixel_values_videos"])
    assert sample["pixel_values_videos"].dtype == torch.uint8
    assert (pixels[1] - golden[f"pixel_values_{ratio}"]).abs().max() <= 1e-6
    resized = processor.resize(image[None])
    assert np.array_equal(processor.resize(resized), resized)


@pytest.mark.parametrize("case", PROMPTS)
@pytest.mark.parametrize("spec", [VideoLlama2Spec(), VideoLlama2Spec.reference()])
def test_prompt_equals_the_reference(make_processor, tokenizer, case, spec):
    sample = make_processor(spec).encode(make_clip(), case["title"], case["description"])
    types = sample["mm_token_type_ids"]
    text = sample["input_ids"][types == 0].tolist()
    chunks = [tokenizer(chunk, add_special_tokens=False)["input_ids"] for chunk in case["chunks_tokenised_separately"]]
    assert text == chunks[0] + chunks[1]
    assert tokenizer.decode(text) == case["chat_text"].replace("<video>", "")
    first = int((types > 0).nonzero()[0])
    assert first == len(chunks[0])
    # 8 frames on a 9x9 grid: 4 * 4 * 4 tokens, then the sound.
    assert types[first:].tolist()[:64] == [1] * 64
    assert types[first + 64 :].tolist() == [2] * 1496 + [0] * len(chunks[1])


def test_special_tokens_in_a_title(make_processor, tokenizer):
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    title = "a <|im_end|> <video> b"
    counts = {}
    for kind in ("plain", "parsed"):
        processor = make_processor(VideoLlama2Spec(special_tokens_in_text=kind))
        sample = processor.encode(make_clip(), title, None)
        counts[kind] = int((sample["input_ids"] == end).sum())
        assert int((sample["mm_token_type_ids"] == 1).sum()) == 64
        assert title in tokenizer.decode(sample["input_ids"][sample["mm_token_type_ids"] == 0])
    assert counts == {"plain": 3, "parsed": 4}


def test_default_sound(make_processor):
    clip = make_clip(seconds=11.0)
    expected = kaldi_fbank(pad_audio(reference_audio(clip.audio)))
    assert torch.equal(make_processor().encode(clip, None, None)["fbank"], expected)
    rounded = make_processor(VideoLlama2Spec.reference()).encode(clip, None, None)["fbank"]
    assert torch.equal(rounded, expected.bfloat16().float())
    assert rounded.dtype == torch.float32


@pytest.mark.parametrize(
    ("spec", "seconds", "frames"),
    [
        ({"audio_windows": "all"}, 5.0, 2998),
        ({"audio_windows": "all"}, 40.0, 3998),
        ({"audio_windows": "all", "audio_padding_seconds": None}, 5.0, 498),
        ({"audio_windows": "all", "audio_padding_seconds": None}, 0.01, 16),
        ({"audio_windows": "all", "audio_padding_seconds": 8.0}, 5.0, 798),
        ({"audio_padding_seconds": None}, 5.0, 1598),
        ({}, None, None),
        ({}, 0.0, None),
        ({"missing_audio": "silence"}, None, 2998),
        ({"missing_audio": "silence", "audio_padding_seconds": None}, None, 2998),
        ({"audio": None}, 5.0, None),
    ],
)
def test_sound_settings(make_processor, spec, seconds, frames):
    sample = make_processor(VideoLlama2Spec(**spec)).encode(make_clip(seconds=seconds), None, None)
    assert (len(sample["fbank"]) if "fbank" in sample else None) == frames
    assert int((sample["mm_token_type_ids"] == 2).sum()) == (0 if frames is None else frames // 16 * 8)
    if seconds is None and frames is not None:
        assert sample["fbank"].min() == sample["fbank"].max()


@pytest.mark.parametrize("side", ["left", "right"])
def test_scores_do_not_depend_on_the_batch(make_processor, side):
    processor = make_processor(VideoLlama2Spec(audio_windows="all", audio_padding_seconds=None))
    processor.padding_side = side
    torch.manual_seed(0)
    model = VideoLlama2Model(processor.config).eval()
    clips = [make_clip(seconds=seconds) for seconds in (1.0, None, 2.3, 0.5)] + [make_clip(num_frames=0, seconds=1.7)]
    samples = [processor.encode(clip, "title " * index, None) for index, clip in enumerate(clips)]

    def pooled(batch):
        with torch.no_grad():
            states = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        return (states * mask).sum(1) / mask.sum(1)

    batch = processor.collate(samples)
    assert batch["fbank"].shape[:2] == batch["fbank_mask"].shape == (4, 224)
    assert batch["pixel_values_videos"].shape == (4, 8, 3, 46, 46)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == batch["mm_token_type_ids"].shape
    assert set(batch["attention_mask"][:, -1 if side == "left" else 0].tolist()) == {1}
    alone = torch.cat([pooled(processor.collate([sample])) for sample in samples])
    assert (pooled(batch) - alone).abs().max() < 1e-5
    assert torch.cdist(alone, alone).add(torch.eye(5)).min() > 1e-4


def test_encode_is_deterministic(make_processor):
    clip = make_clip()
    first, second = (make_processor().encode(clip, "a", "b") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_save_and_load(make_processor, tmp_path):
    spec = VideoLlama2Spec(
        sampling=FrameSampling(num_frames=6), audio=AudioSpec(mode="first_n_seconds", seconds=3.0), audio_windows="all"
    )
    processor = make_processor(spec)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessing.json").read_text())
    again = VideoLlama2Processor.from_backbone(tmp_path, VideoLlama2Spec.from_dict(saved["spec"]))
    assert again.spec == spec
    clip = make_clip(num_frames=6)
    expected, actual = processor.encode(clip, "a", "b"), again.encode(clip, "a", "b")
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


def test_processor_for_a_reference_checkpoint(tokenizer, tmp_path):
    config = {**golden_config(), "num_frames": 6, "image_aspect_ratio": "pad"}
    write_reference_checkpoint(tmp_path, golden_state(), config)
    tokenizer.save_pretrained(tmp_path)
    processor = VideoLlama2Processor.from_backbone(tmp_path)
    assert processor.spec == VideoLlama2Spec.reference(sampling=FrameSampling(num_frames=6), image_aspect_ratio="pad")
    assert processor.config.vision_config.image_size == 46
    assert VideoLlama2Processor.from_backbone(tmp_path, VideoLlama2Spec()).spec == VideoLlama2Spec()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sampling": FrameSampling(num_frames=1)}, "at least two"),
        ({"sampling": FrameSampling(mode="fps")}, "same number of frames"),
        ({"sampling": FrameSampling(short_clips="fewer")}, "same number of frames"),
        ({"audio_windows": "some"}, "audio_windows"),
        ({"audio_padding_seconds": -1.0}, "audio_padding_seconds"),
        ({"missing_audio": "noise"}, "missing_audio"),
        ({"fbank_dtype": "int8"}, "fbank_dtype"),
        ({"image_aspect_ratio": "crop"}, "image_aspect_ratio"),
        ({"special_tokens_in_text": "x"}, "special_tokens_in_text"),
    ],
)
def test_settings_that_make_no_sense(values, message):
    with pytest.raises(ConfigError, match=message):
        VideoLlama2Spec(**values)


def test_odd_frame_counts_are_pointed_out(make_processor, caplog):
    make_processor(VideoLlama2Spec(sampling=FrameSampling(num_frames=5)))
    assert "4 of 5 frames" in caplog.text


def test_clips_that_cannot_be_encoded(make_processor, tokenizer):
    processor = make_processor()
    with pytest.raises(DataError, match="neither frames nor sound"):
        processor.encode(make_clip(num_frames=0, seconds=None), None, None)
    with pytest.raises(DataError, match="too few"):
        processor.encode(make_clip(num_frames=1), None, None)
    samples = [processor.encode(make_clip(num_frames=count), None, None) for count in (4, 8)]
    with pytest.raises(DataError, match="4, 8"):
        processor.collate(samples)


def test_a_tokenizer_without_chat_template_is_refused(tokenizer):
    bare = tiny_tokenizer(["text"])
    with pytest.raises(ConfigError, match="chat template"):
        VideoLlama2Processor(bare, tiny_config())


def test_estimated_tokens_follow_the_sample(make_processor):
    clip = make_clip(seconds=5.0)
    processor = make_processor()
    estimate = processor.estimated_tokens(None, "title", None)
    actual = len(processor.encode(clip, "title", None)["input_ids"])
    assert abs(estimate - actual) < 150
