"""The spatial-temporal convolution (STC) connector of VideoLLaMA2.1, "stc_connector_v35": patches to video tokens."""

import math
from functools import partial

import torch
from timm.layers import LayerNorm2d
from timm.models.regnet import RegStage
from torch import nn


def gelu_mlp(in_width: int, out_width: int, depth: int) -> nn.Sequential:
    """`depth` linear layers with exact GELU in between, the first one changes the width."""
    layers: list[nn.Module] = [nn.Linear(in_width, out_width)]
    for _ in range(depth - 1):
        layers += [nn.GELU(), nn.Linear(out_width, out_width)]
    return nn.Sequential(*layers)


class StcConnector(nn.Module):
    """RegNet stage, 3-d convolution that halves time, height and width, RegNet stage, MLP.

    timm replaces `LayerNorm2d` in the stages by its norm-and-activation twin, whose eps is 1e-5; the checkpoints were
    trained with that.
    """

    def __init__(
        self, in_width: int, out_width: int, depth: int, mlp_depth: int, downsample: tuple[int, int, int] = (2, 2, 2)
    ):
        super().__init__()
        self.downsample = tuple(downsample)
        stage = partial(RegStage, depth, stride=1, dilation=1, act_layer=nn.SiLU, norm_layer=LayerNorm2d)
        self.stage1 = stage(in_chs=in_width, out_chs=out_width)
        self.sampler = nn.Conv3d(out_width, out_width, kernel_size=self.downsample, stride=self.downsample)
        self.stage2 = stage(in_chs=out_width, out_chs=out_width)
        self.readout = gelu_mlp(out_width, out_width, mlp_depth)
        self.gradient_checkpointing = False  # PreTrainedModel switches it and sets the function

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Patch features [B, T, grid * grid, in_width], row-major patches -> video tokens [B, tokens, out_width].

        Tokens come in the order time, row, column. Trailing frames, rows and columns that do not fill a kernel (the
        last of an odd number of frames, row and column 26 of 27) do not reach the output.

        Raises:
            ValueError: fewer frames or patches than one kernel, or a number of patches that is no square.
        """
        batch, frames, patches, _ = features.shape
        grid = math.isqrt(patches)
        time, height, width = self.downsample
        if grid * grid != patches or frames < time or grid < max(height, width):
            raise ValueError(
                f"the connector takes a square patch grid and at least {time} frames, not {frames} frames of {patches} "
                "patches"
            )
        x = features.flatten(0, 1).transpose(1, 2).unflatten(2, (grid, grid))
        x = self._stage(self.stage1, x)
        x = x.unflatten(0, (batch, frames)).transpose(1, 2)
        x = nn.functional.silu(self.sampler(x))
        x = self._stage(self.stage2, x.transpose(1, 2).flatten(0, 1))
        x = x.unflatten(0, (batch, -1)).permute(0, 1, 3, 4, 2).flatten(1, 3)
        return self.readout(x)

    def _stage(self, stage: RegStage, x: torch.Tensor) -> torch.Tensor:
        for block in stage.children():
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                x = self._gradient_checkpointing_func(block, x)
            else:
                x = block(x)
        return x
