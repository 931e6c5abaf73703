"""Reference checkpoints: every tensor accounted for, at full size by name and shape, at tiny size by value."""

import json
import re

import pytest
import torch
from transformers import AutoConfig, AutoModel

from lmm_ecr.errors import ConfigError
from lmm_ecr.models.videollama2 import VideoLlama2Config, VideoLlama2Model, load_backbone
from lmm_ecr.models.videollama2.conversion import (
    is_reference_checkpoint,
    load_reference_checkpoint,
    our_name,
    plan_conversion,
)
from lmm_ecr.models.videollama2.reference_config import read_reference_config

from .videollama2_reference import BIAS_TABLE, GOLDENS, golden_config, golden_state, write_reference_checkpoint


@pytest.fixture(scope="module")
def keys():
    """The full-size key list with its repeated layers written out: {name: shape}, and the rest of the file."""
    folded = json.loads((GOLDENS / "keys_7b.json").read_text())
    shapes = {}
    for pattern, shape in folded["tensors"].items():
        layers = re.search(r"\{0\.\.(\d+)\}", pattern)
        for index in range(int(layers.group(1)) + 1 if layers else 1):
            shapes[pattern.replace(layers.group(0), str(index)) if layers else pattern] = tuple(shape)
    return shapes, folded


def elements(shapes):
    return sum(torch.Size(shape).numel() for shape in shapes)


def test_full_size_names_shapes_and_count(keys):
    shapes, folded = keys
    assert len(shapes) == folded["totals"]["state_dict_entries"] == 1160
    aliases = [name for name in shapes if name.endswith(BIAS_TABLE)][1:]
    assert len(shapes) - len(aliases) == folded["totals"]["distinct_tensors"] == 1149
    plan = plan_conversion(shapes, VideoLlama2Config())
    with torch.device("meta"):
        model = VideoLlama2Model(VideoLlama2Config())
    state = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert set(plan.targets) == set(state)
    for target, names in plan.targets.items():
        assert {shapes[name] for name in names} == {state[target]}, target
    placed = [name for names in plan.targets.values() for name in names]
    assert sorted([*placed, *plan.head.values(), *plan.unused]) == sorted(shapes)
    assert len(placed) - len(plan.targets) == len(aliases) == 11
    # Left out: lm_head, the predictor, SigLIP's 27th layer (16 tensors), final norm (2) and pooling head (11).
    assert len(plan.unused) == 1 + 2 + 16 + 2 + 11
    used = elements(state.values())
    assert used == sum(parameter.numel() for parameter in model.parameters())
    left_out = elements(shapes[name] for name in plan.unused)
    head = elements(shapes[name] for name in plan.head.values())
    assert used + left_out + head == folded["totals"]["elements"] == 8_533_479_264
    by_prefix = {prefix: value["elements_without_aliases"] for prefix, value in folded["by_prefix"].items()}
    parts = {part: elements(v for k, v in state.items() if k.startswith(part + ".")) for part in model.parts}
    assert parts["connector"] == by_prefix["model.mm_projector."]
    assert parts["audio_projector"] == by_prefix["model.mm_projector_a."]
    assert parts["audio_encoder"] == by_prefix["model.audio_tower."] - (527 * 768 + 527)
    text = ("model.embed_tokens.", "model.layers.", "model.norm.")
    assert parts["language_model"] == sum(by_prefix[prefix] for prefix in text)


def test_full_size_configuration_from_the_reference_file(keys, tmp_path):
    shapes, folded = keys
    values = {"model_type": "videollama2_qwen2", **folded["language_model"], **folded["multimodal"]}
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = read_reference_config(tmp_path, shapes)
    ours = VideoLlama2Config()
    for part in ("vision_config", "audio_config"):
        assert getattr(config, part).to_dict() == getattr(ours, part).to_dict()
    assert config.text_config.to_dict() == ours.text_config.to_dict()
    assert config.text_config.rope_parameters["rope_theta"] == 1e6
    for name in ("vision_feature_layer", "connector_depth", "connector_downsample", "connector_mlp_depth"):
        assert getattr(config, name) == getattr(ours, name)


@pytest.mark.parametrize("layout", ["public", "fine_tuned"])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_tensor_arrives(tmp_path, layout, shards):
    state = golden_state()
    if layout == "public":
        state = {name: value for name, value in state.items() if not name.startswith("lm_head_reg.")}
    write_reference_checkpoint(tmp_path, state, golden_config(), layout, shards)
    assert is_reference_checkpoint(tmp_path)
    model, head = load_reference_checkpoint(tmp_path)
    assert not model.training
    ours = model.state_dict()
    arrived = set()
    for name, value in state.items():
        target = our_name(name)
        if target is not None and target.startswith("lm_head_reg."):
            assert torch.equal(head[target.removeprefix("lm_head_reg.")], value)
        elif target in ours:
            assert torch.equal(ours[target], value), name
            arrived.add(target)
    assert arrived == set(ours)
    assert (head is None) == (layout == "public")


def test_from_pretrained_and_our_own_layout(tmp_path):
    source = write_reference_checkpoint(tmp_path / "source", golden_state(), golden_config())
    model = VideoLlama2Model.from_pretrained(source, dtype="float32")
    model.save_pretrained(tmp_path / "ours")
    assert not is_reference_checkpoint(tmp_path / "ours")
    again = AutoModel.from_pretrained(tmp_path / "ours")
    assert type(again) is VideoLlama2Model
    assert again.config.vision_config.image_size == 46
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert AutoConfig.from_pretrained(source).model_type == "videollama2_qwen2"
    assert not is_reference_checkpoint(tmp_path / "nowhere")


def test_dtypes(tmp_path):
    state = {name: value.bfloat16() for name, value in golden_state().items()}
    write_reference_checkpoint(tmp_path, state, golden_config())
    model, head = load_reference_checkpoint(tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.language_model.rotary_emb.inv_freq.dtype == torch.float32
    assert head["fc1.weight"].dtype == torch.float32
    model, _ = load_reference_checkpoint(tmp_path, dtype=torch.float32)
    assert torch.equal(model.language_model.norm.weight, state["model.norm.weight"].float())


def test_audio_parts_from_the_side_files(tmp_path):
    state = golden_state()
    write_reference_checkpoint(tmp_path, state, golden_config(), "fine_tuned", shards=1)
    audio = ("model.audio_tower.", "model.mm_projector_a.")
    main = {name: value for name, value in state.items() if not name.startswith(audio)}
    torch.save(main, tmp_path / "pytorch_model.bin")
    with_side_files, _ = load_reference_checkpoint(tmp_path)
    for name, value in state.items():
        if name.startswith(audio) and our_name(name) is not None:
            assert torch.equal(with_side_files.state_dict()[our_name(name)], value), name


def test_sizes_are_read_off_the_tensors(tmp_path):
    config = {name: value for name, value in golden_config().items() if name != "audio_tower_config"}
    write_reference_checkpoint(tmp_path, golden_state(), config)
    model, _ = load_reference_checkpoint(tmp_path, audio_config={"max_distance": 80})
    audio = model.config.audio_config
    found = (audio.hidden_size, audio.embed_dim, audio.num_hidden_layers, audio.num_attention_heads)
    assert found == (32, 16, 3, 4)
    assert (audio.position_conv_kernel, audio.position_conv_groups, audio.intermediate_size) == (16, 4, 64)
    assert (audio.num_buckets, audio.max_distance, audio.gradient_decay) == (32, 80, 0.6)


def broken(change):
    state = golden_state()
    change(state)
    return state


def drop(*names):
    return lambda state: [state.pop(name) for name in names]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("model.norm.weight"), r"1 tensors missing: language_model\.norm\.weight"),
        (drop("lm_head_reg.fc2.bias"), r"1 tensors missing: lm_head_reg\.fc2\.bias"),
        (drop("model.mm_projector.s2.b3.se.fc1.weight"), r"connector\.stage2\.b3\.se\.fc1\.weight"),
        (lambda state: state.update({"model.extra.weight": torch.zeros(1)}), r"not known: model\.extra\.weight"),
        (lambda state: state.update({"lm_head_reg.fc3.bias": torch.zeros(1)}), r"not known: lm_head_reg\.fc3\.bias"),
        (
            lambda state: state.update({"model.norm.weight": torch.zeros(31)}),
            r"wrong shape: model\.norm\.weight \(31,\)",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, message):
    write_reference_checkpoint(tmp_path, broken(change), golden_config())
    with pytest.raises(ConfigError, match=message):
        load_reference_checkpoint(tmp_path)


def test_different_copies_of_the_shared_table_are_refused(tmp_path):
    state = golden_state()
    name = "model.audio_tower.encoder.layers.1.self_attn.relative_attention_bias.weight"
    state[name] = state[name] + 1
    write_reference_checkpoint(tmp_path, state, golden_config(), "fine_tuned")
    with pytest.raises(ConfigError, match="should equal its other names"):
        load_reference_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen2"}, "model_type is 'qwen2'"),
        ({"mm_projector_type": "stc_connector"}, "stc_connector_v35"),
        ({"mm_projector_a_type": "linear2"}, "mm_projector_a_type"),
        ({"mm_projector_a_type": "mlp3x_gelu"}, "the projector has 2 linear layers"),
        ({"mm_vision_select_feature": "cls"}, "mm_vision_select_feature"),
        ({"mm_vision_select_layer": -9}, "vision_feature_layer"),
        ({"mm_hidden_size": 25}, "mm_hidden_size is 25"),
        ({"hidden_size_a": 31}, "hidden_size_a is 31"),
        ({"vision_tower_config": None}, "sizes of the vision tower 'siglip-tiny'"),
        ({"audio_tower_config": {"encoder_layers": 3, "layer_norm_first": True}}, "layer_norm_first=True"),
        ({"audio_tower_config": {"encoder_layers": 3, "colour": 1}}, "'colour'"),
    ],
)
def test_configurations_that_are_not_supported(tmp_path, change, message):
    write_reference_checkpoint(tmp_path, golden_state(), {**golden_config(), **change})
    with pytest.raises(ConfigError, match=message):
        load_reference_checkpoint(tmp_path)


@pytest.mark.parametrize("kind", ["linear", None])
def test_a_linear_audio_projector(tmp_path, kind):
    """The reference stores its single layer without a number; config.json need not name the kind."""
    state = golden_state()
    layer = {
        name: state.pop(f"model.mm_projector_a.{old}") for name, old in (("weight", "0.weight"), ("bias", "0.bias"))
    }
    for name in ("2.weight", "2.bias"):
        del state[f"model.mm_projector_a.{name}"]
    state |= {f"model.mm_projector_a.{name}": value for name, value in layer.items()}
    write_reference_checkpoint(tmp_path, state, {**golden_config(), "mm_projector_a_type": kind})
    model, _ = load_reference_checkpoint(tmp_path)
    assert [type(module).__name__ for module in model.audio_projector] == ["Linear"]
    assert torch.equal(model.audio_projector[0].weight, layer["weight"])
    assert torch.equal(model.audio_projector[0].bias, layer["bias"])


def test_weights_that_are_whole_numbers_are_refused(tmp_path):
    state = golden_state()
    name = "model.norm.weight"
    state[name] = state[name].to(torch.int8)
    write_reference_checkpoint(tmp_path, state, golden_config())
    with pytest.raises(ConfigError, match=f"1 weights are no floating-point tensors, such as {name}"):
        load_reference_checkpoint(tmp_path)


def test_a_pickle_that_is_no_list_of_tensors_is_refused(tmp_path):
    write_reference_checkpoint(tmp_path, golden_state(), golden_config())
    for path in tmp_path.glob("*.safetensors*"):
        path.unlink()
    torch.save({"state_dict": golden_state()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="'state_dict' is something else"):
        load_reference_checkpoint(tmp_path)


def test_options_of_from_pretrained_that_the_layout_does_not_know_are_named(tmp_path):
    write_reference_checkpoint(tmp_path, golden_state(), golden_config())
    assert load_backbone(str(tmp_path), torch_dtype=torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(ConfigError, match="cannot be loaded with device_map: convert it first"):
        load_backbone(str(tmp_path), device_map="auto")


def test_broken_directories(tmp_path):
    with pytest.raises(ConfigError, match="not a directory"):
        load_reference_checkpoint(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="holds no weights"):
        load_reference_checkpoint(tmp_path)
    write_reference_checkpoint(tmp_path, golden_state(), golden_config())
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ConfigError, match="model-00002-of-00003"):
        load_reference_checkpoint(tmp_path)
    (tmp_path / "model-00002-of-00003.safetensors").write_bytes(b"not weights")
    with pytest.raises(ConfigError, match="cannot be read as weights"):
        load_reference_checkpoint(tmp_path)


def test_pickles_run_no_code(tmp_path):
    write_reference_checkpoint(tmp_path, golden_state(), golden_config(), "fine_tuned", shards=1)
    torch.save({"model.norm.weight": print}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="cannot be read as weights"):
        load_reference_checkpoint(tmp_path)


def test_saved_position_tables_are_ignored(tmp_path):
    state = golden_state()
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    state["model.vision_tower.vision_tower.vision_model.embeddings.position_ids"] = torch.arange(81)[None]
    write_reference_checkpoint(tmp_path / "with", state, golden_config())
    write_reference_checkpoint(tmp_path / "without", golden_state(), golden_config())
    models = [load_reference_checkpoint(tmp_path / name)[0].state_dict() for name in ("with", "without")]
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_index_that_is_no_index(tmp_path):
    write_reference_checkpoint(tmp_path, golden_state(), golden_config(), shards=1)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ConfigError, match="is not an index"):
        load_reference_checkpoint(tmp_path)
