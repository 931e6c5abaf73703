"""Before training: output directories are not overwritten by mistake, splits are stable, mistakes come early."""

import json

import pytest

from lmm_ecr.arguments import parse_arguments
from lmm_ecr.errors import ConfigError, DataError
from lmm_ecr.training.setup import load_datasets, prepare_output_dir


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
