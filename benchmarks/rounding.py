"""How far do choices and gradients in bfloat16 lie from those in float32?

    python benchmarks/rounding.py [--iterations 300] [--every 10] [--config OVERLAY] [--out FOLDER]

Trains a committee on phantoms (the small variant's schedule, patches of 96 x 96 pixels, 32 channels and more, so that
the CPU's own convolutions are taken where they are there), and stops at every so many iterations: from the weights of
that moment it takes the mini-batch's losses, the rule's choice and the gradients for the choice of float32, in float32,
in bfloat16 by PyTorch's convolutions, and in bfloat16 by ours. Prints by how much they differ. Seven minutes.
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import fire
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.inferers import SimpleInferer
from torch import Tensor, nn

from cyclic_committee.scripts.autograd.forward import SharedForward
from cyclic_committee.scripts.autograd.traced import KeptSamples
from cyclic_committee.scripts.experiments.demo import make_room
from cyclic_committee.scripts.networks import convolutions
from cyclic_committee.scripts.networks.precision import autocast
from cyclic_committee.scripts.phantoms.data_set import write_phantoms
from cyclic_committee.scripts.runtime.bundle_paths import bundle_root
from cyclic_committee.scripts.runtime.config_files import find_config
from cyclic_committee.scripts.training.loss import NnUNetLoss
from cyclic_committee.scripts.training.selection import LossDifference
from cyclic_committee.scripts.training.trainer import score

FEATURES = [32, 64, 96, 96, 96]
WAYS = {"float32": "float32", "PyTorch's": "bfloat16", "ours": "bfloat16"}


class Way:
    """A number format and the convolutions that compute in it."""

    def __init__(self, name: str) -> None:
        self.backward_mode, self.precision = SharedForward(), WAYS[name]
        self.theirs = name == "PyTorch's"

    def __call__(
        self, members: Sequence[nn.Module], image: Tensor, label: Tensor, kept: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the members' losses and choices, `(members, samples)`, and gradients, `(members, parameters)`.

        Args:
            kept: the choices that gradients are taken for; by default those of these losses.
        """
        context = {"inferer": SimpleInferer(), "autocast": autocast("cpu", self.precision)}
        theirs = patch.object(convolutions, "native_is_there", lambda: False) if self.theirs else nullcontext()
        with theirs:  # the networks are traced when they are first run
            forwards = [self.backward_mode(member, image, **context) for member in members]
            losses, _ = score([forward.logits for forward in forwards], label)
            chosen = LossDifference()(losses)
            gradients = []
            for member, forward, samples in zip(members, forwards, chosen if kept is None else kept, strict=True):
                kept_samples = KeptSamples.of(samples.nonzero()[:, 0].tolist())
                chosen_label = label[kept_samples.order]
                member.zero_grad()
                forward.backward(kept_samples, lambda heads, of_chosen=chosen_label: NnUNetLoss()(heads, of_chosen))
                gradients.append(torch.cat([p.grad.flatten() for p in member.parameters() if p.grad is not None]))
                member.zero_grad()
        return losses, chosen, torch.stack(gradients)


def main(*, iterations: int = 300, every: int = 10, config: str | None = None, out: str = "rounding") -> None:
    folder = Path(out).resolve()
    make_room(folder)
    write_phantoms(folder / "phantoms", cases=24, seed=1)
    parser = ConfigParser()
    overlays = ["variants/small.yaml", *([config] if config else [])]
    parser.read_config([f"{bundle_root()}/configs/train.yaml", *(str(find_config(name)) for name in overlays)])
    parser.update(
        {
            "dataset_dir": str(folder / "phantoms"),
            "output_dir": str(folder / "output"),
            "device": "$torch.device('cpu')",
            "fold": "none",
            "iterations_per_epoch": iterations,
            "max_epochs": 1,
            **({} if config else {"member#features": FEATURES}),
        }
    )
    sys.path.insert(0, bundle_root())
    trainer = parser.get_parsed_content("train#trainer")
    ways = {name: Way(name) for name in WAYS}
    differences: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in list(WAYS)[1:]}

    def compare(engine: Engine) -> None:
        image, label = engine.state.batch["image"], engine.state.batch["label"]
        members: Any = trainer.network.members
        trainer.network.train()
        losses, kept, gradients = ways["float32"](members, image, label, None)
        for name, found in differences.items():
            other_losses, other_kept, other_gradients = ways[name](members, image, label, kept)
            found["losses"].append(float(((other_losses - losses).abs() / losses).mean()))
            found["choices"].append(float((other_kept == kept).float().mean()))
            apart = (other_gradients - gradients).norm(dim=1) / gradients.norm(dim=1)
            found["gradients"].append(float(apart.mean()))

    trainer.add_event_handler(Events.GET_BATCH_COMPLETED(every=every), compare)
    trainer.run()
    ours = "ours" if convolutions.native_is_there() else "ours (PyTorch's on this CPU)"
    print(f"{len(differences['ours']['losses'])} mini-batches. In bfloat16 against float32, means:")
    print(f"{'convolutions':30}{'losses':>12}{'choices alike':>16}{'gradients':>12}")
    for name, found in differences.items():
        means = {key: statistics.fmean(values) for key, values in found.items()}
        row = f"{means['losses']:12.4%}{means['choices']:16.1%}{means['gradients']:12.2%}"
        print(f"{ours if name == 'ours' else name:30}{row}")


if __name__ == "__main__":
    fire.Fire(main)
