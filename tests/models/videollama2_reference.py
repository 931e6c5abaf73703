"""Checkpoints in the reference's layout, made from the golden tensors, for the VideoLLaMA2 tests."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

GOLDENS = Path(__file__).resolve().parents[1] / "goldens" / "videollama2_av"
PLACEHOLDER, PAD = -201, 119
BIAS_TABLE = "relative_attention_bias.weight"


def golden_scorer() -> dict[str, torch.Tensor]:
    return load_file(GOLDENS / "scoring_model_tiny.safetensors")


def golden_state() -> dict[str, torch.Tensor]:
    """The scorer's state dict under the reference's names."""
    prefix = "state_dict/"
    return {k.removeprefix(prefix): v for k, v in golden_scorer().items() if k.startswith(prefix)}


def golden_config() -> dict:
    """config.json of the tiny scorer, with the sizes that the reference keeps in code as sections of their own."""
    description = json.loads((GOLDENS / "scoring_model_tiny.json").read_text())
    return {
        "model_type": "videollama2_qwen2",
        "architectures": ["Videollama2Qwen2ForCausalLM"],
        "torch_dtype": "bfloat16",
        **description["language_model_and_multimodal_config"],
        "vision_tower_config": description["vision_tower_config"],
        "audio_tower_config": description["audio_tower_config"],
    }


def write_reference_checkpoint(
    directory: Path, state: dict[str, torch.Tensor], config: dict, layout: str = "public", shards: int = 3
) -> Path:
    """layout "public": safetensors shards, the shared bias table once. "fine_tuned": pickle shards with all its names,
    and the two side files. shards 1: one file without an index."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    if layout == "public":
        state = {k: v for k, v in state.items() if not (k.endswith(BIAS_TABLE) and "layers.0." not in k)}
    names = sorted(state)
    stem, suffix = ("model", ".safetensors") if layout == "public" else ("pytorch_model", ".bin")
    files = {}
    for shard in range(shards):
        part = {name: state[name].clone() for name in names[shard::shards]}
        file = f"{stem}{suffix}" if shards == 1 else f"{stem}-{shard + 1:05d}-of-{shards:05d}{suffix}"
        if layout == "public":
            save_file(part, directory / file)
        else:
            torch.save(part, directory / file)
        files.update(dict.fromkeys(part, file))
    if shards > 1:
        index = {"metadata": {}, "weight_map": files}
        (directory / f"{stem}{suffix}.index.json").write_text(json.dumps(index))
    if layout == "fine_tuned":
        for file, prefix in (
            ("audio_tower.bin", "model.audio_tower."),
            ("mm_projector_a.bin", "model.mm_projector_a."),
        ):
            torch.save({k: v for k, v in state.items() if k.startswith(prefix)}, directory / file)
    return directory


def expand(
    input_ids: torch.Tensor, num_video: int, num_audio: int, pad: int = PAD
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [S] with one placeholder id -201 -> ids and token types with the placeholders expanded."""
    position = int((input_ids == PLACEHOLDER).nonzero())
    types = torch.tensor([1] * num_video + [2] * num_audio, dtype=torch.int64)
    ids = torch.cat([input_ids[:position], torch.full_like(types, pad), input_ids[position + 1 :]])
    zeros = torch.zeros_like(input_ids)
    return ids, torch.cat([zeros[:position], types, zeros[position + 1 :]])


def write_fine_tuned(directory: Path, tokenizer, bias: float = 40.0, dtype: torch.dtype = torch.float32) -> Path:
    """A directory as the winning team's training leaves it: golden weights, `bias` (percent) on the head so that scores
    lie inside 0 to 100, and as many token embeddings as `tokenizer` has, with its files."""
    state = golden_state()
    more = torch.randn(len(tokenizer) - len(state["model.embed_tokens.weight"]), 32, generator=torch.Generator())
    state["model.embed_tokens.weight"] = torch.cat([state["model.embed_tokens.weight"], 0.1 * more])
    state["lm_head.weight"] = torch.zeros_like(state["model.embed_tokens.weight"])
    state["lm_head_reg.fc2.bias"] = state["lm_head_reg.fc2.bias"] + bias
    state = {name: value.to(dtype) for name, value in state.items()}
    config = {**golden_config(), "vocab_size": len(tokenizer), "max_position_embeddings": 4096}
    write_reference_checkpoint(directory, state, config, "fine_tuned")
    tokenizer.save_pretrained(directory)
    return directory
