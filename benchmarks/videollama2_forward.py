"""One forward pass of VideoLLaMA2-AV against the plain sum of its parts.

    python benchmarks/videollama2_forward.py --size tiny mid            # CPU
    python benchmarks/videollama2_forward.py --size full --device cuda --dtype bfloat16

The parts (SigLIP, connector, BEATs, audio projector, token embedding and Qwen2) are called one after another on inputs
that are ready for them; the pass through the model adds normalising the frames, checking and filling the placeholders
and the positions. Both run in turns within each round, and the figure is the median over the rounds of their ratio.
"""

import argparse
import json
import statistics
import time

import torch

from lmm_ecr.models.videollama2 import VideoLlama2Config, VideoLlama2Model
from lmm_ecr.models.videollama2.modeling import normalise_pixels

SIZES = {
    "tiny": {
        "vision_config": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 112,
            "patch_size": 14,
        },
        "text_config": {
            "vocab_size": 512,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
        "audio_config": {
            "embed_dim": 32,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
        "connector_depth": 1,
    },
    "mid": {
        "vision_config": {
            "hidden_size": 192,
            "intermediate_size": 768,
            "num_hidden_layers": 6,
            "num_attention_heads": 6,
            "image_size": 196,
            "patch_size": 14,
        },
        "text_config": {
            "vocab_size": 8192,
            "hidden_size": 384,
            "intermediate_size": 1536,
            "num_hidden_layers": 6,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
        },
        "audio_config": {
            "embed_dim": 128,
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
        },
        "connector_depth": 2,
    },
    "full": {},
}


def make_batch(config: VideoLlama2Config, size: int, text_tokens: int, device: torch.device) -> dict[str, torch.Tensor]:
    """A batch of `size` clips of 8 frames with 30 s of sound, the texts of different lengths, padded on the right."""
    side, audio_frames = config.vision_config.image_size, 2998
    types = torch.tensor([1] * config.num_video_tokens(8) + [2] * config.num_audio_tokens(audio_frames))
    before, after = torch.zeros(text_tokens // 4, dtype=torch.int64), torch.zeros(text_tokens, dtype=torch.int64)
    row = torch.cat([before, types, after])
    mask = torch.ones(size, len(row), dtype=torch.int64)
    for index in range(1, size):
        mask[index, len(row) - 7 * index :] = 0
    return {
        "input_ids": torch.randint(0, config.text_config.vocab_size, (size, len(row)), device=device),
        "attention_mask": mask.to(device),
        "mm_token_type_ids": row.repeat(size, 1).to(device),
        "pixel_values_videos": torch.randint(0, 256, (size, 8, 3, side, side), dtype=torch.uint8, device=device),
        "fbank": torch.randn(size, audio_frames, 128, device=device) * 5 + 10,
    }


def whole(model: VideoLlama2Model, batch: dict[str, torch.Tensor]):
    return model(**batch).last_hidden_state


def make_parts(model: VideoLlama2Model, batch: dict[str, torch.Tensor]):
    """The same work without the model around it, as a function; its inputs are made here, outside the clock."""
    dtype = model.language_model.embed_tokens.weight.dtype
    clips, frames = batch["pixel_values_videos"].shape[:2]
    pixels = normalise_pixels(batch["pixel_values_videos"]).flatten(0, 1).to(dtype)
    embeds = model.get_inputs_embeds(**{key: value for key, value in batch.items() if key != "attention_mask"})

    def parts():
        features = model.vision_encoder(pixels)
        model.connector(features.unflatten(0, (clips, frames)))
        model.audio_projector(model.audio_encoder(batch["fbank"]).last_hidden_state)
        model.language_model.embed_tokens(batch["input_ids"])
        return model.language_model(
            inputs_embeds=embeds, attention_mask=batch["attention_mask"], use_cache=False
        ).last_hidden_state

    return parts


def timed(function, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(size: str, args: argparse.Namespace) -> dict:
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    torch.manual_seed(0)
    config = VideoLlama2Config(**SIZES[size])
    with torch.device(device):
        model = VideoLlama2Model._from_config(config, dtype=dtype, attn_implementation=args.attn_implementation).eval()
    batch = make_batch(config, args.batch_size, text_tokens=100, device=device)
    with torch.inference_mode():
        parts = make_parts(model, batch)
        for _ in range(args.warmup):
            whole(model, batch), parts()
        rounds = []
        for index in range(args.rounds):
            pair = (lambda: whole(model, batch), parts)
            times = {order: timed(pair[order], device) for order in ((0, 1) if index % 2 == 0 else (1, 0))}
            rounds.append((times[0], times[1]))
    return {
        "size": size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens": list(batch["input_ids"].shape),
        "model_ms": round(1000 * statistics.median(first for first, _ in rounds), 2),
        "parts_ms": round(1000 * statistics.median(second for _, second in rounds), 2),
        "overhead": round(statistics.median(first / second for first, second in rounds) - 1, 4),
        "rounds": args.rounds,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "dtype": args.dtype,
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["tiny", "mid"])
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds, each runs both once")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--attn-implementation", default="sdpa")
    parser.add_argument("--max-overhead", type=float, default=None, help="exit with status 1 above this, e.g. 0.05")
    args = parser.parse_args()
    results = [measure(size, args) for size in args.size]
    for result in results:
        print(json.dumps(result))
    if args.max_overhead is not None and any(result["overhead"] > args.max_overhead for result in results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
