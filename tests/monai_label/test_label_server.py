"""The label server on a folder of NIfTI files, asked over HTTP and by MONAI Label's own client."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests
from conftest import LABELS
from label_servers import Client, LabelServer, label_client, label_server, train_bundle, why_no_server

from cyclic_committee.scripts.bundles.server_folder import MODEL
from cyclic_committee.scripts.experiments.bundle_run import run_bundle
from cyclic_committee.scripts.inference.predictor import Predictor
from cyclic_committee.scripts.phantoms.data_set import write_phantoms

pytestmark = pytest.mark.skipif(why_no_server() is not None, reason=str(why_no_server()))
SECRET = b"nobody's business"
ROUND = {"max_epochs": 2, "val_split": 0.3}


@dataclass(frozen=True)
class Running:
    """The server, its studies, the references of their labels, and the bundle that it was started with."""

    server: LabelServer
    studies: Path
    references: dict[str, Path]
    bundle: Path

    @property
    def predictor(self) -> Predictor:
        """The predictor of the weights that are served."""
        return Predictor.from_config(bundle=self.server.work / "model" / MODEL, device="cpu")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("label server")  # with a space in it
    bundle, studies = train_bundle(folder), folder / "studies"
    write_phantoms(folder / "unlabelled", cases=4, seed=11)
    studies.mkdir()
    references = {}
    for image in sorted((folder / "unlabelled" / "TrainingImg").iterdir()):
        name = image.name.replace("_0000.nii.gz", "")
        shutil.copy(image, studies / f"{name}.nii.gz")
        references[name] = folder / "unlabelled" / "TrainingMask" / f"{name}.nii.gz"
    (folder / "secret.nii.gz").write_bytes(SECRET)
    with label_server(studies, bundle, folder) as server:
        yield Running(server, studies, references, bundle)


@pytest.fixture(scope="module")
def client(running: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with label_client(running.server, tmp_path_factory.mktemp("client")) as made:
        yield made


def voxels_of(answer: requests.Response, folder: Path) -> np.ndarray:
    """Return the label map in an answer."""
    answer.raise_for_status()
    (folder / "answer.nii.gz").write_bytes(answer.content)
    return np.asanyarray(nib.load(folder / "answer.nii.gz").dataobj)


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_server_names_its_labels_by_their_ids(client: Client) -> None:
    info = client("info")
    assert info["models"][MODEL]["labels"] == {name: int(label) for label, name in LABELS.items()}
    assert next(iter(info["strategies"])) == "disagreement"


def test_server_predictor_and_workflow_agree_voxel_for_voxel(
    process_state: None, running: Running, client: Client, tmp_path: Path
) -> None:
    run_bundle(running.bundle, "run", ["inference.yaml"], dataset_dir=running.studies, output_dir=tmp_path / "workflow")
    predictor = running.predictor
    for name in running.references:
        wanted = predictor.predict(running.studies / f"{name}.nii.gz")[0].numpy()
        assert len(np.unique(wanted)) > 2
        file, result = client("infer", MODEL, name, {})
        assert result["label_names"]["pancreas"] == 4
        served = nib.load(file)
        assert np.array_equal(np.asanyarray(served.dataobj), wanted)
        assert np.allclose(served.affine, nib.load(running.studies / f"{name}.nii.gz").affine)
        written = np.asanyarray(nib.load(tmp_path / "workflow" / f"{name}.nii.gz").dataobj)
        assert np.array_equal(written, wanted)


def test_a_file_that_is_sent_along_is_labelled(process_state: None, running: Running, tmp_path: Path) -> None:
    image = min(running.studies.glob("*.nii.gz"))
    with image.open("rb") as opened:
        answer = requests.post(
            f"{running.server.url}/infer/{MODEL}",
            params={"output": "image"},
            files={"file": ("a scan.nii.gz", opened)},
            timeout=120,
        )
    assert np.array_equal(voxels_of(answer, tmp_path), running.predictor.predict(image)[0].numpy())


def test_the_most_disputed_image_comes_next_and_a_served_or_labelled_one_does_not(
    process_state: None, running: Running, client: Client
) -> None:
    running.server.wait_for("scoring")
    scores = json.loads((running.server.work / "scores.json").read_text())
    assert scores.keys() >= running.references.keys()
    ranked = sorted(running.references, key=lambda name: -scores[name]["disagreement"])
    assert len({scores[name]["disagreement"] for name in ranked}) == len(ranked)
    first = client("next_sample", "disagreement", {})
    assert first["id"] == ranked[0]
    assert first["disagreement"] == scores[ranked[0]]["disagreement"]
    client("save_label", ranked[1], str(running.references[ranked[1]]), "final", {})
    assert client("next_sample", "disagreement", {})["id"] == ranked[2]


@pytest.mark.parametrize("strategy", ["random", "first"])
def test_other_strategies_are_there(client: Client, running: Running, strategy: str) -> None:
    assert client("next_sample", strategy, {})["id"] in running.references


def test_a_saved_label_comes_back(running: Running, client: Client) -> None:
    name = min(running.references)
    client("save_label", name, str(running.references[name]), "checked", {})
    answer = requests.get(
        f"{running.server.url}/datastore/label", params={"label": name, "tag": "checked"}, timeout=120
    )
    assert answer.content == running.references[name].read_bytes()


def test_rounds_of_training_replace_the_weights_only_by_ones_that_validate_as_well(
    process_state: None, running: Running, client: Client
) -> None:
    """First on what the network says itself, where none can be better; then two rounds on the right labels."""
    released = digest(running.bundle / "models" / "model.pt")
    served, kept = running.server.work / "model" / MODEL / "models" / "model.pt", running.server.work / "released"
    for name in running.references:
        file, _ = client("infer", MODEL, name, {})
        client("save_label", name, file, "final", {})
    rounds = [trained(running, client)]
    assert rounds[0]["dsc_before"] == 1
    assert rounds[0]["dsc_after"] < 1
    assert not rounds[0]["replaced"]
    assert digest(served) == released
    for name, reference in running.references.items():
        client("save_label", name, str(reference), "final", {})
    rounds += [trained(running, client), trained(running, client)]
    for result in rounds[1:]:
        assert result["replaced"] == (result["dsc_after"] >= result["dsc_before"])
    assert rounds[1]["replaced"]  # of a network that has seen little
    assert digest(served) != released
    assert digest(kept / "model.pt") == released
    cases = {*rounds[2]["training_cases"], *rounds[2]["validation_cases"]}
    assert cases == running.references.keys()
    assert rounds[1]["validation_cases"] == rounds[2]["validation_cases"]


def trained(running: Running, client: Client) -> dict[str, object]:
    """Run a round of training and return what came of it."""
    assert client("train_start", MODEL, ROUND)["status"] in ("RUNNING", "SUBMITTED")
    said = running.server.wait_for("train")
    assert said["status"] == "DONE", said["details"]
    newest = max((running.server.work / "trainings").iterdir())
    result: dict[str, object] = json.loads((newest / "round.json").read_text())
    return result


def test_new_weights_answer_the_next_request(process_state: None, running: Running, tmp_path: Path) -> None:
    name = min(running.references)
    wanted = running.predictor.predict(running.studies / f"{name}.nii.gz")[0].numpy()
    assert np.array_equal(voxels_of(running.server.infer(name), tmp_path), wanted)


def test_two_hundred_requests_eight_at_a_time_are_answered_and_not_mixed_up(
    process_state: None, running: Running, tmp_path: Path
) -> None:
    """Small images of different shapes are labelled, with others that are read, and questions, in between."""
    predictor, wanted = running.predictor, {}
    for number, name in enumerate(sorted(running.references)):
        image = nib.load(running.studies / f"{name}.nii.gz")
        small = image.slicer[30 : 54 + number, 25:50, 12 : 16 + number]
        nib.save(small, tmp_path / f"small_{number}.nii.gz")
        with (tmp_path / f"small_{number}.nii.gz").open("rb") as opened:
            requests.put(
                f"{running.server.url}/datastore/image", files={"file": (f"small_{number}.nii.gz", opened)}, timeout=120
            ).raise_for_status()
        wanted[f"small_{number}"] = predictor.predict(tmp_path / f"small_{number}.nii.gz")[0].numpy()
    folders = [tmp_path / str(number) for number in range(200)]

    def ask(number: int) -> bool:
        name = sorted(wanted)[number % 4]
        folders[number].mkdir()
        if number % 8 < 4:
            return np.array_equal(voxels_of(running.server.infer(name), folders[number]), wanted[name])
        if number % 8 < 7:
            answer = requests.get(f"{running.server.url}/datastore/image", params={"image": name}, timeout=60)
            return answer.content == (running.studies / f"{name}.nii.gz").read_bytes()
        return MODEL in requests.get(f"{running.server.url}/info/", timeout=60).json()["models"]

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(ask, range(200)))


OUTSIDE = ["/etc/passwd", "../secret", "../secret.nii.gz", "..", ".", "a/../../secret", "..\\secret", "x\x00y"]


@pytest.mark.parametrize("image", [*OUTSIDE, "{outside}/secret.nii.gz"])
@pytest.mark.parametrize(
    ("method", "path", "key", "files"),
    [
        ("POST", f"/infer/{MODEL}", "image", {"params": (None, "{}")}),
        ("GET", "/datastore/image", "image", None),
        ("GET", "/datastore/image/info", "image", None),
        ("PUT", "/datastore/", "image", {"file": ("x.nii.gz", SECRET[::-1])}),
        ("PUT", "/datastore/image", "image", {"file": ("x.nii.gz", SECRET[::-1])}),
        ("PUT", "/datastore/label", "image", {"label": ("x.nii.gz", SECRET[::-1])}),
        ("PUT", "/datastore/image/info", "image", {"info": (None, "{}")}),
        ("GET", "/datastore/label?tag=final", "label", None),
        ("DELETE", "/datastore/image", "id", None),
        ("DELETE", "/datastore/label?tag=final", "id", None),
    ],
)
def test_no_image_outside_the_studies_is_read_or_written(
    running: Running, image: str, method: str, path: str, key: str, files: dict[str, object] | None
) -> None:
    outside, before = running.studies.parent, tree(running.studies.parent)
    query = {key: image.format(outside=outside)}
    answer = requests.request(method, running.server.url + path, params=query, files=files, timeout=60)
    assert 400 <= answer.status_code < 500, answer.text
    assert SECRET not in answer.content
    assert b"root:" not in answer.content
    assert tree(outside) == before
    assert (outside / "secret.nii.gz").read_bytes() == SECRET


def tree(folder: Path) -> set[Path]:
    """Return the files of a folder that requests might add to, without those that servers keep."""
    return {path for path in folder.rglob("*.nii*") if "trainings" not in path.parts and "slices" not in path.parts}


@pytest.mark.parametrize("tag", ["../..", "../../x", "/tmp", "a/b", "..", "", "."])
def test_no_tag_leads_out_of_the_labels(running: Running, tag: str) -> None:
    name, before = min(running.references), tree(running.studies.parent)
    if tag:
        answer = requests.put(
            f"{running.server.url}/datastore/label",
            params={"image": name, "tag": tag},
            files={"label": ("x.nii.gz", SECRET)},
            timeout=120,
        )
        assert 400 <= answer.status_code < 500, answer.text
    query = {"label": name, "tag": tag}
    answer = requests.get(f"{running.server.url}/datastore/label", params=query, timeout=120)
    assert 400 <= answer.status_code < 500, answer.text
    saving = running.server.infer(name, save_label=True, label_tag=tag or "/")
    assert 400 <= saving.status_code < 500, saving.text
    assert tree(running.studies.parent) == before


def test_parameters_cannot_name_another_file(running: Running, process_state: None, tmp_path: Path) -> None:
    """What a request's parameters may say is listed; the rest, which MONAI Label would follow, is dropped."""
    name = min(running.references)
    other = str(running.studies.parent / "secret.nii.gz")
    evil = {"image": other, "upload": other, "model": "other", "model_filename": f"../../../{other}", "session": {}}
    wanted = running.predictor.predict(running.studies / f"{name}.nii.gz")[0].numpy()
    assert np.array_equal(voxels_of(running.server.infer(name, **evil), tmp_path), wanted)
    answer = running.server.infer(name, result_extension="/../../../../x.nii.gz")
    assert answer.status_code == 400


@pytest.mark.parametrize("file", ["x.py", "x.json", "x.nii.gz.sh", "x", "x.nrrd"])
def test_only_nifti_files_can_be_sent(running: Running, file: str) -> None:
    name = min(running.references)
    for path, field in (("image?image=new", "file"), (f"label?image={name}&tag=new", "label")):
        answer = requests.put(f"{running.server.url}/datastore/{path}", files={field: (file, b"x")}, timeout=120)
        assert answer.status_code == 400, answer.text


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/infer/nothing?image={name}"),
        ("POST", f"/infer/{MODEL}?image=nothing"),
        ("POST", f"/infer/{MODEL}?image={{name}}&output=nothing"),
        ("POST", "/train/nothing"),
        ("POST", "/scoring/nothing"),
        ("POST", "/activelearning/nothing"),
        ("POST", "/batch/infer/nothing"),
        ("POST", f"/batch/infer/{MODEL}?images=nothing"),
        ("GET", "/model/nothing"),
        ("GET", "/model/info/nothing"),
        ("GET", "/datastore/image?image=nothing"),
        ("HEAD", "/datastore/image?image=nothing"),
        ("GET", "/datastore/image/info?image=nothing"),
        ("DELETE", "/datastore/image?id=nothing"),
        ("GET", "/datastore/label?label=nothing&tag=final"),
        ("GET", "/datastore/label?label={name}&tag=nothing"),
        ("GET", "/datastore/label/info?label={name}&tag=nothing"),
        ("DELETE", "/datastore/label?id={name}&tag=nothing"),
        ("POST", f"/infer/wsi/{MODEL}?image=/etc/passwd"),
        ("POST", "/infer/wsi_v2/x"),
        ("PUT", f"/model/{MODEL}"),
        ("DELETE", f"/model/{MODEL}"),
        ("GET", "/session/x"),
        ("PUT", "/session/?uncompress=true"),
        ("POST", "/reload"),
        ("GET", "/logs/gpu"),
        ("GET", "/proxy/dicom/wado/studies"),
        ("GET", "/proxy/dicom/..%2f..%2fetc%2fpasswd"),
    ],
)
def test_what_is_not_there_or_closed_is_answered_with_404(running: Running, method: str, path: str) -> None:
    path = path.format(name=min(running.references))
    files = {"params": (None, "{}")} if method == "POST" and path.startswith("/infer/") else None
    answer = requests.request(method, running.server.url + path, files=files, timeout=120)
    assert answer.status_code == 404, answer.text


def test_a_label_for_an_unknown_image_is_answered_with_404(running: Running) -> None:
    query = {"image": "nothing", "tag": "final"}
    files = {"label": ("x.nii.gz", b"x")}
    answer = requests.put(f"{running.server.url}/datastore/label", params=query, files=files, timeout=120)
    assert answer.status_code == 404


def test_nonsense_is_answered_with_400(running: Running) -> None:
    for path in (f"/train/{MODEL}", "/train/", f"/scoring/{'disagreement'}"):
        assert requests.post(running.server.url + path, data=b"[1, 2", timeout=120).status_code == 400
    answer = requests.post(f"{running.server.url}/infer/{MODEL}", files={"params": (None, "{}")}, timeout=120)
    assert answer.status_code == 400
    broken = requests.post(
        f"{running.server.url}/infer/{MODEL}", files={"file": ("x.nii.gz", b"no image")}, timeout=120
    )
    assert broken.status_code == 400
    assert running.server.infer(min(running.references), device="nonsense").status_code < 500


def test_other_sites_pages_may_not_read_answers(running: Running) -> None:
    answer = requests.get(f"{running.server.url}/info/", headers={"Origin": "https://elsewhere.example"}, timeout=120)
    assert answer.status_code == 403
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_only_this_machine_is_listened_to(running: Running) -> None:
    port = int(running.server.url.rsplit(":", 1)[1])
    listening = [
        line.split()[1]
        for table in ("tcp", "tcp6")
        for line in Path("/proc/net", table).read_text().splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[1].endswith(f":{port:04X}")
    ]
    assert listening == [f"0100007F:{port:04X}"]


def test_the_server_goes_on_with_the_weights_that_it_trained(running: Running, tmp_path: Path) -> None:
    """Started again, with the same folder, after all else."""
    shutil.copytree(running.server.work, tmp_path / "work")
    served = digest(tmp_path / "work" / "model" / MODEL / "models" / "model.pt")
    with label_server(running.studies, running.bundle, tmp_path) as again:
        said = requests.get(f"{again.url}/model/{MODEL}", timeout=120)
        assert hashlib.sha256(said.content).hexdigest() == served
        rounds = requests.get(f"{again.url}/info/", timeout=120).json()["train_stats"][MODEL]
    assert len(rounds) == 3
