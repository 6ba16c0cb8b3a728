"""Number formats: mixed precision (autocast), and weights narrowed for inference."""

from __future__ import annotations

import torch
from torch import nn

from ..runtime.errors import BadInput

CAST = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)  # by autocast, at each call
DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast(device: torch.device | str, precision: str) -> torch.autocast:
    """Return the autocast context for a device.

    Args:
        device: where the networks compute.
        precision: "float32", "bfloat16", "float16", or "auto": bfloat16 on GPUs and CPUs that compute in it, float16
            on older GPUs, float32 on older CPUs.

    Raises:
        BadInput: an unknown precision, or float16 on a CPU.
    """
    device = torch.device(device)
    if precision == "auto":
        dtype = fastest_dtype(device.type)
    elif precision in DTYPES:
        dtype = DTYPES[precision]
    else:
        raise BadInput(f"precision must be one of auto, {', '.join(DTYPES)}, got {precision}.")
    if dtype == torch.float16 and device.type == "cpu":
        raise BadInput("precision float16 needs a GPU: take auto, bfloat16 or float32.")
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def fastest_dtype(device_type: str) -> torch.dtype | None:
    """Return the narrow format that a kind of device computes in, or None."""
    if device_type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16
    if device_type == "cpu":
        able = torch.cpu.get_capabilities()
        return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16") else None
    return None


def narrow_weights(network: nn.Module, *, precision: str) -> nn.Module:
    """Return a network whose convolutions keep their weights in the format that they are computed in, for inference.

    Autocast would cast them anew for each slice. The results are the same, bit by bit, at half of the memory; outside
    of `autocast` such a network can't be called. Not for training: small steps would be lost in rounding.

    Args:
        network: on its device; it is changed. Weights that are loaded into it later are cast on the way.
        precision: see `autocast`.

    Raises:
        BadInput: see `autocast`.
    """
    devices = {parameter.device for parameter in network.parameters()}
    if len(devices) == 1:
        context = autocast(devices.pop(), precision)
        for module in network.modules():
            if context._enabled and isinstance(module, CAST):
                module.to(context.fast_dtype)
    return network
