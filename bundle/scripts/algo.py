"""The committee as an algorithm of MONAI's Auto3DSeg: each fold is a bundle that AutoRunner trains."""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml
from monai.apps.auto3dseg import BundleAlgo
from monai.auto3dseg import algo_to_json
from monai.utils import ensure_tuple

from .auto3dseg.data_source import measured_source, read_analysis, read_source
from .auto3dseg.fold_training import begin_or_resume, training_command, training_environment
from .auto3dseg.gpu_batch import largest_batch
from .auto3dseg.training_parameters import keys_of
from .bundles.fold_bundle import OVERLAY, as_planned, copy_template, settled, training_config, with_given, write_fold
from .handlers.history import read_history
from .infer import InferClass
from .planning.plan import make_plan
from .planning.plan_file import HEADER, plan_text
from .runtime.atomic_files import put_in_place, remove_folder, unfinished_path
from .runtime.bundle_paths import bundle_root
from .runtime.config_files import require_mapping
from .runtime.errors import BadInput
from .runtime.old_names import refuse_old_keys

logger = logging.getLogger(__name__)
STATE = "algo_object.json"
DATA = "committee_data"  # in the work folder, for all folds: what was measured, and the prepared cases
SCORE = "validation/dsc_mean"
GPU_KEYS = ("gpu_customization", "gpu_customization_specs")
OVERLAY_HEADER = """\
# What makes this fold's configuration another than the template's. Made by CommitteeAlgo for {cases} cases, by the code
# of `cyclic-committee prepare`, after the rules of nnU-Net v1's planner for 2D.
#
# train.yaml and inference.yaml have it merged in. Numbers may be changed here by hand: the next training follows them.
"""


class CommitteeAlgo(BundleAlgo):
    """The cyclic committee as an algorithm of Auto3DSeg. Each trained fold is a whole bundle.

    Used by MONAI's AutoRunner and BundleGen, from the installed package:

        algos={"committee": {"_target_": "cyclic_committee.scripts.algo.CommitteeAlgo", "template_path": bundle_root()}}

    The template is the bundle itself; a fold is a copy with one more file, see `fold_bundle`. In the work folder,
    beside the folds, lies `committee_data` with what was measured and the prepared cases. The work folder may be moved.
    Training on several machines is written after torchrun's documentation, and was not run.

    Args:
        template_path: a bundle, this one or a changed copy; by default this one.
    """

    def __init__(self, template_path: str | os.PathLike[str] | None = None) -> None:
        super().__init__(template_path=template_path)
        self.inferer: tuple[str, InferClass] | None = None  # and what it was made with

    def template(self) -> Path:
        """Return the bundle that folds are copies of."""
        given = [] if self.template_path is None else [Path(self.template_path), Path(self.template_path, self.name)]
        for path in given:  # a bundle, or as MONAI's own templates a folder with one for each algorithm
            if (path / "configs" / "train.yaml").is_file() and (path / "scripts" / "algo.py").is_file():
                return path.resolve()
        return Path(bundle_root())

    def pre_check_skip_algo(self, skip_bundlegen: bool = False, skip_info: str = "") -> tuple[bool, str]:
        """Return whether the committee can't learn the data set, and why: regions, labels beyond 255."""
        reason = read_source(self.data_list_file).unsupported() or read_analysis(self.data_stats_files).unsupported()
        return (True, reason) if reason else (skip_bundlegen, skip_info)

    def export_to_disk(self, output_path: str, algo_name: str, **kwargs: Any) -> None:
        """Make the fold's bundle, `output_path/algo_name`; it appears whole or not at all.

        An earlier fold of the same name, its weights included, is replaced.

        Args:
            output_path: the work folder.
            algo_name: of the fold's folder.
            kwargs: see `fill_template_config`; `fill_template=False` makes a mere copy.

        Raises:
            BadInput: the folder holds something else than a fold; data that can't be used; an unknown key.
        """
        kwargs.pop("copy_dirs", None)  # a fold is always a copy
        fill = kwargs.pop("fill_template", True)
        target = Path(output_path, algo_name).resolve()
        require_replaceable(target, kind=type(self).__name__)
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = unfinished_path(target)
        try:
            copy_template(self.template(), unfinished)
            if fill:
                self.fill_records = self.fill_template_config(self.data_stats_files, str(unfinished), **kwargs)
            self.output_path, self.inferer = str(unfinished), None
            algo_to_json(self, template_path=self.template_path)  # what is whole is known as ours from the beginning
            remove_folder(target)
            put_in_place(unfinished, target)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        self.output_path = str(target)
        logger.info(f"Generated: {target}")

    def fill_template_config(self, data_stats_filename: str, algo_path: str, **kwargs: Any) -> dict:
        """Write a fold's overlay and the configurations that follow from it; return the overlay's keys and values.

        Args:
            data_stats_filename: MONAI's analysis, which must be of the same data set.
            algo_path: the fold's folder, a copy of the template.
            kwargs: `fold`, its number; `fill_with_datastats`: False keeps the overlay of this algorithm's present
                folder; `gpu_customization` and `gpu_customization_specs`, see `gpu_batch.largest_batch`;
                else training parameters, see `training_parameters.keys_of`, which every training of the fold begins
                with.

        Raises:
            BadInput: see `data_source.measured_source`; an unknown key.
        """
        folder = Path(algo_path)
        given = {key: value for key, value in kwargs.items() if key not in ("fold", "bundle_root", *GPU_KEYS)}
        names, source = None, None
        if given.pop("fill_with_datastats", True):
            overlay, names, source = self.planned_overlay(data_stats_filename, folder, fold=int(kwargs.get("fold", 0)))
            given = {**self.tracking(), **given}
        else:
            overlay = self.kept_overlay(folder)
        if given:
            overlay = settled(overlay, keys_of(given, training_config(folder, overlay)))
        write_fold(folder, overlay, channel_names=names, source=source)
        if kwargs.get("gpu_customization", False):
            specs = kwargs.get("gpu_customization_specs") or {}
            batch = largest_batch({**specs.get("universal", {}), **specs.get(self.name, {})}, folder)
            if batch is not None:
                overlay = settled(overlay, {"batch_size": batch}, why="The largest that fits the GPUs.")
                write_fold(folder, overlay)
        return {OVERLAY: yaml.safe_load(overlay)}

    def planned_overlay(self, data_stats_filename: str, folder: Path, *, fold: int) -> tuple[str, list[str], str]:
        """Return the overlay of a fold as `prepare` would plan it, the channels' names, and the data set's name."""
        source, data = read_source(self.data_list_file), folder.parent / DATA
        try:
            measured, labels, names = measured_source(source, read_analysis(data_stats_filename), data)
        except OSError as error:
            raise BadInput(f"{data}: can't be written ({error}). Make room, or choose another work folder.") from error
        plan = make_plan(measured, channel_names=names, labels=labels)
        places = {
            "data_list": place(source.data_list, folder),
            "dataset_dir": "$@bundle_root + '/' + @data_list",
            "layout": "datalist",
            "data_root": source.data_root,
            "cache_dir": f"$@bundle_root + '/../{DATA}/cases'",
            "fold": fold,
        }
        text = plan_text(plan, labels=labels, places=places).removeprefix(HEADER.format(cases=plan.cases))
        return OVERLAY_HEADER.format(cases=plan.cases) + text, names, source.data_list.name

    def kept_overlay(self, folder: Path) -> str:
        """Return the overlay of this algorithm's present folder, for another folder."""
        present = Path(self.output_path)
        text = as_planned(read_overlay(present))
        values = yaml.safe_load(text)
        if folder.parent.resolve() != present.parent.resolve():
            data = str(present.parent.resolve() / DATA / "cases")
            text = settled(text, {"data_list": place(present / values["data_list"], folder), "cache_dir": data}, why="")
        shutil.copy(present / "configs" / "metadata.json", folder / "configs")
        return text

    def tracking(self) -> dict[str, Any]:
        """Return what `set_mlflow_...` were told, as training parameters."""
        told = {name: getattr(self, name) for name in ("mlflow_tracking_uri", "mlflow_experiment_name")}
        return {name: value for name, value in told.items() if value is not None}

    def train(
        self, train_params: dict | None = None, device_setting: dict | None = None
    ) -> subprocess.CompletedProcess:
        """Train the fold, in a process of its own with this interpreter; an interrupted training goes on.

        Args:
            train_params: see `training_parameters.keys_of`. They hold for this training, and for inference with it.
            device_setting: CUDA_VISIBLE_DEVICES, NUM_NODES and CMD_PREFIX, as of AutoRunner's `set_device_info`; see
                `fold_training.training_command`.

        Raises:
            BadInput: unknown keys or values that can't be, before anything is run; a training that failed.
        """
        if device_setting is not None:
            self.device_setting.update(device_setting)
            self.device_setting["n_devices"] = len(str(self.device_setting["CUDA_VISIBLE_DEVICES"]).split(","))
        fold, self.inferer = Path(self.output_path).resolve(), None
        planned = as_planned(read_overlay(fold))
        parameters = {**self.tracking(), **(train_params or {})}
        overlay = with_given(planned, keys_of(parameters, training_config(fold, planned)))
        write_fold(fold, overlay)
        resume = begin_or_resume(fold, overlay)
        command = training_command(fold, self.device_setting, resume=resume)
        environment = training_environment(self.device_setting)
        done = subprocess.run(command, cwd=fold, env=environment, check=False)
        if done.returncode != 0:
            raise BadInput(
                f"{fold}: its training ended with code {done.returncode}; the lines above say why. "
                f"{shlex.join(command)} was run. Mend the cause and start again, which goes on from the last epoch."
            )
        return done

    def get_score(self, *args: Any, **kwargs: Any) -> float:
        """Return the mean validation DSC of the weights that inference takes: the last ones.

        Raises:
            BadInput: not trained to the end, or not validated.
        """
        fold = Path(self.output_path)
        rows = read_history(fold / "output" / "history.json")
        if not rows or SCORE not in rows[-1] or not (fold / "models" / "model.pt").is_file():
            raise BadInput(f"{fold}: has no score, as it isn't trained to the end. Train it.")
        return float(rows[-1][SCORE])

    def get_inferer(self, *args: Any, **kwargs: Any) -> InferClass:
        """Return what labels files with this fold, the same one as long as the parameters are the same.

        Args:
            args: ignored.
            kwargs: keys of inference.yaml with other values; others, such as AutoRunner's own, are ignored.

        Raises:
            BadInput: a key by its name in version 0.1.
        """
        fold = Path(self.output_path).resolve()
        known = require_mapping(fold / "configs" / "inference.yaml").keys()
        refuse_old_keys(kwargs, known=known)
        values = {key: value for key, value in kwargs.items() if key.split("#")[0] in known}
        if "LOCAL_RANK" in os.environ:  # MONAI's ensemble on many GPUs
            values.setdefault("device", {"_target_": "scripts.training.distributed.device_of_rank"})
        made_with = json.dumps([str(fold), values], default=str, sort_keys=True)
        if self.inferer is None or self.inferer[0] != made_with:
            self.inferer = (made_with, InferClass(fold, **values))
        return self.inferer[1]

    def predict(self, predict_files: list, predict_params: dict | None = None) -> list:
        """Return of each file the probabilities on its own grid; see `infer.InferClass.infer`."""
        inferer = self.get_inferer(**(predict_params or {}))
        return [inferer.infer(file) for file in ensure_tuple(predict_files)]


def require_replaceable(folder: Path, *, kind: str) -> None:
    """Raise `BadInput` if a folder holds something else than a fold of an algorithm, the class of this name."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        target = str(json.loads((folder / STATE).read_text())["_target_"])
    except (OSError, ValueError, KeyError, TypeError):
        target = ""
    if target.split(".")[-1] != kind:
        raise BadInput(f"{folder}: holds something else than a fold of this algorithm. Move it, or take another name.")


def place(path: Path, folder: Path) -> str:
    """Return a path as seen from a fold, so that both can be moved together."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def read_overlay(fold: Path) -> str:
    """Return the text of a fold's overlay. Raises BadInput if there is none."""
    try:
        return (fold / "configs" / OVERLAY).read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{fold / 'configs' / OVERLAY}: can't be read ({error}). Make the fold anew.") from error
