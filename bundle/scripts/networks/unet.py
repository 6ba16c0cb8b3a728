"""nnU-Net's 2D U-Net with deep supervision: the default member."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from monai.networks.blocks import Convolution
from torch import Tensor, nn

from ..runtime.errors import BadInput
from .convolutions import Convolution3x3
from .fused_norm import InstanceNormLeakyReLU, wants_channels_last

NEGATIVE_SLOPE = 0.01


class UNet2d(nn.Module):
    """The 2D U-Net of nnU-Net v1, the paper's backbone.

    Two 3x3 convolutions a stage, each with InstanceNorm and LeakyReLU; down by a stride of 2, up by a 2x2 transposed
    convolution; a 1x1 segmentation head after every decoder stage. With features 32, 64, 128, 256, 480, 480, 480, 480,
    one channel and five classes it has the paper's 41,268,192 parameters. Source: nnU-Net v1's plan for FLARE21.

    Args:
        in_channels: channels of the image.
        out_channels: classes, background included.
        features: channels of each stage, finest first.
        strides: along height and width, of each stage but the first; 2 and 2 everywhere by default. Height and width
            must be multiples of their product, and larger than that in training: InstanceNorm needs more than one
            pixel in the last stage.

    Shapes:
        in: `(samples, in_channels, height, width)`.
        out, eval mode: logits `(samples, out_channels, height, width)`.
        out, train mode: list of logits, one a decoder stage, finest first, each at its own resolution.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        features: Sequence[int],
        strides: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        strides = strides or [(2, 2)] * (len(features) - 1)
        if len(strides) != len(features) - 1:
            raise BadInput(f"member#strides: {len(features)} features need {len(features) - 1}, got {len(strides)}.")
        self.divisor_x, self.divisor_y = (math.prod(stride[axis] for stride in strides) for axis in (0, 1))
        inputs = [in_channels, *features[:-1]]
        self.encoders = nn.ModuleList(
            two_convolutions(i, o, stride=stride)
            for i, o, stride in zip(inputs, features, [(1, 1), *strides], strict=True)
        )
        ups, decoders, heads = [], [], []
        for deep, skip, stride in zip(features[:0:-1], features[-2::-1], strides[::-1], strict=True):
            ups.append(
                Convolution(
                    2,
                    deep,
                    skip,
                    kernel_size=tuple(stride),
                    strides=tuple(stride),
                    padding=0,
                    output_padding=0,
                    bias=False,
                    conv_only=True,
                    is_transposed=True,
                )
            )
            decoders.append(two_convolutions(2 * skip, skip, stride=(1, 1)))
            heads.append(Convolution(2, skip, out_channels, kernel_size=1, bias=False, conv_only=True))
        self.ups, self.decoders, self.heads = nn.ModuleList(ups), nn.ModuleList(decoders), nn.ModuleList(heads)
        self.apply(initialise)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> UNet2d:
        """Do what `to(device)` and its like do; on a CPU the weights then lie in memory as images do in `forward`."""
        super()._apply(fn, recurse)
        if wants_channels_last(next(self.parameters())):
            super()._apply(lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t, recurse)
        return self

    def forward(self, image: Tensor) -> Tensor:
        """Return logits, or in train mode the list of all heads' logits, finest first."""
        if image.shape[2] % self.divisor_x != 0 or image.shape[3] % self.divisor_y != 0:
            raise ValueError(
                f"height and width must be multiples of {self.divisor_x} and {self.divisor_y}, got {image.shape}."
            )
        x = image
        if not torch.jit.is_scripting():  # noqa: SIM102  TorchScript would compile what is behind it
            if wants_channels_last(image):
                x = channels_last(image)
        skips: list[Tensor] = []
        for encoder in self.encoders:
            x = encoder(x)
            skips.append(x)
        skips.pop()
        stages: list[Tensor] = []
        for up, decoder in zip(self.ups, self.decoders):  # noqa: B905  TorchScript knows no strict
            x = decoder(torch.cat([up(x), skips.pop()], dim=1))
            stages.append(x)
        # an exported network only infers: TorchScript allows one type of result
        if not torch.jit.is_scripting():  # noqa: SIM102
            if self.training:
                logits = [head(stage) for head, stage in zip(self.heads, stages, strict=True)]
                return logits[::-1]  # type: ignore[return-value]
        finest: Tensor = self.heads[-1](x)
        return finest


def two_convolutions(in_channels: int, out_channels: int, *, stride: Sequence[int]) -> nn.Sequential:
    """Return two 3x3 convolutions with bias, InstanceNorm and LeakyReLU; the first has the stride."""

    def convolution(channels: int, strides: Sequence[int]) -> nn.Sequential:
        layer = Convolution3x3(channels, out_channels, stride=(strides[0], strides[1]))
        norm = nn.Sequential(OrderedDict(N=InstanceNormLeakyReLU(out_channels, negative_slope=NEGATIVE_SLOPE)))
        return nn.Sequential(OrderedDict(conv=layer, adn=norm))  # MONAI's names

    return nn.Sequential(convolution(in_channels, stride), convolution(out_channels, (1, 1)))


def channels_last(image: Tensor) -> Tensor:
    """Return images with their channels last in memory; one channel, too, is marked so, and its memory shared."""
    _samples, channels, height, width = image.shape
    if channels > 1:
        return image.contiguous(memory_format=torch.channels_last)
    return image.contiguous().as_strided(image.shape, (height * width, 1, width, 1))


def initialise(module: nn.Module) -> None:
    """Initialise a convolution as He et al. do for LeakyReLU (the paper, table 4); biases with 0."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
