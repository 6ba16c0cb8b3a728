"""Which images get a score, and which are tried again?"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from conftest import TESTS
from label_servers import label_environment, label_python, why_no_server

pytestmark = pytest.mark.skipif(why_no_server() is not None, reason=str(why_no_server()))
SCORING = TESTS / "label_scoring.py"


def test_one_image_costs_no_other_its_score_and_an_unreached_archive_is_asked_again(tmp_path: Path) -> None:
    command = [str(label_python()), str(SCORING), str(tmp_path)]
    done = subprocess.run(command, env=label_environment(), capture_output=True, text=True, check=True)
    found, waiting = json.loads(done.stdout.splitlines()[-1])
    assert found == {"bad": None, "good": 0.5, "odd": None}
    assert waiting == ["unreached"]
