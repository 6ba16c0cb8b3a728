"""Estimate of a training's parameters, operations, memory and time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from ..runtime.allocator import keep_freed_memory
from ..runtime.errors import BadInput
from .memory import available_bytes, cpu_memory, cuda_memory, member_activations, resident_bytes, step_bytes
from .model_size import count_macs
from .settings import Settings, read_settings
from .time import loading_seconds, member_seconds


@dataclass(frozen=True)
class Estimate:
    """What a training will cost: bytes, seconds, and multiply-accumulate operations (MACs)."""

    parameters: dict[str, int]  # of each member
    macs: dict[str, int]  # of each member's forward pass, for one sample
    iteration_macs: int
    shape: list[int]  # of one sample: 1, channels, x, y
    batch: int
    kept: int  # samples that a member learns from
    iterations: int  # in an epoch
    epochs: int
    memory: dict[str, dict[str, int]]  # "CPU" and "CUDA": the bytes of each part
    free: dict[str, int | None]  # "CPU" and "CUDA": bytes that this machine has left; None: unknown, or no device
    iteration_s: float | None  # None: not measured
    threads: int
    notes: list[str] = field(default_factory=list)  # what is not in it


def estimate(
    overlays: Sequence[str], values: Mapping[str, Any] | None = None, *, bundle: str | Path | None = None
) -> Estimate:
    """Return what a training by a configuration will cost; no data set is needed, and nothing is written.

    Memory is that of the training process, from a trace of each network, in which nothing is computed; the workers
    that load data come on top. Time comes from some iterations of each different member alone, on noise, on this
    machine's CPU as it is now; that takes about as long as three iterations of one network, and the memory of one
    network's training. It is left out where that memory isn't there.

    Args:
        overlays: configurations that go over train.yaml, by path or by name in the bundle's configs.
        values: keys of the configuration with other values.
        bundle: the folder of a bundle; by default the installed one.

    Raises:
        BadInput: a file that is missing, an unknown key, or a configuration that no training can be made of.
    """
    settings = read_settings(overlays, values or {}, bundle=bundle)
    members = settings.members
    names = [f"member {k} ({type(member).__name__})" for k, member in enumerate(members)]
    kinds = [kind_of(member) for member in members]
    first = {kind: kinds.index(kind) for kind in kinds}  # of each kind
    free = {"CPU": available_bytes(), "CUDA": torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None}
    with tqdm(total=2 * len(first), desc="tracing", unit="network", leave=False, disable=None) as bar:
        of_kinds = {}
        for kind, k in first.items():
            with bad_input_of(names[k], settings):
                for device in free:
                    of_kinds[device, kind] = member_activations(members[k], settings, device=device)
            bar.update()
        libraries = resident_bytes()
        keep_freed_memory()
        of_members = {device: [of_kinds[device, kind] for kind in kinds] for device in free}
        needed = max(step_bytes(settings, of_one) for of_one in of_members["CPU"])
        seconds = None
        if free["CPU"] is None or needed < free["CPU"]:
            bar.set_description("timing")
            seconds = seconds_of(settings, kinds, names, bar)
    memory = {
        "CPU": cpu_memory(settings, of_members["CPU"], libraries=libraries),
        "CUDA": cuda_memory(settings, of_members["CUDA"]),
    }
    learning = [2 if of_one is not None and of_one.in_one_pass else 3 for of_one in of_members["CPU"]]
    parameters = [sum(parameter.numel() for parameter in member.parameters()) for member in members]
    macs = [count_macs(member, settings.shape) for member in members]  # the last: it takes the weights away
    return Estimate(
        parameters=dict(zip(names, parameters, strict=True)),
        macs=dict(zip(names, macs, strict=True)),
        iteration_macs=sum(n * (settings.batch + k * settings.kept) for n, k in zip(macs, learning, strict=True)),
        shape=settings.shape,
        batch=settings.batch,
        kept=settings.kept,
        iterations=settings.iterations_per_epoch,
        epochs=settings.epochs,
        memory=memory,
        free=free,
        iteration_s=seconds,
        threads=torch.get_num_threads(),
        notes=notes_on(
            settings,
            [names[k] for kind, k in first.items() if of_kinds["CPU", kind] is None],
            timed=seconds is not None,
        ),
    )


def kind_of(member: nn.Module) -> tuple[Any, ...]:
    """Return what members of the same cost have in common: class, layers and shapes."""
    return type(member), repr(member), tuple(parameter.shape for parameter in member.parameters())


def seconds_of(settings: Settings, kinds: Sequence[Any], names: Sequence[str], bar: Any) -> float:
    """Return the seconds of an iteration of all members, loading of data included."""
    by_kind: dict[Any, float] = {}
    for kind, name, member in zip(kinds, names, settings.members, strict=True):
        if kind not in by_kind:
            with bad_input_of(name, settings):
                by_kind[kind] = member_seconds(member, settings)
            bar.update()
    computing_s = sum(by_kind[kind] for kind in kinds)
    return computing_s + loading_seconds(settings, iteration_s=computing_s)


@contextmanager
def bad_input_of(name: str, settings: Settings) -> Iterator[None]:
    """Turn whatever a network and its loss raise into one line."""
    try:
        yield
    except Exception as error:
        shape = " x ".join(str(n) for n in (settings.batch, *settings.shape[1:]))
        raise BadInput(
            f"{name}: it can't be trained on mini-batches of {shape} ({error}). Change patch_size or member."
        ) from error


def notes_on(settings: Settings, untraced: Sequence[str], *, timed: bool) -> list[str]:
    """Return what a reader of the estimate must know."""
    notes = [f"{name}: can't be traced, so its activations are not in it." for name in untraced]
    if not timed:
        notes.append("Time was not measured: one network's step needs more memory than is free.")
    if settings.most_kept != settings.kept:
        notes.append(f"Members learn from up to {settings.most_kept} slices in the first epochs, which take longer.")
    if settings.precision == "auto" and not settings.autocast._enabled:
        notes.append("This CPU computes in float32, and so it is estimated for CUDA: 16 bits take about half.")
    return notes


def format_estimate(estimated: Estimate) -> str:
    """Return the estimate as a table to read."""
    size = " x ".join(str(n) for n in estimated.shape[1:])
    names = [*estimated.parameters, f"committee of {len(estimated.parameters)}"]
    width = max(len(name) for name in (*names, *estimated.memory["CPU"], *estimated.memory["CUDA"])) + 2
    lines = [f"{'':{width}}{'parameters':>14}{'MACs':>20}   (one slice, {size})"]
    for name in names:
        parameters = estimated.parameters.get(name, sum(estimated.parameters.values()))
        lines.append(f"{name:{width}}{parameters:14,}{estimated.macs.get(name, sum(estimated.macs.values())):20,}")

    columns = list(estimated.memory)
    lines += ["", f"{'memory':{width}}" + "".join(f"{column:>14}" for column in columns)]
    for part in dict.fromkeys(part for column in columns for part in estimated.memory[column]):
        sizes = [estimated.memory[column].get(part) for column in columns]
        lines.append(f"{part:{width}}" + "".join(f"{'' if n is None else in_bytes(n):>14}" for n in sizes))
    lines.append(
        f"{'in all':{width}}" + "".join(f"{in_bytes(sum(estimated.memory[column].values())):>14}" for column in columns)
    )
    lines.append(f"{'free on this machine':{width}}")
    for column, unknown in (("CPU", "unknown"), ("CUDA", "no device")):
        size_free = estimated.free[column]
        lines[-1] += f"{unknown if size_free is None else in_bytes(size_free):>14}"

    steps = estimated.iterations * estimated.epochs
    times = [
        None if estimated.iteration_s is None else estimated.iteration_s * n for n in (1, estimated.iterations, steps)
    ]
    rows = zip(
        ("an iteration", f"an epoch of {estimated.iterations:,}", f"the training of {estimated.epochs:,} epochs"),
        times,
        (estimated.iteration_macs * n for n in (1, estimated.iterations, steps)),
        strict=True,
    )
    threads = f"{estimated.threads} thread{'s' if estimated.threads > 1 else ''}"
    lines += [
        "",
        f"{'time':{width}}{'CPU':>14}{'work':>14}   ({threads}, {estimated.batch} slices, {estimated.kept} kept)",
    ]
    for name, seconds, macs in rows:
        lines.append(f"{name:{width}}{'unknown' if seconds is None else duration(seconds):>14}{work(macs):>14}")
    lines += [
        "",
        "Not in it: preparing the cases, validation, and the memory of the processes that load data.",
        "The CUDA column is computed, not measured; how long a GPU takes can't be told without one.",
        *estimated.notes,
    ]
    return "\n".join(lines)


def in_bytes(size: int) -> str:
    """Return a size in the unit that suits it, such as `1.25 GiB`."""
    return f"{size / 2**20:.0f} MiB" if size < 0.1 * 2**30 else f"{size / 2**30:.2f} GiB"


def work(macs: int) -> str:
    """Return multiply-accumulate operations in the unit that suits them, such as `3.49 TMAC`."""
    power = min((len(str(macs)) - 1) // 3, 6)
    return f"{macs / 1000**power:.{2 if macs < 10 * 1000**power else 0}f} {' KMGTPE'[power].strip()}MAC"


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it, such as `0.41 s`, `12 min` or `3.4 days`."""
    limits = (("s", 1, 100), ("min", 60, 100), ("h", 3600, 72), ("days", 86400, float("inf")))
    unit, length_s = next((unit, length_s) for unit, length_s, below in limits if seconds / length_s < below)
    n = seconds / length_s
    return f"{n:,.{2 if n < 1 else 1 if n < 9.95 else 0}f} {unit}"
