"""The verbs that need clips or a model: prepare, predict, merge, convert, memory, bench."""

from pathlib import Path

import typer


def prepare(
    data: Path = typer.Option(..., help="Table of clips: CSV or Parquet with Id, Title, Description and the targets."),
    output: Path = typer.Option(..., help="Directory for the prepared clips; a killed run goes on where it was."),
    video_dir: Path = typer.Option(None, help="Folder of <Id>.mp4; default: the folder of the table."),
    model: str = typer.Option(None, help="Prepare for this trained model, with its own preprocessing."),
    config: Path = typer.Option(None, help="Prepare for this recipe configuration (recipes/configs/*.yaml)."),
    target: list[str] = typer.Option(["ECR"], help='Label column; repeat for several. `--target ""` for none.'),
    image_format: str = typer.Option("jpeg", help="jpeg (quality 95, small) or png (lossless)."),
    num_workers: int = typer.Option(None, help="Processes that decode; default: one per core, at most 4."),
    decoder: str = typer.Option(
        "pyav", help="pyav, or decord (needs the package; 4K scaled down and 10-bit sources differ a little)."
    ),
    on_error: str = typer.Option("fail", help="Unreadable clips: exit with status 1, or skip them (status 0)."),
) -> None:
    """Validate every clip, decode and resize each once, and keep the frames for training."""
    from ..console import quiet_libraries
    from ..prepare import prepare_table

    quiet_libraries()
    result = prepare_table(
        str(data),
        output,
        video_dir=video_dir,
        model=model,
        config=config,
        targets=[name for name in target if name],
        image_format=image_format,
        num_workers=num_workers,
        decoder=decoder,
        on_error=on_error,
    )
    typer.echo(result.describe())
    raise typer.Exit(1 if result.rejections and on_error != "skip" else 0)


def predict(
    model: str = typer.Option(..., help="Run directory, checkpoint, or hub name of a trained model."),
    data: str = typer.Option(..., help="Table of clips (CSV or Parquet), or a directory made by prepare."),
    output: Path = typer.Option(..., help="The predictions: Id,ECR in the order of the table."),
    video_dir: str = typer.Option(None, help="Folder of <Id>.mp4; default: the folder of the table."),
    batch_size: int = typer.Option(8, help="Clips scored at once; does not change the scores."),
    num_workers: int = typer.Option(None, help="Processes that decode clips; default: one per core, at most 4."),
    on_error: str = typer.Option(
        "fail", help="Unreadable clips: fail (no table, status 1) or skip (listed, status 0)."
    ),
    ablate: list[str] = typer.Option(
        [], help="Destroy an input: blank-text, shuffle-frames, mute. Repeat for several."
    ),
    calibrate: str = typer.Option(None, help="Calibration file to apply, made by `lmm-ecr evaluate`."),
    interval: float = typer.Option(None, help="With --calibrate: add ECR_lo and ECR_hi of this coverage, e.g. 0.9."),
    decoder: str = typer.Option(
        "pyav", help="pyav, or decord (needs the package; 4K scaled down and 10-bit sources differ a little)."
    ),
    device: str = typer.Option("auto", help="auto, cpu, cuda, cuda:1, ..."),
    dtype: str = typer.Option("auto", help="Backbone precision: auto (bfloat16 on a GPU), float32, bfloat16."),
    attn_implementation: str = typer.Option("sdpa", help="sdpa, eager or flash_attention_2."),
    force: bool = typer.Option(
        False, "--force", help="Replace an existing output (without: only the same run, finished, is taken as done)."
    ),
) -> None:
    """Score clips with a trained model, with the preprocessing it was trained with."""
    from ..console import quiet_libraries
    from ..predict import predict_table
    from ..progress import progress_bar

    quiet_libraries()
    with progress_bar("Scoring") as progress:
        report = predict_table(
            model,
            data,
            output,
            video_dir=video_dir,
            batch_size=batch_size,
            num_workers=num_workers,
            on_error=on_error,
            ablations=ablate,
            decoder=decoder,
            device=device,
            dtype=dtype,
            attn_implementation=attn_implementation,
            calibration_file=calibrate,
            interval=interval,
            force=force,
            progress=progress,
        )
    if report.is_main_process:
        typer.echo(report.describe(output))
    raise typer.Exit(1 if report.rejections and on_error == "fail" else 0)


def merge(
    model: str = typer.Option(..., help="Run directory with a LoRA adapter."),
    output: Path = typer.Option(..., help="New directory for the plain checkpoint."),
    dtype: str = typer.Option("float32", help="Precision of the written backbone: float32 or bfloat16."),
) -> None:
    """Write a LoRA checkpoint as a plain one that predicts the same."""
    from ..console import quiet_libraries
    from ..merge import merge_adapter

    quiet_libraries()
    typer.echo(f"wrote {merge_adapter(model, output, dtype)}")


def convert(
    model: str = typer.Option(..., help="Checkpoint of VideoLLaMA2.1-AV, public or fine-tuned by the winning team."),
    output: Path = typer.Option(..., help="New directory for the converted checkpoint."),
    dtype: str = typer.Option("auto", help="Precision of the written backbone: auto (as stored), float32, bfloat16."),
) -> None:
    """Write a checkpoint of another code base in this package's layout, every tensor accounted for."""
    from ..console import quiet_libraries
    from ..convert import convert_checkpoint

    quiet_libraries()
    typer.echo(convert_checkpoint(model, output, dtype).describe())


def memory(
    config: Path = typer.Option(..., help="Recipe configuration (recipes/configs/*.yaml)."),
    gpus: int = typer.Option(1, help="GPUs of all machines together."),
    zero: str = typer.Option(
        "0", help="ZeRO stage: 0 (plain data parallelism), 1, 2, 3 or offload (stage 3 on the CPU)."
    ),
    machines: int = typer.Option(1, help="Machines the GPUs are in (for the host memory of offload)."),
    parameters: float = typer.Option(
        None, help="Trained parameters, such as 7.6e9, where the model is not known here."
    ),
) -> None:
    """Estimate the memory of a training run per GPU: weights, gradients, optimizer, activations."""
    from ..arguments import read_config
    from ..console import quiet_libraries
    from ..memory import describe, estimate

    quiet_libraries()
    result, size = estimate(read_config(config), gpus, zero, machines, parameters)
    typer.echo(describe(result, size, gpus, zero))


def bench(
    model: str = typer.Option(None, help="Backbone to time: directory or hub name."),
    random: str = typer.Option(None, help="A model of real size with random weights: qwen2_5_vl_3b or qwen2_5_vl_7b."),
    batch_size: int = typer.Option(2, help="Clips per step."),
    steps: int = typer.Option(20, help="Timed steps."),
    dtype: str = typer.Option("float32", help="Weights of the backbone: float32 or bfloat16."),
    bf16: bool = typer.Option(False, "--bf16", help="Compute in bfloat16 (autocast)."),
    gradient_checkpointing: bool = typer.Option(False, "--gradient-checkpointing", help="Recompute activations."),
    lora: bool = typer.Option(False, "--lora", help="LoRA on the language model, vision frozen."),
    height: int = typer.Option(854, help="Height of the clips in pixels."),
    width: int = typer.Option(480, help="Width of the clips in pixels."),
    attn_implementation: str = typer.Option("sdpa", help="sdpa, eager or flash_attention_2."),
    json: Path = typer.Option(None, help="Write the numbers here too."),
) -> None:
    """Time training steps and scoring on random clips: clips/s, tokens/s, memory, MFU."""
    from ..bench import bench_model

    result = bench_model(
        model,
        random,
        batch_size=batch_size,
        steps=steps,
        dtype=dtype,
        bf16=bf16,
        gradient_checkpointing=gradient_checkpointing,
        lora=lora,
        height=height,
        width=width,
        attn_implementation=attn_implementation,
    )
    typer.echo(result.describe())
    if json:
        from ..files import write_json

        write_json(json, result.to_dict())
