"""Statistics of the selection: by epoch and member, and how often each slice was dropped."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Events
from monai.utils import string_list_all_gather
from torch import Tensor

from ..runtime.atomic_files import write_whole
from ..runtime.csv_tables import csv_text


class SelectionStatistics:
    """Collect `state.selection`: a handler for the trainer.

    At an epoch's end `state.epoch_statistics` holds, for each member k: `loss/member_k` (training loss),
    `kept/member_k` (share), `score_kept/member_k` and `score_dropped/member_k` (means of the rule's scores); for each
    pair `agreement/members_j_k` (share of the samples on which their choices are the same); and `seconds`, the time of
    the epoch's iterations. `selection.csv` holds for each case and slice how often it was seen and dropped, over all
    members since the training began. Several processes put together what each has seen; the first one writes.

    Args:
        output_dir: where `selection.csv` goes.
    """

    def __init__(self, output_dir: str) -> None:
        self.path = Path(output_dir) / "selection.csv"
        self.selections: list[Any] = []

    def attach(self, engine: Any) -> None:
        """Collect every iteration, sum up every epoch; the counts are part of the engine's checkpoint."""
        engine.state_dict_user_keys.append("selection_counts")
        engine.state.selection_counts = {}
        engine.add_event_handler(Events.EPOCH_STARTED, lambda: self.selections.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.iteration_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)

    def iteration_completed(self, engine: Any) -> None:
        """Keep what was chosen in an iteration, until the epoch ends."""
        self.selections.append(engine.state.selection)

    def epoch_completed(self, engine: Any) -> None:
        """Set the epoch's statistics, count what was dropped and write the counts."""
        own = {
            # (iterations, members), and twice (members, samples)
            "training_losses": torch.stack([one.training_loss for one in self.selections]).tolist(),
            "kept": torch.cat([one.kept for one in self.selections], dim=1).tolist(),
            "scores": torch.cat([one.scores for one in self.selections], dim=1).tolist(),
            "samples": [f"{case}/{index}" for one in self.selections for case, index in one.samples],
        }
        of_ranks = [json.loads(text) for text in string_list_all_gather([json.dumps(own)])]
        training_losses = torch.cat([torch.tensor(one["training_losses"]) for one in of_ranks])
        kept = torch.cat([torch.tensor(one["kept"]) for one in of_ranks], dim=1)
        scores = torch.cat([torch.tensor(one["scores"]) for one in of_ranks], dim=1)
        statistics = epoch_statistics(training_losses, kept, scores)
        engine.state.epoch_statistics = {**statistics, "seconds": engine.state.times[Events.EPOCH_COMPLETED.name]}
        samples = [sample for one in of_ranks for sample in one["samples"]]
        for sample, keepers in zip(samples, kept.sum(dim=0).tolist(), strict=True):
            count = engine.state.selection_counts.setdefault(sample, [0, 0])
            count[0] += len(kept)
            count[1] += len(kept) - keepers
        if idist.get_rank() == 0:
            write_counts(engine.state.selection_counts, self.path)


def epoch_statistics(training_losses: Tensor, kept: Tensor, scores: Tensor) -> dict[str, float]:
    """Return an epoch's statistics by name; a mean over nothing is left out.

    Args:
        training_losses: training losses, `(iterations, members)`.
        kept: `(members, samples)` bool, over all iterations.
        scores: `(members, samples)`.
    """
    statistics = {}
    for k in range(len(kept)):
        statistics[f"loss/member_{k}"] = training_losses[:, k].mean().item()
        statistics[f"kept/member_{k}"] = kept[k].float().mean().item()
        for name, mask in (("score_kept", kept[k]), ("score_dropped", ~kept[k])):
            if mask.any():
                statistics[f"{name}/member_{k}"] = scores[k][mask].mean().item()
    for j, k in combinations(range(len(kept)), 2):
        statistics[f"agreement/members_{j}_{k}"] = (kept[j] == kept[k]).float().mean().item()
    return statistics


def write_counts(counts: dict[str, list[int]], path: Path) -> None:
    """Write case, slice, and how often members saw and dropped it."""
    rows = []
    for place, (seen, dropped) in counts.items():
        case, index = place.rsplit("/", 1)
        rows.append((case, int(index), seen, dropped))
    write_whole(path, csv_text(["case", "slice", "seen", "dropped"], sorted(rows)))
