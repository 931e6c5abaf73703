"""Fine-tune large multimodal models to predict the engagement continuation rate (ECR) of short videos."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .models.regression import LmmRegressor
    from .predictor import Predictor

__version__ = "0.1.0"
__all__ = ["LmmRegressor", "Predictor", "__version__"]

_LAZY = {"LmmRegressor": ".models.regression", "Predictor": ".predictor"}


def __getattr__(name: str):
    """Import the heavy classes when they are first used, so that `import lmm_ecr` is quick."""
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
