"""In which number format do the networks compute?"""

from __future__ import annotations

import torch

from .errors import BadInput

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
