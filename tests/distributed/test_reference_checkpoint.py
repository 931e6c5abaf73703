"""A VideoLLaMA2 checkpoint in the reference's layout under ZeRO-3: every shard gets its values, the new head is the same."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

from lmm_ecr.models.regression import LmmRegressor
from tests.models.videollama2_reference import write_fine_tuned

from .launch import run, torchrun

pytestmark = pytest.mark.distributed

PROGRAM = """
import json, sys
import deepspeed, torch
from safetensors.torch import load_file
from transformers.integrations import HfDeepSpeedConfig
from lmm_ecr.models.regression import LmmRegressor

checkpoint, expected, output = sys.argv[1:]
deepspeed.init_distributed(dist_backend="gloo")
config = {"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1, "train_batch_size": 2}
keep = HfDeepSpeedConfig(config)
torch.manual_seed(0)
model = LmmRegressor.from_backbone(checkpoint, head_hidden_size=16, dtype=torch.float32)
expected, different, sharded = load_file(expected), [], 0
for name, parameter in model.named_parameters():
    shards = [parameter] if hasattr(parameter, "ds_id") else []
    sharded += len(shards)
    with deepspeed.zero.GatheredParameters(shards):
        if not torch.equal(parameter.detach(), expected.pop(name)):
            different.append(name)
result = {"different": different, "missing": sorted(expected), "sharded": sharded}
json.dump(result, open(f"{output}.{torch.distributed.get_rank()}", "w"))
"""


def test_shards_get_the_values_of_the_checkpoint(tiny_videollama2, tmp_path):
    checkpoint = write_fine_tuned(tmp_path / "theirs", AutoTokenizer.from_pretrained(tiny_videollama2))
    torch.manual_seed(0)
    model = LmmRegressor.from_backbone(str(checkpoint), head_hidden_size=16, dtype=torch.float32)
    save_file(
        {name: value.detach().contiguous() for name, value in model.named_parameters()}, tmp_path / "e.safetensors"
    )
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    words = [str(program), str(checkpoint), str(tmp_path / "e.safetensors"), str(tmp_path / "result")]
    run(torchrun(*words), DS_ACCELERATOR="cpu")
    backbone = sum(1 for name, _ in model.named_parameters() if name.startswith("backbone."))
    for rank in range(2):
        found = json.loads((tmp_path / f"result.{rank}").read_text())
        assert found == {"different": [], "missing": [], "sharded": backbone}
