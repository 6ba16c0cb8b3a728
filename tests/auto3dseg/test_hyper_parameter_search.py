from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import optuna
from auto3dseg_runs import TINY_TRAINING, made_fold, phantom_list
from monai.apps.auto3dseg import AlgoEnsembleBestByFold, AlgoEnsembleBuilder, import_bundle_algo_history
from monai.bundle import ConfigParser

from cyclic_committee.scripts.auto3dseg.hyper_parameter_search import CommitteeOptunaGen
from cyclic_committee.scripts.training.selection import LossDifference, SmallLoss


def suggested(values: dict[str, Any], **given: Any) -> CommitteeOptunaGen:
    search = CommitteeOptunaGen(**given)
    search.set_trial(optuna.trial.FixedTrial(values))
    search.update_params(search.get_hyperparameters())
    return search


def test_a_trial_suggests_rule_keep_warmup_and_learning_rate() -> None:
    values = {"rule": "SmallLoss", "keep": 0.6, "warmup_epochs": 3, "learning_rate": 0.01}
    search = suggested(values)
    assert search.params == values
    assert search.get_task_id() == "_rule_SmallLoss_keep_0.6_warmup_epochs_3_learning_rate_0.01"


def test_a_rule_that_keeps_all_has_no_keep() -> None:
    assert suggested({"rule": "EverySample", "learning_rate": 0.01}).params.keys() == {"rule", "learning_rate"}


def test_the_ranges_are_arguments() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    ranges: dict[str, Any] = {"keep": (0.7, 0.72), "warmup_epochs": (4, 5), "learning_rate": (1e-5, 2e-5)}
    search = CommitteeOptunaGen(rules=["LossDifference"], **ranges)
    for _ in range(5):
        search.set_trial(study.ask())
        params = search.get_hyperparameters()
        assert all(low <= params[name] <= high for name, (low, high) in ranges.items())
        search.update_params(params)
        assert re.fullmatch(r"[\w.-]+", search.get_task_id())


def test_a_study_trains_folds_from_which_the_ensembles_choose(process_state: None, tmp_path: Path) -> None:
    work = tmp_path / "a work folder"
    algo = made_fold(work, phantom_list(tmp_path / "data"))
    tiny = {**TINY_TRAINING, "num_epochs": 1, "num_epochs_per_validation": 1}
    search = CommitteeOptunaGen(algo, tiny, rules=[LossDifference.__name__, SmallLoss.__name__], warmup_epochs=(0, 2))
    assert "fill_with_datastats" not in tiny
    objective = functools.partial(search, obj_filename=search.get_obj_filename(), output_folder=str(work))
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1))
    study.optimize(objective, n_trials=2)
    trained = {one["identifier"]: one for one in import_bundle_algo_history(str(work), only_trained=True)}
    for trial in study.trials:
        search.update_params(trial.params)
        one = trained[f"committee_0_override{search.get_task_id()}"]
        config = ConfigParser.load_config_file(str(Path(one["algo_instance"].output_path, "configs", "train.yaml")))
        assert one["best_metric"] == trial.value
        assert config["max_epochs"] == 1
        assert config["select"]["_target_"] == f"scripts.training.selection.{trial.params['rule']}"
        assert config["select"]["keep"] == trial.params["keep"]
        assert config["learning_rate"] == trial.params["learning_rate"]
    builder = AlgoEnsembleBuilder(list(trained.values()), str(work / "input.yaml"))
    builder.set_ensemble_method(AlgoEnsembleBestByFold(n_fold=1))
    [best] = builder.get_ensemble().get_algo_ensemble()
    assert best["best_metric"] == study.best_value
    assert json.loads((work / "committee_0" / "algo_object.json").read_text())["_state_"]["name"] == "committee"
