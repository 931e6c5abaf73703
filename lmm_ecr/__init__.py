"""Fine-tune large multimodal models to predict the engagement continuation rate (ECR) of short videos."""

__version__ = "0.1.0"
