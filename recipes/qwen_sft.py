"""Fine-tune Qwen2.5-VL with a regression head to predict how engaging short videos are.

    accelerate launch recipes/qwen_sft.py                              a tiny random model on generated clips, minutes on a CPU
    accelerate launch recipes/qwen_sft.py --config recipes/configs/qwen2_5_vl_7b.yaml \
        --train_data train.csv --eval_data val.csv --video_dir videos --output_dir runs/qwen

Every argument can stand in the YAML file or on the command line, which wins. `--help` lists all of them.
Without --model and --config the settings below (EMBEDDED) apply; without --train_data the clips are generated.
"""

from pathlib import Path

from lmm_ecr.arguments import parse_arguments
from lmm_ecr.console import run_program
from lmm_ecr.data.prompt import DEFAULT_TEMPLATE
from lmm_ecr.data.synthetic import PROMPT_TEXTS, SyntheticSpec
from lmm_ecr.models.tiny import write_tiny_qwen2_5_vl
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

RECIPE = "qwen_sft"

# The run without arguments: everything is trained from random weights, hence the high learning rates.
EMBEDDED = {
    "max_pixels": 6 * 28 * 28,
    "head_hidden_size": 64,
    "head_dropout": 0.0,
    "learning_rate": 2e-3,
    "vision_learning_rate": 2e-3,
    "head_learning_rate": 2e-3,
    "per_device_train_batch_size": 16,
    "num_train_epochs": 8,
    "logging_steps": 32,
    "dataloader_num_workers": 2,
    "eval_ablations": ["blank-text", "shuffle-frames"],
}


def main() -> None:
    args = parse_arguments(embedded=EMBEDDED, description=__doc__)
    resume_from = prepare_output_dir(args, RECIPE)

    backbone = args.model.model or tiny_checkpoint(
        args, "qwen2_5_vl", lambda path: write_tiny_qwen2_5_vl(path, [DEFAULT_TEMPLATE, *PROMPT_TEXTS])
    )
    processor = build_processor(args, backbone, "qwen2_5_vl")
    if args.data.train_data:
        data = load_datasets(args, processor)
    else:
        data = embedded_dataset(args, SyntheticSpec(), processor)

    model = build_model(args, backbone, processor, data.train.manifest)
    trainer = EcrTrainer(model, args.training, args.tuning, data.train, data.eval, on_error=args.data.on_error)
    if trainer.is_world_process_zero():
        print_tuning_table(tuning_table(model, args.tuning, args.training.learning_rate))

    result = trainer.train(resume_from_checkpoint=resume_from and str(resume_from))
    metrics = finish_run(trainer, args, result.metrics, str(backbone))
    if trainer.is_world_process_zero():
        notes = [f"Qwen2.5-VL fine-tuned for {', '.join(args.data.targets)} from {backbone}."]
        if not args.model.model:
            notes.append(
                "The model is tiny and started from random weights: a demonstration, not a predictor. The real one:\n"
                "  accelerate launch recipes/qwen_sft.py --config recipes/configs/qwen2_5_vl_7b.yaml \\\n"
                "      --train_data train.csv --eval_data val.csv --video_dir videos --output_dir runs/qwen"
            )
        print_summary(metrics, trainer, args, notes)


if __name__ == "__main__":
    run_program(Path(__file__).name, main)
