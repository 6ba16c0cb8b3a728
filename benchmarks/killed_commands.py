"""Do commands that are killed at any moment end, when they are started again, with what an undisturbed run gives?

    python benchmarks/killed_commands.py [--kills 100] [--seed 0] [--commands prepare,train,...]
        [--shard_minutes N] [--results FILE]

Each command runs on phantoms with a tiny committee (tiny.yaml), once undisturbed. Then, in turn, it is killed (SIGKILL,
with all of its child processes, as a machine that is lost) at a random file event, or some milliseconds after it, and
started again as a user would. A file event is: a file of the working folder is opened for writing, written by PyTorch,
renamed or removed, a folder made or removed, a transaction of sqlite begun or ended. All kinds of events in all folders
are as likely: of some there are hundreds. Prints a line a kill, then a table: how many kills each command survived, in
how many something was different in the end, and in how many something was left over: unfinished files, or temporary
ones. Exit code 1 for any of these.

`--results` is a file of JSON lines: a run that was stopped, also by `--shard_minutes`, goes on with what isn't in it.
All runs are forked from one process, since importing PyTorch and MONAI takes longer than most of them. Linux only.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch and numpy are imported: what is forked must have no threads
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # which has a thread

import ctypes
import gzip
import importlib
import json
import multiprocessing
import random
import re
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import fire
import monai.bundle
import pydicom
import torch
import yaml
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from cyclic_committee.scripts.bundles.fold_bundle import copy_template, write_fold
from cyclic_committee.scripts.commands.main import main as run_command
from cyclic_committee.scripts.experiments.bundle_run import bundle_command
from cyclic_committee.scripts.handlers.loss_record import read_losses
from cyclic_committee.scripts.networks.committee import Committee
from cyclic_committee.scripts.networks.unet import UNet2d
from cyclic_committee.scripts.phantoms.data_set import write_phantoms
from cyclic_committee.scripts.phantoms.phantom import make_phantom
from cyclic_committee.scripts.runtime.bundle_paths import bundle_root
from cyclic_committee.scripts.runtime.errors import BadInput

TINY = Path(__file__).with_name("tiny.yaml")
COMMANDS = {  # and what they import, which is imported once
    "prepare": ("planning.preparation",),
    "train": ("handlers.mlflow_tracking", "training.trainer"),
    "predict": ("inference.prediction",),
    "report": ("report.report", "training.trainer"),
    "release": ("bundles.release",),
    "export": ("inference.export",),
    "cross-validate": ("handlers.mlflow_tracking", "training.trainer", "experiments.cross_validation"),
}
TRAINING = {
    **{"max_epochs": 3, "iterations_per_epoch": 3, "val_interval": 1, "device": "$torch.device('cpu')"},
    **{"precision": "float32", "backward_mode": {"_target_": "scripts.autograd.forward.PlainAutograd"}},
}
CASES = 5
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
FILE_EVENTS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "torch.write")
LONGEST_DELAY_S = 0.02
TIMES = re.compile("second|time|date|duration", re.IGNORECASE)  # keys and columns that differ from run to run
CLOCK = re.compile(rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d\S*")
PR_SET_CHILD_SUBREAPER = 36


# ---- Running and killing


class Watch:
    """Counts the file events of a process and its children, and kills all of them at one of them.

    Args:
        folder: whose events count.
        log: of the events, a line each.
        kill_at: the number of the event, from 1; 0: never.
        delay_s: how long after the event.
    """

    def __init__(self, folder: Path, log: Path, *, kill_at: int = 0, delay_s: float = 0.0) -> None:
        self.folder, self.kill_at, self.delay_s = str(folder), kill_at, delay_s
        self.count = multiprocessing.Value("q", 0)
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def start(self) -> None:
        """Watch this process, and all that it forks."""
        sys.addaudithook(self.audit)
        core, script, sqlite = (importlib.import_module(name) for name in ("torch._C", "torch.jit", "sqlite3.dbapi2"))
        save, connect = script.save, sqlite.connect

        class Writer(torch._C.PyTorchFileWriter):  # type: ignore[misc]
            """Tells when a file is opened and when its end is written: C++ does both unseen."""

            def __init__(self, name: Any, *arguments: Any, **others: Any) -> None:
                self.name = name
                sys.audit("torch.write", name)
                super().__init__(name, *arguments, **others)

            def write_end_of_file(self) -> None:
                sys.audit("torch.write", self.name)
                super().write_end_of_file()

        def save_script(network: Any, path: Any, *arguments: Any, **others: Any) -> None:
            sys.audit("torch.write", path)
            save(network, path, *arguments, **others)
            sys.audit("torch.write", path)

        def connect_watched(*arguments: Any, **others: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = connect(*arguments, **others)
            connection.set_trace_callback(partial(self.statement, arguments[0] if arguments else others["database"]))
            return connection

        for module, name, value in (
            *((core, "PyTorchFileWriter", Writer), (script, "save", save_script)),
            *((sqlite, "connect", connect_watched), (sqlite3, "connect", connect_watched)),
        ):
            setattr(module, name, value)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Count an event, if it is one of a file in the folder."""
        if event == "open":
            path, mode, flags = arguments
            if not (set(mode) & set("wax+") if isinstance(mode, str) else (flags or 0) & WRITING):
                return
            self.happened("open", path)
        elif event in FILE_EVENTS or event.startswith("shutil."):
            self.happened(event, arguments[0])

    def statement(self, database: Any, statement: str) -> None:
        """Count the beginning and the end of sqlite's transactions."""
        if statement.upper().startswith(("BEGIN", "COMMIT")):
            self.happened(statement.split()[0].lower(), database)

    def happened(self, event: str, path: Any) -> None:
        """Count an event, and kill all processes if it is the one."""
        if not isinstance(path, (str, bytes, os.PathLike)):
            return
        name = os.fsdecode(path)
        if not name.startswith(self.folder):
            return
        with self.count.get_lock():
            self.count.value += 1
            now = self.count.value
            os.write(self.log, f"{event} {os.path.relpath(name, self.folder)}\n".encode())
            if now == self.kill_at and not self.delay_s:
                os.killpg(0, signal.SIGKILL)
        if now == self.kill_at:
            timer = threading.Timer(self.delay_s, os.killpg, (0, signal.SIGKILL))
            timer.daemon = True
            timer.start()


def forked(work: Callable[[], Any], log: Path, watch: Watch | None = None) -> int:
    """Do something in a process of its own, and return how it ended, once all of its children have, too."""
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        run_and_exit(work, log, watch)
    status = os.waitpid(process, 0)[1]
    if watch is not None:
        os.close(watch.log)
    try:
        while True:  # orphans come to this process, and are gone once it has waited for them
            os.waitpid(-1, 0)
    except ChildProcessError:
        return os.waitstatus_to_exitcode(status)


def run_and_exit(work: Callable[[], Any], log: Path, watch: Watch | None) -> NoReturn:
    """Do something, with its words in a file, and end the process."""
    os.setsid()
    torch.set_num_threads(1)
    sys.dont_write_bytecode = True
    with log.open("a", buffering=1) as words:
        os.dup2(words.fileno(), 1)
        os.dup2(words.fileno(), 2)
    code = 1
    try:
        if watch is not None:
            watch.start()
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:
        print(f"error: {error}" if type(error).__name__ == BadInput.__name__ else traceback.format_exc())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def type_words(*words: object) -> None:
    """Run `cyclic-committee` with these words."""
    sys.argv = ["cyclic-committee", *map(str, words)]
    if "cross-validate" in words:
        experiment: Any = importlib.import_module("cyclic_committee.scripts.experiments.cross_validation")
        experiment.run_bundle = fork_bundle
    run_command()


def fork_bundle(bundle: Path, workflow: str, configs: Sequence[str], **values: Any) -> None:
    """Do what `run_bundle` does, but don't import everything once more."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            run_workflow(*bundle_command(bundle, workflow, configs, **values)[4:])
            code = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(code)
    if os.waitpid(process, 0)[1]:
        raise BadInput(f"The workflow {workflow} failed.")


def run_workflow(*words: object) -> None:
    """Run `python -m monai.bundle run` with these words."""
    fire.Fire(monai.bundle.run, command=[str(word) for word in words])


# ---- The commands


class Inputs:
    """What the commands work on, all of it in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tiny = folder / "tiny.yaml"  # the committee's overlay
        self.data = folder / "data"  # to train on
        self.volumes = folder / "volumes"  # to label
        self.bundle = folder / "bundle"  # with weights
        self.run = folder / "run"  # a cross-validation, to report on

    def make(self, log: Path, *, report: bool) -> None:
        """Make all; the cross-validation that is reported on only if it is asked for."""
        self.folder.mkdir(parents=True)
        settings = {**yaml.safe_load(TINY.read_text()), **TRAINING}
        self.tiny.write_text(yaml.safe_dump(settings))
        require(forked(self.make_data, log), log)
        require(forked(lambda: self.make_bundle(settings), log), log)
        if report:
            words = ("cross-validate", self.data, self.run, self.tiny, "--folds", "0")
            require(forked(lambda: type_words(*words, "--track", "false"), log), log)

    def make_data(self) -> None:
        """Make a data set, and a folder with a volume and a DICOM series to label."""
        write_phantoms(self.data, cases=CASES, seed=7)
        self.volumes.mkdir()
        for path in sorted((self.data / "TrainingImg").iterdir())[:1]:
            shutil.copy(path, self.volumes)
        write_series(self.volumes / "series")

    def make_bundle(self, settings: Mapping[str, Any]) -> None:
        """Make a bundle with weights, random ones that say of themselves that they were trained."""
        torch.manual_seed(3)
        members = [UNet2d(in_channels=1, out_channels=5, features=settings["member#features"]) for _ in range(3)]
        network = Committee(members)
        network.iterations_trained += 1
        copy_template(Path(bundle_root()), self.bundle)
        keys = ("spacing_mm", "patch_size", "member#features")
        write_fold(self.bundle, yaml.safe_dump({"fold": 0, **{key: settings[key] for key in keys}}))
        torch.save(network.state_dict(), self.bundle / "models" / "model.pt")


def write_series(folder: Path) -> None:
    """Write a phantom as a CT series."""
    phantom = make_phantom(seed=11)
    voxels = phantom.image_hu
    steps = [float(abs(phantom.affine[axis, axis])) for axis in range(3)]
    folder.mkdir()
    for k in range(voxels.shape[2]):
        one = pydicom.Dataset()
        one.file_meta = FileMetaDataset()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, f"1.2.826.0.1.3680043.8.498.1.{k + 1}"
        one.StudyInstanceUID = one.FrameOfReferenceUID = "1.2.826.0.1.3680043.8.498.2"
        one.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.3"
        one.PatientID = one.PatientName = "phantom"
        one.PatientBirthDate = one.PatientSex = one.AccessionNumber = one.StudyID = ""
        one.StudyDate, one.StudyTime, one.Modality, one.ReferringPhysicianName = "20200101", "120000", "CT", ""
        one.SeriesNumber, one.InstanceNumber, one.Manufacturer = 1, k + 1, "phantoms"
        one.ImagePositionPatient = [0, 0, k * steps[2]]
        one.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        one.PixelSpacing, one.SliceThickness = [steps[1], steps[0]], steps[2]
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.Columns, one.Rows = voxels.shape[:2]
        one.BitsAllocated = one.BitsStored = 16
        one.HighBit, one.PixelRepresentation = 15, 1
        one.RescaleIntercept, one.RescaleSlope = 0, 1
        one.PixelData = voxels[:, :, k].T.astype("<i2").tobytes()
        one.save_as(folder / f"slice_{k:04d}.dcm", enforce_file_format=True)


def start(command: str, place: Path, inputs: Inputs) -> None:
    """Run a command as a user would start it, or start it again."""
    if command == "train":
        configs = [str(Path(bundle_root()) / "configs" / "train.yaml"), str(inputs.tiny)]
        places = {"dataset_dir": inputs.data, "output_dir": place, "model_path": place / "model.pt", "track": "true"}
        values = {**places, "resume": str((place / "checkpoint.pt").is_file()).lower()}
        words = [word for key, value in values.items() for word in (f"--{key}", value)]
        run_workflow("training", "--config_file", configs, *words)
        return
    weights = ("--bundle", inputs.bundle)
    maps = ("--disagreement", "true", "--probabilities", "true")
    words_of: dict[str, tuple[object, ...]] = {
        "prepare": (inputs.data, place, "--processes", 2),
        "predict": (inputs.volumes, place, *weights, *maps),
        "report": (inputs.run, "--out", place, "--timed_cases", 0, "--suspects", 2),
        "release": (place, "https://example.org/model.pt"),
        "export": (place / "committee.ts", "torchscript", *weights),
        "cross-validate": (inputs.data, place, inputs.tiny, "--folds", 0, "--track", "true"),
    }
    type_words(command, *words_of[command])


def begin(command: str, place: Path, inputs: Inputs) -> None:
    """Make the place of a command as it is before it is run for the first time."""
    shutil.rmtree(place, ignore_errors=True)
    if command == "release":
        shutil.copytree(inputs.bundle, place)


# ---- Comparing


def write_tracked(folder: Path) -> None:
    """Write what MLflow keeps of each run to a file of the folder, where `differences` finds it."""
    if (folder / "mlflow").is_dir():
        for name, run in tracked(folder).items():
            for key, value in run.items():
                path = folder / "tracked" / name / f"{key.replace('/', '_')}.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(value))


def differences(expected: Path, found: Path) -> list[str]:
    """Return what is different in two folders, but for times."""
    names = [sorted(names_of(folder)) for folder in (expected, found)]
    lost, new = set(names[0]) - set(names[1]), set(names[1]) - set(names[0])
    unlike = [f"{name}: missing" for name in sorted(lost)] + [f"{name}: new" for name in sorted(new)]
    for name in sorted(set(names[0]) & set(names[1])):
        try:
            if not equal(content(expected / name), content(found / name)):
                unlike.append(f"{name}: different")
        except Exception as error:
            unlike.append(f"{name}: can't be read ({error})")
    return unlike


def names_of(folder: Path) -> Iterator[str]:
    """Yield the files of a folder but for unfinished ones and MLflow's."""
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_file() and ".unfinished" not in name and not name.startswith("mlflow/"):
            yield name


def content(path: Path) -> Any:
    """Return what a file holds, in a form that `equal` compares."""
    if path.suffix == ".pt":
        return torch.load(path, weights_only=True)
    if path.suffix == ".json":
        return json.loads(path.read_text())
    if path.suffix == ".arrow":
        table, about = read_losses(path)
        return table.to_pydict(), about
    if path.suffix == ".gz":
        return gzip.decompress(path.read_bytes())
    if path.suffix == ".dcm":
        return {"PixelData": pydicom.dcmread(path).PixelData}  # its own UIDs are new ones
    return CLOCK.sub(b"", path.read_bytes())


def equal(one: Any, other: Any) -> bool:
    """Return whether two contents are the same to the last bit, but for the values of keys that name times."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        same_keys = list(map(str, one)) == list(map(str, other))
        return same_keys and all(TIMES.search(str(key)) or equal(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, str) and one.startswith("{"):  # JSON in a checkpoint
        return one == other or equal(*({**json.loads(text), "resume": 0, "parent_run_id": 0} for text in (one, other)))
    return bool(one == other or (one != one and other != other))


def tracked(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what MLflow keeps of the newest run of each folder: its state, metrics and files."""
    client = importlib.import_module("mlflow").MlflowClient(f"sqlite:///{folder}/mlflow/mlflow.db")
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
    newest: dict[str, dict[str, Any]] = {}
    for run in sorted(runs, key=lambda run: run.info.start_time):
        metrics = {
            name: sorted({(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)})
            for name in run.data.metrics
            if not TIMES.search(name)
        }
        files = sorted(file.path for file in client.list_artifacts(run.info.run_id))
        name = Path(run.data.tags.get("output_dir", "parent")).name
        newest[name] = {"status": run.info.status, "files": files, "settings": sorted(run.data.params), **metrics}
    return newest


def left_over(*folders: Path) -> list[str]:
    """Return the unfinished files of all folders and whatever is in the last one, which is for temporary files."""
    unfinished = [path for folder in folders for path in folder.rglob(".unfinished*")]
    return sorted({str(path.relative_to(path.parents[1])) for path in (*unfinished, *folders[-1].iterdir())})


# ---- The benchmark


@dataclass
class Outcome:
    """What became of one kill."""

    number: int
    seed: int
    command: str
    event: int
    events: int
    file: str
    delay_ms: float
    failed: str = ""
    differences: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)

    def line(self) -> str:
        """Return what happened, in one line."""
        faults = [f"FAILED: {self.failed}"] if self.failed else []
        faults += [f"DIFFERENT: {'; '.join(self.differences)}"] if self.differences else []
        faults += [f"LEFT OVER: {', '.join(self.left_over)}"] if self.left_over else []
        when = f"event {self.event} of {self.events}" + (f" + {self.delay_ms} ms" if self.delay_ms else "")
        return f"{self.number:3} {self.command:14} {when:28} {self.file}: {' | '.join(faults) or 'the same'}"


class Bench:
    """The working folder, and of each command what it gives undisturbed."""

    def __init__(self, folder: Path, *, seed: int, commands: Sequence[str]) -> None:
        self.folder, self.seed = folder.resolve(), seed
        self.inputs = Inputs(self.folder / "inputs")
        self.temporary = self.folder / "tmp"
        self.log = self.folder / "log.txt"
        self.events: dict[str, list[str]] = {}
        self.temporary.mkdir(parents=True)
        tempfile.tempdir = os.environ["TMPDIR"] = str(self.temporary)
        self.inputs.make(self.log, report="report" in commands)

    def place(self, command: str) -> Path:
        """Return where a command writes."""
        return self.folder / command / "run"

    def run(self, command: str, *, kill_at: int = 0, delay_s: float = 0.0) -> tuple[int, list[str]]:
        """Run a command and return how it ended, and its file events."""
        events = self.folder / "events.txt"
        self.log.unlink(missing_ok=True)
        watch = Watch(self.folder, events, kill_at=kill_at, delay_s=delay_s)
        code = forked(lambda: start(command, self.place(command), self.inputs), self.log, watch)
        return code, events.read_text().splitlines()

    def undisturbed(self, command: str) -> list[str]:
        """Run a command undisturbed, unless that is done, and return its file events."""
        if command not in self.events:
            self.empty_temporary()
            begin(command, self.place(command), self.inputs)
            began_s = time.monotonic()
            code, events = self.run(command)
            require(code, self.log)
            require(forked(partial(write_tracked, self.place(command)), self.log), self.log)
            self.place(command).rename(self.place(command).with_name("undisturbed"))
            self.events[command] = events
            print(f"undisturbed: {command}, {len(events)} events, {time.monotonic() - began_s:.0f} s", flush=True)
        return self.events[command]

    def kill(self, number: int, command: str) -> Outcome:
        """Kill a command, run it again, and look at what there is then."""
        dice = random.Random(f"{self.seed} {command} {number}")
        events = self.undisturbed(command)
        kinds = [kind_of(one) for one in events]
        kind = dice.choice(sorted(set(kinds)))
        event = 1 + dice.choice([place for place, one in enumerate(kinds) if one == kind])
        delay_s = dice.uniform(0, LONGEST_DELAY_S) if dice.random() < 0.5 else 0.0
        place = self.place(command)
        killed = False
        while not killed:  # it may have ended before the delay
            self.empty_temporary()
            begin(command, place, self.inputs)
            code, happened = self.run(command, kill_at=event, delay_s=delay_s)
            killed = code == -signal.SIGKILL
            if not killed:
                require(code, self.log)
                event, delay_s = min(event, len(happened)), 0.0
        file = happened[event - 1].replace(f"{command}/run/", "")
        outcome = Outcome(number, self.seed, command, event, len(events), file, round(1000 * delay_s, 1))
        code, _ = self.run(command)
        said = self.log.read_text()
        if code != 0 and not (command == "train" and "is done already" in said):
            outcome.failed = (said.strip().splitlines() or ["it said nothing"])[-1]
        outcome.differences, outcome.left_over = self.look(place)
        return outcome

    def look(self, place: Path) -> tuple[list[str], list[str]]:
        """Return what differs, and what is left over."""
        left = left_over(place.parent, self.temporary)
        found = self.folder / "differences.json"
        require(forked(partial(write_differences, found, place.with_name("undisturbed"), place), self.log), self.log)
        return json.loads(found.read_text()), left

    def empty_temporary(self) -> None:
        """Remove all temporary files."""
        shutil.rmtree(self.temporary)
        self.temporary.mkdir()


def write_differences(to: Path, expected: Path, place: Path) -> None:
    """Write the differences of two folders to a file."""
    write_tracked(place)
    to.write_text(json.dumps(differences(expected, place)))


def kind_of(event: str) -> tuple[str, ...]:
    """Return what is done to which kind of file in which folder: numbers don't count."""
    what, _, name = event.partition(" ")
    path = Path(re.sub(r"[0-9a-f]*\d[0-9a-f]*", "", name))
    return what, path.suffix or path.name, *path.parts[:3]


def require(code: int, log: Path) -> None:
    """End the benchmark if something that wasn't killed has failed."""
    if code != 0:
        sys.exit(f"ended with {code}:\n{log.read_text()}")


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the table by command."""
    lines = [f"{'command':16}{'kills':>8}{'survived':>10}{'differences':>13}{'left-overs':>12}"]
    for command in dict.fromkeys(one.command for one in outcomes):
        count: Counter[str] = Counter()
        for one in outcomes:
            if one.command == command:
                count.update(kills=1, survived=not one.failed)
                count.update(differences=bool(one.differences), left=bool(one.left_over))
        cells = [count[key] for key in ("kills", "survived", "differences", "left")]
        lines.append("{:16}{:>8}{:>10}{:>13}{:>12}".format(command, *cells))
    return "\n".join(lines)


def main(
    *,
    kills: int = 100,
    seed: int = 0,
    commands: str | Sequence[str] = tuple(COMMANDS),
    shard_minutes: float | None = None,
    results: str | None = None,
) -> None:
    began_s = time.monotonic()
    names = commands.split(",") if isinstance(commands, str) else list(commands)
    for module in {module for name in names for module in COMMANDS[name]}:
        importlib.import_module(f"cyclic_committee.scripts.{module}")
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        path = Path(results) if results else Path(name) / "results.jsonl"
        outcomes = [Outcome(**json.loads(line)) for line in path.read_text().splitlines()] if path.is_file() else []
        done = {(one.seed, one.number, one.command) for one in outcomes}
        bench: Bench | None = None
        for number in range(kills):
            command = names[number % len(names)]
            if (seed, number, command) in done:
                continue
            if shard_minutes is not None and time.monotonic() - began_s > 60 * shard_minutes:
                print(f"stopped before kill {number}: {shard_minutes} minutes are over")
                break
            bench = bench or Bench(Path(name) / "work", seed=seed, commands=names)
            outcomes.append(bench.kill(number, command))
            print(outcomes[-1].line(), flush=True)
            with path.open("a") as file:
                file.write(json.dumps(asdict(outcomes[-1])) + "\n")
        print(table(outcomes))
    if any(one.failed or one.differences or one.left_over for one in outcomes):
        sys.exit(1)


if __name__ == "__main__":
    fire.Fire(main)
