"""Time and peak memory of labelling a case, start and loading of the process included."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

from ..data.cases import find_cases, require_cases
from ..data.volumes import case_name, first_file
from ..runtime.atomic_files import temporary_folder, write_whole
from ..runtime.config_files import read_object
from ..runtime.csv_tables import csv_text, read_csv_rows
from ..runtime.errors import BadInput
from .bundle_run import bundle_command, end_with_parent, quiet_environment
from .cross_validation import SETTINGS, overlays_of

FILE = "case_costs.csv"
POLL_S = 0.1  # FLARE21's
MIB = 1024**2
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes, of getrusage's ru_maxrss


@dataclass(frozen=True)
class CaseCost:
    """What the inference workflow took for one case, in a process of its own."""

    case: str
    seconds: float  # wall clock, from the start of the process to its end
    peak_memory_mib: float
    gpu_memory_mib: float | None  # None without an NVIDIA GPU


def case_costs(run: str | Path, *, cases: int) -> list[CaseCost]:
    """Return what labelling cases of a cross-validation takes, measured as FLARE21 does: one case, one process.

    The clock includes Python's start, the loading of the weights and the writing of the label map. GPU memory is what
    nvidia-smi says of the process every 0.1 s, the CUDA context included. What was measured is kept in
    `case_costs.csv` of the run and not measured again.

    Args:
        run: the folder of `cross_validation.cross_validate`.
        cases: how many, from each fold that is done in turn; 0 for none.

    Raises:
        BadInput: a folder that is no cross-validation; a case whose image isn't there any more; a workflow that failed.
    """
    run = Path(run).resolve()
    if not (run / SETTINGS).is_file():
        raise BadInput(f"{run}: is no cross-validation. Give the folder that one was written to.")
    settings = read_object(run / SETTINGS)
    known = {cost.case: cost for cost in read_costs(run / FILE)}
    for fold, item in islice(validated(run, settings), cases):
        name = case_name(first_file(item["image"]))
        if name not in known:
            known[name] = measure(run, settings, fold=fold, image=item["image"])
            write_costs(list(known.values()), run / FILE)
    return list(known.values())


def validated(run: Path, settings: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Return folds that are done and their validation cases, one of each fold in turn."""
    folds = sorted(int(path.parent.name.removeprefix("fold_")) for path in run.glob("fold_*/model.pt"))
    each = []
    for fold in folds:
        place = {key: settings[key] for key in ("layout", "data_root") if key in settings}
        cases = find_cases(settings["dataset_dir"], part="validation", fold=fold, **place)
        require_cases(cases)
        each.append([(fold, item) for item in cases])
    return (one for one in chain.from_iterable(zip_longest(*each)) if one is not None)


def measure(run: Path, settings: Mapping[str, Any], *, fold: int, image: str | Sequence[str]) -> CaseCost:
    """Label one image with a fold's weights and throw the label map away; see `inference_costs`."""
    with temporary_folder() as name:
        listed = Path(name) / "case.json"
        listed.write_text(json.dumps({"testing": [{"image": image}]}))
        places = {"dataset_dir": listed, "layout": "datalist", "output_dir": name}
        command = bundle_command(
            run / "bundle",
            "run",
            ["inference.yaml", *overlays_of(settings)],
            **{**settings["values"], **places},
            ckpt_path=run / f"fold_{fold}" / "model.pt",
        )
        with (Path(name) / "log.txt").open("w+") as log:
            began_s = time.perf_counter()
            process = subprocess.Popen(
                command, env=quiet_environment(), stdout=log, stderr=log, preexec_fn=end_with_parent
            )
            gpu_mib: list[float] = []
            while True:
                ended, status, usage = os.wait4(process.pid, os.WNOHANG)
                if ended:
                    break
                gpu_mib += gpu_memory_mib(process.pid)
                time.sleep(POLL_S)
            seconds = time.perf_counter() - began_s
            process.returncode = os.waitstatus_to_exitcode(status)  # or Popen would wait for it once more
            if process.returncode:
                log.seek(0)
                last = (log.read().strip().splitlines() or ["it said nothing"])[-1]
                raise BadInput(f"{first_file(image)}: couldn't be labelled ({last}). See that the fold is whole.")
    peak_mib = usage.ru_maxrss * RSS_UNIT / MIB
    return CaseCost(case_name(first_file(image)), seconds, peak_mib, max(gpu_mib, default=None))


def gpu_memory_mib(process_id: int) -> list[float]:
    """Return what nvidia-smi says that a process holds now, in MiB, of each GPU; nothing without a GPU."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    told = subprocess.run(query, capture_output=True, text=True, check=False).stdout
    rows = [line.split(",") for line in told.splitlines() if line.count(",") == 1]
    return [float(used) for pid, used in rows if pid.strip() == str(process_id) and used.strip().isdigit()]


def read_costs(path: Path) -> list[CaseCost]:
    """Return what was measured before, nothing if nothing was."""
    if not path.is_file():
        return []
    return [
        CaseCost(
            case=row["case"],
            seconds=float(row["seconds"]),
            peak_memory_mib=float(row["peak_memory_mib"]),
            gpu_memory_mib=float(row["gpu_memory_mib"]) if row["gpu_memory_mib"] else None,
        )
        for row in read_csv_rows(path)
    ]


def write_costs(costs: Sequence[CaseCost], path: Path) -> None:
    """Write a line a case, seconds and MiB with 2 decimals; an existing file is replaced as a whole."""
    rows = [[f"{v:.2f}" if isinstance(v, float) else v for v in asdict(cost).values()] for cost in costs]
    write_whole(path, csv_text([field.name for field in fields(CaseCost)], rows))
