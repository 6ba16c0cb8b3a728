"""The command that trains a fold, and its resumption."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..bundles.fold_bundle import OVERLAY
from ..runtime.atomic_files import write_whole


def training_command(fold: Path, device_setting: Mapping[str, Any], *, resume: bool) -> list[str]:
    """Return the command of a training, as a list of arguments.

    One device: this interpreter, or CMD_PREFIX. Several: torchrun by this interpreter, or CMD_PREFIX, and the overlay
    for many GPUs. Several machines: as several devices, with MASTER_ADDR, MASTER_PORT and NODE_RANK from the
    environment; this is to be started on each of them, and was not run.

    Args:
        fold: the fold's folder.
        device_setting: n_devices, NUM_NODES and CMD_PREFIX, as BundleAlgo has them.
        resume: whether the training goes on.
    """
    devices, nodes = int(device_setting["n_devices"]), int(device_setting["NUM_NODES"])
    prefix = shlex.split(str(device_setting["CMD_PREFIX"] or ""))
    prefix = [] if "None" in prefix else prefix  # MONAI's way of saying nothing
    many = devices * nodes > 1 or any("torchrun" in word or "torch.distributed" in word for word in prefix)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(devices)]
    where = ["--standalone"]
    if nodes > 1:
        address = f"{os.environ.get('MASTER_ADDR', '127.0.0.1')}:{os.environ.get('MASTER_PORT', '29500')}"
        where = ["--nnodes", str(nodes), "--node_rank", os.environ.get("NODE_RANK", "0")]
        where += ["--rdzv_backend", "c10d", "--rdzv_endpoint", address, "--rdzv_id", fold.name]
    start = prefix or ([*torchrun, *where] if many else [sys.executable])
    names = ["train.yaml", "multi_gpu_train.yaml"] if many else ["train.yaml"]
    files = [str(fold / "configs" / name) for name in names]
    goes_on = ["--resume", "true"] if resume else []
    return [*start, "-m", "monai.bundle", "run", "training", "--config_file", str(files), *goes_on]


def training_environment(device_setting: Mapping[str, Any]) -> dict[str, str]:
    """Return the environment of a training: the devices, and no warnings before its first line is reached."""
    visible = str(device_setting["CUDA_VISIBLE_DEVICES"])
    return {**os.environ, "PYTHONWARNINGS": "ignore", **({"CUDA_VISIBLE_DEVICES": visible} if visible else {})}


def begin_or_resume(fold: Path, overlay: str) -> bool:
    """Return whether a training goes on; else take away what an earlier one left, so that nothing of it is mistaken.

    It goes on if it was interrupted, and the overlay is the one that it began with.

    Args:
        fold: the fold's folder.
        overlay: the text of the overlay.
    """
    output, model = fold / "output", fold / "models" / "model.pt"
    began_with, checkpoint, history = output / OVERLAY, output / "checkpoint.pt", output / "history.json"
    interrupted = checkpoint.is_file() and not model.is_file() and began_with.is_file()
    if interrupted and began_with.read_text(encoding="utf-8") == overlay:
        return True
    for left in (checkpoint, model, history, output / "model_best.pt"):
        left.unlink(missing_ok=True)
    output.mkdir(exist_ok=True)
    write_whole(began_with, overlay)
    return False
