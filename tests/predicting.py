"""Calling `lmm-ecr predict` in tests: a tiny model with preprocessing, the command, and its table."""

import csv
from pathlib import Path

import torch
from typer.testing import CliRunner

from lmm_ecr import LmmRegressor
from lmm_ecr.cli import app
from lmm_ecr.label_transforms import ZScoreTransform


def write_model(directory: Path, tiny_qwen, tiny_processor, seed: int = 0) -> Path:
    """A model directory whose scores differ from clip to clip."""
    torch.manual_seed(seed)
    model = LmmRegressor.from_backbone(
        str(tiny_qwen), head_hidden_size=16, label_transforms={"ECR": ZScoreTransform(0.5, 0.25)}
    )
    torch.nn.init.normal_(model.regression_head.fc1.weight)
    model.save_pretrained(directory)
    tiny_processor.save_pretrained(directory)
    return directory


def predict(*words) -> tuple[int, str]:
    """Exit status and output of the command; errors meant for the user are raised."""
    result = CliRunner().invoke(app, ["predict", *map(str, words)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def read(path) -> dict[str, float]:
    with open(path, newline="", encoding="utf-8") as stream:
        return {row["Id"]: float(row["ECR"]) for row in csv.DictReader(stream)}
