"""Hyper-parameter search over rules and their settings by Optuna, with MONAI's generator."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from monai.apps.auto3dseg import OptunaGen
from monai.auto3dseg import Algo

KEEPS_ALL = "EverySample"  # the rule without settings
KEEP, WARMUP_EPOCHS, LEARNING_RATE = (0.5, 0.95), (0, 100), (1e-3, 3e-2)


class CommitteeOptunaGen(OptunaGen):
    """Train a fold with the committee's rule, keep, warm-up and learning rate as a trial of Optuna suggests.

    Each trial is a fold of its own, `committee_0_rule_...` for `committee_0`, from which AutoRunner's ensembles choose.
    Optuna maximises the validation DSC:

        search = functools.partial(CommitteeOptunaGen(algo), obj_filename=".../algo_object.json", output_folder=WORK)
        optuna.create_study(direction="maximize").optimize(search, n_trials=20)

    Args:
        algo: a fold, such as `import_bundle_algo_history` returns.
        params: training parameters of all trials, such as num_epochs; a fold with these is made, `..._override`, and
            `get_obj_filename()` is its.
        rules: classes of `selection`.
        keep: the least and the most.
        warmup_epochs: of the rule, the fewest and the most.
        learning_rate: the least and the most, tried evenly on a logarithmic scale.
    """

    def __init__(
        self,
        algo: Algo | None = None,
        params: Mapping[str, Any] | None = None,
        *,
        rules: Sequence[str] = ("LossDifference", "SmallLoss", "RandomSubset", KEEPS_ALL),
        keep: tuple[float, float] = KEEP,
        warmup_epochs: tuple[int, int] = WARMUP_EPOCHS,
        learning_rate: tuple[float, float] = LEARNING_RATE,
    ) -> None:
        super().__init__(algo, None if params is None else dict(params))  # MONAI writes into it
        self.rules = list(rules)
        self.keep = keep
        self.warmup_epochs = warmup_epochs
        self.learning_rate = learning_rate

    def get_hyperparameters(self) -> dict[str, Any]:
        """Return what the trial suggests, as training parameters of `CommitteeAlgo`."""
        suggested: dict[str, Any] = {"rule": self.trial.suggest_categorical("rule", self.rules)}
        if suggested["rule"] != KEEPS_ALL:
            suggested["keep"] = self.trial.suggest_float("keep", *self.keep)
            suggested["warmup_epochs"] = self.trial.suggest_int("warmup_epochs", *self.warmup_epochs)
        suggested["learning_rate"] = self.trial.suggest_float("learning_rate", *self.learning_rate, log=True)
        return suggested

    def get_task_id(self) -> str:
        """Return what a trial's folder is called after the fold's name: letters, digits, dots, dashes, underscores."""
        values = [
            f"_{key}_{value:.5g}" if isinstance(value, float) else f"_{key}_{value}"
            for key, value in self.params.items()
        ]
        return re.sub(r"[^\w.-]", "-", "".join(values)) or "_None"
