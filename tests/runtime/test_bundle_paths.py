from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import BUNDLE, contents

from cyclic_committee.scripts.runtime.bundle_paths import copy_bundle

KILLED = f"""
import os, sys
from pathlib import Path
from {copy_bundle.__module__} import copy_bundle
copied = 0

def hook(event, _):
    global copied
    if event == "shutil.copyfile":
        copied += 1
        if copied == int(sys.argv[2]):
            os.kill(os.getpid(), 9)

sys.addaudithook(hook)
copy_bundle(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("copied", [1, 30])
def test_a_copy_that_is_killed_is_made_by_the_same_command_once_more(tmp_path: Path, copied: int) -> None:
    folder = tmp_path / "mine"
    ended = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(copied)], check=False)
    assert ended.returncode == -9
    assert not folder.exists()
    copy_bundle(folder)
    assert list(tmp_path.iterdir()) == [folder]
    assert contents(folder / "configs") == contents(BUNDLE / "configs")
