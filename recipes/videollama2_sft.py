"""Fine-tune VideoLLaMA2.1-AV with a regression head to predict how engaging short videos are, from frames, sound and text.

    accelerate launch recipes/videollama2_sft.py                       a tiny random model on generated clips, minutes on a CPU
    accelerate launch recipes/videollama2_sft.py --config recipes/configs/videollama2_1_7b_av.yaml \
        --train_data train.csv --eval_data val.csv --video_dir videos --output_dir runs/videollama2

Every argument can stand in the YAML file or on the command line, which wins. `--help` lists all of them.
Without --model and --config the settings below (EMBEDDED) apply; without --train_data the clips are generated.
"""

from pathlib import Path

from lmm_ecr.arguments import parse_arguments
from lmm_ecr.console import run_program
from lmm_ecr.data.prompt import DEFAULT_TEMPLATE
from lmm_ecr.data.synthetic import PROMPT_TEXTS, SyntheticSpec
from lmm_ecr.models.tiny_videollama2 import write_tiny_videollama2
from lmm_ecr.training.finish import finish_run, print_summary
from lmm_ecr.training.setup import (
    build_model,
    build_processor,
    embedded_dataset,
    load_datasets,
    prepare_output_dir,
    tiny_checkpoint,
)
from lmm_ecr.training.trainer import EcrTrainer
from lmm_ecr.training.tuning import print_tuning_table, tuning_table

RECIPE = "videollama2_sft"

# The run without arguments: everything is trained from random weights, hence the high learning rate.
EMBEDDED = {
    "vision": "train",
    "audio_mode": "first_n_seconds",
    "audio_seconds": 3,
    "audio_windows": "all",
    "audio_padding_seconds": 0,
    "head_dropout": 0.0,
    "learning_rate": 1.5e-3,
    "warmup_steps": 0.1,
    "per_device_train_batch_size": 16,
    "num_train_epochs": 12,
    "logging_steps": 32,
    "dataloader_num_workers": 2,
    "eval_ablations": ["blank-text", "shuffle-frames", "mute"],
}


def main() -> None:
    args = parse_arguments(embedded=EMBEDDED, description=__doc__)
    resume_from = prepare_output_dir(args, RECIPE)

    backbone = args.model.model or tiny_checkpoint(
        args, "videollama2", lambda path: write_tiny_videollama2(path, [DEFAULT_TEMPLATE, *PROMPT_TEXTS])
    )
    processor = build_processor(args, backbone, "videollama2")
    if args.data.train_data:
        data = load_datasets(args, processor)
    else:
        data = embedded_dataset(args, SyntheticSpec(weight_sound=1.5), processor)

    model = build_model(args, backbone, processor, data.train.manifest)
    trainer = EcrTrainer(model, args.training, args.tuning, data.train, data.eval, on_error=args.data.on_error)
    if trainer.is_world_process_zero():
        print_tuning_table(tuning_table(model, args.tuning, args.training.learning_rate))

    result = trainer.train(resume_from_checkpoint=resume_from and str(resume_from))
    metrics = finish_run(trainer, args, result.metrics, str(backbone))
    if trainer.is_world_process_zero():
        notes = [f"VideoLLaMA2.1-AV fine-tuned for {', '.join(args.data.targets)} from {backbone}."]
        if not args.model.model:
            notes.append(
                "The model is tiny and started from random weights: a demonstration, not a predictor. The real one:\n"
                "  accelerate launch recipes/videollama2_sft.py --config recipes/configs/videollama2_1_7b_av.yaml \\\n"
                "      --train_data train.csv --eval_data val.csv --video_dir videos --output_dir runs/videollama2"
            )
        print_summary(metrics, trainer, args, notes)


if __name__ == "__main__":
    run_program(Path(__file__).name, main)
