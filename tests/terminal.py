"""What is typed in a terminal after `cyclic-committee`, in this process, and a demo in the size of a test."""

from __future__ import annotations

import sys

import pytest
from conftest import TINY

from cyclic_committee.scripts.commands.main import main

TINY_DEMO = {
    **{key: value for key, value in TINY.items() if key not in ("member#features", "device")},
    "member": {  # as a whole: over a plan's, which has strides
        "_target_": "scripts.networks.unet.UNet2d",
        "in_channels": "@channels",
        "out_channels": "@classes",
        "features": [4, 8, 16],
    },
    "max_epochs": 1,
    "iterations_per_epoch": 2,
    "val_interval": 1,
}


def type_in(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["cyclic-committee", *words])
    monkeypatch.setattr(sys, "path", list(sys.path))
    main()
