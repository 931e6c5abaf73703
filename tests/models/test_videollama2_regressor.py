"""VideoLLaMA2-AV through the shared wrapper: reference checkpoints and scores, batches with and without sound, saving."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AutoTokenizer

from lmm_ecr.arguments import parse_arguments
from lmm_ecr.data.audio import AudioSpec
from lmm_ecr.data.decode import Clip, read_clip
from lmm_ecr.data.fbank import kaldi_fbank, pad_audio, reference_audio
from lmm_ecr.data.processor import ClipProcessor
from lmm_ecr.data.sampling import FrameSampling
from lmm_ecr.errors import ConfigError
from lmm_ecr.models.regression import LmmRegressor
from lmm_ecr.models.videollama2 import VideoLlama2Processor, VideoLlama2Spec, load_reference_checkpoint
from lmm_ecr.predictor import Predictor
from lmm_ecr.training.setup import build_processor, preprocessing_spec

from .videollama2_reference import (
    expand,
    golden_config,
    golden_scorer,
    golden_state,
    write_fine_tuned,
    write_reference_checkpoint,
)

SHORT_SOUND = VideoLlama2Spec(audio=AudioSpec(seconds=1.0), audio_windows="all", audio_padding_seconds=None)


@pytest.fixture(scope="module")
def processor(tiny_videollama2):
    return VideoLlama2Processor.from_backbone(str(tiny_videollama2), SHORT_SOUND)


@pytest.fixture(scope="module")
def tokenizer(tiny_videollama2):
    return AutoTokenizer.from_pretrained(tiny_videollama2)


@pytest.fixture(scope="module")
def fine_tuned(tokenizer, tmp_path_factory):
    return write_fine_tuned(tmp_path_factory.mktemp("fine_tuned"), tokenizer)


def make(directory, **options) -> LmmRegressor:
    torch.manual_seed(0)
    model = LmmRegressor.from_backbone(str(directory), head_hidden_size=16, **options).eval()
    nn.init.normal_(model.regression_head.fc1.weight, std=0.5)  # a head that reacts, so that differences would show
    nn.init.normal_(model.regression_head.fc2.weight, std=0.5)
    return model


@pytest.fixture(scope="module")
def samples(processor):
    """Titles of several lengths; sound of 1 s, 0.4 s, 0.02 s and none."""
    rng = np.random.default_rng(0)
    encoded = []
    for seconds, title in ((1.0, "funny"), (None, None), (0.4, "wow " * 20), (0.02, "my dog"), (None, "ü漢😀 " * 5)):
        audio = None if seconds is None else rng.normal(0, 0.1, int(seconds * 16000)).astype(np.float32)
        frames = rng.integers(0, 256, (8, 40, 30, 3), dtype=np.uint8)
        encoded.append(processor.encode(Clip(frames, np.arange(8.0), audio, 8.0, None), title, None))
    assert len({len(s["input_ids"]) for s in encoded}) == 5
    return encoded


@torch.no_grad()
def scores(model, processor, samples, side="right"):
    processor.padding_side = side
    try:
        return model(**processor.collate(samples)).scores
    finally:
        processor.padding_side = "right"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("pooling", ["mean", "last", "attention"])
def test_a_score_does_not_depend_on_its_batch(tiny_videollama2, processor, samples, pooling, attention):
    model = make(tiny_videollama2, pooling=pooling, attn_implementation=attention)
    alone = torch.cat([scores(model, processor, [sample]) for sample in samples])
    assert alone.std() > 1e-2
    for side in ("right", "left"):
        torch.testing.assert_close(scores(model, processor, samples, side), alone, rtol=0, atol=1e-5)
        torch.testing.assert_close(scores(model, processor, samples[::-1], side), alone.flip(0), rtol=0, atol=1e-5)
    for pair in ([0, 1], [1, 4], [2, 3]):  # sound beside none, none at all, two lengths
        both = scores(model, processor, [samples[i] for i in pair])
        torch.testing.assert_close(both, alone[pair], rtol=0, atol=1e-5)


def test_sound_changes_the_score(tiny_videollama2, processor, samples):
    model = make(tiny_videollama2)
    sample = samples[0]
    quiet = {**sample, "fbank": torch.full_like(sample["fbank"], -15.942385)}
    assert (scores(model, processor, [sample]) - scores(model, processor, [quiet])).abs() > 1e-3


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_attention_implementation_survives(tiny_videollama2, tmp_path, attention):
    model = make(tiny_videollama2, attn_implementation=attention)
    model.save_pretrained(tmp_path)
    for loaded in (model, LmmRegressor.from_pretrained(tmp_path, attn_implementation=attention)):
        backbone = loaded.backbone
        for part in (backbone, backbone.language_model, backbone.vision_encoder):
            assert part.config._attn_implementation == attention


def test_save_load_score(tiny_videollama2, processor, samples, tmp_path):
    model = make(tiny_videollama2)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    predictor = Predictor.from_pretrained(tmp_path, device="cpu")
    assert type(predictor.processor) is VideoLlama2Processor
    assert predictor.processor.spec == SHORT_SOUND
    for name, value in model.state_dict().items():
        assert torch.equal(predictor.model.state_dict()[name], value), name
    assert torch.equal(scores(predictor.model, processor, samples), scores(model, processor, samples))


def test_gradients_reach_every_part_but_the_frozen_one(tiny_videollama2, processor, samples):
    """Also in a batch without sound: every trained parameter gets a gradient, so that processes never wait for each other."""
    from lmm_ecr.arguments import TuningArguments
    from lmm_ecr.training.tuning import apply_tuning

    model = apply_tuning(make(tiny_videollama2), TuningArguments()).train()
    model.backbone.gradient_checkpointing_enable({"use_reentrant": False})
    for batch in (samples, [samples[1], samples[4]]):
        model.zero_grad()
        labels = torch.full((len(batch), 1), 0.5)
        model(**processor.collate(batch), labels=labels).loss.backward()
        without = {n for n, p in model.named_parameters() if p.grad is None}
        assert without == {n for n, p in model.named_parameters() if not p.requires_grad}
        assert all("vision_encoder" in name for name in without)


def golden_batch(golden, prefix="input", row=0):
    ids = golden[f"{prefix}/input_ids"][row]
    ids = ids[golden[f"{prefix}/attention_mask"][row].bool()]
    ids, types = expand(ids, 64, 48)
    return {
        "input_ids": ids[None],
        "attention_mask": torch.ones_like(ids)[None],
        "mm_token_type_ids": types[None],
        "pixel_values_videos": golden["input/frames" if row == 0 else "batch/frames_1"][None],
        "fbank": golden["input/fbank" if row == 0 else "batch/fbank_1"],
    }


@pytest.mark.parametrize("layout", ["public", "fine_tuned"])
@torch.no_grad()
def test_golden_scores_through_the_wrapper(tmp_path, layout):
    write_reference_checkpoint(tmp_path, golden_state(), golden_config(), layout)
    model = LmmRegressor.from_pretrained(tmp_path, dtype=torch.float32)
    assert not model.training
    golden = golden_scorer()
    out = model(**golden_batch(golden))
    assert (out.scores[:, 0] - golden["output/score"]).abs().max() <= 1e-5
    assert (out.pooled - golden["intermediate/pooled"]).abs().max() <= 2e-5
    for row in (0, 1):
        score = model(**golden_batch(golden, "batch", row)).scores[0, 0]
        assert (score - golden["batch/score_expected_masked_mean"][row]).abs() <= 1e-5


def test_scores_of_the_reference_are_percent(fine_tuned):
    model = LmmRegressor.from_pretrained(fine_tuned)
    config = model.config
    assert (config.targets, config.pooling, config.head_hidden_size) == (["ECR"], "mean", 16)
    assert config.label_transforms["ECR"]["name"] == "percent"
    values = torch.tensor([[-3.0], [0.0], [40.0], [100.0], [130.0]])
    expected = torch.tensor([[0.0], [0.0], [0.4], [1.0], [1.0]])
    torch.testing.assert_close(model.to_label_units(values), expected)
    torch.testing.assert_close(model.to_training_scale(torch.tensor([[0.25]])), torch.tensor([[25.0]]))


@torch.no_grad()
def score_by_hand(directory, tokenizer, path, title) -> float:
    """The reference's steps written out: frames, windows of sound, rounding, splicing, mean over positions, percent."""
    clip = read_clip(path, FrameSampling(), audio=AudioSpec(mode="whole"))
    pictures = [np.asarray(Image.fromarray(f).resize((46, 46), Image.Resampling.BICUBIC)) for f in clip.frames]
    pixels = (torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    fbank = kaldi_fbank(pad_audio(reference_audio(clip.audio), 480000)).to(torch.bfloat16).float()
    user = (
        "<video>\nHow would you judge the engagement continuation rate of the given content, where engagement continuation "
        "rate represents the probability of watch time exceeding 5 seconds. The title of the video is "
        f"{title}, and the description of the video is None"
    )
    answer = "The engagement continuation rate of the video."
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    before, after = tokenizer.apply_chat_template(messages, tokenize=False).split("<video>")
    ids = [tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"] for text in (before, after)]
    model, head = load_reference_checkpoint(directory, dtype=torch.float32)
    text = [model.language_model.embed_tokens(part) for part in ids]
    sound = model.audio_projector(model.audio_encoder(fbank[None]).last_hidden_state)
    embeds = torch.cat([text[0], model.get_video_tokens(pixels[None]), sound, text[1]], dim=1)
    pooled = model.language_model(inputs_embeds=embeds).last_hidden_state.mean(dim=1)
    hidden = torch.relu(pooled @ head["fc1.weight"].T + head["fc1.bias"])
    return (hidden @ head["fc2.weight"].T + head["fc2.bias"]).item() / 100


def test_a_clip_scores_as_in_the_reference(fine_tuned, tokenizer, tiny_manifest):
    """A fine-tuned directory of the winning team predicts directly, with the preprocessing it was trained with."""
    predictor = Predictor.from_pretrained(fine_tuned, device="cpu")
    assert predictor.processor.spec == VideoLlama2Spec.reference()
    rows = [(tiny_manifest[i].video, title) for i, title in enumerate(("a <|im_end|> title", "funny"))]
    found = predictor.predict([{"video": path, "title": title} for path, title in rows])[:, 0]
    expected = [score_by_hand(fine_tuned, tokenizer, path, title) for path, title in rows]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7)  # of percent: 1e-5
    assert len(set(found)) == 2


def test_reference_compatible_is_an_argument(fine_tuned, tiny_qwen):
    args = parse_arguments(["--reference_compatible", "--num_frames", "4"])
    processor = build_processor(args, str(fine_tuned), "videollama2")
    assert processor.spec == VideoLlama2Spec.reference(sampling=FrameSampling(num_frames=4))
    with pytest.raises(ConfigError, match="--reference_compatible: the qwen2_5_vl family"):
        build_processor(parse_arguments(["--reference_compatible"]), str(tiny_qwen))


def test_sound_arguments_reach_the_specification(tiny_videollama2):
    words = ["--audio_mode", "first_n_seconds", "--audio_seconds", "4", "--audio_windows", "all"]
    words += ["--audio_padding_seconds", "0", "--missing_audio", "silence", "--image_aspect_ratio", "pad"]
    spec = preprocessing_spec(parse_arguments(words), VideoLlama2Processor)
    assert spec == VideoLlama2Spec(
        audio=AudioSpec(mode="first_n_seconds", seconds=4.0),
        audio_windows="all",
        audio_padding_seconds=None,
        missing_audio="silence",
        image_aspect_ratio="pad",
    )
    assert preprocessing_spec(parse_arguments([]), VideoLlama2Processor) == VideoLlama2Spec()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--audio_mode", "whole"], "--audio_mode: a qwen2_5_vl model hears no sound"),
        (["--audio_windows", "all"], "--audio_windows: a qwen2_5_vl model has no such setting"),
        (["--image_aspect_ratio", "pad"], "--image_aspect_ratio: a qwen2_5_vl model has no such setting"),
    ],
)
def test_settings_of_another_family_are_refused(tiny_qwen, words, message):
    with pytest.raises(ConfigError, match=message):
        build_processor(parse_arguments(words), str(tiny_qwen))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max_pixels", "784"], "--max_pixels: a videollama2 model has no such setting"),
        (["--audio_seconds", "4"], "--audio_seconds has no effect on the whole sound"),
        (["--frame_sampling", "fps"], "same number of frames"),
    ],
)
def test_settings_without_effect_are_refused(tiny_videollama2, words, message):
    with pytest.raises(ConfigError, match=message):
        build_processor(parse_arguments(words), str(tiny_videollama2))


def test_a_recipe_refuses_the_other_family(tiny_videollama2):
    with pytest.raises(ConfigError, match="is a videollama2 model; this recipe is for qwen2_5_vl"):
        build_processor(parse_arguments([]), str(tiny_videollama2), "qwen2_5_vl")


def test_family_defaults_are_filled_in(tiny_videollama2):
    args = parse_arguments([])
    build_processor(args, str(tiny_videollama2))
    assert (args.training.learning_rate, args.tuning.vision, args.tuning.audio) == (5e-5, "freeze", "train")
    args = parse_arguments(["--learning_rate", "1e-5"])
    build_processor(args, str(tiny_videollama2))
    assert args.training.learning_rate == 1e-5


def test_a_backbone_does_not_predict(tmp_path, tokenizer):
    state = {name: value for name, value in golden_state().items() if not name.startswith("lm_head_reg.")}
    write_reference_checkpoint(tmp_path, state, golden_config())
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="without a regression head"):
        LmmRegressor.from_pretrained(tmp_path)
    del state["model.norm.weight"]
    write_reference_checkpoint(tmp_path, state, golden_config())
    with pytest.raises(ConfigError, match=r"1 tensors missing: language_model\.norm\.weight"):
        LmmRegressor.from_backbone(str(tmp_path))


def test_part_of_a_head_is_refused(tmp_path):
    state = golden_state()
    del state["lm_head_reg.fc2.bias"]
    write_reference_checkpoint(tmp_path, state, golden_config())
    with pytest.raises(ConfigError, match=r"regression head has the tensors fc1\.bias, fc1\.weight, fc2\.weight"):
        LmmRegressor.from_pretrained(tmp_path)


def test_processor_of_a_directory_that_is_no_model(tmp_path):
    with pytest.raises(ConfigError, match=r"preprocessing\.json is missing"):
        ClipProcessor.from_pretrained(tmp_path)
