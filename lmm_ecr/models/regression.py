"""`LmmRegressor`: a library backbone, pooling and a regression head, the same for every LMM.

The backbone is held, not subclassed: transformers renames the keys of hub checkpoints only for its own classes, and a
subclass would silently start from random weights.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from ..errors import ConfigError
from ..label_transforms import LabelTransform, label_transform_from_dict
from ..losses import RegressionLoss
from .families import Family, check_loading, family_of, get_family, read_model_type
from .head import Pooling, RegressionHead
from .model_files import check_saved_config, reading_weights

ADAPTER_CONFIG = "adapter_config.json"
SAVED_FIELDS = ("backbone_config", "targets", "pooling", "label_transforms", "image_mean", "image_std")


class LmmRegressorConfig(PreTrainedConfig):
    """Configuration of `LmmRegressor`.

    backbone_config: configuration of the LMM (object or dict). backbone_name_or_path: where its weights came from; an
    adapter (LoRA) checkpoint loads them from there again. targets: names of the predicted columns. label_transforms:
    target -> `LabelTransform.to_dict()`. image_mean, image_std: per channel, for uint8 pixels. loss: used by `forward` when
    labels are given.
    """

    model_type = "lmm_ecr_regressor"
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012 - the name and form transformers looks for

    def __init__(
        self,
        backbone_config=None,
        backbone_name_or_path: str | None = None,
        backbone_revision: str | None = None,
        targets: list[str] | None = None,
        pooling: str = "mean",
        head_hidden_size: int = 2048,
        head_dropout: float = 0.1,
        label_transforms: dict | None = None,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        loss: str = "mse",
        **kwargs,
    ):
        if isinstance(backbone_config, dict):
            get_family(backbone_config["model_type"]).register()
            backbone_config = AutoConfig.for_model(**backbone_config)
        # First: it sets the attention implementation of every sub-configuration that is there already to None, and a
        # backbone that exists would silently lose its attention masks.
        self.backbone_config = None
        super().__init__(**kwargs)
        self.backbone_config = backbone_config
        self.backbone_name_or_path = backbone_name_or_path
        self.backbone_revision = backbone_revision
        self.targets = list(targets or ["ECR"])
        self.pooling = pooling
        self.head_hidden_size = head_hidden_size
        self.head_dropout = head_dropout
        self.label_transforms = label_transforms or {}
        self.image_mean = image_mean or [0.48145466, 0.4578275, 0.40821073]  # OpenAI CLIP, used by Qwen2.5-VL
        self.image_std = image_std or [0.26862954, 0.26130258, 0.27577711]
        self.loss = loss

    def get_text_config(self, *args, **kwargs):
        return self if self.backbone_config is None else self.backbone_config.get_text_config(*args, **kwargs)


@dataclass
class RegressionOutput(ModelOutput):
    """Output of `LmmRegressor`.

    loss: float32 scalar, when labels were given. predictions: float32 [batch, targets] in label units, in [0, 1].
    scores: float32 [batch, targets] on the training scale (what the losses compare). pooled: float32 [batch, hidden].
    """

    loss: torch.Tensor | None = None
    predictions: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    pooled: torch.Tensor | None = None


class LmmRegressor(PreTrainedModel):
    """Predicts one or several numbers per clip from the final hidden states of a large multimodal model."""

    config_class = LmmRegressorConfig
    base_model_prefix = "backbone"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = ["pooling", "regression_head"]  # noqa: RUF012

    def __init__(self, config: LmmRegressorConfig, backbone: PreTrainedModel | None = None):
        super().__init__(config)
        self.backbone = AutoModel.from_config(config.backbone_config) if backbone is None else backbone
        if backbone is not None:
            for module in backbone.modules():  # else post_init draws anew what no from_pretrained has marked as loaded
                module._is_hf_initialized = True
        hidden_size = config.get_text_config().hidden_size
        self.pooling = Pooling(config.pooling, hidden_size)
        self.regression_head = RegressionHead(
            hidden_size, config.head_hidden_size, len(config.targets), config.head_dropout
        )
        self._no_split_modules = list(getattr(self.backbone, "_no_split_modules", None) or [])
        self.set_label_transforms(
            {name: label_transform_from_dict(state) for name, state in config.label_transforms.items()}
        )
        self.post_init()

    @property
    def family(self) -> Family:
        return get_family(self.config.backbone_config.model_type)

    def set_label_transforms(self, transforms: dict[str, LabelTransform], reset_bias: bool = False) -> None:
        """Use (and save with the checkpoint) these transforms by target name; targets not named keep the identity.

        reset_bias: also start the last bias of the head at the mean label, as for a new head.
        """
        unknown = sorted(set(transforms) - set(self.config.targets))
        if unknown:
            raise ConfigError(f"label transforms for {unknown}, but the model's targets are {self.config.targets}")
        self.label_transforms = [transforms.get(name, LabelTransform()) for name in self.config.targets]
        self.config.label_transforms = {
            name: transform.to_dict()
            for name, transform in zip(self.config.targets, self.label_transforms, strict=True)
        }
        if reset_bias:
            bias = self.regression_head.fc2.bias
            with torch.no_grad():
                bias.copy_(torch.tensor([t.initial_bias for t in self.label_transforms]).to(bias))

    def to_training_scale(self, labels: torch.Tensor) -> torch.Tensor:
        """Labels [batch, targets] in label units to the scale of `scores`; float32, NaN stays NaN."""
        columns = [t.forward(labels[:, i].float()) for i, t in enumerate(self.label_transforms)]
        return torch.stack(columns, dim=1)

    def to_label_units(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores [batch, targets] on the training scale to label units in [0, 1]."""
        columns = [t.inverse(scores[:, i]) for i, t in enumerate(self.label_transforms)]
        return torch.stack(columns, dim=1)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor | None = None,
        **inputs,
    ) -> RegressionOutput:
        """Score a batch made by the family's processor (`collate`).

        input_ids, attention_mask: int64 [batch, tokens], padding on either side. labels: float32 [batch, targets] in label
        units, NaN where not known. inputs: the family's other tensors (frames, sound, positions).
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}
        inputs = self.family.backbone_inputs(self.config, inputs)
        states = self.backbone(use_cache=False, return_dict=True, **inputs).last_hidden_state
        pooled = self.pooling(states, attention_mask)
        scores = self.regression_head(pooled)
        loss = None
        if labels is not None:
            loss = RegressionLoss(self.config.loss)(scores, self.to_training_scale(labels.to(scores.device)))
        return RegressionOutput(loss=loss, predictions=self.to_label_units(scores), scores=scores, pooled=pooled)

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise the head only: normal(0, 0.02) and zero bias, the initialisation of the winning system.

        The backbone brings its weights, or has initialised itself.
        """
        if module in (self.regression_head.fc1, self.regression_head.fc2):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    @classmethod
    def from_backbone(
        cls,
        name_or_path: str,
        *,
        targets: list[str] | None = None,
        pooling: str = "mean",
        head_hidden_size: int = 2048,
        head_dropout: float = 0.1,
        label_transforms: dict[str, LabelTransform] | None = None,
        loss: str = "mse",
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        revision: str | None = None,
        **load_options,
    ) -> "LmmRegressor":
        """A new head on a pretrained LMM (a hub name or a directory in the hub's format).

        load_options: passed to `from_pretrained` of the backbone (dtype, attn_implementation, ...). Raises ConfigError if
        the model is of no supported family or any of its weights is missing.
        """
        family = family_of(name_or_path, revision)
        with torch.random.fork_rng(devices=[]):  # the new head must not depend on how the weights were loaded (ZeRO-3)
            backbone = family.load_backbone(str(name_or_path), revision=revision, **load_options)
        config = cls.config_class(
            backbone_config=backbone.config,
            # Absolute, since an adapter looks for it from any working directory.
            backbone_name_or_path=str(Path(name_or_path).resolve() if Path(name_or_path).is_dir() else name_or_path),
            backbone_revision=revision,
            targets=targets,
            pooling=pooling,
            head_hidden_size=head_hidden_size,
            head_dropout=head_dropout,
            image_mean=image_mean,
            image_std=image_std,
            loss=loss,
        )
        model = cls(config, backbone=backbone)
        model.set_label_transforms(label_transforms or {}, reset_bias=True)
        return model

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Load a checkpoint written by a recipe or `save_pretrained`; an adapter checkpoint gets its backbone first.

        A directory with an adapter returns a `peft.PeftModel` around the `LmmRegressor`. A directory in another code
        base's layout loads if the family can read its regression head. Raises ConfigError if weights are missing or left
        over.
        """
        path = Path(pretrained_model_name_or_path)
        if path.is_dir():
            if (path / ADAPTER_CONFIG).is_file():
                return cls._from_adapter(path, **kwargs)
            if not (path / "config.json").is_file():
                raise ConfigError(f"{path} is no model directory: config.json is missing")
            model_type = read_model_type(path)
            if model_type != cls.config_class.model_type:
                return cls._from_other_layout(path, model_type, **kwargs)
            check_saved_config(path, SAVED_FIELDS)
        wants_info = kwargs.pop("output_loading_info", False)
        with reading_weights(path):
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
            )
        check_loading(info, str(pretrained_model_name_or_path))
        return (model, info) if wants_info else model

    @classmethod
    def _from_other_layout(cls, path: Path, model_type: str, **load_options) -> "LmmRegressor":
        head = get_family(model_type).read_head(path)
        if head is None:
            raise ConfigError(
                f"{path} holds a {model_type!r} model without a regression head; "
                "train one first (recipes/), or use LmmRegressor.from_backbone for a new head"
            )
        model = cls.from_backbone(str(path), **head.options, **load_options)
        model.regression_head.load_state_dict(head.state)
        return model.eval()

    @classmethod
    def _from_adapter(cls, path: Path, is_trainable: bool = False, **load_options):
        from peft import PeftModel

        read_model_type(path)  # says which file is damaged
        check_saved_config(path, SAVED_FIELDS)
        config = cls.config_class.from_pretrained(path)
        backbone = str(config.backbone_name_or_path)
        if Path(backbone).is_absolute() and not Path(backbone).is_dir():
            raise ConfigError(
                f"{path} holds an adapter for the model in {backbone}, which is not there: put that model back, or correct "
                f"backbone_name_or_path in {path / 'config.json'}"
            )
        base = cls.from_backbone(
            backbone,
            revision=config.backbone_revision,
            targets=config.targets,
            pooling=config.pooling,
            head_hidden_size=config.head_hidden_size,
            head_dropout=config.head_dropout,
            image_mean=config.image_mean,
            image_std=config.image_std,
            loss=config.loss,
            label_transforms={k: label_transform_from_dict(v) for k, v in config.label_transforms.items()},
            **load_options,
        )
        with reading_weights(path):
            return PeftModel.from_pretrained(base, str(path), is_trainable=is_trainable)


def unwrap_regressor(model: nn.Module) -> LmmRegressor:
    """The `LmmRegressor` inside a PEFT, DistributedDataParallel or DeepSpeed wrapper."""
    for module in model.modules():
        if isinstance(module, LmmRegressor):
            return module
    raise TypeError(f"no LmmRegressor inside {type(model).__name__}")


AutoConfig.register(LmmRegressorConfig.model_type, LmmRegressorConfig)
AutoModel.register(LmmRegressorConfig, LmmRegressor)
