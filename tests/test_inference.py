"""Inference and evaluation through the bundle's workflows."""

from __future__ import annotations

import csv
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import TINY, Workflow
from ignite.engine import Engine, Events
from monai.data import MetaTensor

from cyclic_committee.scripts.handlers.label_map_writer import LabelMapWriter, write_label_map
from cyclic_committee.scripts.metrics.score_table import evaluate_folders
from cyclic_committee.scripts.networks.committee import Committee
from cyclic_committee.scripts.networks.unet import UNet2d
from cyclic_committee.scripts.phantoms.phantom import LABELS, make_phantom
from cyclic_committee.scripts.runtime.errors import BadInput, find_bad_input

VALUES = {key: value for key, value in TINY.items() if key != "crop_size"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a tiny committee that was marked as trained: what it says is of no matter, only where."""
    torch.manual_seed(3)
    network = Committee([UNet2d(in_channels=1, out_channels=5, features=[4, 8, 16]) for _ in range(3)])
    network.iterations_trained += 1
    path = tmp_path_factory.mktemp("model") / "model.pt"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture
def infer(workflow: Workflow, model: Path) -> Callable[..., Path]:
    def run(images: Path, output: Path, *overlays: str, **overrides: Any) -> Path:
        values = {"dataset_dir": str(images), "output_dir": str(output), "ckpt_path": str(model), **VALUES, **overrides}
        workflow("inference", "inference.yaml", *overlays, **values).run()
        return output

    return run


def oblique() -> np.ndarray:
    a, b = np.deg2rad(20), np.deg2rad(-12)
    turn_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = turn_z @ turn_x @ np.diag([3.0, 3.0, 5.0])
    affine[:3, 3] = [-120, 40, 300]
    return affine


def reoriented(volume: nib.Nifti1Image, axcodes: str) -> nib.Nifti1Image:
    start, end = nib.io_orientation(volume.affine), nib.orientations.axcodes2ornt(axcodes)
    return volume.as_reoriented(nib.orientations.ornt_transform(start, end))


@pytest.fixture(scope="module")
def scan() -> nib.Nifti1Image:
    phantom = make_phantom(3)
    return nib.Nifti1Image(phantom.image_hu, phantom.affine)


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "SPL", "AIR"])
def test_a_label_map_lies_on_its_images_grid_whatever_the_orientation(
    infer: Callable[..., Path], scan: nib.Nifti1Image, tmp_path: Path, axcodes: str
) -> None:
    (tmp_path / "images").mkdir()
    nib.save(scan, tmp_path / "images" / "straight.nii.gz")
    nib.save(reoriented(scan, axcodes), tmp_path / "images" / "turned.nii.gz")
    output = infer(tmp_path / "images", tmp_path / "labels")
    assert sorted(path.name for path in output.iterdir()) == ["straight.nii.gz", "turned.nii.gz"]
    straight, turned = nib.load(output / "straight.nii.gz"), nib.load(output / "turned.nii.gz")
    image = nib.load(tmp_path / "images" / "turned.nii.gz")
    assert turned.shape == image.shape
    assert np.array_equal(turned.affine, image.affine)
    assert turned.header.get_zooms() == image.header.get_zooms()
    assert turned.get_data_dtype() == np.uint8
    back = nib.as_closest_canonical(turned)
    assert np.array_equal(np.asanyarray(back.dataobj), np.asanyarray(straight.dataobj))
    assert len(np.unique(np.asanyarray(straight.dataobj))) > 1


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nii"])
def test_an_oblique_image_keeps_its_affine_codes_and_name(
    infer: Callable[..., Path], scan: nib.Nifti1Image, tmp_path: Path, name: str
) -> None:
    image = nib.Nifti1Image(np.asanyarray(scan.dataobj), oblique())
    image.set_sform(oblique(), code=1)
    image.set_qform(oblique(), code=1)
    image.header.set_xyzt_units("mm")
    nib.save(image, tmp_path / name)
    label = nib.load(infer(tmp_path / name, tmp_path / "labels") / name)
    saved = nib.load(tmp_path / name)
    assert np.array_equal(label.affine, saved.affine)
    assert np.allclose(label.get_qform(), saved.get_qform())
    assert label.header.get_zooms() == saved.header.get_zooms()
    for field in ("qform_code", "sform_code", "xyzt_units"):
        assert label.header[field] == saved.header[field]


def test_the_label_map_is_the_largest_mean_probability(
    infer: Callable[..., Path], workflow: Workflow, scan: nib.Nifti1Image, tmp_path: Path, model: Path
) -> None:
    nib.save(scan, tmp_path / "scan.nii.gz")
    spacing_mm = [float(zoom) for zoom in scan.header.get_zooms()[:2]]
    size = [16 * -(-n // 16) for n in scan.shape[:2]]
    output = infer(tmp_path / "scan.nii.gz", tmp_path / "labels", patch_size=size, spacing_mm=spacing_mm)
    network = workflow("inference", "inference.yaml", **VALUES).network_def.eval()
    network.load_state_dict(torch.load(model, weights_only=True))
    hu = torch.from_numpy(np.asanyarray(scan.dataobj).astype(np.float32)).permute(2, 0, 1)[:, None]
    slices = (hu.clamp(-16, 270) - 116.62895) / 47.89974
    pads = [new - old for new, old in zip(size, scan.shape[:2], strict=True)]
    before = [pad // 2 for pad in pads]
    padded = torch.nn.functional.pad(slices, (before[1], pads[1] - before[1], before[0], pads[0] - before[0]))
    with torch.no_grad():
        probability = torch.stack([member(padded).softmax(dim=1) for member in network.members]).mean(dim=0)
    cut = probability[:, :, before[0] :, before[1] :][:, :, : scan.shape[0], : scan.shape[1]]
    expected = cut.argmax(dim=1).permute(1, 2, 0).numpy()
    label = np.asanyarray(nib.load(output / "scan.nii.gz").dataobj)
    assert (label != expected).mean() < 1e-4  # ties to rounding


def test_one_member_alone_and_mirroring_are_a_matter_of_configuration(
    infer: Callable[..., Path], scan: nib.Nifti1Image, tmp_path: Path
) -> None:
    nib.save(scan, tmp_path / "scan.nii.gz")
    outputs = [
        infer(tmp_path / "scan.nii.gz", tmp_path / name, **overrides)
        for name, overrides in {"all": {}, "first": {"ensemble_members": [0]}, "mirrored": {"mirror": True}}.items()
    ]
    voxels = [np.asanyarray(nib.load(output / "scan.nii.gz").dataobj) for output in outputs]
    assert not np.array_equal(voxels[0], voxels[1])
    assert not np.array_equal(voxels[0], voxels[2])


def test_a_checkpoint_of_a_training_infers_too(
    infer: Callable[..., Path], model: Path, scan: nib.Nifti1Image, tmp_path: Path
) -> None:
    nib.save(scan, tmp_path / "scan.nii.gz")
    torch.save({"network": torch.load(model, weights_only=True), "optimizer": {}}, tmp_path / "checkpoint.pt")
    one = infer(tmp_path / "scan.nii.gz", tmp_path / "a")
    two = infer(tmp_path / "scan.nii.gz", tmp_path / "b", ckpt_path=str(tmp_path / "checkpoint.pt"))
    assert (one / "scan.nii.gz").read_bytes()[10:] == (two / "scan.nii.gz").read_bytes()[10:]


def other_weights(model: Path, path: Path, damage: str) -> Path:
    state = torch.load(model, weights_only=True)
    if damage == "another network":
        state = {f"model.{key}": value for key, value in state.items()}
    elif damage == "untrained":
        state["iterations_trained"] = torch.tensor(0)
    elif damage == "one member less":
        state = {key: value for key, value in state.items() if not key.startswith("members.2")}
    if damage == "unreadable":
        path.write_bytes(b"no weights")
    elif damage != "missing":
        torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", "other.pt: no such checkpoint"),
        ("unreadable", "other.pt: is damaged, or holds other things than weights"),
        ("another network", "other.pt: The checkpoint doesn't fit the network: it lacks"),
        ("one member less", "other.pt: The checkpoint doesn't fit the network: it lacks members.2"),
        ("untrained", "never loaded or trained"),
    ],
)
def test_weights_that_were_not_loaded_never_infer(
    infer: Callable[..., Path], model: Path, scan: nib.Nifti1Image, tmp_path: Path, damage: str, message: str
) -> None:
    nib.save(scan, tmp_path / "scan.nii.gz")
    weights = other_weights(model, tmp_path / "other.pt", damage)
    with pytest.raises(RuntimeError) as caught:
        infer(tmp_path / "scan.nii.gz", tmp_path / "labels", ckpt_path=str(weights))
    assert message in str(find_bad_input(caught.value))
    assert not (tmp_path / "labels").exists()


def test_a_damaged_image_is_named_and_leaves_nothing_half_written(
    infer: Callable[..., Path], scan: nib.Nifti1Image, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    nib.save(scan, images / "a.nii.gz")
    nib.save(scan, images / "b.nii.gz")
    (images / "b.nii.gz").write_bytes((images / "b.nii.gz").read_bytes()[:20000])
    with pytest.raises(RuntimeError) as caught:
        infer(images, tmp_path / "labels")
    assert "b.nii.gz: damaged or truncated" in str(find_bad_input(caught.value))
    assert [path.name for path in (tmp_path / "labels").iterdir()] == ["a.nii.gz"]


def test_an_empty_folder_is_named(infer: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(RuntimeError) as caught:
        infer(tmp_path / "none", tmp_path / "labels")
    assert "none: holds no .nii or .nii.gz files" in str(find_bad_input(caught.value))


def test_a_label_map_never_replaces_its_image(scan: nib.Nifti1Image, tmp_path: Path) -> None:
    nib.save(scan, tmp_path / "scan.nii.gz")
    with pytest.raises(BadInput, match="would replace its image"):
        write_label_map(np.zeros(scan.shape, np.uint8), tmp_path / "scan.nii.gz", tmp_path)


def test_a_label_map_of_another_shape_is_not_written(scan: nib.Nifti1Image, tmp_path: Path) -> None:
    nib.save(scan, tmp_path / "scan.nii.gz")
    with pytest.raises(ValueError, match="the label map has the shape"):
        write_label_map(np.zeros(scan.shape[::-1], np.uint8), tmp_path / "scan.nii.gz", tmp_path / "labels")


def test_a_label_map_that_cannot_be_written_leaves_the_old_one(
    scan: nib.Nifti1Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nib.save(scan, tmp_path / "scan.nii.gz")
    path = write_label_map(np.ones(scan.shape, np.uint8), tmp_path / "scan.nii.gz", tmp_path / "labels")
    before = path.read_bytes()

    def full(image: Any, name: Path) -> None:
        Path(name).write_bytes(before[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib, "save", full)
    with pytest.raises(BadInput, match=r"scan\.nii\.gz: can't be written .*No space left"):
        write_label_map(np.zeros(scan.shape, np.uint8), tmp_path / "scan.nii.gz", tmp_path / "labels")
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["scan.nii.gz"]


def fail_to_save(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the disk be full when a file whose name holds `name` is written, half of it."""
    save = nib.save

    def full(image: Any, path: Path) -> None:
        if name in Path(path).name:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(image, path)

    monkeypatch.setattr(nib, "save", full)


@pytest.mark.parametrize("full", ["a", "b", "c"])
def test_a_label_map_that_cannot_be_written_meanwhile_stops_the_run(
    infer: Callable[..., Path], scan: nib.Nifti1Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    (tmp_path / "images").mkdir()
    for name in "abc":
        nib.save(scan, tmp_path / "images" / f"{name}.nii.gz")
    fail_to_save(monkeypatch, f"{full}.nii.gz")
    with pytest.raises(RuntimeError) as caught:
        infer(tmp_path / "images", tmp_path / "labels")
    assert f"{full}.nii.gz: can't be written" in str(find_bad_input(caught.value))
    written = sorted(path.name[0] for path in (tmp_path / "labels").iterdir())
    assert written == [name for name in "abc" if name < full]  # nothing half-written, nothing after it


def test_neither_a_failed_write_nor_the_error_after_it_is_lost(
    infer: Callable[..., Path], scan: nib.Nifti1Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    for name in "ab":
        nib.save(scan, tmp_path / "images" / f"{name}.nii.gz")
    damaged = tmp_path / "images" / "b.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:20000])
    fail_to_save(monkeypatch, "a.nii.gz")
    with pytest.raises(RuntimeError) as caught:
        infer(tmp_path / "images", tmp_path / "labels")
    failed_write = find_bad_input(caught.value)
    assert "a.nii.gz: can't be written" in str(failed_write)
    assert failed_write is not None
    assert "b.nii.gz: damaged or truncated" in str(find_bad_input(failed_write.__cause__))


def writing_engine(tmp_path: Path, scan: nib.Nifti1Image, step: Callable[[int], None]) -> Engine:
    """An engine that labels `0.nii.gz`, `1.nii.gz` and so on with 1, and does a step before each."""

    def update(engine: Engine, number: int) -> list[dict[str, Any]]:
        step(number)
        nib.save(scan, tmp_path / f"{number}.nii.gz")
        image = MetaTensor(torch.zeros(1, 1, 1, 1), meta={"filename_or_obj": str(tmp_path / f"{number}.nii.gz")})
        engine.state.batch = [{"image": image}]
        return [{"pred": torch.ones(1, *scan.shape, dtype=torch.uint8)}]

    engine = Engine(update)
    LabelMapWriter(str(tmp_path / "labels")).attach(engine)
    return engine


def test_label_maps_are_written_meanwhile_and_the_run_ends_when_all_are(
    scan: nib.Nifti1Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    next_has_begun, writers, save = threading.Event(), set(), nib.save

    def slow(image: Any, path: Path) -> None:
        if Path(path).parent.name == "labels":
            assert next_has_begun.wait(20)  # never, if the next volume waited for this one
            writers.add(threading.current_thread().name)
            time.sleep(0.1)
        save(image, path)

    monkeypatch.setattr(nib, "save", slow)
    engine = writing_engine(tmp_path, scan, lambda number: next_has_begun.set() if number else None)
    engine.run([0, 1])
    assert sorted(path.name for path in (tmp_path / "labels").iterdir()) == ["0.nii.gz", "1.nii.gz"]
    assert len(writers) == 1
    assert threading.current_thread().name not in writers


@pytest.mark.parametrize("others", [False, True], ids=["alone", "with a handler that raises"])
def test_an_error_passes_the_writer_once_all_is_written(scan: nib.Nifti1Image, tmp_path: Path, others: bool) -> None:
    def step(number: int) -> None:
        if number == 1:
            raise BadInput("1.nii.gz: bad. Mend it.")

    engine, told = writing_engine(tmp_path, scan, step), []

    def tell(engine: Engine, error: BaseException) -> None:
        told.append(sorted(path.name for path in (tmp_path / "labels").iterdir()))
        raise error

    if others:
        engine.add_event_handler(Events.EXCEPTION_RAISED, tell)
    with pytest.raises(BadInput, match=r"1\.nii\.gz: bad"):
        engine.run([0, 1])
    assert [path.name for path in (tmp_path / "labels").iterdir()] == ["0.nii.gz"]
    assert bool(told) == others
    assert all(written == ["0.nii.gz"] for written in told)


def test_evaluation_writes_scores_pictures_and_a_table(
    infer: Callable[..., Path], phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = infer(phantoms, tmp_path / "scores", "evaluate.yaml")
    with (scores / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["case", "label", "organ", "dsc", "nsd"]
    assert len(rows) == 5 * 4
    summary = json.loads((scores / "scores.json").read_text())
    dsc = [float(row["dsc"]) for row in rows if row["organ"] == "liver"]
    assert summary["organs"]["liver"]["dsc"]["mean"] == pytest.approx(np.mean(dsc), abs=1e-5)
    assert summary["organs"]["liver"]["dsc"]["sd"] == pytest.approx(np.std(dsc, ddof=1), abs=1e-5)
    assert len(list((scores / "pictures").glob("*.png"))) == 3
    table = capsys.readouterr().out
    for organ in ("liver", "kidney", "spleen", "pancreas"):
        assert organ in table


def test_evaluation_of_saved_label_maps_gives_the_same_scores(
    infer: Callable[..., Path], phantoms: Path, tmp_path: Path
) -> None:
    labels = infer(phantoms, tmp_path / "labels")
    scores = infer(phantoms, tmp_path / "scores", "evaluate.yaml")
    rows = evaluate_folders(str(labels), str(phantoms / "TrainingMask"), labels=LABELS)
    with (scores / "scores.csv").open() as file:
        for ours, written in zip(rows, csv.DictReader(file), strict=True):
            assert ours["organ"] == written["organ"]
            assert ours["dsc"] == pytest.approx(float(written["dsc"]), abs=1e-5)
            assert ours["nsd"] == pytest.approx(float(written["nsd"]), abs=1e-5)
