"""Can others fetch released weights, and be sure that it is they?"""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from conftest import BUNDLE, TINY
from monai.apps.utils import HashCheckError
from monai.bundle import download_large_files
from test_model_zoo import large_file_problems

from cyclic_committee.scripts.bundles.fold_bundle import copy_template, write_fold
from cyclic_committee.scripts.bundles.release import HEADER, enter_weights
from cyclic_committee.scripts.inference.predictor import Predictor
from cyclic_committee.scripts.runtime.errors import BadInput

URL = "https://example.org/model.pt"


@pytest.fixture(autouse=True)
def undone(process_state: None) -> None:
    """Predictors set the search path."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trained") / "model.pt"


@pytest.fixture
def trained(train: Callable[..., Path], weights: Path, tmp_path: Path) -> Path:
    """A bundle that says in its own inference.yaml what its weights are, as a fold of Auto3DSeg does."""
    if not weights.is_file():
        train(weights.parent)
    folder = tmp_path / "a bundle"
    copy_template(BUNDLE, folder)
    settings = {key: TINY[key] for key in ("spacing_mm", "patch_size", "member#features")}
    write_fold(folder, yaml.safe_dump({"fold": 0, **settings}))
    shutil.copy(weights, folder / "models" / "model.pt")
    return folder


@pytest.fixture
def address(trained: Path, tmp_path: Path) -> Iterator[str]:
    """Where a server of this machine has the weights."""
    (tmp_path / "served").mkdir()
    shutil.copy(trained / "models" / "model.pt", tmp_path / "served" / "model.pt")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/model.pt"
        server.shutdown()


def test_who_has_the_bundle_without_its_weights_fetches_them_and_no_others(
    trained: Path, address: str, tmp_path: Path
) -> None:
    command = [str(Path(sys.executable).with_name("cyclic-committee")), "release", str(trained), "--url", address]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert large_file_problems(trained) == []
    [entry] = yaml.safe_load((trained / "large_files.yml").read_text())["large_files"]
    assert f"{entry['path']} at {address}, sha256 {entry['hash_val']}" in done.stdout

    fetched, other = tmp_path / "fetched", tmp_path / "other"
    for folder in (fetched, other):
        shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("*.pt"))
    download_large_files(bundle_path=str(fetched))
    assert (fetched / "models" / "model.pt").read_bytes() == (trained / "models" / "model.pt").read_bytes()
    Predictor.from_config(bundle=fetched, device="cpu")

    with (tmp_path / "served" / "model.pt").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(HashCheckError, match="sha256"):
        download_large_files(bundle_path=str(other))


def test_a_later_release_takes_the_place_of_the_first_and_other_files_stay(trained: Path) -> None:
    listed = trained / "large_files.yml"
    other = {"path": "models/atlas.nii.gz", "url": "https://example.org/atlas.nii.gz"}
    listed.write_text(yaml.safe_dump({"large_files": [other]}))
    enter_weights(trained, "https://example.org/first.pt")
    enter_weights(trained, URL)
    assert [entry["url"] for entry in yaml.safe_load(listed.read_text())["large_files"]] == [other["url"], URL]
    assert listed.read_text().startswith(HEADER)


def test_a_fold_doesnt_take_its_templates_weights_for_its_own(trained: Path, tmp_path: Path) -> None:
    enter_weights(trained, URL)
    copy_template(trained, tmp_path / "fold")
    assert yaml.safe_load((tmp_path / "fold" / "large_files.yml").read_text()) == {"large_files": []}
    assert (tmp_path / "fold" / "large_files.yml").read_text() == (BUNDLE / "large_files.yml").read_text()


@pytest.mark.parametrize(
    ("damage", "url", "message"),
    [
        ("", "model.pt", "url must be the http"),
        ("", "https://example.org", "url must be the http"),
        ("no weights", URL, r"model\.pt: no such file\. Train first"),
        ("other networks", URL, r"model\.pt"),
        ("no list", URL, r"large_files\.yml: isn't a list"),
    ],
)
def test_what_others_couldnt_use_isnt_released(trained: Path, damage: str, url: str, message: str) -> None:
    listed = trained / "large_files.yml"
    if damage == "no weights":
        (trained / "models" / "model.pt").unlink()
    if damage == "other networks":
        write_fold(trained, yaml.safe_dump({"fold": 0, "member#features": [8, 8]}))
    if damage == "no list":
        listed.write_text("large_files: 3\n")
    before = listed.read_text()
    with pytest.raises(BadInput, match=message) as caught:
        enter_weights(trained, url)
    assert "\n" not in str(caught.value)
    assert listed.read_text() == before
