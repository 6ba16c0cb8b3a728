"""Estimate of a training's time on this CPU, from measured iterations."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..autograd.traced import KeptSamples
from ..data.slice_dataset import plain_tensors
from ..training.trainer import score
from .settings import Settings

WARM_UP, LEAST_RUNS, MOST_RUNS = 2, 2, 9  # the first run traces and compiles, the second still grows the heap
LEAST_S = 3.0  # of all runs that count


def member_seconds(member: nn.Module, settings: Settings) -> float:
    """Return the seconds that one member's share of an iteration takes, by doing it on noise.

    The member is changed by it.
    """
    image, label = settings.noise(settings.batch)
    kept_samples = KeptSamples.of(range(settings.batch - settings.kept, settings.batch))

    def loss(output: Tensor) -> Tensor:
        return settings.loss(output, label[kept_samples.order])

    def step() -> None:
        forward = settings.backward_mode(member, image, inferer=settings.inferer, autocast=settings.autocast)
        score([forward.logits], label)
        settings.optimizer.zero_grad(set_to_none=True)
        forward.backward(kept_samples, loss)
        nn.utils.clip_grad_norm_(member.parameters(), settings.gradient_clip)
        settings.optimizer.step()

    seconds = median_seconds(step)
    settings.optimizer.zero_grad(set_to_none=True)
    return seconds


def loading_seconds(settings: Settings, *, iteration_s: float) -> float:
    """Return the seconds that loading data adds to an iteration which takes so long without.

    The transforms of a mini-batch are done on noise; reading slices isn't in it. Without workers that comes on top.
    With workers it is done meanwhile, as far as there are cores that aren't computing.
    """
    image, label = settings.noise(1, size=settings.crop_size)

    def mini_batch() -> None:
        with plain_tensors():
            for _ in range(settings.batch):
                settings.preprocessing({"image": image[0].clone(), "label": label[0].clone()})

    seconds = median_seconds(mini_batch)
    if settings.workers == 0:
        return seconds
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    by_workers = seconds / min(settings.workers, cores)
    by_all_cores = (iteration_s * torch.get_num_threads() + seconds) / cores
    return max(by_workers, by_all_cores, iteration_s) - iteration_s


def median_seconds(work: Callable[[], None]) -> float:
    """Return the median time of some runs; those that warm up don't count."""
    for _ in range(WARM_UP):
        work()
    seconds: list[float] = []
    while len(seconds) < LEAST_RUNS or (sum(seconds) < LEAST_S and len(seconds) < MOST_RUNS):
        began_s = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began_s)
    return statistics.median(seconds)
