"""`lmm-ecr memory`: memory of a training run per GPU, estimated before a GPU is asked for.

Model states, in bytes per parameter, t = trained, f = frozen, N = GPUs (Rajbhandari et al., ZeRO, SC 2020; for the stages 2
and 3 the same sums as DeepSpeed's estimate_zero2/3_model_states_mem_needs, which count a float32 copy of the gradients too):

    ZeRO 0 (DDP)   weights 4 t + 2 f, gradients 4 t, AdamW moments 8 t; DDP's buckets 4 t if N > 1, autocast copies 2 t
    ZeRO 1         weights 2 (t + f), gradients 2 t, shared by N: float32 gradients, weights and moments 16 t
    ZeRO 2         weights 2 (t + f), shared by N: 16-bit and float32 gradients, float32 weights and moments 18 t
    ZeRO 3         shared by N: 18 t + 2 f; two gathered layers 4 * largest layer
    offload        on the GPU the two gathered layers; in the host's memory 18 t + 2 f, times 1.5 for buffers

Activations, in bytes per token and layer, with 16-bit values, a gated MLP and attention that never holds the matrix of
scores (sdpa, flash), counted from what the backward pass needs: 12 h + 4 k + 8 i, and 16 h for two norms in float32 (h width,
k width of keys and values, i width of the MLP). With gradient checkpointing each layer keeps its input, 2 h, and one layer at
a time the rest. Real runs differ by some 30 %: fragmentation, and frames of other sizes.
"""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .errors import ConfigError

GB = 1e9
OVERHEAD_GB = 2.0  # CUDA context, communication buffers, cuBLAS workspaces
HOST_BUFFER_FACTOR = 1.5  # DeepSpeed's additional_buffer_factor
STAGES = ("0", "1", "2", "3", "offload")
TEXT_TOKENS = 200  # the question with a title and a description, beside the frames

# Shapes of the released models, from their config.json on the hub.
_QWEN_VISION = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
KNOWN_MODELS = {
    "Qwen/Qwen2.5-VL-3B-Instruct": ("3B", 2048, 36, 11008, 16, 2, 151936, _QWEN_VISION),
    "Qwen/Qwen2.5-VL-7B-Instruct": ("7B", 3584, 28, 18944, 28, 4, 152064, _QWEN_VISION),
    "Qwen/Qwen2.5-VL-72B-Instruct": (
        "72B",
        8192,
        80,
        29568,
        64,
        8,
        152064,
        {**_QWEN_VISION, "intermediate_size": 3456},
    ),
}


@dataclass
class ModelSize:
    """Parameters, and the shapes that activations depend on (0 layers: not known, no estimate of activations)."""

    trained: int
    frozen: int = 0
    largest_layer: int = 0
    layers: int = 0
    hidden: int = 0
    intermediate: int = 0
    key_value: int = 0
    vision_layers: int = 0
    vision_hidden: int = 0
    vision_intermediate: int = 0


@dataclass
class MemoryEstimate:
    """GB (1e9 bytes) per GPU, and of host memory per machine for offloading."""

    weights: float
    gradients: float
    optimizer: float
    gathered_layers: float
    activations: float
    overhead: float
    host: float

    @property
    def states(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.gathered_layers

    @property
    def total(self) -> float:
        return self.states + self.activations + self.overhead


def model_states(size: ModelSize, gpus: int, zero: str, bf16: bool = True, machines: int = 1) -> MemoryEstimate:
    """Weights, gradients and AdamW states by the formulas above. Raises ConfigError for an unknown stage or no GPU."""
    if zero not in STAGES:
        raise ConfigError(f"--zero must be one of {', '.join(STAGES)}, got {zero!r}")
    if gpus < 1 or machines < 1:
        raise ConfigError(f"--gpus and --machines must be at least 1, got {gpus} and {machines}")
    t, f = size.trained / GB, size.frozen / GB
    weights, gradients, optimizer, gathered, host = 0.0, 0.0, 0.0, 0.0, 0.0
    if zero == "0":
        weights = 4 * t + (2 if bf16 else 4) * f + (2 * t if bf16 else 0)
        gradients = 4 * t + (4 * t if gpus > 1 else 0)
        optimizer = 8 * t
    elif zero == "1":
        weights, gradients, optimizer = 2 * (t + f), 2 * t, 16 * t / gpus
    elif zero == "2":
        weights, gradients, optimizer = 2 * (t + f), 6 * t / gpus, 12 * t / gpus
    else:
        gathered = 4 * size.largest_layer / GB
        if zero == "3":
            weights, gradients, optimizer = (2 * t + 2 * f) / gpus, 4 * t / gpus, 12 * t / gpus
        else:
            host = (18 * t + 2 * f) * HOST_BUFFER_FACTOR / machines
    return MemoryEstimate(weights, gradients, optimizer, gathered, 0.0, OVERHEAD_GB, host)


def activations_gb(size: ModelSize, clips: int, tokens: int, patches: int, checkpointing: bool) -> float:
    """Activations of `clips` clips of `tokens` language-model tokens and `patches` vision patches each."""

    def tower(layers: int, hidden: int, intermediate: int, key_value: int, length: int) -> float:
        full = (28 * hidden + 4 * key_value + 8 * intermediate) * length
        return layers * 2 * hidden * length + full if checkpointing else layers * full

    vision = tower(size.vision_layers, size.vision_hidden, size.vision_intermediate, size.vision_hidden, patches)
    return clips * (tower(size.layers, size.hidden, size.intermediate, size.key_value, tokens) + vision) / GB


def estimate(config: dict[str, Any], gpus: int, zero: str, machines: int = 1, parameters: int | None = None):
    """`MemoryEstimate` of a recipe's configuration (as `arguments.read_config` gives it), and the `ModelSize` behind it.

    parameters: use this number (all trained) for a model whose shape is not known here. Raises ConfigError if neither is.
    """
    size = ModelSize(int(parameters), largest_layer=int(parameters) // 30) if parameters else model_size(config)
    result = model_states(size, gpus, zero, bool(config.get("bf16", False)), machines)
    frames = config.get("num_frames") or 8
    pairs = -(-frames // 2)  # an odd number repeats its last frame
    patches = pairs * ((config.get("max_pixels") or 602112) // 196)  # two frames per patch of 14 x 14 pixels
    clips = config.get("per_device_train_batch_size") or 8
    result.activations = activations_gb(
        size, clips, patches // 4 + TEXT_TOKENS, patches, bool(config.get("gradient_checkpointing", False))
    )
    if zero == "0" and not config.get("bf16"):
        result.activations *= 2
    return result, size


def model_size(config: dict[str, Any]) -> ModelSize:
    """Counts the parameters of a recipe's model, tuned as the configuration says, without loading or allocating it."""
    import torch
    from transformers import AutoConfig

    from .arguments import TuningArguments
    from .models.regression import LmmRegressor, LmmRegressorConfig
    from .training.tuning import apply_tuning

    name = config.get("model")
    if name in KNOWN_MODELS:
        backbone = _qwen_config(*KNOWN_MODELS[name][1:])
    elif name and Path(name).is_dir():
        backbone = AutoConfig.from_pretrained(name)
    else:
        raise ConfigError(
            f"the size of {name!r} is not known here: give its directory, or --parameters (such as 7.6e9); known: "
            f"{', '.join(KNOWN_MODELS)}"
        )
    tuning = TuningArguments(**{f.name: config[f.name] for f in fields(TuningArguments) if f.name in config})
    with torch.device("meta"):
        regressor = LmmRegressor(LmmRegressorConfig(backbone, head_hidden_size=config.get("head_hidden_size", 2048)))
        model = apply_tuning(regressor, tuning)
    parameters = [p for n, p in model.named_parameters() if ".original_module." not in n]
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    largest = max(sum(p.numel() for p in module.parameters(recurse=False)) for module in model.modules())
    text = regressor.config.get_text_config()
    vision = getattr(backbone, "vision_config", None)
    return ModelSize(
        trained=trained,
        frozen=sum(p.numel() for p in parameters) - trained,
        largest_layer=largest,
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        key_value=text.hidden_size // text.num_attention_heads * text.num_key_value_heads,
        vision_layers=getattr(vision, "depth", None) or getattr(vision, "num_hidden_layers", 0),
        vision_hidden=getattr(vision, "hidden_size", 0),
        vision_intermediate=getattr(vision, "intermediate_size", 0),
    )


def _qwen_config(hidden, layers, intermediate, heads, key_value_heads, vocabulary, vision):
    from transformers import AutoConfig

    return AutoConfig.for_model(
        "qwen2_5_vl",
        text_config={
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "intermediate_size": intermediate,
            "num_attention_heads": heads,
            "num_key_value_heads": key_value_heads,
            "vocab_size": vocabulary,
        },
        vision_config={**vision, "out_hidden_size": hidden},
    )


def describe(result: MemoryEstimate, size: ModelSize, gpus: int, zero: str) -> str:
    """The estimate as lines for the terminal."""
    lines = [f"{size.trained / GB:.2f} B parameters trained, {size.frozen / GB:.2f} B frozen; {gpus} GPUs, ZeRO {zero}"]
    names = {"gathered_layers": "gathered layers", "overhead": "context, buffers"}
    for name, value in asdict(result).items():
        if name != "host":
            lines.append(f"  {names.get(name, name):<18}{value:8.1f} GB")
    lines.append(f"  {'per GPU':<18}{result.total:8.1f} GB" + (" without activations" if not size.layers else ""))
    if result.host:
        lines.append(f"  {'host, per machine':<18}{result.host:8.1f} GB")
    return "\n".join(lines)
