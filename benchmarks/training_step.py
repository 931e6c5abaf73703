"""Time and memory of an `EcrTrainer` step against a bare PyTorch loop: same model, same ready-made batch, plain AdamW.

    python benchmarks/training_step.py                            a small random Qwen2.5-VL on the CPU
    python benchmarks/training_step.py --hidden_size 512 --num_layers 8 --steps 10

Prints the medians and their ratio. Time: steps alternate in one process. Memory: each way runs in a process of its own
and reports its peak.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile

from lmm_ecr.bench import bench
from lmm_ecr.console import quiet_libraries
from lmm_ecr.data.prompt import DEFAULT_TEMPLATE
from lmm_ecr.data.synthetic import PROMPT_TEXTS
from lmm_ecr.models.qwen2_5_vl import Qwen25VLProcessor, Qwen25VLSpec
from lmm_ecr.models.regression import LmmRegressor
from lmm_ecr.models.tiny import write_tiny_qwen2_5_vl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden_size", type=int, default=256)
    parser.add_argument("--num_layers", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--max_pixels", type=int, default=24 * 784)
    parser.add_argument("--only", choices=["trainer", "bare"], help="run one way alone and print its peak memory")
    options = parser.parse_args()
    quiet_libraries()
    with tempfile.TemporaryDirectory() as directory:
        write_tiny_qwen2_5_vl(
            directory,
            [DEFAULT_TEMPLATE, *PROMPT_TEXTS],
            hidden_size=options.hidden_size,
            num_layers=options.num_layers,
        )
        processor = Qwen25VLProcessor.from_backbone(directory, Qwen25VLSpec(max_pixels=options.max_pixels))
        model = LmmRegressor.from_backbone(directory)
        result = bench(model, processor, batch_size=options.batch_size, steps=options.steps, only=options.only)
    if options.only:
        print(json.dumps({"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
        return
    print(result.describe())
    peaks = {}
    for way in ("trainer", "bare"):
        command = [sys.executable, __file__, *sys.argv[1:], "--only", way]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peaks[way] = json.loads(output.splitlines()[-1])["peak_bytes"]
    ratio = peaks["trainer"] / peaks["bare"]
    print(f"memory     {peaks['trainer'] / 1e9:.3f} GB against {peaks['bare'] / 1e9:.3f} GB; ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
