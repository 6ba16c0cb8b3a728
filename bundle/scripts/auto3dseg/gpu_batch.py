"""The largest batch size that fits into the GPUs' memory, by estimate."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..estimate.memory import cuda_memory, member_activations
from ..estimate.settings import read_settings
from ..runtime.errors import BadInput

logger = logging.getLogger(__name__)
RANGE = "range_num_images_per_batch"
USUAL_RANGE = (1, 20)  # Auto3DSeg's
SHARE = 0.9  # of the memory: the estimate was compared with no GPU, and others use it, too


def largest_batch(specs: Mapping[str, Any], fold: Path) -> int | None:
    """Return the largest batch whose estimated CUDA memory fits 90 % of the smallest GPU's; None without a GPU.

    Nothing is run on a GPU: the networks are traced, and what they take is added up, see `estimate.memory`.

    Args:
        specs: of Auto3DSeg's gpu_customization_specs for one algorithm; only range_num_images_per_batch counts, by
            default 1 to 20. If not even the smallest fits, it is that one, and the log says so.
        fold: folder of the fold, with its train.yaml.

    Raises:
        BadInput: a range that is none; a network that can't be traced.
    """
    limits = specs.get(RANGE, USUAL_RANGE)
    if not (isinstance(limits, list | tuple) and len(limits) == 2 and 1 <= limits[0] <= limits[1]):
        raise BadInput(f"{RANGE} must be the smallest and the largest batch, such as [1, 20], got {limits}.")
    memory = smallest_gpu_bytes()
    if memory is None:
        logger.warning("gpu_customization: no GPU is visible, so the batch stays as it is planned.")
        return None
    smallest, largest = (int(limit) for limit in limits)
    if cuda_bytes(smallest, fold) > SHARE * memory:
        logger.warning(f"gpu_customization: not even a batch of {smallest} may fit into the GPU's memory.")
        return smallest
    while smallest < largest:
        middle = (smallest + largest + 1) // 2
        if cuda_bytes(middle, fold) <= SHARE * memory:
            smallest = middle
        else:
            largest = middle - 1
    logger.info(f"gpu_customization: a batch of {smallest}.")
    return smallest


def smallest_gpu_bytes() -> int | None:
    """Return the memory of the visible GPU that has the least; None: there is none."""
    sizes = [torch.cuda.get_device_properties(number).total_memory for number in range(torch.cuda.device_count())]
    return min(sizes, default=None)


def cuda_bytes(batch: int, fold: Path) -> int:
    """Return the estimated CUDA memory of a fold's training with a batch, in bytes."""
    if str(fold) not in sys.path:
        sys.path.insert(1, str(fold))  # as `monai.bundle run` does, for the configuration's own scripts
    settings = read_settings([str(fold / "configs" / "train.yaml")], {"batch_size": batch})
    members = [member_activations(member, settings, device="CUDA") for member in settings.members]
    if None in members:
        raise BadInput("gpu_customization: a member can't be traced, so its memory is unknown. Leave it out.")
    return sum(cuda_memory(settings, members).values())
