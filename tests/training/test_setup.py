"""Before training: output directories are not overwritten by mistake, splits are stable, mistakes come early."""

import json

import pytest

from lmm_ecr.arguments import parse_arguments
from lmm_ecr.errors import ConfigError, DataError
from lmm_ecr.training.output_dir import command_line, prepare_output_dir
from lmm_ecr.training.setup import load_datasets


def arguments(*words):
    return parse_arguments([*map(str, words), "--use_cpu"], embedded={})


def leave_a_run(output, *words):
    """An earlier run in `output`, as far as its checkpoint."""
    prepare_output_dir(arguments("--output_dir", output, *words), "qwen_sft")
    (output / "checkpoint-3").mkdir()


def test_a_run_on_real_clips_is_never_replaced_by_a_demonstration(tmp_path):
    leave_a_run(tmp_path / "run", "--train_data", "train.csv")
    with pytest.raises(ConfigError, match=r"holds an earlier run \(checkpoint-3"):
        prepare_output_dir(arguments("--output_dir", tmp_path / "run"), "qwen_sft")
    assert (tmp_path / "run/checkpoint-3").is_dir()


def test_a_demonstration_replaces_a_demonstration(tmp_path):
    leave_a_run(tmp_path / "run")
    assert prepare_output_dir(arguments("--output_dir", tmp_path / "run"), "qwen_sft") is None
    assert not (tmp_path / "run/checkpoint-3").exists()
    leave_a_run(tmp_path / "run")
    with pytest.raises(ConfigError, match="holds an earlier run"):
        prepare_output_dir(arguments("--output_dir", tmp_path / "run", "--train_data", "train.csv"), "qwen_sft")


def test_overwriting_on_request(tmp_path):
    leave_a_run(tmp_path / "run", "--train_data", "train.csv")
    words = ["--output_dir", tmp_path / "run", "--train_data", "other.csv", "--overwrite_output_dir"]
    prepare_output_dir(arguments(*words), "qwen_sft")
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["arguments"]["data"]["train_data"] == "other.csv"


def test_resuming_without_a_checkpoint_starts(tmp_path):
    words = ["--output_dir", tmp_path / "run", "--resume_from_checkpoint"]
    assert prepare_output_dir(arguments(*words), "qwen_sft") is None


def test_resuming_from_half_a_checkpoint_is_refused(tmp_path):
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(ConfigError, match="no complete checkpoint"):
        prepare_output_dir(arguments("--resume_from_checkpoint", tmp_path / "checkpoint-3"), "qwen_sft")


def test_held_out_rows_depend_on_their_ids_alone(tiny_clips, tiny_processor, tmp_path):
    lines = (tiny_clips / "train.csv").read_text().splitlines()
    shuffled = tmp_path / "shuffled.csv"
    shuffled.write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    held_out = []
    for table in (tiny_clips / "train.csv", shuffled):
        words = ["--train_data", table, "--video_dir", tiny_clips / "videos", "--eval_fraction", 0.3]
        data = load_datasets(arguments(*words), tiny_processor)
        assert len(data.train) + len(data.eval) == 12
        held_out.append({row.id for row in data.eval.manifest})
        assert not held_out[-1] & {row.id for row in data.train.manifest}
    assert held_out[0] == held_out[1]


def test_clips_in_both_tables_are_refused(tiny_clips, tiny_processor):
    table = tiny_clips / "train.csv"
    words = ["--train_data", table, "--eval_data", table, "--video_dir", tiny_clips / "videos"]
    with pytest.raises(DataError, match="12 clips are in both"):
        load_datasets(arguments(*words), tiny_processor)


def test_a_folder_that_is_not_prepared_is_explained(tiny_clips, tiny_processor):
    with pytest.raises(ConfigError, match=r"without prepared\.json"):
        load_datasets(arguments("--train_data", tiny_clips / "videos"), tiny_processor)


def test_overwriting_deletes_what_the_earlier_run_says_about_itself(tmp_path):
    """Bug: rejected.csv, metrics.json and predictions stayed and seemed to belong to the new run."""
    output = tmp_path / "run"
    leave_a_run(output, "--train_data", "train.csv")
    for name in ("metrics.json", "rejected.csv", "predictions/eval.csv", "plots/eval_scatter.png", "notes.txt"):
        (output / name).parent.mkdir(exist_ok=True)
        (output / name).write_text("old")
    prepare_output_dir(arguments("--output_dir", output, "--train_data", "b.csv", "--overwrite_output_dir"), "qwen_sft")
    assert {p.name for p in output.rglob("*") if p.is_file()} == {"run.json", "notes.txt"}


def complete_checkpoint(output):
    (output / "checkpoint-3").mkdir(parents=True)
    (output / "checkpoint-3/complete").touch()


def test_a_run_that_may_resume_writes_its_record_at_the_start(tmp_path):
    """Bug: with `auto`, as job scripts say it, there was none until the end."""
    output = tmp_path / "run"
    words = ["--output_dir", output, "--train_data", "train.csv", "--resume_from_checkpoint", "auto"]
    assert prepare_output_dir(arguments(*words), "qwen_sft") is None
    before = (output / "run.json").read_text()
    assert json.loads(before)["arguments"]["data"]["train_data"] == "train.csv"
    complete_checkpoint(output)
    found = prepare_output_dir(arguments(*words, "--loss", "l1"), "qwen_sft")
    assert found == output / "checkpoint-3"
    assert (output / "run.json").read_text() == before, "whether it is the same training is not known yet"
    (output / "run.json").unlink()
    prepare_output_dir(arguments(*words), "qwen_sft")
    assert (output / "run.json").is_file()


def test_a_finished_run_without_checkpoints_is_not_replaced_by_resuming(tmp_path):
    """Bug: --resume_from_checkpoint auto skipped the check for an earlier run."""
    output = tmp_path / "run"
    prepare_output_dir(arguments("--output_dir", output, "--train_data", "train.csv"), "qwen_sft")
    (output / "config.json").write_text("{}")
    words = ["--output_dir", output, "--train_data", "train.csv", "--resume_from_checkpoint"]
    with pytest.raises(ConfigError, match="it has no checkpoint to go on from"):
        prepare_output_dir(arguments(*words), "qwen_sft")
    assert prepare_output_dir(arguments(*words, "--overwrite_output_dir"), "qwen_sft") is None


def test_a_run_killed_in_its_first_checkpoint_starts_again(tmp_path):
    leave_a_run(tmp_path / "run", "--train_data", "train.csv")
    words = ["--output_dir", tmp_path / "run", "--train_data", "train.csv", "--resume_from_checkpoint", "auto"]
    assert prepare_output_dir(arguments(*words), "qwen_sft") is None
    assert not (tmp_path / "run/checkpoint-3").exists()


@pytest.mark.parametrize("option", ["--hub_token", "--hub-token", "--push_to_hub_token"])
def test_tokens_are_not_in_the_recorded_command(option):
    words = [
        "train.py",
        "--loss",
        "mse",
        option,
        "hf_secret",
        "--max_title_tokens",
        "5",
        f"{option}=hf_secret",
        "--seed=3",
    ]
    assert command_line(words)[1:] == [
        "train.py", "--loss", "mse", option, "<hidden>", "--max_title_tokens", "5", f"{option}=<hidden>", "--seed=3",
    ]  # fmt: skip
    assert command_line(["train.py", option, "--seed", "3"])[2:] == [option, "--seed", "3"]


def test_missing_files_are_listed_with_the_part_they_would_be_in(tiny_clips, tiny_processor, tmp_path):
    lines = (tiny_clips / "train.csv").read_text().splitlines()
    column = lines[0].split(",").index("Id")
    extra = [",".join(f"gone{i}" if c == column else v for c, v in enumerate(lines[1].split(","))) for i in range(20)]
    table = tmp_path / "table.csv"
    table.write_text("\n".join([*lines, *extra]) + "\n")
    words = ["--train_data", table, "--video_dir", tiny_clips / "videos", "--eval_fraction", 0.3, "--on_error", "skip"]
    data = load_datasets(arguments(*words), tiny_processor)
    rejected = [{r.id for r in part.manifest.rejections} for part in (data.train, data.eval)]
    assert rejected[0] | rejected[1] == {f"gone{i}" for i in range(20)}
    assert all(rejected)
    assert not rejected[0] & rejected[1]
