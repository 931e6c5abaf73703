"""The whole VideoLLaMA2-AV scorer against the reference's tensors, and what a score must not depend on."""

import json

import pytest
import torch
from safetensors.torch import load_file

from lmm_ecr.models.videollama2 import VideoLlama2Config, VideoLlama2Model
from lmm_ecr.models.videollama2.connector import StcConnector
from lmm_ecr.models.videollama2.conversion import load_reference_checkpoint, our_name

from .videollama2_reference import (
    GOLDENS,
    expand,
    golden_config,
    golden_scorer,
    golden_state,
    write_reference_checkpoint,
)

TENSOR_TOLERANCE, SCORE_TOLERANCE = 2e-5, 1e-5


@pytest.fixture(scope="module")
def golden():
    return golden_scorer()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_reference_checkpoint(tmp_path_factory.mktemp("reference"), golden_state(), golden_config())


@pytest.fixture
def scorer(checkpoint):
    return load_reference_checkpoint(checkpoint)


def assert_close(actual, expected, tolerance=TENSOR_TOLERANCE):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance


def score(model, head, batch):
    """Mean over real positions, then the head as the specification has it (no dropout in evaluation)."""
    states = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1).float()
    pooled = (states * mask).sum(1) / mask.sum(1)
    pooled = pooled.to(head["fc1.weight"].dtype)
    hidden = torch.relu(pooled @ head["fc1.weight"].T + head["fc1.bias"])
    return (hidden @ head["fc2.weight"].T + head["fc2.bias"]).squeeze(-1)


def make_batch(samples, side="right", pad=119):
    """samples: (ids, frames or None, filter bank or None); the connector gives 64 video and BEATs 48 audio tokens."""
    rows = [expand(ids, 64 * (frames is not None), 48 * (fbank is not None)) for ids, frames, fbank in samples]
    width = max(len(ids) for ids, _ in rows)
    batch = {name: [] for name in ("input_ids", "mm_token_type_ids", "attention_mask")}
    for ids, types in rows:
        for name, values, fill in (
            ("input_ids", ids, pad),
            ("mm_token_type_ids", types, 0),
            ("attention_mask", torch.ones_like(ids), 0),
        ):
            padding = torch.full((width - len(ids),), fill)
            batch[name].append(torch.cat([padding, values] if side == "left" else [values, padding]))
    batch = {name: torch.stack(values) for name, values in batch.items()}
    clips = [frames for _, frames, _ in samples if frames is not None]
    tracks = [fbank for _, _, fbank in samples if fbank is not None]
    if clips:
        batch["pixel_values_videos"] = torch.stack(clips)
    if tracks:
        batch["fbank"] = torch.stack(tracks)
    return batch


@pytest.fixture(scope="module")
def samples(golden):
    first = (golden["input/input_ids"][0], golden["input/frames"], golden["input/fbank"][0])
    second = (golden["batch/input_ids"][1], golden["batch/frames_1"], golden["batch/fbank_1"][0])
    return first, second


def test_intermediate_tensors_and_score(golden, scorer, samples):
    model, head = scorer
    batch = make_batch(samples[:1])
    vision = model.get_vision_features(golden["input/frames"])
    assert_close(vision, golden["intermediate/vision_features"])
    assert_close(model.get_video_tokens(golden["input/frames"][None]), golden["intermediate/video_tokens"])
    assert_close(model.get_audio_tokens(golden["input/fbank"])[0][None], golden["intermediate/audio_tokens"])
    inputs = {name: value for name, value in batch.items() if name != "attention_mask"}
    assert_close(model.get_inputs_embeds(**inputs), golden["intermediate/inputs_embeds"])
    states = model(**batch).last_hidden_state
    assert_close(states, golden["intermediate/last_hidden_state"])
    assert_close(states.mean(1), golden["intermediate/pooled"])
    assert_close(score(model, head, batch), golden["output/score"], SCORE_TOLERANCE)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_padded_batch(golden, checkpoint, samples, side, attention):
    model, head = load_reference_checkpoint(checkpoint, attn_implementation=attention)
    assert model.language_model.config._attn_implementation == attention
    assert model.vision_encoder.config._attn_implementation == attention
    expected = golden["batch/score_expected_masked_mean"]
    assert_close(score(model, head, make_batch(samples, side)), expected, SCORE_TOLERANCE)
    assert_close(score(model, head, make_batch(samples[::-1], side)), expected.flip(0), SCORE_TOLERANCE)


@pytest.mark.parametrize("side", ["right", "left"])
def test_score_alone_equals_score_beside_any_neighbour(scorer, samples, side):
    model, head = scorer
    (ids, frames, fbank), (other_ids, other_frames, other_fbank) = samples
    variants = [
        (ids, frames, fbank),
        (other_ids, other_frames, None),
        (ids, None, other_fbank),
        (other_ids, None, None),
        (other_ids, other_frames, other_fbank),
    ]
    alone = torch.cat([score(model, head, make_batch([sample])) for sample in variants])
    assert len({round(value, 4) for value in alone.tolist()}) == len(variants)
    assert_close(score(model, head, make_batch(variants, side)), alone, SCORE_TOLERANCE)
    for left, right in ((0, 1), (1, 2), (3, 4), (3, 1)):
        pair = score(model, head, make_batch([variants[left], variants[right]], side))
        assert_close(pair, alone[[left, right]], SCORE_TOLERANCE)


def test_tracks_of_different_lengths(scorer, samples):
    model, head = scorer
    ids, frames, fbank = samples[0]
    long = torch.cat([samples[1][2], fbank])[:160]
    rows = [expand(ids, 64, model.config.num_audio_tokens(len(track))) for track in (fbank, long)]
    alone = []
    for (row, types), track in zip(rows, (fbank, long), strict=True):
        single = {"input_ids": row[None], "mm_token_type_ids": types[None], "attention_mask": torch.ones(1, len(row))}
        alone.append(score(model, head, {**single, "pixel_values_videos": frames[None], "fbank": track[None]}))
    width = max(len(row) for row, _ in rows)
    pad = torch.nn.functional.pad
    batch = {
        "input_ids": torch.stack([pad(row, (0, width - len(row))) for row, _ in rows]),
        "mm_token_type_ids": torch.stack([pad(types, (0, width - len(types))) for _, types in rows]),
        "attention_mask": torch.stack([pad(torch.ones_like(row), (0, width - len(row))) for row, _ in rows]),
        "pixel_values_videos": torch.stack([frames, frames]),
        "fbank": torch.stack([pad(fbank[:96], (0, 0, 0, 64), value=7.0), long]),
        "fbank_mask": torch.arange(160)[None] < torch.tensor([[96], [160]]),
    }
    assert_close(score(model, head, batch), torch.cat(alone), SCORE_TOLERANCE)


def test_uint8_frames_are_normalised_and_flat_frames_are_regrouped(scorer, samples):
    model, head = scorer
    batch = make_batch(samples)
    pixels = torch.randint(0, 256, batch["pixel_values_videos"].shape, dtype=torch.uint8)
    as_float = score(model, head, {**batch, "pixel_values_videos": (pixels / 255 - 0.5) / 0.5})
    assert_close(score(model, head, {**batch, "pixel_values_videos": pixels}), as_float, 1e-6)
    assert_close(score(model, head, {**batch, "pixel_values_videos": pixels.flatten(0, 1)}), as_float, 1e-6)


def test_gradient_norms(golden, scorer, samples):
    model, head = scorer
    model.vision_encoder.requires_grad_(False)
    expected = json.loads((GOLDENS / "scoring_model_tiny_gradients.json").read_text())
    loss = (score(model, head, make_batch(samples[:1])) - expected["target"]).square().mean()
    assert float(loss.detach()) == pytest.approx(expected["loss"], rel=1e-5)
    loss.backward()
    parameters = dict(model.named_parameters())
    compared = set()
    for name, norm in expected["gradient_l2_norm"].items():
        ours = our_name(name)
        if ours in parameters and norm is None:
            assert parameters[ours].grad is None, name
        elif ours in parameters and norm > 1e-5:
            # The reference counts the shared table once, under the name of the first layer.
            assert float(parameters[ours].grad.norm()) == pytest.approx(norm, rel=1e-4), name
            compared.add(ours)
    trained = {name for name, parameter in parameters.items() if parameter.requires_grad}
    rounding_noise = {name for name in trained if name.endswith("k_proj.bias") and "audio" in name}
    assert trained - compared <= rounding_noise
    assert len(compared) > 200


def test_vision_encoder_learns_only_if_asked(scorer, samples):
    model, head = scorer
    score(model, head, make_batch(samples[:1])).sum().backward()
    assert all(parameter.grad is not None for parameter in model.vision_encoder.encoder.parameters())
    assert model.default_frozen_parts == ("vision_encoder",)


@pytest.mark.parametrize("missing", ["video", "audio", "both"])
def test_training_step_reaches_every_parameter_whatever_the_batch_holds(scorer, samples, missing):
    model, head = scorer
    ids, frames, fbank = samples[0]
    batch = make_batch([(ids, frames if missing == "audio" else None, fbank if missing == "video" else None)])
    evaluated = score(model, head, batch)
    model.train()
    model.audio_encoder.config.layerdrop = 0.0
    trained = score(model, head, batch)
    assert_close(trained, evaluated, 1e-6)
    trained.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    unused = {"video": model.connector, "audio": model.audio_encoder, "both": model.audio_projector}[missing]
    assert all(not parameter.grad.any() for parameter in unused.parameters())


def test_scoring_silent_clips_does_not_run_the_audio_encoder(scorer, samples):
    model, head = scorer
    calls = []
    model.audio_encoder.register_forward_hook(lambda *_: calls.append(1))
    batch = make_batch([(ids, frames, None) for ids, frames, _ in samples])
    with torch.no_grad():
        score(model, head, batch)
    assert not calls
    score(model, head, batch)  # with gradients: the encoder gets one of zero
    assert len(calls) == 1
    model.audio_encoder.requires_grad_(False)
    model.audio_projector.requires_grad_(False)
    score(model, head, batch)
    assert len(calls) == 1


def test_gradient_checkpointing_gives_the_same_gradients(checkpoint, samples):
    gradients = []
    for checkpointing in (False, True):
        model, head = load_reference_checkpoint(checkpoint)
        model.train()
        model.audio_encoder.config.layerdrop = 0.0
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.connector.gradient_checkpointing
        score(model, head, make_batch(samples)).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-4, atol=1e-4 * float(gradient.abs().max())), name


def test_bfloat16_runs_and_stays_near(checkpoint, samples):
    model, head = load_reference_checkpoint(checkpoint, dtype="bfloat16")
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())
    reference = score(*load_reference_checkpoint(checkpoint), make_batch(samples))
    states = model(**make_batch(samples)).last_hidden_state
    assert states.dtype == torch.bfloat16
    assert (score(model, head, make_batch(samples)) - reference).abs().max() < 0.3


def test_placeholders_that_do_not_fit_are_refused(scorer, samples):
    model, _ = scorer
    _, frames, fbank = samples[0]
    batch = make_batch(samples)
    with pytest.raises(ValueError, match="video placeholders"):
        model(**{**batch, "pixel_values_videos": frames[None, :4]})
    with pytest.raises(ValueError, match="audio placeholders"):
        model(**{**batch, "fbank": fbank[None]})
    with pytest.raises(ValueError, match="mm_token_type_ids"):
        model(**{name: value for name, value in batch.items() if name != "mm_token_type_ids"})
    with pytest.raises(ValueError, match="cannot be divided"):
        model(**{**batch, "pixel_values_videos": frames[:7]})


@pytest.mark.parametrize("case", ["T8", "T5"])
def test_connector(case):
    golden = load_file(GOLDENS / "stc_v35_tiny.safetensors")
    connector = StcConnector(24, 32, depth=4, mlp_depth=2).eval()
    state = {}
    for name, value in golden.items():
        if name.startswith("weight/"):
            state[our_name("model.mm_projector." + name.removeprefix("weight/")).removeprefix("connector.")] = value
    connector.load_state_dict(state)
    seen = {}
    for name in ("sampler", "stage2.b4", "stage1.b4"):
        module = connector.get_submodule(name)
        module.register_forward_hook(lambda _, __, output, name=name: seen.__setitem__(name, output))
    assert_close(connector(golden[f"{case}/input"]), golden[f"{case}/output"])
    assert_close(torch.nn.functional.silu(seen["sampler"]), golden[f"{case}/after_sampler"])
    assert_close(seen["stage2.b4"], golden[f"{case}/after_s2"])
    if f"{case}/after_s1" in golden:
        assert_close(seen["stage1.b4"], golden[f"{case}/after_s1"])


def test_connector_ignores_the_last_of_an_odd_number_of_frames():
    connector = StcConnector(8, 12, depth=1, mlp_depth=1).eval()
    features = torch.randn(2, 5, 49, 8)
    assert torch.allclose(connector(features), connector(features[:, :4]), atol=1e-6)
    assert connector(features).shape == (2, 2 * 3 * 3, 12)


@pytest.mark.parametrize("shape", [(1, 1, 49, 8), (1, 4, 50, 8), (1, 4, 1, 8)])
def test_connector_refuses_what_it_cannot_use(shape):
    with pytest.raises(ValueError, match="square patch grid"):
        StcConnector(8, 12, depth=1, mlp_depth=1)(torch.zeros(shape))


def test_token_counts_of_the_full_size_model():
    config = VideoLlama2Config()
    assert [config.num_video_tokens(frames) for frames in (5, 8, 16)] == [338, 676, 1352]
    assert config.num_audio_tokens(2998) == 1496
    assert config.num_vision_layers == 26


def test_our_checkpoint_reloads_under_the_names_of_the_modules(scorer, samples, tmp_path):
    model, head = scorer
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert set(stored) == set(model.state_dict())
    assert {name.split(".")[0] for name in stored} == set(model.parts)
    again, info = VideoLlama2Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert_close(score(again, head, make_batch(samples)), score(model, head, make_batch(samples)), 1e-6)
