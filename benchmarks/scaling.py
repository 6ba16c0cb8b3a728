"""How would training scale to many GPUs? On paper and by simulation: nothing is run on a GPU here.

    python benchmarks/scaling.py [--step_s 1.04] [--samples 8] [--config OVERLAY]

What is known: the networks' sizes, and with them the bytes that the processes exchange in an iteration (counted from
the configuration); the paper's time of an iteration on one GPU (72.5 hours for 250,000). What is stated: bandwidths and
latencies of links, below. The simulation lets each member's gradients travel while the next member computes, as
`trainer.py` does one after another, and draws what each process learns from where all decide together.

    python benchmarks/scaling.py --step_s 0.3     for a GPU that is three times as fast
"""

from __future__ import annotations

import random
import statistics
import sys

import fire

from cyclic_committee.scripts.estimate.settings import read_settings
from cyclic_committee.scripts.runtime.bundle_paths import bundle_root

PAPER_STEP_S = 72.5 * 3600 / 250_000
# bytes a second and seconds a message that a process sees: one direction, as vendors state it
LINKS = {
    "NVLink (450 GB/s)": (450e9, 5e-6),
    "PCIe 4 (25 GB/s)": (25e9, 10e-6),
    "InfiniBand NDR (50 GB/s a node)": (50e9, 10e-6),
    "Ethernet 100 Gbit (12.5 GB/s a node)": (12.5e9, 30e-6),
    "Ethernet 10 Gbit (1.25 GB/s a node)": (1.25e9, 50e-6),
}
LAYOUTS = (  # nodes, GPUs in each, link in a node, link between nodes
    (1, 8, "NVLink (450 GB/s)", None),
    (1, 8, "PCIe 4 (25 GB/s)", None),
    (8, 8, "NVLink (450 GB/s)", "InfiniBand NDR (50 GB/s a node)"),
    (8, 8, "NVLink (450 GB/s)", "Ethernet 100 Gbit (12.5 GB/s a node)"),
    (8, 8, "NVLink (450 GB/s)", "Ethernet 10 Gbit (1.25 GB/s a node)"),
)
STEPS = 2000  # simulated


def ring_s(size: float, processes: int, link: str) -> float:
    """Seconds of an all-reduce of `size` bytes by a ring: each process sends 2 (n - 1) / n of it."""
    bandwidth, latency_s = LINKS[link]
    return 2 * (processes - 1) * (size / processes / bandwidth + latency_s)


def all_reduce_s(size: float, nodes: int, gpus: int, inside: str, between: str | None) -> float:
    """Seconds of an all-reduce in two levels: within the nodes, and each GPU's part of it between them."""
    within = ring_s(size, gpus, inside)
    return within if between is None else within + ring_s(size, nodes, between)


def iteration_s(parts: list[list[int]], *, samples: int, unit_s: float, wire_s: float) -> float:
    """Seconds of one iteration of all processes.

    Args:
        parts: for each member the number of samples that each process learns from.
        samples: of each process.
        unit_s: of a forward pass of one sample; a backward pass has twice the work.
        wire_s: of the all-reduce of one member.
    """
    now = len(parts) * samples * unit_s  # all forward passes
    wire_free = now
    for learned in parts:
        now += 2 * max(learned) * unit_s  # the slowest process: its part is waited for
        wire_free = max(now, wire_free) + wire_s
    return max(now, wire_free)


def main(*, step_s: float = PAPER_STEP_S, samples: int = 8, config: str | None = None) -> None:
    sys.path.insert(1, bundle_root())
    settings = read_settings([config] if config else [], {"batch_size": samples})
    sizes = [4 * sum(parameter.numel() for parameter in member.parameters()) for member in settings.members]
    members, kept, total = len(sizes), settings.kept, sum(sizes)
    unit_s = step_s / (members * (samples + 2 * kept))  # 60 units for three members and 6 of 8 samples
    print(f"{members} members, {total / 1e6:.0f} MB of gradients (float32); {step_s:.2f} s a step on one GPU")
    for n in (8, 64):
        print(f"{n} processes: each sends and receives {2 * (n - 1) / n * total / 1e6:.0f} MB an iteration", end="; ")
        print(f"for one decision of all {4 * members * samples * n} bytes of losses more")
    print(f"\n{'efficiency':76}{'each decides':>14}{'all decide':>12}")
    dice = random.Random(0)
    for nodes, gpus, inside, between in LAYOUTS:
        n = nodes * gpus
        wire_s = statistics.fmean(all_reduce_s(size, nodes, gpus, inside, between) for size in sizes)
        each = iteration_s([[kept] * n] * members, samples=samples, unit_s=unit_s, wire_s=wire_s)
        together = []
        for _ in range(STEPS // n):
            chosen = [dice.sample(range(n * samples), kept * n) for _ in range(members)]
            parts = [[sum(place % n == rank for place in of_member) for rank in range(n)] for of_member in chosen]
            together.append(iteration_s(parts, samples=samples, unit_s=unit_s, wire_s=wire_s))
        name = f"{n} GPUs, {inside}" + (f", {between}" if between else "")
        print(f"{name:76}{step_s / each:14.3f}{step_s / statistics.fmean(together):12.3f}")


if __name__ == "__main__":
    fire.Fire(main)
