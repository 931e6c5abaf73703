"""Small random checkpoints in the hub's file format, for the embedded default runs, the tests and the benchmarks.

They have the real architecture, files, key names and chat template structure, with few and narrow layers.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from ..files import write_json

TINY_VERSION = 2  # part of the directory name of cached tiny checkpoints: raise it when they change

QWEN_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer(
    texts: Iterable[str], special_tokens: Iterable[str] = QWEN_SPECIAL_TOKENS, vocabulary_size: int = 512
):
    """A byte-level BPE tokenizer of Qwen's kind, trained on `texts`; any text in any script can be encoded."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Qwen2TokenizerFast

    special_tokens = list(special_tokens)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary_size,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            special_tokens=special_tokens,
            show_progress=False,
        ),
    )
    state = json.loads(tokenizer.to_str())["model"]
    return Qwen2TokenizerFast(
        vocab=state["vocab"],
        merges=[tuple(pair) for pair in state["merges"]],
        unk_token=None,
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=special_tokens,
    )


def tiny_qwen2_5_vl_config(tokenizer, hidden_size: int = 64, num_layers: int = 2) -> dict:
    """A config.json in the layout of the hub's Qwen2.5-VL checkpoints: text fields at the top level, `rope_scaling`."""
    heads = 4
    rotary_half = hidden_size // heads // 2
    temporal = rotary_half // 4
    spatial = (rotary_half - temporal) // 2
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in QWEN_SPECIAL_TOKENS}
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "hidden_act": "silu",
        "hidden_size": hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": hidden_size * 2,
        "max_position_embeddings": 4096,
        "max_window_layers": num_layers,
        "num_attention_heads": heads,
        "num_hidden_layers": num_layers,
        "num_key_value_heads": heads // 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": 2,
            "hidden_act": "silu",
            "hidden_size": hidden_size // 2,
            "intermediate_size": hidden_size,
            "num_heads": 2,
            "in_chans": 3,
            "out_hidden_size": hidden_size,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": 56,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": [rotary_half - 2 * spatial, spatial, spatial]},
        "vocab_size": len(tokenizer),
    }


def write_tiny_qwen2_5_vl(
    directory: str | Path, texts: Iterable[str], seed: int = 0, hidden_size: int = 64, num_layers: int = 2
) -> Path:
    """Write a random Qwen2.5-VL checkpoint as the hub has it: config, weights under the hub's key names, tokenizer and
    processor files. Returns the directory."""
    import torch
    from transformers import (
        AutoConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    directory = Path(directory)
    tokenizer = tiny_tokenizer(texts)
    config_values = tiny_qwen2_5_vl_config(tokenizer, hidden_size, num_layers)
    Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(),
        video_processor=Qwen2VLVideoProcessor(),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(directory)
    config = AutoConfig.for_model(**config_values)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.save_pretrained(directory)
    write_json(directory / "config.json", config_values)  # the library writes its own, nested layout
    return directory
