"""VideoLLaMA2.1-AV. Importing this package registers it with `AutoConfig` and `AutoModel`."""

from lmm_ecr.models.videollama2.configuration import VideoLlama2Config
from lmm_ecr.models.videollama2.modeling import VideoLlama2Model

__all__ = ["VideoLlama2Config", "VideoLlama2Model"]
