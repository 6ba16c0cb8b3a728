"""The label server's list of studies, used by two processes and their threads at once."""

from __future__ import annotations

import json
import subprocess
from contextlib import ExitStack
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import TESTS
from label_servers import label_environment, label_python, why_no_server

from cyclic_committee.scripts.runtime.atomic_files import UNFINISHED

pytestmark = pytest.mark.skipif(why_no_server() is not None, reason=str(why_no_server()))
WRITERS = TESTS / "label_writers.py"


def test_nothing_is_lost_or_goes_wrong_when_all_write_at_once(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4)), tmp_path / "first.nii.gz")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": label_environment()}
    with ExitStack() as running:
        both = [
            running.enter_context(subprocess.Popen([str(label_python()), str(WRITERS), str(tmp_path), name], **pipes))
            for name in "ab"
        ]

        def lines() -> list[str]:
            return [one.stdout.readline().strip() for one in both]

        def go_on() -> None:
            for one in both:
                one.stdin.write("now\n")
                one.stdin.flush()

        assert lines() == ["ready"] * 2
        go_on()
        assert lines() == ["[]"] * 2
        go_on()
        known, by_the_other = map(json.loads, lines())
    assert known == by_the_other
    names = {f"{process}{thread}-{number}" for process in "ab" for thread in range(4) for number in range(20)}
    assert known.keys() == {"first", *names}
    assert names <= known["first"].keys()
    assert all(known[name]["note"] == name.split("-")[0] for name in names)
    assert not list(tmp_path.glob(f"{UNFINISHED}*"))


SAVE = """
import os, sys
from pathlib import Path
from cyclic_committee.monai_label.stores.folder_store import FolderStore

flushed, fsync = [], os.fsync

def note(descriptor):
    flushed.append(os.path.realpath(f"/proc/self/fd/{descriptor}"))
    fsync(descriptor)

os.fsync = note
store = FolderStore(sys.argv[1], labels={"1": "liver"}, extensions=["*.nii.gz"], auto_reload=False)
store.save_label("first", sys.argv[2], "final", {})
label = Path(store.get_label_uri("first", "final")).resolve()
print({str(label), str(label.parent)} <= set(flushed))
"""


def test_a_label_that_was_saved_outlives_a_loss_of_power(tmp_path: Path) -> None:
    studies, drawn = tmp_path / "studies", tmp_path / "drawn.nii.gz"
    studies.mkdir()
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4)), studies / "first.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.eye(4)), drawn)
    command = [str(label_python()), "-c", SAVE, str(studies), str(drawn)]
    done = subprocess.run(command, env=label_environment(), capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["True"], done.stderr
