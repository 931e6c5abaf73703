"""The accelerate configurations: each is read by accelerate itself; those that run without a GPU are run."""

import json
from pathlib import Path

import pytest
import yaml

from tests.distributed.launch import REPO, SCRIPTS, free_port, run

CONFIGS = sorted((REPO / "launch" / "accelerate").glob("*.yaml"))
NAMES = {"cpu", "deepspeed_zero2", "deepspeed_zero3", "fsdp2", "multi_gpu", "multi_node", "single_gpu"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_accelerate_reads_it(path):
    from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file

    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    values = yaml.safe_load(path.read_text())
    unknown = set(values) - set(vars(config))
    assert not unknown
    if config.distributed_type == "DEEPSPEED":
        assert (REPO / values["deepspeed_config"]["deepspeed_config_file"]).is_file()
        assert values["deepspeed_config"]["deepspeed_multinode_launcher"] == "standard"


def test_all_are_there():
    assert {path.stem for path in CONFIGS} == NAMES


@pytest.fixture
def small_run(tiny_qwen, tiny_clips, tmp_path):
    words = ["--train_data", tiny_clips / "train.csv", "--eval_data", tiny_clips / "eval.csv"]
    words += ["--video_dir", tiny_clips / "videos", "--model", tiny_qwen, "--max_pixels", 6 * 784]
    words += ["--output_dir", tmp_path / "run", "--use_cpu", "true", "--dataloader_num_workers", 0, "--max_steps", 2]
    return [str(REPO / "recipes" / "qwen_sft.py"), *map(str, words), "--bootstrap_resamples", "0"]


def launch(name, small_run, **environment):
    command = [
        str(SCRIPTS / "accelerate"),
        "launch",
        "--config_file",
        str(REPO / "launch" / "accelerate" / f"{name}.yaml"),
    ]
    return run(
        [*command, "--num_processes", "2", "--main_process_port", str(free_port()), *small_run],
        cwd=REPO,
        check=False,
        **environment,
    )


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("name", "kind", "environment"),
    [("cpu", "MULTI_CPU", {}), ("deepspeed_zero3", "DEEPSPEED", {"DS_ACCELERATOR": "cpu"})],
)
def test_it_starts_two_processes_that_train_together(name, kind, environment, small_run, tmp_path):
    done = launch(name, small_run, **environment)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    record = json.loads((Path(tmp_path) / "run" / "run.json").read_text())
    assert (record["processes"], record["distributed"]) == (2, f"DistributedType.{kind}")
    assert (Path(tmp_path) / "run" / "predictions" / "eval.csv").is_file()


@pytest.mark.distributed
def test_processes_that_would_train_alone_are_refused_with_host_and_rank(small_run):
    without = [word for i, word in enumerate(small_run) if "--use_cpu" not in small_run[max(i - 1, 0) : i + 1]]
    done = launch("cpu", without)
    assert done.returncode != 0
    assert "rank 1 of 2: qwen_sft.py: error: the launcher started 2 processes, but this one counts 1" in done.stderr
    assert "--use_cpu true" in done.stderr
