"""Checks of training arguments that transformers accepts but that would not do what they say."""

from transformers import TrainingArguments

from ..errors import ConfigError


def check_batch_and_checkpoints(training: TrainingArguments) -> None:
    """Raise ConfigError for settings that change the batch behind the user's back or lose the best model."""
    if training.auto_find_batch_size:
        raise ConfigError(
            "--auto_find_batch_size would change the batch of all processes, and with it the training: choose a smaller "
            "--per_device_train_batch_size and a larger --gradient_accumulation_steps, which gives the same result"
        )
    if training.load_best_model_at_end and training.eval_strategy == training.save_strategy == "steps":
        every_evaluation, every_save = training.eval_steps, training.save_steps
        if every_evaluation != every_save:
            raise ConfigError(
                f"--eval_steps {every_evaluation:g} and --save_steps {every_save:g}: the best model may be one that was "
                "evaluated but not saved. Make them equal, or use --save_strategy best, or --load_best_model_at_end false"
            )
