"""BEATs against the reference's tensors, and its properties."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lmm_ecr.models.beats import BeatsConfig, BeatsEncoder, relative_position_buckets, token_padding_mask
from lmm_ecr.models.videollama2.conversion import our_name

GOLDENS = Path(__file__).resolve().parents[1] / "goldens" / "videollama2_av"
TOLERANCE = 2e-5

TINY = {
    "embed_dim": 16,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "position_conv_kernel": 16,
    "position_conv_groups": 4,
    "num_buckets": 32,
    "max_distance": 80,
}


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDENS / "beats_tiny.safetensors")


@pytest.fixture(scope="module")
def description():
    return json.loads((GOLDENS / "beats_tiny.json").read_text())


def load_tiny(golden, attn_implementation="sdpa", **changes):
    model = BeatsEncoder._from_config(BeatsConfig(**{**TINY, **changes}), attn_implementation=attn_implementation)
    state = {}
    for name, value in golden.items():
        if name.startswith("weight/"):
            ours = our_name("model.audio_tower." + name.removeprefix("weight/"))
            if ours is not None:
                state[ours.removeprefix("audio_encoder.")] = value
    model.load_state_dict(state)
    return model.eval()


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_features_and_intermediate_tensors(golden, attention):
    model = load_tiny(golden, attention)
    seen = {}
    for name in ("patch_projection", "input_norm", "layers.0", "layers.1", "layers.2"):
        module = model.get_submodule(name)
        module.register_forward_hook(lambda _, __, output, name=name: seen.__setitem__(name, output))
    model.position_conv.register_forward_hook(lambda _, inputs, output: seen.__setitem__("conv", output - inputs[0]))
    features = model(golden["input/fbank"]).last_hidden_state
    assert_close(seen["patch_projection"], golden["intermediate/after_post_extract_proj"])
    assert_close(seen["conv"], golden["intermediate/pos_conv_output"])
    assert_close(seen["input_norm"], golden["intermediate/encoder_input"])
    for index in range(3):
        assert_close(seen[f"layers.{index}"], golden[f"intermediate/layer{index}_output"])
    assert_close(model.position_bias(48), golden["intermediate/position_bias"])
    assert_close(features, golden["output/features"])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_mask(golden, attention):
    output = load_tiny(golden, attention)(golden["input/fbank"], golden["masked/frame_padding_mask"].bool())
    assert torch.equal(output.token_padding_mask, golden["masked/token_padding_mask"].bool())
    assert_close(output.last_hidden_state, golden["masked/features"])


def test_buckets(description):
    for case in description["relative_position_buckets"].values():
        if isinstance(case, dict):
            offsets = torch.arange(case["first"], case["first"] + len(case["values"]))
            buckets = relative_position_buckets(offsets, case["num_buckets"], case["max_distance"])
            assert buckets.tolist() == case["values"]
    known = {0: 0, -1: 1, 1: 161, -80: 80, -160: 104, -799: 159, 400: 295}
    assert relative_position_buckets(torch.tensor(list(known)), 320, 800).tolist() == list(known.values())


def test_gradient_decay_changes_gradients_only(golden, description):
    ratios = description["gradient_norm_ratio_with_and_without_layerwise_decay_0.6"]
    norms = {}
    for decay in (0.6, 1.0):
        model = load_tiny(golden, gradient_decay=decay)
        model(golden["input/fbank"]).last_hidden_state.square().sum().backward()
        parameters = dict(model.named_parameters())
        norms[decay] = {
            name: parameters[our_name("model.audio_tower." + name).removeprefix("audio_encoder.")].grad.norm()
            for name in ratios
        }
    for name, ratio in ratios.items():
        assert norms[0.6][name] / norms[1.0][name] == pytest.approx(ratio, rel=1e-4)


def test_padding_to_a_longer_neighbour_changes_nothing(golden):
    model = load_tiny(golden)
    fbank = golden["input/fbank"][:1]
    padded = torch.cat([fbank, torch.randn(1, 64, 128)], dim=1)
    mask = torch.arange(padded.shape[1])[None] >= fbank.shape[1]
    alone = model(fbank).last_hidden_state
    assert_close(model(padded, mask).last_hidden_state[:, : alone.shape[1]], alone)


def test_token_mask_deals_out_frames_as_the_original_does():
    mask = torch.arange(2998)[None] >= 1003
    tokens = token_padding_mask(mask, 1496).reshape(187, 8)
    assert not tokens[:62].any()  # 992 frames: all eight tokens of each of the first 62 steps
    assert tokens[62].tolist() == [False] * 6 + [True] * 2  # frames 992..1007: token f sees 992+2f and 993+2f
    assert tokens[63:].all()


def test_a_wholly_masked_track_stays_finite(golden):
    output = load_tiny(golden)(golden["input/fbank"], torch.ones(2, 96, dtype=torch.bool))
    assert torch.isfinite(output.last_hidden_state).all()


@pytest.mark.parametrize(("frames", "tokens"), [(16, 8), (31, 8), (33, 16), (102, 48)])
@pytest.mark.parametrize("kernel", [5, 16])
def test_token_count_and_odd_kernels(frames, tokens, kernel):
    config = BeatsConfig(**{**TINY, "position_conv_kernel": kernel, "embed_dim": 32})
    model = BeatsEncoder(config).eval()
    assert isinstance(model.patch_projection, torch.nn.Identity)
    output = model(torch.randn(2, frames, 128)).last_hidden_state
    assert output.shape == (2, tokens, 32)
    assert config.num_tokens(frames) == tokens
    assert torch.isfinite(output).all()


@pytest.mark.parametrize("shape", [(2, 15, 128), (2, 96, 80), (96, 128)])
def test_wrong_input_is_refused(shape):
    with pytest.raises(ValueError, match="filter banks"):
        BeatsEncoder(BeatsConfig(**TINY))(torch.zeros(shape))


def test_layerdrop_follows_torch_seed_and_only_training(golden):
    model = load_tiny(golden, layerdrop=0.5)
    fbank = golden["input/fbank"]
    assert_close(model(fbank).last_hidden_state, golden["output/features"])
    model.train()
    results = []
    for seed in (0, 0, 1, 2, 3):
        torch.manual_seed(seed)
        results.append(model(fbank).last_hidden_state)
    assert torch.equal(results[0], results[1])
    assert any(not torch.equal(results[0], result) for result in results[2:])


def test_dropped_layers_get_a_zero_gradient(golden):
    model = load_tiny(golden, layerdrop=1.0).train()
    output = model(golden["input/fbank"]).last_hidden_state
    assert_close(output, golden["intermediate/encoder_input"])
    output.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(not parameter.grad.any() for parameter in model.layers.parameters())


def test_gradient_checkpointing_gives_the_same_gradients(golden):
    gradients = []
    for checkpointing in (False, True):
        model = load_tiny(golden, layerdrop=0.0).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(golden["input/fbank"]).last_hidden_state.square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-5, atol=1e-6), name


def test_save_and_load(golden, tmp_path):
    model = load_tiny(golden)
    model.save_pretrained(tmp_path)
    again = BeatsEncoder.from_pretrained(tmp_path)
    assert_close(again(golden["input/fbank"]).last_hidden_state, golden["output/features"])
