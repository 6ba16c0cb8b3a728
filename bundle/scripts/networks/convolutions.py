"""3 x 3 convolution on CPUs by this bundle's own operators."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from .fused_norm import is_exported
from .native_build import load_native

SOURCE = Path(__file__).with_suffix(".cpp")
CHANNELS, LEAST_COLUMNS = 32, 32  # our operators take multiples of 32 channels; in shorter rows oneDNN is as quick


class Convolution3x3(nn.Conv2d):
    """PyTorch's 3 x 3 convolution, padded by 1; in bfloat16 and without gradients it is our operator, where it can be.

    With gradients PyTorch's autograd has to see it; in the passes that are traced `with_our_convolutions` puts ours in.

    Args:
        in_channels: of the images.
        out_channels: of the result.
        stride: along height and width.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: tuple[int, int]) -> None:
        super().__init__(in_channels, out_channels, 3, stride=stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of `(samples, in_channels, height, width)`."""
        if not torch.jit.is_scripting():  # noqa: SIM102  TorchScript doesn't compile what is behind it
            if self.is_ours(x):
                narrow = [None if one is None else one.to(torch.bfloat16) for one in (self.weight, self.bias)]
                convolved: Tensor = torch.ops.cyclic_committee.convolution([x], *narrow)
                return convolved
        return self._conv_forward(x, self.weight, self.bias)  # type: ignore[no-any-return]

    def is_ours(self, x: Tensor) -> bool:
        """Return whether our operator can take these images now, and is quicker."""
        if torch.is_grad_enabled() or x.device.type != "cpu" or x.dim() != 4 or is_exported() or not onednn_is_on():
            return False
        is_cast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        is_narrow = is_cast or self.weight.dtype == torch.bfloat16
        return is_narrow and self.stride == (1, 1) and are_for_ours([x], (self.in_channels, self.out_channels))


def are_for_ours(images: Sequence[Tensor], channels: Sequence[int]) -> bool:
    """Return whether our operators can take these images, on this processor, and are quicker.

    Args:
        images: `(samples, channels, height, width)`; the last one tells how long the rows are.
        channels: of the images, part by part.
    """
    return (
        all(one.dtype == torch.bfloat16 for one in images)
        and all(one.is_contiguous(memory_format=torch.channels_last) for one in images)
        and all(number % CHANNELS == 0 for number in channels)
        and images[-1].shape[3] >= LEAST_COLUMNS
        and native_is_there()
    )


def onednn_is_on() -> bool:
    """Return whether PyTorch's CPU kernels for convolutions are oneDNN's."""
    return bool(torch.backends.mkldnn.enabled)


@torch.compiler.assume_constant_result
def native_is_there() -> bool:
    """Return whether our operators are there; they are compiled when first asked for.

    Processors that multiply tiles of bfloat16 (AMX) don't need them, others than with AVX-512's pairs can't run them.
    """
    return load_once()


@functools.cache
def load_once() -> bool:
    """Load the operators where they are of use, unless this file, under its other name, has already done so."""
    able = torch.cpu.get_capabilities()
    if not able.get("avx512_bf16") or able.get("amx_bf16"):
        return False
    return hasattr(torch.ops.cyclic_committee, "weight_gradient") or load_native(SOURCE, flags=["-mavx512bf16"])
