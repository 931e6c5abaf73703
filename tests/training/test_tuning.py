"""Parts of a model: modes, learning rates, LoRA, and the promise that every trainable parameter has one group."""

import itertools
import re
from types import SimpleNamespace

import pytest
import torch

from lmm_ecr.arguments import TuningArguments
from lmm_ecr.errors import ConfigError
from lmm_ecr.models.families import get_family
from lmm_ecr.models.regression import LmmRegressor
from lmm_ecr.training.tuning import PARTS, apply_tuning, parameter_groups, part_of, resolve_tuning, tuning_table


@pytest.fixture
def model(tiny_qwen):
    return LmmRegressor.from_backbone(str(tiny_qwen), head_hidden_size=8, pooling="attention")


@pytest.fixture
def sound_model(tiny_videollama2):
    return LmmRegressor.from_backbone(str(tiny_videollama2), head_hidden_size=8)


def parts_of(groups):
    return {g["part"]: g["lr"] for g in groups}


def test_default_is_the_winning_teams_rates(model):
    groups = parameter_groups(apply_tuning(model, TuningArguments()), TuningArguments(), 1e-5, weight_decay=0.1)
    assert parts_of(groups) == {"vision": 2e-6, "projector": 1e-5, "language_model": 1e-5, "head": 1e-4}
    grouped = [p for g in groups for p in g["params"]]
    assert len(grouped) == len({id(p) for p in grouped}) == len(list(model.parameters()))
    for group in groups:
        assert all((p.dim() >= 2) == (group["weight_decay"] == 0.1) for p in group["params"])


def test_videollama2_freezes_vision_and_trains_the_rest_at_one_rate(sound_model):
    """The winning team's run: 5e-5 everywhere. No shared code names the family: its entry says so."""
    family = get_family("videollama2_av")
    tuned = apply_tuning(sound_model, TuningArguments())
    groups = parameter_groups(tuned, TuningArguments(), family.learning_rate)
    trained = ("projector", "language_model", "audio", "audio_projector", "head")
    assert parts_of(groups) == dict.fromkeys(trained, 5e-5)
    frozen = [name for name, parameter in tuned.named_parameters() if not parameter.requires_grad]
    assert frozen == [f"backbone.{name}" for name, _ in tuned.backbone.named_parameters() if "vision_encoder" in name]
    asked = TuningArguments(vision="train", audio="freeze", audio_projector_learning_rate=1e-3)
    groups = parameter_groups(apply_tuning(sound_model, asked), asked, 1e-5)
    rates = dict.fromkeys(("vision", "projector", "language_model", "head"), 1e-5) | {"audio_projector": 1e-3}
    assert parts_of(groups) == rates


def test_defaults_of_the_family_fill_what_is_not_said():
    qwen, sound = get_family("qwen2_5_vl"), get_family("videollama2_av")
    asked = TuningArguments(vision="lora", head_learning_rate=3e-4)
    resolved = resolve_tuning(asked, qwen)
    assert (resolved.vision, resolved.projector, resolved.head, resolved.audio) == ("lora", "train", "train", None)
    assert (resolved.vision_learning_rate, resolved.head_learning_rate) == (2e-6, 3e-4)
    assert resolve_tuning(resolved, qwen) == resolved
    resolved = resolve_tuning(TuningArguments(), sound)
    assert (resolved.vision, resolved.audio, resolved.audio_projector) == ("freeze", "train", "train")
    assert resolved.vision_learning_rate is resolved.head_learning_rate is None  # that is, --learning_rate
    assert asked == TuningArguments(vision="lora", head_learning_rate=3e-4)


@pytest.mark.parametrize("checkpoint", ["tiny_qwen", "tiny_videollama2"])
def test_each_prefix_of_a_part_holds_parameters(checkpoint, request):
    backbone = LmmRegressor.from_backbone(str(request.getfixturevalue(checkpoint)), head_hidden_size=8).backbone
    family = get_family(backbone.config.model_type)
    names = [name for name, _ in backbone.named_parameters()]
    assert {family.part_of(name) for name in names} == set(family.parts) <= set(PARTS)
    for prefix in [p for prefixes in family.parts.values() for p in prefixes]:
        assert any(name.startswith(prefix + ".") for name in names), prefix


def test_lora_on_sound_and_language_model(sound_model):
    tuning = TuningArguments(projector="freeze", language_model="lora", audio="lora", lora_rank=2)
    rows = {row["part"]: row for row in tuning_table(apply_tuning(sound_model, tuning), tuning, 1e-4)}
    assert {part: row["mode"] for part, row in rows.items()} == {
        "vision": "freeze",
        "projector": "freeze",
        "language_model": "lora",
        "audio": "lora",
        "audio_projector": "train",
        "head": "train",
    }
    for part, row in rows.items():
        assert (row["trainable"] == 0) == (row["mode"] == "freeze"), part
        assert (row["trainable"] == row["parameters"]) == (row["mode"] == "train"), part


MODES = ("train", "freeze", "lora")
QWEN_PARTS = ("vision", "projector", "language_model")


@pytest.mark.parametrize("modes", [m for m in itertools.product(MODES, repeat=3) if "lora" in m], ids="-".join)
def test_lora_goes_with_every_mode_of_the_other_parts(tiny_qwen, modes):
    model = LmmRegressor.from_backbone(str(tiny_qwen), head_hidden_size=8)
    tuning = TuningArguments(**dict(zip(QWEN_PARTS, modes, strict=True)), lora_rank=2)
    tuned = apply_tuning(model, tuning)
    rows = {row["part"]: row for row in tuning_table(tuned, tuning, 1e-4)}
    for part, mode in zip((*QWEN_PARTS, "head"), (*modes, "train"), strict=True):
        row = rows[part]
        assert row["mode"] == mode
        assert (row["trainable"] == 0) == (mode == "freeze"), part
        assert (row["trainable"] == row["parameters"]) == (mode == "train"), part
    parameter_groups(tuned, tuning, 1e-4)


def test_trained_vision_blocks_are_saved_with_the_adapter(
    model, tiny_qwen, tiny_processor, tiny_manifest, tmp_path, monkeypatch
):
    tuning = TuningArguments(language_model="lora", lora_rank=2)
    tuned = apply_tuning(model, tuning)
    one_step(tuned, parameter_groups(tuned, tuning, 1e-2), tiny_processor, tiny_manifest)
    tuned.save_pretrained(tmp_path / "adapter")
    model.config.save_pretrained(tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    loaded = LmmRegressor.from_pretrained("adapter").state_dict()
    assert loaded.keys() == tuned.state_dict().keys()
    for name, value in tuned.state_dict().items():
        # the head is new, so the original that PEFT keeps beside its trained copy is another one, and not used
        assert (
            torch.equal(value, loaded[name]) or "regression_head.original_module" in name or "pooling.original" in name
        )


def test_an_adapter_without_its_backbone_says_where_it_was(model, tmp_path):
    tuned = apply_tuning(model, TuningArguments(language_model="lora", lora_rank=2))
    tuned.save_pretrained(tmp_path)
    model.config.backbone_name_or_path = "/gone/backbone"
    model.config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="/gone/backbone, which is not there"):
        LmmRegressor.from_pretrained(tmp_path)


def test_every_parameter_has_one_part(model):
    names = {part: [] for part in ("vision", "projector", "language_model", "head")}
    for name, _ in model.named_parameters():
        names[part_of(name, model.family)].append(name)
    assert all(names.values())
    assert all("visual.merger" in n for n in names["projector"])
    assert names["head"] == ["pooling.query"] + [
        f"regression_head.fc{i}.{w}" for i in (1, 2) for w in ("weight", "bias")
    ]


def test_frozen_parts_have_no_group_and_do_not_move(model, tiny_processor, tiny_manifest):
    tuning = TuningArguments(vision="freeze", projector="freeze", language_model_learning_rate=1e-3)
    tuned = apply_tuning(model, tuning)
    groups = parameter_groups(tuned, tuning, 1e-2)
    assert parts_of(groups) == {"language_model": 1e-3, "head": 1e-4}
    before = {n: p.detach().clone() for n, p in tuned.named_parameters()}
    one_step(tuned, groups, tiny_processor, tiny_manifest)
    for name, parameter in tuned.named_parameters():
        frozen = part_of(name, model.family) in ("vision", "projector")
        assert torch.equal(parameter, before[name]) == frozen or name.endswith("embed_tokens.weight"), name


def one_step(model, groups, processor, manifest):
    from lmm_ecr.data.dataset import ClipDataset, Collator, split_batch

    dataset = ClipDataset(manifest, processor)
    inputs, _ = split_batch(Collator(processor)([dataset[i] for i in range(4)]))
    optimizer = torch.optim.AdamW(groups)
    model.train()
    model(**inputs).loss.backward()
    optimizer.step()


def test_lora_trains_adapters_and_head_only(model, tiny_processor, tiny_manifest):
    tuning = TuningArguments(vision="freeze", projector="train", language_model="lora", lora_rank=2)
    tuned = apply_tuning(model, tuning)
    trainable = {n for n, p in tuned.named_parameters() if p.requires_grad}
    assert all(re.search(r"lora_[AB]|modules_to_save", name) for name in trainable)
    adapted = {n.split(".lora_")[0].rsplit(".", 1)[-1] for n in trainable if "lora_" in n}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert any("visual.merger" in n for n in trainable)
    assert any("regression_head" in n for n in trainable)
    assert any("pooling" in n for n in trainable)
    before = {n: p.detach().clone() for n, p in tuned.named_parameters()}
    one_step(tuned, parameter_groups(tuned, tuning, 1e-2), tiny_processor, tiny_manifest)
    moved = {n for n, p in tuned.named_parameters() if not torch.equal(p, before[n])}
    assert moved <= trainable
    assert any("regression_head" in n for n in moved)


def test_lora_checkpoint_holds_adapter_and_head_and_scores_the_same(model, tiny_processor, tiny_manifest, tmp_path):
    tuning = TuningArguments(vision="lora", projector="train", language_model="lora", lora_rank=2)
    tuned = apply_tuning(model, tuning)
    one_step(tuned, parameter_groups(tuned, tuning, 1e-2), tiny_processor, tiny_manifest)
    tuned.eval()
    tuned.save_pretrained(tmp_path)
    model.config.save_pretrained(tmp_path)
    again = LmmRegressor.from_pretrained(tmp_path).eval()
    samples = [tiny_processor.encode(_clip(), "a", None)]
    with torch.no_grad():
        expected = tuned(**tiny_processor.collate(samples)).scores
        torch.testing.assert_close(again(**tiny_processor.collate(samples)).scores, expected, rtol=0, atol=0)
        merged = again.merge_and_unload()
        assert isinstance(merged, LmmRegressor)
        torch.testing.assert_close(merged(**tiny_processor.collate(samples)).scores, expected, rtol=0, atol=1e-6)


def _clip():
    import numpy as np

    from lmm_ecr.data.decode import Clip

    return Clip(np.random.default_rng(0).integers(0, 256, (4, 56, 56, 3), np.uint8), np.arange(4.0), None, 4.0, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"audio": "train"}, r"--audio is set"),
        ({"audio": "freeze"}, r"--audio is set, but a qwen2_5_vl model has only the parts vision, projector"),
        ({"audio_learning_rate": 1e-4}, "--audio is set"),
        (
            {"vision": "freeze", "projector": "freeze", "language_model": "freeze", "head": "freeze"},
            "nothing to train",
        ),
    ],
)
def test_contradictions_are_refused(model, options, message):
    with pytest.raises(ConfigError, match=message):
        apply_tuning(model, TuningArguments(**options))


def test_table_counts_every_parameter_once(model):
    total = sum(p.numel() for p in model.parameters())
    tuning = TuningArguments(vision="freeze", language_model="lora", lora_rank=2)
    rows = {row["part"]: row for row in tuning_table(apply_tuning(model, tuning), tuning, 1e-5)}
    assert rows["vision"]["trainable"] == 0
    assert rows["vision"]["learning_rate"] is None
    assert rows["head"]["trainable"] == rows["head"]["parameters"]
    lora = rows["language_model"]["trainable"]
    assert 0 < lora < rows["language_model"]["parameters"]
    assert sum(row["parameters"] for row in rows.values()) == total + lora


def test_a_parameter_outside_every_part_is_an_error(model):
    with pytest.raises(ConfigError, match="fits 0 parts"):
        part_of("backbone.audio_tower.weight", model.family)
    with pytest.raises(ConfigError, match="neither to the backbone nor to the head"):
        part_of("something.weight", SimpleNamespace())
