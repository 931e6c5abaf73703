"""A finished run on the hub: once, when everything is there, and nothing but what a user of the model needs."""

from collections.abc import Sequence
from pathlib import Path

from ..errors import TrainingError
from ..files import atomic_write

CARD = "README.md"


def push_run(trainer, output: Path, model_files: Sequence[str], metrics: dict) -> str:
    """Upload the model, its metrics and a model card from `output` in one commit; returns the commit's address.

    model_files: names below `output`. For the first process only. Raises TrainingError if the hub refuses; the run is
    finished all the same.
    """
    from huggingface_hub import HfApi

    args = trainer.args
    with atomic_write(output / CARD) as stream:
        stream.write(model_card(trainer.hub_model_id, metrics["eval"], trainer.eval_dataset.manifest.targets))
    try:
        commit = HfApi(token=args.hub_token).upload_folder(
            repo_id=trainer.hub_model_id,
            folder_path=output,
            allow_patterns=[*model_files, "metrics.json", CARD],
            commit_message="Model, metrics and model card of a finished run",
            revision=args.hub_revision,
        )
    except Exception as error:  # of huggingface_hub, or of the HTTP library that its version happens to use
        raise TrainingError(
            f"the run is finished and complete in {output}, but could not be pushed to {trainer.hub_model_id}: {error}. "
            f"Push it by hand: hf upload {trainer.hub_model_id} {output} --exclude 'checkpoint-*'"
        ) from error
    return commit.commit_url


def model_card(name: str, scores: dict, targets: Sequence[str]) -> str:
    """Markdown with the hub's YAML header. scores: metrics of the first target on the held-out clips."""
    rows = "\n".join(
        f"| {label} | {'-' if scores[key] is None else format(scores[key], '.4f')} |"
        for label, key in (
            ("SROCC", "srocc"),
            ("PLCC", "plcc"),
            ("KRCC", "krcc"),
            ("RMSE", "rmse"),
            ("0.6 SROCC + 0.4 PLCC", "final_score"),
        )
    )
    return f"""---
library_name: lmm_ecr
tags:
- video
- engagement-prediction
- regression
---

# {name}

Predicts {", ".join(targets)} of short videos from frames, sound (where the backbone hears it), title and description.

| {targets[0]} on {scores["n"]} held-out clips | |
|---|---|
{rows}

```
hf download {name} --local-dir model
lmm-ecr predict --model model --data table.csv --video-dir videos --output scores.csv
```
"""
