"""The memory estimate against DeepSpeed's own, and sums by hand."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from lmm_ecr.arguments import read_config
from lmm_ecr.cli import app
from lmm_ecr.errors import ConfigError
from lmm_ecr.memory import GB, ModelSize, activations_gb, estimate, model_size, model_states

COLUMNS = (("0", 1, 1), ("1", 8, 1), ("2", 8, 1), ("3", 8, 1), ("3", 64, 8), ("offload", 8, 1))
CONFIGS = Path(__file__).resolve().parents[1] / "recipes" / "configs"


@pytest.mark.parametrize("machines", [1, 4])
@pytest.mark.parametrize("parameters", [3.75e9, 7.75e9, 72e9])
def test_states_equal_deepspeeds_estimate(parameters, machines):
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    parameters, largest = int(parameters), int(545e6)
    size = ModelSize(parameters, largest_layer=largest)
    _, gpu = estimate_zero2_model_states_mem_needs(parameters, 8, machines, cpu_offload=False)
    assert model_states(size, 8 * machines, "2", machines=machines).states * GB == pytest.approx(gpu, rel=1e-9)
    _, gpu, layer = estimate_zero3_model_states_mem_needs(
        parameters, largest, 8, machines, cpu_offload=False, cpu_offload_params=False
    )
    result = model_states(size, 8 * machines, "3", machines=machines)
    assert result.states * GB == pytest.approx(gpu, rel=1e-9)
    assert result.gathered_layers * GB == pytest.approx(layer, rel=1e-9)
    cpu, gpu, _ = estimate_zero3_model_states_mem_needs(parameters, largest, 8, machines)
    result = model_states(size, 8 * machines, "offload", machines=machines)
    assert result.states * GB == pytest.approx(gpu, rel=1e-9)
    assert result.host * GB == pytest.approx(cpu, rel=1e-6)


def test_sums_by_hand():
    """1e9 trained and 2e9 frozen parameters, 4 GPUs."""
    size = ModelSize(10**9, 2 * 10**9)
    plain = model_states(size, 1, "0", bf16=False)
    assert (plain.weights, plain.gradients, plain.optimizer) == (4 + 8, 4, 8)
    assert model_states(size, 4, "0", bf16=False).gradients == 8  # and DDP's buckets
    assert model_states(size, 4, "0", bf16=True).weights == 4 + 4 + 2
    assert model_states(size, 4, "1").states == pytest.approx(2 * 3 + 2 + 16 / 4)
    assert model_states(size, 4, "2").states == pytest.approx(2 * 3 + 18 / 4)
    assert model_states(size, 4, "3").states == pytest.approx((18 + 4) / 4)


def test_known_models_have_their_published_size():
    """Language model without its vocabulary head, vision encoder and our head: 7.62 B - 0.55 B + 0.68 B for the 7B."""
    sizes = {name: model_size(read_config(CONFIGS / f"qwen2_5_vl_{name}.yaml")) for name in ("3b", "7b")}
    assert sizes["7b"].trained == pytest.approx(7.75e9, rel=0.01)
    assert sizes["3b"].trained == pytest.approx(3.76e9, rel=0.01)
    assert sizes["7b"].frozen == 0
    assert sizes["7b"].largest_layer == 152064 * 3584


def test_lora_trains_little():
    size = model_size(read_config(CONFIGS / "qwen2_5_vl_7b_lora.yaml"))
    adapters = 28 * 16 * (2 * (3584 + 3584) + 2 * (3584 + 512) + 3 * (3584 + 18944))
    merger = 2 * 1280 * 4 * 1280 + 0
    assert adapters < size.trained < adapters + 4 * merger + 10**7
    assert size.frozen == pytest.approx(7.7e9, rel=0.01)


def test_a_local_checkpoint_is_counted_exactly(tiny_qwen):
    from lmm_ecr.models.regression import LmmRegressor

    model = LmmRegressor.from_backbone(str(tiny_qwen), head_hidden_size=8)
    counted = model_size({"model": str(tiny_qwen), "head_hidden_size": 8})
    assert counted.trained == sum(p.numel() for p in model.parameters())


def test_checkpointing_keeps_one_layer_and_the_inputs_of_the_others():
    size = ModelSize(1, layers=10, hidden=100, intermediate=400, key_value=50)
    full = 10 * 20 * (28 * 100 + 4 * 50 + 8 * 400)
    assert activations_gb(size, 1, 20, 0, False) * GB == pytest.approx(full)
    assert activations_gb(size, 3, 20, 0, True) * GB == pytest.approx(3 * (10 * 2 * 100 * 20 + full / 10))


def test_command_and_its_refusals(tmp_path):
    config = str(CONFIGS / "qwen2_5_vl_7b.yaml")
    shown = CliRunner().invoke(app, ["memory", "--config", config, "--gpus", "8", "--zero", "3"])
    assert shown.exit_code == 0, shown.output
    assert "7.75 B parameters trained" in shown.output
    assert "per GPU" in shown.output
    unknown = tmp_path / "x.yaml"
    unknown.write_text("model: nobody/knows\n")
    with pytest.raises(ConfigError, match="--parameters"):
        estimate(read_config(unknown), 1, "0")
    result, _ = estimate(read_config(unknown), 8, "2", parameters=7e9)
    assert result.states == pytest.approx(14 + 18 * 7 / 8)
    with pytest.raises(ConfigError, match="--zero"):
        estimate(read_config(config), 1, "4")


def test_the_table_of_the_readme_is_what_the_command_says():
    text = (CONFIGS.parents[1] / "deepspeed_configs" / "README.md").read_text()
    tunings = {"all weights": "qwen2_5_vl_7b.yaml", "LoRA": "qwen2_5_vl_7b_lora.yaml"}
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if " B | " in line]
    assert len(rows) == 6
    for short, trained, parameters, *cells in rows[:4]:  # the 72B is counted by the same code, slowly
        config = {**read_config(CONFIGS / tunings[trained]), "model": f"Qwen/Qwen2.5-VL-{short}-Instruct"}
        config["per_device_train_batch_size"] = 1
        for cell, (zero, gpus, machines) in zip(cells, COLUMNS, strict=True):
            result, size = estimate(config, gpus, zero, machines)
            shown = f"{result.total:.0f}" + (f" (+{result.host:.0f})" if result.host else "")
            assert (parameters, cell) == (f"{size.trained / GB:.2f} B", shown)
