"""The report's tables of network size, inference time and memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..data.volumes import case_name, first_file
from ..estimate.model_size import count_macs
from ..experiments.inference_costs import CaseCost, case_costs
from ..runtime.config_files import reachable, require_own_expressions
from ..runtime.configuration import open_config
from ..runtime.errors import BadInput
from .runs import Run
from .scores import fixed
from .tables import Column, Table

SHAPE = ("channels", "patch_size")  # of what the networks take


def size_rows(run: Run) -> list[tuple[str, int, int, str]]:
    """Return of each member and of all together: name, parameters, MACs, and the size of the slice they are for.

    Raises:
        BadInput: no networks can be made of the run's configuration.
    """
    configs = run.folder / "bundle" / "configs"
    try:
        files = [configs / name for name in ("train.yaml", *run.overlays)]
        parser = open_config("train.yaml", files, values=run.settings["values"])  # with the installed scripts
        require_own_expressions(reachable(parser.get(), ("network_def", *SHAPE)), where=configs)
        with torch.device("meta"):  # nothing is allocated
            network: Any = parser.get_parsed_content("network_def")
        channels, patch_size = (parser.get_parsed_content(name) for name in SHAPE)
        shape = [1, channels, *patch_size]
        rows = []
        for number, member in enumerate(network.members):
            count = sum(parameter.numel() for parameter in member.parameters())
            rows.append((f"member {number} ({type(member).__name__})", count, count_macs(member, shape)))
    except BadInput:
        raise
    except Exception as error:  # YAML, missing keys, and all that a network's construction may raise
        raise BadInput(f"{configs}: no networks can be made of its train.yaml ({error}). Was it changed?") from error
    total = (f"committee of {len(rows)}", sum(row[1] for row in rows), sum(row[2] for row in rows))
    size = " x ".join(str(n) for n in shape[1:])
    return [(*row, size) for row in (*rows, total)]


def size_table(runs: Sequence[Run]) -> tuple[Table | None, list[str]]:
    """Return the parameters and operations of the runs' networks, and what couldn't be told."""
    rows, problems = [], []
    for run in runs:
        try:
            rows += [(run.name, name, f"{count:,}", f"{macs:,}", size) for name, count, macs, size in size_rows(run)]
        except BadInput as error:
            problems.append(str(error))
    names = ("run", "network", "parameters", "MACs", "for one slice of")
    table = Table(
        "size",
        "Size of the networks: parameters, and multiply-accumulate operations of one forward pass",
        tuple(Column(name, is_text=name in ("run", "network")) for name in names),
        tuple(tuple((text,) for text in row) for row in rows),
    )
    return (table if rows else None), problems


def cost_table(runs: Sequence[Run], *, cases: int) -> tuple[Table | None, list[str]]:
    """Return what labelling some cases of each run takes, measured now or before, and what couldn't be told.

    Args:
        runs: with their weights.
        cases: of each run, measured one by one; 0 for none but those that were measured before.
    """
    rows, problems = [], []
    for run in runs:
        try:
            cases_of = {case_name(first_file(item["image"])): case for case, item in run.files.items()}
            for cost in case_costs(run.folder, cases=cases):
                rows.append((run.name, cases_of.get(cost.case, cost.case), *cost_row(cost)))
        except BadInput as error:
            problems.append(f"What a case costs wasn't measured: {error}")
    names = ("run", "case", "seconds", "peak memory, MiB", "GPU memory, MiB")
    table = Table(
        "costs",
        "What labelling a case takes",
        tuple(Column(name, is_text=name in ("run", "case")) for name in names),
        tuple(tuple((text,) for text in row) for row in rows),
        note="As FLARE21 measures it: one case in a process of its own, Python's start, the loading of the weights and "
        "the writing of the label map included."
        + ("" if any(row[-1] for row in rows) else " No NVIDIA GPU was there, so GPU memory is unknown."),
    )
    return (table if rows else None), problems


def cost_row(cost: CaseCost) -> tuple[str, ...]:
    """Return a case's cost as text, without its name."""
    gpu = "" if cost.gpu_memory_mib is None else fixed(cost.gpu_memory_mib, 0)
    return fixed(cost.seconds, 1), fixed(cost.peak_memory_mib, 0), gpu
