"""What a finished run writes: only a model that works, every rejected row, alarms once, and the hub at the very end."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from lmm_ecr.arguments import DataArguments, ModelArguments, RecipeArguments
from lmm_ecr.data.manifest import Rejection
from lmm_ecr.errors import TrainingError
from lmm_ecr.training.finish import finish_run, print_summary, save_model

from .runs import make_trainer


@pytest.fixture
def run(tiny_qwen, tiny_processor, tiny_manifest, tiny_eval_manifest, tmp_path):
    def make(name="run", train=tiny_manifest, evaluation=tiny_eval_manifest, **options):
        options = {"num_train_epochs": 1, "bootstrap_resamples": 20, **options}
        return make_trainer(tiny_qwen, tiny_processor, train, evaluation, tmp_path / name, **options)

    return make


def finish(trainer):
    args = RecipeArguments(ModelArguments(), DataArguments(), trainer.tuning, trainer.args, set())
    result = trainer.train()
    metrics = finish_run(trainer, args, result.metrics, "backbone")
    return metrics, args


class BreakWeights(TrainerCallback):
    """What the last update of a diverging run does: its loss was still finite."""

    def on_train_end(self, args, state, control, model=None, **kwargs):
        with torch.no_grad():
            model.regression_head.fc2.weight.fill_(float("nan"))


def test_a_broken_model_does_not_replace_a_good_one(run, tmp_path):
    good = run()
    save_model(good, tmp_path / "run")
    before = (tmp_path / "run/model.safetensors").read_bytes()
    with pytest.raises(
        TrainingError, match=r"NaN or infinite predictions for 6 of 6 evaluation clips; it was not saved"
    ):
        finish(run(callbacks=[BreakWeights()]))
    assert (tmp_path / "run/model.safetensors").read_bytes() == before
    assert not (tmp_path / "run/metrics.json").exists()


def test_a_loss_that_is_not_finite_is_found_without_log_or_checkpoint(run, tmp_path):
    options = {"learning_rate": 1e30, "max_grad_norm": 0.0, "logging_steps": 100}
    with pytest.raises(TrainingError, match="the loss became NaN or infinite at step"):
        run(**options).train()


class BreakWeightsAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step + 1 == self.step:
            with torch.no_grad():
                model.regression_head.fc2.bias.fill_(float("nan"))


def test_broken_weights_go_into_no_checkpoint(run, tmp_path):
    trainer = run(save_strategy="steps", save_steps=2, save_total_limit=1, callbacks=[BreakWeightsAt(4)])
    with pytest.raises(TrainingError, match="weights became NaN or infinite in the update of step 4"):
        trainer.train()
    assert [p.name for p in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]


def test_every_evaluation_row_counts_although_training_drops_its_last_batch(run, tmp_path):
    options = {"per_device_train_batch_size": 5, "per_device_eval_batch_size": 4, "dataloader_drop_last": True}
    trainer = run(eval_strategy="epoch", save_strategy="epoch", **options)
    metrics, _ = finish(trainer)
    assert metrics["eval"]["n"] == 6
    assert trainer.state.global_step == 2
    few = run("few", eval_strategy="epoch", save_strategy="epoch", **{**options, "per_device_eval_batch_size": 16})
    assert finish(few)[0]["eval"]["n"] == 6


def test_all_rejected_rows_are_counted_and_listed_by_table(run, tiny_manifest, tiny_eval_manifest, tmp_path):
    """Bug: rows without a file were in rejected.csv, but not in the count."""
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")

    def damage(manifest, unreadable, missing):
        rows = [replace(row, video=broken) if i in unreadable else row for i, row in enumerate(manifest)]
        gone = [Rejection(manifest[i].row, manifest[i].id, "missing", "no file") for i in missing]
        return replace(manifest, rows=[r for i, r in enumerate(rows) if i not in missing], rejections=gone)

    train, evaluation = damage(tiny_manifest, (7, 2), (4,)), damage(tiny_eval_manifest, (3,), (0,))
    metrics, _ = finish(run(train=train, evaluation=evaluation, on_error="skip"))
    with open(tmp_path / "run/rejected.csv", newline="") as stream:
        rows = [(r["table"], int(r["row"]), r["Id"]) for r in csv.DictReader(stream)]
    assert rows == [
        *(("train", i + 1, tiny_manifest[i].id) for i in (2, 4, 7)),
        *(("eval", i + 1, tiny_eval_manifest[i].id) for i in (0, 3)),
    ]
    assert metrics["train"]["rejected"] == 5


def test_an_alarm_is_raised_once_and_ablations_raise_none(run, capsys):
    options = {"eval_strategy": "epoch", "save_strategy": "epoch", "learning_rate": 0.0}
    trainer = run(eval_ablations=["blank-text"], **options)
    torch.nn.init.zeros_(trainer.model.regression_head.fc2.weight)
    metrics, _ = finish(trainer)
    assert len(metrics["alarms"]) == 1
    assert "step 6: ECR: all predictions equal" in metrics["alarms"][0]
    assert capsys.readouterr().out.count("all predictions equal") == 1


def test_a_useless_last_model_raises_the_alarm_without_evaluations(run):
    trainer = run(learning_rate=0.0)
    torch.nn.init.zeros_(trainer.model.regression_head.fc2.weight)
    metrics, _ = finish(trainer)
    assert [a.split(" equal")[0] for a in metrics["alarms"]] == ["step 6: ECR: all predictions"]


@pytest.mark.parametrize(("load_best", "words"), [(False, "last model, step 6."), (True, "best model from step 6.")])
def test_the_summary_says_which_model_it_is(run, capsys, load_best, words):
    trainer = run(eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=load_best)
    metrics, args = finish(trainer)
    print_summary(metrics, trainer, args, [])
    assert words in capsys.readouterr().out
    assert metrics["train"]["model_step"] == 6
    assert metrics["train"]["best_step"] == (6 if load_best else None)


@pytest.fixture
def hub(monkeypatch):
    """The uploads that would have gone to the hub: (repository, names of the files)."""
    from huggingface_hub import CommitInfo, HfApi, RepoUrl
    from huggingface_hub.utils import filter_repo_objects

    uploads = []

    def upload(self, *, repo_id, folder_path, allow_patterns=None, ignore_patterns=None, **options):
        names = [str(p.relative_to(folder_path)) for p in Path(folder_path).rglob("*") if p.is_file()]
        names = filter_repo_objects(names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        uploads.append((repo_id, sorted(names)))
        return CommitInfo(
            commit_url=f"https://huggingface.co/{repo_id}/commit/0", commit_message="", commit_description="", oid="0"
        )

    monkeypatch.setattr(HfApi, "upload_folder", upload)
    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **options: RepoUrl(f"https://huggingface.co/{name}"))
    return uploads


def test_the_hub_gets_the_finished_model_once_and_nothing_else(run, hub, tmp_path):
    trainer = run(push_to_hub=True, hub_model_id="me/engagement", eval_strategy="epoch", save_strategy="epoch")
    metrics, _ = finish(trainer)
    ((repository, names),) = hub
    assert repository == "me/engagement"
    assert {
        "model.safetensors",
        "config.json",
        "preprocessing.json",
        "tokenizer.json",
        "metrics.json",
        "README.md",
    } <= set(names)
    for unwanted in ("checkpoint", "training_args", "run.json", "predictions", ".model.tmp", "optimizer"):
        assert not [name for name in names if unwanted in name], unwanted
    card = (tmp_path / "run/README.md").read_text()
    assert f"| SROCC | {metrics['eval']['srocc']:.4f} |" in card
    assert card.startswith("---\nlibrary_name: lmm_ecr\n")


def test_a_hub_that_refuses_costs_no_result(run, hub, tmp_path, monkeypatch):
    from huggingface_hub import HfApi

    def refuse(self, **options):
        raise OSError("403 Forbidden")

    monkeypatch.setattr(HfApi, "upload_folder", refuse)
    with pytest.raises(TrainingError, match=r"is finished and complete in .*403 Forbidden.*hf upload me/engagement"):
        finish(run(push_to_hub=True, hub_model_id="me/engagement"))
    assert json.loads((tmp_path / "run/metrics.json").read_text())["eval"]["n"] == 6
    assert load_file(tmp_path / "run/model.safetensors")
