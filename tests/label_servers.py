"""How do tests start the label server, in the environment that has MONAI Label?"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import requests
import yaml
from conftest import BUNDLE, SCHEDULE, TINY
from orthanc import child, free_port, wait_until_ready

from cyclic_committee.scripts.bundles.fold_bundle import copy_template, write_fold
from cyclic_committee.scripts.bundles.server_folder import MODEL
from cyclic_committee.scripts.experiments.bundle_run import run_bundle
from cyclic_committee.scripts.phantoms.data_set import write_phantoms

PAGE = BUNDLE / "docs" / "monai_label.md"
CLIENT = Path(__file__).with_name("label_client.py")


def label_python() -> str | None:
    """Return the Python that has MONAI Label, if one has."""
    return os.environ.get("LABEL_PYTHON") or (sys.executable if find_spec("monailabel") else None)


def label_environment() -> dict[str, str]:
    """Return the environment variables with which MONAI Label can be imported, as our server's command sets them."""
    return {**os.environ, "PYTHONPATH": str(BUNDLE / "monai_label" / "stand_ins" / "pydicom_seg")}


def why_no_server() -> str | None:
    """Return why no label server can run here, if none can."""
    if label_python() is None:
        return "MONAI Label isn't installed: pip install '.[label]', or LABEL_PYTHON=the Python that has it"
    return None


def train_bundle(folder: Path) -> Path:
    """Train a small copy of the bundle on phantoms, for seconds."""
    phantoms, bundle = folder / "phantoms", folder / "bundle"
    write_phantoms(phantoms, cases=5, seed=7)
    copy_template(BUNDLE, bundle)
    values = {**TINY, **SCHEDULE, "max_epochs": 4, "iterations_per_epoch": 60, "learning_rate": 0.005, "track": False}
    del values["momentum"], values["device"]
    adam = {"_target_": "torch.optim.AdamW", "params": "$@network.parameters()", "lr": "@learning_rate"}
    write_fold(bundle, yaml.safe_dump({**values, "optimizer": adam}))
    run_bundle(bundle, "training", ["train.yaml"], dataset_dir=phantoms, output_dir=folder / "output")
    return bundle


@dataclass(frozen=True)
class LabelServer:
    """A running server; `work` is its own folder."""

    url: str
    work: Path

    def infer(self, image: str, /, **params: Any) -> requests.Response:
        """Ask for a label map."""
        return requests.post(
            f"{self.url}/infer/{MODEL}",
            params={"image": image, "output": "image"},
            files={"params": (None, json.dumps(params))},
            timeout=300,
        )

    def wait_for(self, task: str) -> dict[str, Any]:
        """Wait until what runs in the background has ended, and return what it said."""
        while True:
            said: dict[str, Any] = requests.get(f"{self.url}/{task}/", timeout=60).json()
            if said["status"] not in ("RUNNING", "SUBMITTED"):
                return said
            time.sleep(0.2)


@contextmanager
def label_server(studies: str | Path, bundle: Path, folder: Path, *options: str) -> Iterator[LabelServer]:
    """Run the documented command on studies, with a bundle, on a free port of loopback."""
    python, port, log = label_python(), free_port(), folder / "label_server.log"
    assert python is not None
    [documented] = re.findall(r"^cyclic-committee label-server .*", PAGE.read_text(), flags=re.MULTILINE)
    command = shlex.split(documented)
    here = {"cyclic-committee": str(Path(python).with_name("cyclic-committee")), "demo/bundle": str(bundle)}
    here |= {command[2]: str(studies), "variants/small.yaml": str(bundle / "configs" / "overlay.yaml")}
    command = [here.pop(word, word) for word in command]
    assert not here
    command += ["--port", str(port), "--work", str(folder / "work"), *options]
    (folder / "temporary").mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "temporary")}
    with child(command, log, cwd=folder, env=environment) as process:
        wait_until_ready(f"http://127.0.0.1:{port}/auth/", process, log)
        yield LabelServer(f"http://127.0.0.1:{port}", folder / "work")


class Client:
    """MONAI Label's Python client in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def __call__(self, method: str, *arguments: Any) -> Any:
        """Call one of its methods; an error is returned as `{"status": ..., "error": ...}`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([method, arguments]) + "\n")
        self.process.stdin.flush()
        while not (line := self.process.stdout.readline()).startswith("{"):
            assert line, "MONAI Label's client has ended"
        answer = json.loads(line)
        return answer.get("result", answer)


@contextmanager
def label_client(server: LabelServer, folder: Path) -> Iterator[Client]:
    """Run MONAI Label's Python client on a server."""
    command = [str(label_python()), str(CLIENT), server.url, str(folder)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=label_environment(), cwd=folder) as process:
        yield Client(process)
        process.stdin.close()  # type: ignore[union-attr]
