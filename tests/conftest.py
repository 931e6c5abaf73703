"""Fixtures shared by all tests: tiny random checkpoints and a few generated clips, made once per session.

Everything here is read-only for tests: copy a directory before changing it.
"""

from pathlib import Path

import pytest

from lmm_ecr.data.synthetic import SyntheticSpec, generate_dataset

TINY_MIN_PIXELS, TINY_MAX_PIXELS = 784, 6 * 784  # one to six language-model tokens per pair of frames
SHARED = Path(__file__).resolve().parents[1] / "../shared"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Reference data that lie beside the repository; the test is skipped where they do not."""
    if not SHARED.is_dir():
        pytest.skip(f"no reference data at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def tiny_qwen(tmp_path_factory) -> Path:
    """Directory of a tiny random Qwen2.5-VL checkpoint in the hub's file format."""
    from lmm_ecr.data.prompt import DEFAULT_TEMPLATE
    from lmm_ecr.data.synthetic import PROMPT_TEXTS
    from lmm_ecr.models.tiny import write_tiny_qwen2_5_vl

    return write_tiny_qwen2_5_vl(tmp_path_factory.mktemp("tiny_qwen"), [DEFAULT_TEMPLATE, *PROMPT_TEXTS])


@pytest.fixture(scope="session")
def tiny_videollama2(tmp_path_factory) -> Path:
    """Directory of a tiny random VideoLLaMA2.1-AV backbone."""
    from lmm_ecr.data.prompt import DEFAULT_TEMPLATE
    from lmm_ecr.data.synthetic import PROMPT_TEXTS
    from lmm_ecr.models.tiny_videollama2 import write_tiny_videollama2

    directory = tmp_path_factory.mktemp("tiny_videollama2")
    return write_tiny_videollama2(directory, [DEFAULT_TEMPLATE, *PROMPT_TEXTS])


@pytest.fixture(scope="session")
def tiny_clips(tmp_path_factory) -> Path:
    """Directory with train.csv (12 clips), eval.csv (6 clips) and videos/."""
    return generate_dataset(tmp_path_factory.mktemp("tiny_clips"), SyntheticSpec(num_train=12, num_eval=6))


@pytest.fixture(scope="session")
def tiny_manifest(tiny_clips):
    """The 12 training clips of `tiny_clips` with their ECR."""
    from lmm_ecr.data.manifest import read_manifest

    return read_manifest(tiny_clips / "train.csv", tiny_clips / "videos", targets=["ECR"])


@pytest.fixture(scope="session")
def tiny_eval_manifest(tiny_clips):
    """The 6 evaluation clips of `tiny_clips` with their ECR."""
    from lmm_ecr.data.manifest import read_manifest

    return read_manifest(tiny_clips / "eval.csv", tiny_clips / "videos", targets=["ECR"])


@pytest.fixture(scope="session")
def tiny_processor(tiny_qwen):
    """Qwen2.5-VL's processor at a resolution for tests: 1 to 6 tokens per pair of frames."""
    from lmm_ecr.models.qwen2_5_vl import Qwen25VLProcessor, Qwen25VLSpec

    return Qwen25VLProcessor.from_backbone(
        str(tiny_qwen), Qwen25VLSpec(max_pixels=TINY_MAX_PIXELS, min_pixels=TINY_MIN_PIXELS)
    )


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_processor):
    """The byte-level tokenizer of `tiny_qwen`; encodes any script."""
    return tiny_processor.tokenizer
