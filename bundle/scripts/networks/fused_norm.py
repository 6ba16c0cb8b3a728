"""InstanceNorm and LeakyReLU as one CPU operator."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .native_build import load_native

SOURCE = Path(__file__).with_name("fused_norm.cpp")


class InstanceNormLeakyReLU(nn.Module):
    """InstanceNorm with weight and bias, then LeakyReLU; on a CPU one operator, compiled on first use.

    PyTorch's two layers go over memory several times, and in one order of memory only: on channels-last tensors they
    copy. The operator reads its input twice and writes its result once, and keeps nothing for the backward pass but
    its input. It is taken for float32 and bfloat16 on a CPU, channels last in memory; all else (other devices, formats
    and orders, TorchScript, exported networks, no compiler) goes PyTorch's way with the same result to rounding.
    In bfloat16 the operator rounds once, at the end; PyTorch's way rounds between the two layers, too. On one machine
    results don't depend on the number of threads. There are no second derivatives.

    Args:
        channels: of the input.
        eps: added to the variance.
        negative_slope: of LeakyReLU.

    Shapes:
        in and out: `(samples, channels, height, width)`, of the same dtype and order in memory.

    Raises:
        ValueError: one pixel only, as `torch.nn.functional.instance_norm` does.
    """

    def __init__(self, channels: int, *, eps: float = 1e-5, negative_slope: float = 0.01) -> None:
        super().__init__()
        self.channels = channels
        self.eps = eps
        self.negative_slope = negative_slope
        self.weight = nn.Parameter(torch.ones(channels, dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(channels, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Return LeakyReLU of the normalised input."""
        if not torch.jit.is_scripting():  # noqa: SIM102  TorchScript doesn't compile what is behind it
            if is_for_native(x, self.weight, self.bias):
                activated: Tensor = NativeInstanceNormLeakyReLU.apply(
                    x, self.weight, self.bias, self.eps, self.negative_slope
                )
                return activated
        normalised = F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)
        return F.leaky_relu(normalised, self.negative_slope, inplace=True)

    def extra_repr(self) -> str:
        """Return the settings, for `repr`."""
        return f"{self.channels}, eps={self.eps}, negative_slope={self.negative_slope}"


def is_for_native(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Return whether the operator can take these tensors and is there; it is compiled when first asked for."""
    return (
        not is_exported()
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.dim() == 4
        and x.shape[0] * x.shape[1] > 0
        and x.shape[2] * x.shape[3] > 1
        and x.is_contiguous(memory_format=torch.channels_last)
        and weight.dtype == bias.dtype == torch.float32
        and weight.device == bias.device == x.device
        and native_is_there()
    )


def wants_channels_last(image: Tensor) -> bool:
    """Return whether a network of these layers is quicker on images that have their channels last in memory."""
    return image.device.type == "cpu" and not is_exported() and native_is_there()


def is_exported() -> bool:
    """Return whether the network is being written down for others, who don't have our operators."""
    return torch.jit.is_tracing() or torch.compiler.is_exporting()


@torch.compiler.assume_constant_result
def native_is_there() -> bool:
    """Return whether the operators are there, and oneDNN isn't turned off; the first call compiles and loads them."""
    return bool(torch.backends.mkldnn.enabled) and load_once()


@functools.cache
def load_once() -> bool:
    """Load the operators, unless this file, under its other name, has already done so."""
    return hasattr(torch.ops.cyclic_committee, "instance_norm_leaky_relu") or load_native(SOURCE)


class NativeInstanceNormLeakyReLU(torch.autograd.Function):
    """The operator and its derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> Tensor:
        """Return LeakyReLU of the normalised input; keep the input and its statistics."""
        y: Tensor
        y, mean, rstd = torch.ops.cyclic_committee.instance_norm_leaky_relu(x, weight, bias, eps, slope)
        ctx.save_for_backward(x, mean, rstd, weight, bias)
        ctx.slope = slope
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Return the derivatives by input, weight and bias."""
        derivative = torch.ops.cyclic_committee.instance_norm_leaky_relu_backward
        return *derivative(grad, *ctx.saved_tensors, ctx.slope), None, None
