"""MONAI Label's own application `monaibundle`, unchanged, with this bundle: inference, several rounds of training."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from auto3dseg_runs import TINY_TRAINING, made_fold, phantom_list
from conftest import BUNDLE
from label_servers import Client, LabelServer, label_client, label_python, train_bundle, why_no_server
from orthanc import child, free_port, wait_until_ready

from cyclic_committee.scripts.commands.label_server import server_environment
from cyclic_committee.scripts.inference.predictor import Predictor
from cyclic_committee.scripts.phantoms.data_set import write_phantoms

pytestmark = pytest.mark.skipif(why_no_server() is not None, reason=str(why_no_server()))
MODEL, FOLD = "bundle", "committee_0"
ROUND = {"max_epochs": 1, "val_split": 0.34, "device": "cpu", "tracking": "None"}


def fold_of_auto3dseg(folder: Path) -> Path:
    """Make a fold, train it for a moment, and move it away from all that it was made of."""
    algo = made_fold(folder / "WORK", phantom_list(folder / "list"))
    algo.train(dict(TINY_TRAINING))
    moved = folder / "elsewhere" / FOLD
    shutil.move(str(algo.output_path), moved)
    shutil.rmtree(folder / "WORK")
    shutil.rmtree(folder / "list")
    return moved


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the stock application, with the bundle and a fold of Auto3DSeg in it, and images beside it."""
    folder, python = tmp_path_factory.mktemp("stock"), label_python()
    assert python is not None
    app = folder / "app"
    shutil.copytree(Path(python).parents[1] / "monailabel" / "sample-apps" / "monaibundle", app)
    shutil.copytree(train_bundle(folder), app / "model" / MODEL)
    shutil.copytree(fold_of_auto3dseg(folder), app / "model" / FOLD)
    write_phantoms(folder / "unlabelled", cases=3, seed=11)
    (folder / "studies").mkdir()
    for image in (folder / "unlabelled" / "TrainingImg").iterdir():
        shutil.copy(image, folder / "studies" / image.name.replace("_0000", ""))
    return app


@pytest.fixture(scope="module")
def client(app: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """MONAI Label's client, of the server with both models."""
    port, log, python = free_port(), app.parent / "log", str(label_python())
    command = [python, "-m", "monailabel.main", "start_server", "--app", str(app)]
    command += ["--studies", str(app.parent / "studies"), "--host", "127.0.0.1", "--port", str(port)]
    for key, value in {"models": f"{MODEL},{FOLD}", "zoo_source": "none", "sam2": "false"}.items():
        command += ["--conf", key, value]
    stand_ins = [str(one) for one in (BUNDLE / "monai_label" / "stand_ins").iterdir()]
    python_path = os.pathsep.join([*stand_ins, os.environ.get("PYTHONPATH", "")])
    settings = {**os.environ, **server_environment(), "PYTHONPATH": python_path, "OMP_NUM_THREADS": "1"}
    with child(command, log, cwd=app.parent, env=settings) as process:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(f"{url}/info/", process, log)
        with label_client(LabelServer(url, app), tmp_path_factory.mktemp("client")) as made:
            yield made


def test_it_offers_both_with_their_labels(client: Client) -> None:
    models = client("info")["models"]
    assert models[MODEL]["labels"] == {"liver": 1, "kidney": 2, "spleen": 3, "pancreas": 4}
    assert len(models[FOLD]["labels"]) == 4


@pytest.mark.parametrize("model", [MODEL, FOLD])
def test_it_labels_as_the_predictor_does(process_state: None, app: Path, client: Client, model: str) -> None:
    image = min((app.parent / "studies").glob("*.nii.gz"))
    file, _ = client("infer", model, image.name.removesuffix(".nii.gz"), {"device": "cpu"})
    wanted = Predictor.from_config(bundle=app / "model" / model, device="cpu").predict(image)[0].numpy()
    assert np.array_equal(np.asanyarray(nib.load(file).dataobj), wanted)


def test_it_trains_on_for_several_rounds(process_state: None, app: Path, client: Client) -> None:
    weights = app / "model" / MODEL / "models" / "model.pt"
    iterations = [trained_for(weights)]
    for image in (app.parent / "studies").glob("*.nii.gz"):
        label = app.parent / "unlabelled" / "TrainingMask" / image.name
        client("save_label", image.name.removesuffix(".nii.gz"), str(label), "final", {})
    for _ in range(2):
        client("train_start", MODEL, ROUND)
        while (said := client("train_status"))["status"] in ("RUNNING", "SUBMITTED"):
            time.sleep(0.5)
        assert said["status"] == "DONE", json.dumps(said["details"], indent=1)
        iterations.append(trained_for(weights))
        test_it_labels_as_the_predictor_does(None, app, client, MODEL)
    assert iterations[0] < iterations[1] < iterations[2]  # each went on from the weights before it


def trained_for(weights: Path) -> int:
    """Return the iterations that a bundle's weights were trained for."""
    return int(torch.load(weights, weights_only=True)["iterations_trained"])
