"""A small random VideoLLaMA2.1-AV checkpoint for the embedded default run, the tests and the benchmarks: every part of the
real model (SigLIP, connector, BEATs, audio projector, Qwen2), with few and narrow layers."""

from collections.abc import Iterable
from pathlib import Path

from .tiny import CHAT_TEMPLATE, tiny_tokenizer

TINY_IMAGE_SIZE = 56


def tiny_videollama2_config(tokenizer, hidden_size: int = 64, image_size: int = TINY_IMAGE_SIZE):
    """The configuration: 8 frames give 4 * (image_size // 28)^2 video tokens, a second of sound about 48 audio tokens."""
    from .videollama2 import VideoLlama2Config

    half = hidden_size // 2
    spread = {"initializer_range": hidden_size**-0.5}  # by fan-in: the usual 0.02 belongs to layers 2,500 wide
    return VideoLlama2Config(
        vision_config={
            "hidden_size": half,
            "intermediate_size": hidden_size,
            "num_hidden_layers": 3,  # the last one is not used, as in the real model
            "num_attention_heads": 2,
            "image_size": image_size,
            "patch_size": 14,
            "hidden_act": "gelu_pytorch_tanh",
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": hidden_size,
            "intermediate_size": 2 * hidden_size,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            **spread,
            "max_position_embeddings": 4096,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        audio_config={
            "embed_dim": half,
            "hidden_size": half,
            "intermediate_size": hidden_size,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "position_conv_kernel": 16,
            "position_conv_groups": 4,
            **spread,
        },
        connector_depth=1,
    )


def write_tiny_videollama2(
    directory: str | Path,
    texts: Iterable[str],
    seed: int = 0,
    hidden_size: int = 64,
    image_size: int = TINY_IMAGE_SIZE,
) -> Path:
    """Write a random VideoLLaMA2.1-AV backbone: config, weights and tokenizer files. Returns the directory."""
    import torch

    from .videollama2 import VideoLlama2Model

    directory = Path(directory)
    tokenizer = tiny_tokenizer(texts)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(directory)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VideoLlama2Model(tiny_videollama2_config(tokenizer, hidden_size, image_size))
    model.save_pretrained(directory)
    return directory
