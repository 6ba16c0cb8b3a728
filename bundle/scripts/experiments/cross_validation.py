"""Cross-validation: train, label and score each fold, and resume where it stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.cases import require_usable
from ..data.layouts import DataSet, read_data_set
from ..handlers.mlflow_parent_run import ParentRun
from ..metrics.score_table import ScoreRow, format_table, read_csv, summarise, write_csv, write_json
from ..runtime.atomic_files import put_in_place, unfinished_path
from ..runtime.bundle_paths import bundle_root, copy_without_use
from ..runtime.config_files import find_config, read_object, require_mapping
from ..runtime.configuration import open_config
from ..runtime.errors import BadInput
from ..runtime.workflow import as_bool
from .bundle_run import run_bundle

FOLDS = 5
SETTINGS = "cross_validation.json"
OWN = ("dataset_dir", "fold", "folds", "output_dir", "model_path", "ckpt_path", "resume", "run_name", "parent_run_id")


def cross_validate(
    dataset: str | Path,
    out: str | Path,
    *,
    overlays: Sequence[str] = (),
    bundle: str | Path | None = None,
    folds: Sequence[int] | None = None,
    layout: str = "auto",
    data_root: str | Path | None = None,
    values: Mapping[str, Any] | None = None,
) -> list[ScoreRow]:
    """Train on each fold's training cases, label its validation cases and score them; return all scores so far.

    Stopped at any moment and started again with the same arguments, it goes on with what is missing, in the middle of
    a training, too. Folds may be done on different machines, each with its own `folds`, and their folders `fold_<n>`
    put into one. In MLflow there is one parent run, and one child run a fold; with a server's `tracking_uri` for those
    of all machines that have given `out` the same name.

    Args:
        dataset: folder or data list.
        out: the folder for all of it; a bundle of its own with the overlays is in it.
        overlays: configurations that go over train.yaml and inference.yaml.
        bundle: the folder of a bundle, which is copied; by default the installed one.
        folds: the ones to do now, by default all: the data list's own, or 0 to 4, nnU-Net's.
        layout: see `layouts.read_data_set`.
        data_root: see `layouts.read_data_set`.
        values: keys of the configuration with other values, for training and inference; not those that each fold has
            its own of.

    Raises:
        BadInput: a key that each fold has its own of; a data set that can't be used; other settings than those that the
            folder was begun with; no such fold; a workflow that failed; a store of MLflow that can't be used.
    """
    values = dict(values or {})
    taken = [key for key in OWN if key in values]
    if taken:
        raise BadInput(f"{taken[0]}: each fold has its own. Leave --{taken[0]} out.")
    out = Path(out).resolve()
    data_set = read_data_set(dataset, layout=layout, data_root=data_root)
    require_usable(data_set)
    known = folds_of(data_set, dataset)
    wanted = known if folds is None else [int(fold) for fold in folds]
    if not set(wanted) <= set(known):
        raise BadInput(f"folds: {dataset} has the folds {', '.join(map(str, known))}, got {folds}. Choose among them.")
    places = {"dataset_dir": str(Path(dataset).resolve()), "layout": data_set.layout}
    if data_root is not None:
        places["data_root"] = str(Path(data_root).resolve())
    open_config("train.yaml", overlays, bundle=bundle, values=values)  # raises before a folder is made
    names = begin(out, overlays, {**places, "values": values}, bundle=bundle)
    planned = any("cache_dir" in require_mapping(find_config(file, bundle=bundle)) for file in overlays)
    cache = {} if planned else {"cache_dir": str(out / "cases")}  # a plan's cases are prepared already
    tracked = as_bool(track=values.get("track", True))
    store = {key: str(values[key]) for key in ("tracking_uri", "experiment_name") if key in values and tracked}
    parent = ParentRun.begin(out / "mlflow", name=out.name, **store)
    own = any(case.fold is not None for case in data_set.cases)
    print(f"Folds {', '.join(map(str, known))}: " + ("the data list's own." if own else "made of the sorted names."))
    for fold in wanted:
        print(f"\nFold {fold}" + (" is done" if (out / f"fold_{fold}" / "scores.csv").is_file() else ""), flush=True)
        do_fold(out, fold, names, values={**places, **cache, **values}, folds=len(known), parent=parent)
    rows = scores_of(out, known)
    parent.end(summarise(rows))
    return rows


def folds_of(data_set: DataSet, dataset: str | Path) -> list[int]:
    """Return the numbers of a data set's folds.

    Raises:
        BadInput: too few cases, or one fold for all.
    """
    own = sorted({case.fold for case in data_set.cases if case.fold is not None})
    if len(own) == 1:
        raise BadInput(f"{dataset}: all cases are of fold {own[0]}. Give the cases different folds.")
    if not own and len(data_set.cases) < FOLDS:
        raise BadInput(f"{dataset}: {len(data_set.cases)} cases are too few for {FOLDS} folds. Add cases.")
    return own or list(range(FOLDS))


def begin(
    out: Path, overlays: Sequence[str], settings: Mapping[str, Any], *, bundle: str | Path | None = None
) -> list[str]:
    """Make the folder with a bundle of its own, or see that it was made so; return the overlays' names in it.

    Raises:
        BadInput: other settings, a folder that holds something else, an overlay that isn't there.
    """
    files = [find_config(overlay, bundle=bundle) for overlay in overlays]
    texts = [file.read_text() for file in files]
    wanted = json.loads(json.dumps({**settings, "overlays": texts}, default=str))
    path = out / SETTINGS
    if path.is_file():
        written = read_object(path)
        other = [key for key in wanted if wanted[key] != written.get(key)]
        if other:
            raise BadInput(f"{path}: was begun with other {', '.join(other)}. Choose another folder with --out.")
    elif out.is_dir() and any(out.iterdir()):
        raise BadInput(f"{out}: holds other things than a cross-validation. Choose another folder with --out.")
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished = unfinished_path(out)
        copy_without_use(Path(bundle or bundle_root()), unfinished / "bundle")
        for name, text in zip(overlays_of(wanted), texts, strict=True):
            (unfinished / "bundle" / "configs" / name).write_text(text)
        (unfinished / SETTINGS).write_text(json.dumps(wanted, indent=1) + "\n")
        shutil.rmtree(out, ignore_errors=True)  # an empty one
        put_in_place(unfinished, out)
    return overlays_of(wanted)


def overlays_of(settings: Mapping[str, Any]) -> list[str]:
    """Return the names that the overlays have in the configs of the folder's bundle."""
    return [f"overlay_{number}.yaml" for number in range(len(settings["overlays"]))]


def do_fold(
    out: Path, fold: int, overlays: Sequence[str], *, values: Mapping[str, Any], folds: int, parent: ParentRun
) -> None:
    """Train, label and score one fold, as far as it isn't done."""
    folder, bundle = out / f"fold_{fold}", out / "bundle"
    model, scores = folder / "model.pt", folder / "scores.csv"
    if not model.is_file():
        run_bundle(
            bundle,
            "training",
            ["train.yaml", *overlays],
            fold=fold,
            folds=folds,
            output_dir=folder,
            model_path=model,
            parent_run_id=parent.run_id,
            run_name=f"{out.name} fold {fold}",
            resume=str((folder / "checkpoint.pt").is_file()).lower(),
            **{**values, "tracking_uri": parent.tracking_uri},
        )
    if not scores.is_file():
        run_bundle(
            bundle,
            "run",
            ["inference.yaml", "evaluate.yaml", "validate_fold.yaml", *overlays],
            fold=fold,
            folds=folds,
            output_dir=folder,
            ckpt_path=model,
            **values,
        )


def scores_of(out: Path, folds: Sequence[int]) -> list[ScoreRow]:
    """Return the scores of all folds that are done, write them, and print the tables."""
    rows: list[ScoreRow] = []
    done = [fold for fold in folds if (out / f"fold_{fold}" / "scores.csv").is_file()]
    for fold in done:
        rows += read_csv(out / f"fold_{fold}" / "scores.csv")
    write_csv(rows, out / "scores.csv")
    write_json(summarise(rows), out / "scores.json")
    missing = sorted(set(folds) - set(done))
    print(
        f"\nFolds {', '.join(map(str, done))}" + (f"; not done yet: {', '.join(map(str, missing))}" if missing else "")
    )
    print(format_table(summarise(rows)))
    return rows
