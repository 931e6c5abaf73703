"""Training arguments that would not do what they say are refused before anything is loaded."""

import pytest

from lmm_ecr.arguments import EcrTrainingArguments
from lmm_ecr.errors import ConfigError
from lmm_ecr.training.checks import check_batch_and_checkpoints


def arguments(tmp_path, **options):
    return EcrTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **options)


def test_a_batch_that_shrinks_by_itself_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--auto_find_batch_size would change the batch"):
        check_batch_and_checkpoints(arguments(tmp_path, auto_find_batch_size=True))


STEPS = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 4}


def test_evaluations_without_a_checkpoint_are_refused_where_the_best_model_is_wanted(tmp_path):
    with pytest.raises(ConfigError, match="--eval_steps 1 and --save_steps 4: the best model may be one that was"):
        check_batch_and_checkpoints(arguments(tmp_path, **STEPS))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {**STEPS, "load_best_model_at_end": False},
        {**STEPS, "save_steps": 1},
        {**STEPS, "eval_steps": 0.1, "save_steps": 0.1},
        {**STEPS, "save_strategy": "best"},
    ],
)
def test_arguments_that_keep_the_best_model(tmp_path, options):
    check_batch_and_checkpoints(arguments(tmp_path, **options))
