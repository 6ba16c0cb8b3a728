"""Parameters and multiply-accumulate operations of a configuration's networks."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..runtime.errors import BadInput


def committee_from(config_files: Sequence[str]) -> tuple[nn.Module, list[int]]:
    """Return the committee of a configuration, and the shape of one training sample, `[1, channels, x, y]`.

    Raises:
        BadInput: a file that is missing or no configuration, or one without network_def, patch_size or channels.
    """
    missing = [file for file in config_files if not Path(file).is_file()]
    if missing:
        raise BadInput(f"{missing[0]}: no such file. Give configurations such as train.yaml and an overlay.")
    parser = ConfigParser()
    try:
        parser.read_config(list(config_files))
        network = parser.get_parsed_content("network_def")
        shape = [1, parser.get_parsed_content("channels"), *parser.get_parsed_content("patch_size")]
    except Exception as error:  # YAML, missing keys, and all that a network's construction may raise
        files = ", ".join(config_files)
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
