"""Parameters and multiply-accumulate operations of a configuration's networks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..runtime.config_files import config_files
from ..runtime.configuration import open_config
from ..runtime.errors import BadInput


def committee_from(
    overlays: Sequence[str] = (), *, bundle: str | Path | None = None, values: Mapping[str, Any] | None = None
) -> tuple[nn.Module, list[int]]:
    """Return the committee of a configuration, and the shape of one training sample, `[1, channels, x, y]`.

    Args:
        overlays: configurations that go over train.yaml, by path or by name in the bundle's configs.
        bundle: the folder of a bundle; by default the installed one.
        values: keys of the configuration with other values.

    Raises:
        BadInput: see `open_config`; no network_def, patch_size or channels can be made of it.
    """
    parser = open_config("train.yaml", overlays, bundle=bundle, values=values)
    try:
        network = parser.get_parsed_content("network_def")
        shape = [1, parser.get_parsed_content("channels"), *parser.get_parsed_content("patch_size")]
    except Exception as error:  # missing keys, and all that a network's construction may raise
        files = ", ".join(config_files("train.yaml", overlays, bundle=bundle))
        raise BadInput(f"{files}: no network_def, channels and patch_size can be made of it ({error}).") from error
    return network, shape


def count_macs(network: nn.Module, shape: Sequence[int]) -> int:
    """Return the multiply-accumulate operations of convolutions and matrix products for one forward pass in eval mode.

    Nothing is computed: the network is copied to torch's meta device.
    """
    with warnings.catch_warnings(), torch.device("meta"), torch.no_grad():
        warnings.simplefilter("ignore")
        counter = FlopCounterMode(display=False)
        with counter:
            network.to("meta").eval()(torch.empty(*shape))
    return counter.get_total_flops() // 2


def size_table(network: nn.Module, shape: Sequence[int]) -> str:
    """Return a table: parameters and MACs of each member and of all together.

    Args:
        network: a committee.
        shape: of one sample, `[1, channels, x, y]`.
    """
    members = list(network.members)  # type: ignore[arg-type]
    rows = []
    for k, member in enumerate(members):
        parameters = sum(parameter.numel() for parameter in member.parameters())
        rows.append((f"member {k} ({type(member).__name__})", parameters, count_macs(member, shape)))
    rows.append((f"committee of {len(rows)}", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    width = max(len(row[0]) for row in rows)
    size = " x ".join(str(n) for n in shape[1:])
    lines = [f"{'':{width}}  {'parameters':>13}  {'MACs':>17}   (one slice, {size})"]
    lines += [f"{name:{width}}  {parameters:>13,}  {macs:>17,}" for name, parameters, macs in rows]
    return "\n".join(lines)
