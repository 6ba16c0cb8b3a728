"""Comparison of an exported network with the original."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..data.volumes import Files, first_file
from ..runtime.errors import BadInput
from .predictor import Predictor, plain_errors

TOLERANCE = 1e-4  # of a probability
TIE = 1e-5  # classes whose probabilities are nearer to each other: float32 can't tell which is the larger
# samples, and how often the patch along height and width: at the patch's multiples every network takes images
RANDOM_INPUT = ((3, 1, 1), (1, 2, 1), (1, 1, 2))
Network = Callable[[Tensor], Tensor]


@dataclass
class Agreement:
    """How near two networks are to each other on some input."""

    what: str
    pixels: int = 0
    difference: float = 0.0  # the largest, of a probability
    ties: int = 0  # pixels with another label, where the original's probabilities of the two are nearer than TIE


def compare_on_random_input(network: Network, exported: Network, example: Tensor, out: Path) -> Agreement:
    """Compare on several numbers of samples and sizes of normal random numbers."""
    agreement = Agreement("random input")
    generator = torch.Generator().manual_seed(0)
    _, channels, height, width = example.shape
    for samples, m, n in RANDOM_INPUT:
        compare(
            network,
            exported,
            torch.randn(samples, channels, m * height, n * width, generator=generator),
            agreement,
            out,
        )
    return agreement


def compare_on_volume(network: Network, exported: Network, predictor: Predictor, image: Files, out: Path) -> Agreement:
    """Compare on each tile of each slice that the network sees when the volume is labelled."""
    agreement = Agreement(first_file(image))
    with plain_errors():
        prepared = predictor.preprocessing({"image": str(image) if isinstance(image, Path) else image})
        predictor.inferer(prepared["image"][None], lambda tiles: compare(network, exported, tiles, agreement, out))
    return agreement


def compare(network: Network, exported: Network, image: Tensor, agreement: Agreement, out: Path) -> Tensor:
    """Return the network's probabilities for an image, after comparing the exported ones with them.

    Raises:
        BadInput: they don't agree.
    """
    shape = " x ".join(map(str, image.shape))
    probability = network(image)
    try:
        from_file = exported(image)
    except Exception as error:  # of whatever runs it
        reason = str(error).strip().split("\n")[0]
        raise BadInput(f"{out}: not written, since it fails on {shape} ({reason}). Choose another --format.") from error
    if from_file.shape != probability.shape:
        raise BadInput(
            f"{out}: not written, since for {shape} it gives {list(from_file.shape)}. Choose another --format."
        )
    difference = float((from_file - probability).abs().max())
    label = from_file.argmax(dim=1, keepdim=True)
    lost = probability.amax(dim=1, keepdim=True) - probability.gather(1, label)  # 0: the same label
    if not (difference <= TOLERANCE and float(lost.max()) <= TIE):  # NaN, too
        raise BadInput(
            f"{out}: not written, since on {agreement.what} ({shape}) its probabilities are up to {difference:.2g} "
            f"from the original's, and {int((lost > TIE).sum())} labels differ. Choose another --format."
        )
    agreement.pixels += label.numel()
    agreement.difference = max(agreement.difference, difference)
    agreement.ties += int((label != probability.argmax(dim=1, keepdim=True)).sum())
    return probability


def format_agreements(out: str, agreements: Sequence[Agreement]) -> str:
    """Return lines to read: what was written, and how near it is to the original."""
    lines = [f"{out}: {Path(out).stat().st_size / 1e6:.1f} MB. Against the original, in float32:"]
    for one in agreements:
        same = f"but for {one.ties} ties " if one.ties else ""
        lines.append(
            f"{one.what}: probabilities within {one.difference:.1e}, the same labels {same}on {one.pixels:,} pixels"
        )
    return "\n".join(lines)
