"""A training run: resuming, stopping, broken clips and losses, log lines, the best model, losses over several micro-batches."""

import math
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lmm_ecr.arguments import TuningArguments
from lmm_ecr.errors import ClipError, Preempted, TrainingError
from lmm_ecr.training.checkpoints import last_complete_checkpoint
from lmm_ecr.training.finish import save_model

from .runs import Interrupted, Interruption, assert_same_weights, make_trainer, step_losses, weights

LORA = TuningArguments(vision="freeze", projector="freeze", language_model="lora", lora_rank=4, lora_dropout=0.1)


@pytest.fixture
def run(tiny_qwen, tiny_processor, tiny_manifest, tiny_eval_manifest, tmp_path):
    def make(name, train=tiny_manifest, evaluation=tiny_eval_manifest, **options):
        return make_trainer(tiny_qwen, tiny_processor, train, evaluation, tmp_path / name, **options)

    return make


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "mse"},
        {"loss": "mse + 0.5*plcc", "gradient_accumulation_steps": 2},
        {"loss": "mse", "gradient_accumulation_steps": 2, "tuning": LORA},
    ],
    ids=["full", "accumulated-batch-wise", "lora"],
)
def test_an_interrupted_run_goes_on_to_the_same_losses_and_weights(run, tmp_path, options):
    options = {**options, "dropout": 0.2, "save_strategy": "steps", "save_steps": 2}
    whole = run("whole", **options)
    whole.train()
    steps = whole.state.max_steps
    killed_at = steps - 1  # in the middle of the second epoch; the last checkpoint is one or two steps older
    with pytest.raises(Interrupted):
        run("cut", callbacks=[Interruption(killed_at)], **options).train()
    checkpoint = last_complete_checkpoint(tmp_path / "cut")
    assert int(checkpoint.name.split("-")[1]) == killed_at - 1

    resumed = run("cut", **options)
    with torch.no_grad():  # whatever the new process starts from must not matter
        for parameter in resumed.model.parameters():
            parameter.add_(1.0) if parameter.requires_grad else None
    resumed.train(str(checkpoint))
    np.testing.assert_array_equal(step_losses(resumed), step_losses(whole))
    assert_same_weights(weights(resumed), weights(whole))


@pytest.mark.parametrize("stop_at", [2, 6, 8], ids=["mid-epoch", "end-of-epoch", "second-epoch"])
def test_a_signal_stops_the_run_after_a_checkpoint_and_it_resumes_to_the_same_result(run, tmp_path, stop_at):
    options = {"dropout": 0.2, "eval_strategy": "epoch", "save_strategy": "epoch"}
    whole = run("whole", **options)
    whole.train()
    before = signal.getsignal(signal.SIGUSR1)
    number = signal.SIGUSR1 if stop_at == 2 else signal.SIGTERM
    stopped = run("cut", callbacks=[Interruption(stop_at, number)], **options)
    with pytest.raises(Preempted, match=rf"{number.name} after step {stop_at + 1}.*--resume_from_checkpoint") as error:
        stopped.train()
    assert error.value.exit_status == 85
    assert signal.getsignal(signal.SIGUSR1) == before
    resumed = run("cut", **options)
    resumed.train(str(last_complete_checkpoint(tmp_path / "cut")))
    np.testing.assert_array_equal(step_losses(resumed), step_losses(whole))
    scores = [[e["eval_final_score"] for e in t.state.log_history if "eval_final_score" in e] for t in (whole, resumed)]
    assert scores[0] == scores[1]
    assert len(scores[0]) == 2
    assert resumed.state.best_metric == whole.state.best_metric
    assert_same_weights(weights(resumed), weights(whole))


def test_a_signal_before_the_last_step_of_an_epoch_waits_for_its_evaluation(run, tmp_path):
    options = {"eval_strategy": "epoch", "save_strategy": "epoch", "num_train_epochs": 2}
    stopped = run("cut", callbacks=[Interruption(5, signal.SIGTERM)], **options)
    with pytest.raises(Preempted):
        stopped.train()
    assert [e["step"] for e in stopped.state.log_history if "eval_final_score" in e] == [6]
    assert last_complete_checkpoint(tmp_path / "cut").name == "checkpoint-6"


def test_evaluations_leave_the_random_numbers_of_dropout_alone(run):
    """A data loader with lasting workers draws from them in its first evaluation only."""
    trainer = run("run", dataloader_num_workers=1)
    states = [torch.random.get_rng_state()]
    for _ in range(2):
        trainer.evaluate()
        states.append(torch.random.get_rng_state())
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])


def test_half_a_checkpoint_is_ignored_and_replaced(run, tmp_path):
    with pytest.raises(Interrupted):
        run("run", save_strategy="steps", save_steps=2, callbacks=[Interruption(5)]).train()
    newest = tmp_path / "run" / "checkpoint-4"
    (newest / "complete").unlink()
    (newest / "optimizer.pt").write_bytes(b"cut off")
    found = last_complete_checkpoint(tmp_path / "run")
    assert found.name == "checkpoint-2"
    resumed = run("run", save_strategy="steps", save_steps=2)
    resumed.train(str(found))
    assert last_complete_checkpoint(tmp_path / "run").name == "checkpoint-12"
    assert torch.load(newest / "optimizer.pt") if newest.exists() else True


def test_old_checkpoints_go_only_after_the_new_one_is_complete(run, tmp_path):
    trainer = run("run", save_strategy="steps", save_steps=1, save_total_limit=1, max_steps=3)
    trainer.train()
    assert [p.name for p in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-3"]
    assert (tmp_path / "run" / "checkpoint-3" / "complete").is_file()


def test_a_loss_that_is_not_finite_stops_the_run_with_step_and_clips(run, tmp_path):
    trainer = run("run", save_strategy="steps", save_steps=1, logging_steps=1, learning_rate=1e30, max_grad_norm=0.0)
    with pytest.raises(TrainingError, match=r"NaN or infinite at step (\d+) \(clips (\S+), (\S+)\)") as error:
        trainer.train()
    step = int(str(error.value).split("at step ")[1].split()[0])
    assert step >= 2
    saved = [int(p.name.split("-")[1]) for p in (tmp_path / "run").glob("checkpoint-*")]
    assert saved
    assert max(saved) < step


def test_a_collapsed_model_raises_the_alarm(run, capsys):
    trainer = run("run", eval_strategy="epoch", learning_rate=0.0, num_train_epochs=1)
    torch.nn.init.zeros_(trainer.model.regression_head.fc2.weight)
    trainer.train()
    assert "all predictions equal" in trainer.notes.alarms[0]
    assert "ALARM at step 6" in capsys.readouterr().out
    (evaluation,) = [e for e in trainer.state.log_history if "eval_srocc" in e]
    assert evaluation["eval_srocc"] == evaluation["eval_final_score"] == -1


def test_log_lines_carry_speed_waiting_and_memory(run):
    trainer = run("run", max_steps=3)
    trainer.train()
    lines = [e for e in trainer.state.log_history if "loss" in e]
    assert len(lines) == 3
    for line in lines:
        assert line["clips_per_s"] > 0
        assert 0 <= line["data_wait"] <= 1
        assert line["peak_memory_gb"] > 0.1


@pytest.fixture
def broken_clips(tiny_manifest, tmp_path):
    """The manifest with rows 3 and 4 pointing to a file that is no video."""
    path = tmp_path / "broken.mp4"
    path.write_bytes(b"no video at all" * 10)
    rows = [replace(row, video=path) if i in (3, 4) else row for i, row in enumerate(tiny_manifest)]
    return replace(tiny_manifest, rows=rows)


def test_an_unreadable_clip_fails_the_run_with_file_row_and_id(run, broken_clips):
    with pytest.raises(ClipError, match=rf"broken.mp4.*row \d+ of .*{broken_clips[3].id[:4]}"):
        run("run", train=broken_clips, num_train_epochs=1).train()


@pytest.mark.parametrize("loss", ["mse", "mse + 0.5*plcc + 0.1*rank"])
def test_skipped_clips_are_listed_and_count_in_no_loss(run, broken_clips, loss):
    """Step by step the run equals one on the readable clips of the same batches."""
    options = {"loss": loss, "per_device_train_batch_size": 12, "max_steps": 1, "optim": "sgd", "learning_rate": 1e-2}
    skipped = run("skipped", train=broken_clips, on_error="skip", **options)
    skipped.train()
    assert set(skipped.notes.rejections) == {broken_clips[3].id, broken_clips[4].id}
    without = replace(broken_clips, rows=[r for i, r in enumerate(broken_clips) if i not in (3, 4)])
    expected = run("without", train=without, **options)
    expected.train()
    np.testing.assert_allclose(step_losses(skipped), step_losses(expected), rtol=1e-5)
    assert_same_weights(weights(skipped), weights(expected), tolerance=2e-5)


def test_a_batch_without_a_readable_clip_changes_nothing_but_takes_part(run, broken_clips):
    options = {"train": broken_clips, "on_error": "skip", "max_steps": 1, "optim": "sgd", "learning_rate": 1e-2}
    single = run("single", per_device_train_batch_size=1, gradient_accumulation_steps=12, **options)
    single.train()
    large = run("large", per_device_train_batch_size=12, **options)
    large.train()
    np.testing.assert_allclose(step_losses(single), step_losses(large), rtol=1e-5)
    assert_same_weights(weights(single), weights(large), tolerance=2e-5)


def test_nothing_readable_at_all_is_said(run, tiny_manifest, tmp_path):
    path = tmp_path / "broken.mp4"
    path.write_bytes(b"no video at all")
    rows = [replace(row, video=path) for row in tiny_manifest]
    with pytest.raises(TrainingError, match="none of the first 100 rows of"):
        run("run", train=replace(tiny_manifest, rows=rows), on_error="skip").train()


def test_unreadable_evaluation_clips_are_left_out_of_the_metrics(run, tiny_eval_manifest, tmp_path):
    path = tmp_path / "broken.mp4"
    path.write_bytes(b"no video at all")
    rows = [replace(row, video=path) if i in (0, 1) else row for i, row in enumerate(tiny_eval_manifest)]
    trainer = run(
        "run", evaluation=replace(tiny_eval_manifest, rows=rows), on_error="skip", per_device_eval_batch_size=2
    )
    values, readable = trainer.score(trainer.eval_dataset)
    assert readable.tolist() == [False, False, True, True, True, True]
    assert np.isnan(values[:2]).all()
    assert np.isfinite(values[2:]).all()
    metrics = trainer.evaluate()
    assert math.isfinite(metrics["eval_rmse"])
    assert set(trainer.notes.rejections) == {rows[0].id, rows[1].id}


def test_the_run_directory_holds_the_best_checkpoint(run, tmp_path):
    options = {"eval_strategy": "epoch", "save_strategy": "epoch", "num_train_epochs": 4, "save_total_limit": 2}
    trainer = run("run", learning_rate=5e-3, **options)
    trainer.train()
    scores = {e["step"]: e["eval_final_score"] for e in trainer.state.log_history if "eval_final_score" in e}
    best = max(scores, key=scores.get)
    assert trainer.state.best_global_step == best
    save_model(trainer, tmp_path / "run")
    kept = load_file(tmp_path / "run" / "model.safetensors")
    expected = load_file(tmp_path / "run" / f"checkpoint-{best}" / "model.safetensors")
    assert_same_weights(kept, expected)
    assert not (tmp_path / "run" / ".model.tmp").exists()


def test_a_second_save_leaves_no_stale_files(run, tmp_path):
    trainer = run("run")
    output = tmp_path / "run"
    output.mkdir(exist_ok=True)
    (output / "model-00001-of-00002.safetensors").write_bytes(b"of an earlier run")
    save_model(trainer, output)
    assert not (output / "model-00001-of-00002.safetensors").exists()
    assert (output / "model.safetensors").is_file()


@pytest.mark.parametrize("loss", ["mse", "huber + l1", "mse + 0.5*plcc + 0.1*rank"])
@pytest.mark.parametrize("dropped_labels", [0, 3])
def test_accumulated_micro_batches_give_the_gradient_of_the_whole_batch(run, tiny_manifest, loss, dropped_labels):
    """Batch 8 x accumulation 1 equals 2 x 4 and 3 x 3 (a step of 9 rows for both), also where labels are not known."""
    rows = [replace(row, labels=(math.nan,)) if i < dropped_labels else row for i, row in enumerate(tiny_manifest)]
    manifest = replace(tiny_manifest, rows=rows)

    def result(name, micro, accumulation):
        trainer = run(
            name,
            train=manifest,
            loss=loss,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=accumulation,
            optim="sgd",  # AdamW turns the rounding of a gradient near zero into a full step
            learning_rate=1e-2,
            max_grad_norm=0.0,
        )
        trainer.train()
        return step_losses(trainer), weights(trainer)

    for whole, parts in (((8, 1), (2, 4)), ((9, 1), (3, 3))):
        expected, expected_weights = result("whole", *whole)
        got, got_weights = result("parts", *parts)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
        assert_same_weights(got_weights, expected_weights, tolerance=1e-5)


def test_both_passes_of_a_batch_wise_loss_see_the_same_dropout(run):
    """The logged loss is that of the first pass; with the gradient zero (rate 0) only dropout could tell them apart."""
    trainer = run("run", loss="plcc", dropout=0.5, gradient_accumulation_steps=3, learning_rate=0.0, max_steps=1)
    seen = []
    head = trainer.model.regression_head
    head.register_forward_hook(lambda _module, _inputs, output: seen.append(output.detach().clone()))
    trainer.train()
    assert len(seen) == 6
    for first, second in zip(seen[:3], seen[3:], strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert not torch.equal(seen[0], seen[1])


def test_rejections_and_counts_survive_an_interruption(run, broken_clips, tmp_path):
    options = {"train": broken_clips, "on_error": "skip", "save_strategy": "steps", "save_steps": 6}
    with pytest.raises(Interrupted):
        run("run", callbacks=[Interruption(7)], **options).train()
    resumed = run("run", **options)
    resumed.train(str(last_complete_checkpoint(tmp_path / "run")))
    assert set(resumed.notes.rejections) == {broken_clips[3].id, broken_clips[4].id}
