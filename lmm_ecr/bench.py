"""`lmm-ecr bench`: speed and memory of training steps and scoring, with ready-made random clips.

The training step of `EcrTrainer` is timed beside a bare loop (same model and batches, plain PyTorch AdamW), alternating in one
process, so that their ratio holds on a noisy machine. FLOPs: 2 per multiply-add, counted by PyTorch's FlopCounterMode on
one forward pass; a training step counts as three (what gradient checkpointing computes again is not useful work).
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from .arguments import EcrTrainingArguments, TuningArguments
from .data.dataset import ClipDataset, Collator, split_batch
from .data.decode import Clip
from .data.manifest import Manifest, ManifestRow
from .data.processor import ClipProcessor
from .errors import ConfigError
from .models.families import family_of
from .models.regression import LmmRegressor
from .training.meter import peak_memory_gb
from .training.trainer import EcrTrainer
from .training.tuning import apply_tuning, parameter_groups

# Dense bfloat16 peak in FLOP/s by a part of the device's name, from the vendor's data sheets.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12}


@dataclass
class BenchResult:
    """Medians over the timed steps. ratio: trainer step / bare step. mfu: share of the device's peak, None if unknown."""

    device: str
    parameters: int
    batch_size: int
    tokens_per_clip: float
    trainer_step_s: float
    bare_step_s: float
    ratio: float
    clips_per_s: float
    tokens_per_s: float
    forward_clips_per_s: float
    flops_per_clip: float
    mfu: float | None
    peak_memory_gb: float

    def to_dict(self) -> dict:
        return asdict(self)

    def describe(self) -> str:
        mfu = "unknown for this device" if self.mfu is None else f"{self.mfu:.1%}"
        return "\n".join(
            [
                f"{self.parameters / 1e6:,.1f} M parameters on {self.device}, batch {self.batch_size}, "
                f"{self.tokens_per_clip:.0f} tokens per clip",
                f"training   {self.clips_per_s:.2f} clips/s  {self.tokens_per_s:,.0f} tokens/s  "
                f"{self.trainer_step_s * 1e3:.1f} ms per step  MFU {mfu}",
                f"bare loop  {self.bare_step_s * 1e3:.1f} ms per step; ratio {self.ratio:.3f}",
                f"scoring    {self.forward_clips_per_s:.2f} clips/s",
                f"work       {self.flops_per_clip / 1e9:,.2f} GFLOP per clip forward; peak memory {self.peak_memory_gb:.2f} GB",
            ]
        )


class _RandomClips:
    """A clip reader that invents frames: decoding is not what is measured here."""

    def __init__(self, num_frames: int, height: int, width: int):
        self.shape = (num_frames, height, width, 3)

    def __call__(self, row: ManifestRow) -> Clip:
        rng = np.random.default_rng(row.row)
        frames = rng.integers(0, 256, self.shape, dtype=np.uint8)
        audio = rng.uniform(-0.1, 0.1, 16000 * self.shape[0]).astype(np.float32)
        return Clip(frames, np.arange(self.shape[0], dtype=np.float64), audio, float(self.shape[0]), None)


def bench(
    model: LmmRegressor,
    processor: ClipProcessor,
    *,
    batch_size: int = 8,
    steps: int = 20,
    warmup: int = 3,
    height: int = 854,
    width: int = 480,
    bf16: bool = False,
    gradient_checkpointing: bool = False,
    tuning: TuningArguments | None = None,
    only: str | None = None,
) -> BenchResult | None:
    """Time `steps` training steps of `EcrTrainer` and of a bare loop, alternating, and scoring of the same batches.

    Each pair runs one step of one way and one step of the other, in swapped order every second time. only: run just the
    "trainer" or the "bare" steps and return None (for measuring the memory of one way from outside). Raises ConfigError for
    fewer than one step.
    """
    if steps < 1 or warmup < 0 or batch_size < 1:
        raise ConfigError("bench needs at least one step, a batch of at least one clip, and no negative warm-up")
    tuning = tuning or TuningArguments()
    rows = [
        ManifestRow(i + 1, f"clip{i}", Path("-"), "a title of a few words", None, (i / batch_size,))
        for i in range(batch_size)
    ]
    manifest = Manifest("random clips", rows, ("ECR",))
    dataset = ClipDataset(manifest, processor, _RandomClips(processor.spec.sampling.num_frames, height, width))
    batch = Collator(processor)([dataset[i] for i in range(batch_size)])
    model = apply_tuning(model, tuning)
    with tempfile.TemporaryDirectory() as directory:
        args = EcrTrainingArguments(
            output_dir=directory,
            per_device_train_batch_size=batch_size,
            bf16=bf16,
            gradient_checkpointing=gradient_checkpointing,
            eval_strategy="no",
            save_strategy="no",
            dataloader_num_workers=0,
            disable_tqdm=True,
        )
        trainer = EcrTrainer(model, args, tuning, dataset)
        if only:
            step = _trainer_step(trainer, batch) if only == "trainer" else _bare_step(trainer, batch, tuning)
            for _ in range(steps):
                step()
            return None
        trainer_step, bare_step = _trainer_step(trainer, batch), _bare_step(trainer, batch, tuning)
        for _ in range(warmup):
            trainer_step()
            bare_step()
        pairs = [_timed_pair(trainer_step, bare_step, swap=bool(i % 2), device=args.device) for i in range(steps)]
        trainer_s, bare_s = (statistics.median(times) for times in zip(*pairs, strict=True))
        forward_s, flops = _scoring(trainer, batch, steps, args.device)
    tokens = int(batch["attention_mask"].sum())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    peak = next((value for name, value in PEAK_FLOPS.items() if name in device), None)
    return BenchResult(
        device=device,
        parameters=sum(p.numel() for p in model.parameters()),
        batch_size=batch_size,
        tokens_per_clip=tokens / batch_size,
        trainer_step_s=trainer_s,
        bare_step_s=bare_s,
        ratio=statistics.median(a / b for a, b in pairs),
        clips_per_s=batch_size / trainer_s,
        tokens_per_s=tokens / trainer_s,
        forward_clips_per_s=batch_size / forward_s,
        flops_per_clip=flops / batch_size,
        mfu=None if peak is None else 3 * flops / trainer_s / peak,
        peak_memory_gb=peak_memory_gb(),
    )


def bench_model(
    model: str | None,
    random: str | None,
    *,
    dtype: str = "float32",
    lora: bool = False,
    attn_implementation: str = "sdpa",
    **options,
) -> BenchResult:
    """`bench` of a pretrained backbone, or of one of real size with random weights (see `random_regressor`).

    Raises ConfigError unless exactly one of the two is given.
    """
    if (model is None) == (random is None):
        raise ConfigError("bench needs --model DIR or --random SIZE, one of them")
    if dtype not in ("float32", "bfloat16"):
        raise ConfigError(f"--dtype must be float32 or bfloat16, got {dtype!r}")
    loading = {"dtype": getattr(torch, dtype), "attn_implementation": attn_implementation}
    if random:
        from .models.random_weights import random_regressor

        device = "cuda" if torch.cuda.is_available() else "cpu"
        regressor, processor = random_regressor(random, device=device, **loading)
    else:
        family = family_of(model)
        processor = family.processor_class.from_backbone(model)
        regressor = LmmRegressor.from_backbone(
            model, image_mean=processor.image_mean, image_std=processor.image_std, **loading
        )
    tuning = TuningArguments(vision="freeze", language_model="lora") if lora else None
    return bench(regressor, processor, tuning=tuning, **options)


def _trainer_step(trainer: EcrTrainer, batch: dict) -> Callable[[], None]:
    """One optimizer step the way the Trainer does it: batch to device, loss, backward, clipping, AdamW, schedule."""
    trainer.create_optimizer_and_scheduler(num_training_steps=1_000_000)
    model, trainer.optimizer, trainer.lr_scheduler = trainer.accelerator.prepare(
        trainer.model, trainer.optimizer, trainer.lr_scheduler
    )
    trainer.model_wrapped = model
    trainer.current_gradient_accumulation_steps = 1

    def step() -> None:
        trainer.training_step(model, dict(batch))
        trainer.accelerator.clip_grad_norm_(model.parameters(), trainer.args.max_grad_norm)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        model.zero_grad()

    return step


def _bare_step(trainer: EcrTrainer, batch: dict, tuning: TuningArguments) -> Callable[[], None]:
    """The same step in plain PyTorch on the same model."""
    model, args = trainer.model, trainer.args
    optimizer = torch.optim.AdamW(parameter_groups(model, tuning, args.learning_rate), fused=True)
    inputs, _ = split_batch(batch)
    device = args.device

    def step() -> None:
        model.train()
        moved = {name: value.to(device) for name, value in inputs.items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
            loss = model(**moved).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _timed_pair(first: Callable, second: Callable, swap: bool, device: torch.device) -> tuple[float, float]:
    times = {}
    for name, run in (("second", second), ("first", first)) if swap else (("first", first), ("second", second)):
        _synchronise(device)
        start = time.perf_counter()
        run()
        _synchronise(device)
        times[name] = time.perf_counter() - start
    return times["first"], times["second"]


def _scoring(trainer: EcrTrainer, batch: dict, steps: int, device: torch.device) -> tuple[float, float]:
    """Median seconds of one scored batch, and its FLOPs."""
    model = trainer.model.eval()
    inputs = {name: value.to(device) for name, value in split_batch(batch)[0].items() if name != "labels"}
    times = []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=trainer.args.bf16):
        with FlopCounterMode(display=False) as counter:
            model(**inputs)
        for _ in range(steps):
            _synchronise(device)
            start = time.perf_counter()
            model(**inputs)
            _synchronise(device)
            times.append(time.perf_counter() - start)
    return statistics.median(times), float(counter.get_total_flops())


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
