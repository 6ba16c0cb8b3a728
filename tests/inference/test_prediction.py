from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import BUNDLE, TINY, Workflow

pytest.importorskip("highdicom", reason="DICOM needs pip install '.[dicom]'")

from dicom_studies import write_series
from pydicom import dcmread

from cyclic_committee.scripts.commands import main as command_line
from cyclic_committee.scripts.inference.prediction import predict_command, read_metadata
from cyclic_committee.scripts.inference.predictor import Predictor
from cyclic_committee.scripts.phantoms.phantom import Phantom, make_phantom
from cyclic_committee.scripts.runtime.errors import BadInput

VALUES = {key: value for key, value in TINY.items() if key != "crop_size"}


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(3)


@pytest.fixture
def study(tmp_path: Path, phantom: Phantom) -> Path:
    """A folder with the same scan in NIfTI and as two DICOM series, one straight and one from the other end."""
    folder = tmp_path / "study"
    folder.mkdir()
    nib.save(nib.Nifti1Image(phantom.image_hu, phantom.affine), folder / "scan.nii.gz")
    write_series(folder / "patient" / "straight", phantom.image_hu, phantom.affine)
    turn = nib.orientations.axcodes2ornt("LPI")
    image = nib.Nifti1Image(phantom.image_hu, phantom.affine)
    turned = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), turn))
    write_series(folder / "patient" / "turned", np.asanyarray(turned.dataobj), turned.affine)
    return folder


@pytest.fixture
def predict(process_state: None, model: Path) -> Any:
    def run(source: Path, out: Path, **arguments: Any) -> None:
        predict_command(source, out=out, ckpt_path=model, **{**VALUES, **arguments})

    return run


def canonical(path: Path) -> np.ndarray:
    return np.asanyarray(nib.as_closest_canonical(nib.load(path)).dataobj)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_dicom_nifti_and_the_workflow_have_the_same_labels(
    predict: Any, workflow: Workflow, model: Path, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(study, tmp_path / "out")
    places = {"dataset_dir": str(study), "output_dir": str(tmp_path / "workflow"), "ckpt_path": str(model)}
    workflow("inference", "inference.yaml", **places, **VALUES).run()
    assert files(tmp_path / "out") == [
        "patient/straight.dcm",
        "patient/straight.nii.gz",
        "patient/turned.dcm",
        "patient/turned.nii.gz",
        "scan.nii.gz",
    ]
    expected = nib.load(tmp_path / "workflow" / "scan.nii.gz")
    assert len(np.unique(expected.dataobj)) > 2
    scan = nib.load(tmp_path / "out" / "scan.nii.gz")
    assert np.array_equal(scan.affine, expected.affine)
    assert np.array_equal(np.asanyarray(scan.dataobj), np.asanyarray(expected.dataobj))
    for name in ("straight", "turned"):
        assert nib.load(tmp_path / "out" / "patient" / f"{name}.nii.gz").get_data_dtype() == np.uint8
        label_map = canonical(tmp_path / "out" / "patient" / f"{name}.nii.gz")
        assert np.array_equal(label_map, canonical(tmp_path / "workflow" / "scan.nii.gz"))
        segmentation = dcmread(tmp_path / "out" / "patient" / f"{name}.dcm")
        volumes = {1: "Liver", 2: "Kidney", 3: "Spleen", 4: "Pancreas"}
        counts = {volumes[int(label)]: int((label_map == label).sum()) for label in np.unique(label_map) if label}
        assert segment_sizes(segmentation) == counts
    said = capsys.readouterr().out
    assert f"scan: {', '.join(name.lower() for name in counts)}; {tmp_path / 'out' / 'scan.nii.gz'}" in said
    assert "straight: " in said


def segment_sizes(segmentation: Any) -> dict[str, int]:
    names = {segment.SegmentNumber: segment.SegmentLabel for segment in segmentation.SegmentSequence}
    sizes = dict.fromkeys(names.values(), 0)
    for frame, about in zip(segmentation.pixel_array, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        sizes[names[about.SegmentIdentificationSequence[0].ReferencedSegmentNumber]] += int(frame.sum())
    return sizes


def test_one_file_or_one_series_is_named_after_itself(predict: Any, study: Path, tmp_path: Path) -> None:
    predict(study / "scan.nii.gz", tmp_path / "file")
    predict(study / "patient" / "turned", tmp_path / "series")
    assert files(tmp_path / "file") == ["scan.nii.gz"]
    assert files(tmp_path / "series") == ["turned.dcm", "turned.nii.gz"]


def test_it_is_a_command(
    process_state: None,
    model: Path,
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    overlay = tmp_path / "tiny.yaml"
    overlay.write_text("\n".join(f"{key}: {value}" for key, value in VALUES.items()))
    words = ["predict", str(study / "patient"), "--out", str(tmp_path / "out"), "--ckpt_path", str(model)]
    words += ["--config", f"variants/small.yaml,{overlay}", "--disagreement", "--ensemble_members", "[0,2]"]
    monkeypatch.setattr(sys, "argv", ["cyclic-committee", *words])
    command_line.main()
    assert files(tmp_path / "out") == [
        f"{name}{ending}" for name in ("straight", "turned") for ending in (".dcm", ".nii.gz", "_disagreement.nii.gz")
    ]
    monkeypatch.setattr(sys, "argv", ["cyclic-committee", *words, "--votrs", "1"])
    with pytest.raises(SystemExit):
        command_line.main()
    assert "votrs" in capsys.readouterr().err


def test_several_series_of_a_folder_are_named_by_their_uid(predict: Any, phantom: Phantom, tmp_path: Path) -> None:
    for uid in ("1.2.3", "1.2.4"):
        for path in write_series(tmp_path / "made", phantom.image_hu[:, :, :4], phantom.affine, series_uid=uid):
            path.rename(path.with_name(f"{uid}-{path.name}"))
    predict(tmp_path / "made", tmp_path / "out")
    assert [name for name in files(tmp_path / "out") if name.endswith(".gz")] == ["1.2.3.nii.gz", "1.2.4.nii.gz"]


def test_maps_lie_on_the_images_grid(predict: Any, model: Path, study: Path, tmp_path: Path) -> None:
    predict(study / "patient" / "turned", tmp_path, disagreement=True, probabilities=True)
    predict(study / "patient" / "turned", tmp_path / "plain")
    label_map = nib.load(tmp_path / "turned.nii.gz")
    assert np.array_equal(label_map.dataobj, nib.load(tmp_path / "plain" / "turned.nii.gz").dataobj)
    shares = nib.load(tmp_path / "turned_probabilities.nii.gz")
    assert (shares.shape, shares.get_data_dtype()) == ((*label_map.shape, 5), np.float32)
    assert np.array_equal(np.asanyarray(shares.dataobj).argmax(axis=-1), np.asanyarray(label_map.dataobj))
    apart = nib.load(tmp_path / "turned_disagreement.nii.gz")
    assert (apart.shape, apart.get_data_dtype()) == (label_map.shape, np.uint8)
    image = nib.load(study / "scan.nii.gz")
    said = Predictor.from_config(ckpt_path=model, **VALUES).predict_members(study / "scan.nii.gz")[-1].numpy()
    assert said.max() > 20
    expected = nib.as_closest_canonical(nib.Nifti1Image(said, image.affine)).dataobj
    assert np.allclose(nib.as_closest_canonical(apart).get_fdata(), np.asanyarray(expected) / 255, atol=1e-6)
    for other in (shares, apart):
        assert np.allclose(other.affine, label_map.affine)


def test_a_volume_that_cannot_be_read_does_not_lose_the_others(
    predict: Any, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (study / "scan.nii.gz").read_bytes()
    (study / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (study / "text.nii.gz").write_text("not a scan")
    (study / "patient" / "straight" / "slice_0002.dcm").unlink()
    cut = study / "patient" / "turned" / "slice_0001.dcm"
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(BadInput, match=r"study: 4 of 5 weren't labelled, see above"):
        predict(study, tmp_path / "out")
    assert files(tmp_path / "out") == ["scan.nii.gz"]
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 4
    for part in ("cut.nii.gz: damaged", "text.nii.gz: not a readable", "slice_0003.dcm: lies", "slice_0001.dcm: its"):
        assert sum(part in line for line in lines) == 1


def test_nothing_is_labelled_where_nothing_is_found(
    predict: Any, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Predictor, "label", lambda self, image: torch.zeros_like(image, dtype=torch.uint8))
    predict(study / "patient" / "turned", tmp_path / "out")
    assert files(tmp_path / "out") == ["turned.nii.gz"]
    assert not np.asanyarray(nib.load(tmp_path / "out" / "turned.nii.gz").dataobj).any()
    assert "nothing found, so there is no DICOM segmentation" in capsys.readouterr().out


def test_a_label_map_without_its_segmentation_is_no_series_that_was_not_labelled(
    predict: Any, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out" / "patient" / "turned.dcm").mkdir(parents=True)
    (study / "cut.nii.gz").write_text("not a scan")
    said = r"study: 1 of 4 weren't labelled, 1 of 4 were labelled, but have no DICOM segmentation, see above\."
    with pytest.raises(BadInput, match=said):
        predict(study, tmp_path / "out", disagreement=True)
    assert {"patient/turned.nii.gz", "patient/turned_disagreement.nii.gz"} <= {*files(tmp_path / "out")}
    printed = capsys.readouterr()
    assert f"{tmp_path / 'out' / 'patient' / 'turned.nii.gz'}, " in printed.out
    assert "It is labelled, but has no DICOM segmentation." in printed.err


def test_a_tilted_gantrys_label_map_is_straightened_and_said_so(
    predict: Any, phantom: Phantom, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    affine = phantom.affine.copy()
    affine[:3, 2] += 2 * affine[:3, 1]  # two rows a slice
    write_series(tmp_path / "tilted", phantom.image_hu, affine)
    predict(tmp_path / "tilted", tmp_path / "out", disagreement=True, probabilities=True)
    warning = f"warning: {tmp_path / 'tilted'}: gantry tilt of "
    assert warning in capsys.readouterr().err
    written = {path.name: nib.load(path) for path in (tmp_path / "out").glob("*.nii.gz")}
    label_map = written["tilted.nii.gz"]
    axes = label_map.affine[:3, :3] / nib.affines.voxel_sizes(label_map.affine)
    assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    columns, rows, slices = phantom.image_hu.shape
    assert label_map.shape == (columns, rows + 2 * (slices - 1), slices)
    for other in written.values():
        assert other.shape[:3] == label_map.shape
        assert np.array_equal(other.affine, label_map.affine)
    shares = np.asanyarray(written["tilted_probabilities.nii.gz"].dataobj)
    assert np.allclose(shares.sum(axis=-1), 1, atol=1e-5)
    assert np.array_equal(shares.argmax(axis=-1), np.asanyarray(label_map.dataobj))
    segmentation = dcmread(tmp_path / "out" / "tilted.dcm")  # on the slices: as many rows as they have
    assert (segmentation.Columns, segmentation.Rows) == (columns, rows)
    assert sum(segment_sizes(segmentation).values()) == np.count_nonzero(label_map.dataobj)


def test_labels_without_a_code_are_told(
    predict: Any, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = {"1": "liver", "2": "odd thing", "3": "spleen", "4": "pancreas"}
    predict(study / "patient" / "turned", tmp_path, labels=labels)
    assert "no SNOMED code is known for odd thing" in capsys.readouterr().out
    segments = dcmread(tmp_path / "turned.dcm").SegmentSequence
    assert {segment.SegmentLabel for segment in segments} <= {"Liver", "Odd thing", "Spleen", "Pancreas"}


def test_what_was_labelled_before_is_not_labelled_again(predict: Any, study: Path) -> None:
    for _ in range(2):
        predict(study, study / "labels")
        assert len(files(study / "labels")) == 5


def test_linked_folders_are_labelled_under_their_own_names(
    predict: Any, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (study / "patient").rename(tmp_path / "store")
    (study / "scan.nii.gz").rename(tmp_path / "store" / "scan.nii.gz")
    (study / "alice").symlink_to(tmp_path / "store")
    (study / "bob").symlink_to(tmp_path / "store" / "turned")
    (study / "alice" / "circle").symlink_to(study)
    predict(study, tmp_path / "out")
    assert files(tmp_path / "out") == [
        "alice/scan.nii.gz",
        "alice/straight.dcm",
        "alice/straight.nii.gz",
        "alice/turned.dcm",
        "alice/turned.nii.gz",
    ]
    said = capsys.readouterr().out
    assert f"{study / 'alice' / 'circle'}: leads to {study}, which is looked at already" in said


def test_a_shorter_volume_is_never_labelled_for_an_unreadable_slice(
    predict: Any, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = sorted((study / "patient" / "straight").iterdir())[-1]
    last.write_bytes(last.read_bytes()[132 + 400 :])
    with pytest.raises(BadInput, match="1 of 3 weren't labelled"):
        predict(study, tmp_path / "out")
    assert not (tmp_path / "out" / "patient" / "straight.nii.gz").exists()
    assert f"error: {last}: not a readable DICOM file" in capsys.readouterr().err


def test_what_is_in_other_formats_is_named_and_the_rest_is_labelled(
    predict: Any, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("scan.nrrd", "patient/scan.mha", "patient/straight/study.zip", "scan.seg.nrrd"):
        (study / name).write_text("")
    with pytest.raises(BadInput, match="study: 3 of 6 weren't labelled, see above"):
        predict(study, tmp_path / "out")
    printed = capsys.readouterr()
    assert f"error: {study / 'scan.nrrd'}: is NRRD, which isn't read. Convert it to .nii.gz first" in printed.err
    assert f"error: {study / 'patient' / 'straight' / 'study.zip'}: is packed. Unpack it" in printed.err
    assert (tmp_path / "out" / "patient" / "straight.nii.gz").is_file()
    assert "passed over" not in printed.out


def test_a_folder_of_slices_alone_that_cannot_be_read_is_named(predict: Any, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "IM0001.dcm").write_text("no slice")
    with pytest.raises(BadInput, match="in: 1 of 1 weren't labelled"):
        predict(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "none"}, r"none: no such file or folder"),
        ({"source": "empty"}, r"empty: holds neither NIfTI files nor a CT or MR series"),
        ({"source": "study/patient/turned/slice_0001.dcm"}, r"slice_0001\.dcm: is one DICOM file"),
        ({"out": "study"}, r"study: holds what is to be labelled\. Choose another folder"),
        ({"source": "study/scan.nii.gz", "out": "study"}, r"study: holds what is to be labelled"),
        ({"out": "study/scan.nii.gz"}, r"scan\.nii\.gz: no such folder can be made"),
        ({"disagreement": True, "ensemble_members": [1]}, "one member has nobody to disagree with"),
        ({"overlays": ["none.yaml"]}, r"none\.yaml: no such configuration file"),
    ],
)
def test_what_cannot_be_done_is_told_before_anything_is_labelled(
    predict: Any, study: Path, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    before = (study / "scan.nii.gz").read_bytes()
    places = {name: tmp_path / arguments.pop(name, usual) for name, usual in (("source", "study"), ("out", "out"))}
    with pytest.raises(BadInput, match=message):
        predict(**places, **arguments)
    assert (study / "scan.nii.gz").read_bytes() == before


def test_folders_may_lie_within_the_folder_of_the_outputs(predict: Any, study: Path) -> None:
    (study / "patient" / "straight").rename(study / "straight")
    (study / "scan.nii.gz").rename(study / "patient" / "turned" / "scan.nii.gz")
    predict(study / "patient", study)
    assert (study / "turned" / "scan.nii.gz").is_file()
    assert (study / "turned.nii.gz").is_file()


def test_another_modality_is_told(
    predict: Any, phantom: Phantom, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4", "Modality": "MR"}
    write_series(tmp_path / "mr", phantom.image_hu[:, :, :3], phantom.affine, **kind)
    predict(tmp_path / "mr", tmp_path / "out")
    assert (
        f"note: {tmp_path / 'mr'}: is MR, but the bundle's metadata say that it is for CT." in capsys.readouterr().out
    )


def test_two_images_of_one_name_are_refused(predict: Any, study: Path, tmp_path: Path) -> None:
    nib.save(nib.load(study / "scan.nii.gz"), study / "scan.nii")
    with pytest.raises(BadInput, match="two inputs would be labelled into this one file"):
        predict(study, tmp_path / "out")


def test_a_series_beside_a_file_of_its_name_is_named_by_its_uid(predict: Any, study: Path, tmp_path: Path) -> None:
    (study / "scan.nii.gz").rename(study / "patient" / "turned.nii.gz")
    predict(study, tmp_path / "out")
    uid = dcmread(study / "patient" / "turned" / "slice_0000.dcm").SeriesInstanceUID
    assert f"patient/{uid}.nii.gz" in files(tmp_path / "out")
    assert "patient/turned.nii.gz" in files(tmp_path / "out")


def test_missing_packages_are_named_only_where_they_are_needed(
    predict: Any, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "highdicom" else find(name))
    with pytest.raises(BadInput, match=r"study: holds DICOM files, which need highdicom\. Install with: pip install"):
        predict(study, tmp_path / "out")
    predict(study / "scan.nii.gz", tmp_path / "out")
    assert files(tmp_path / "out") == ["scan.nii.gz"]


def test_what_check_would_remark_on_is_told_and_labelled_all_the_same(
    predict: Any, phantom: Phantom, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = nib.Nifti1Image(np.asarray(phantom.image_hu) + np.int16(1100), phantom.affine)
    image.set_sform(phantom.affine, code=2)
    image.set_qform(phantom.affine @ np.diag([-1, 1, 1, 1]), code=1)
    nib.save(image, tmp_path / "scan.nii.gz")
    predict(tmp_path / "scan.nii.gz", tmp_path / "out")
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert len(notes) == 2
    assert f"{tmp_path / 'scan.nii.gz'}: gives two places: its sform and its qform lie up to" in notes[0]
    assert f"{tmp_path / 'scan.nii.gz'}: can't be HU: no values lie below 0" in notes[1]
    assert files(tmp_path / "out") == ["scan.nii.gz"]


def test_a_series_with_pixels_of_metres_is_refused_and_named(
    predict: Any, phantom: Phantom, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_series(tmp_path / "in" / "metres", phantom.image_hu, phantom.affine @ np.diag([1500, 1500, 1, 1]))
    with pytest.raises(BadInput, match="1 of 1 weren't labelled"):
        predict(tmp_path / "in", tmp_path / "out")
    assert f"{tmp_path / 'in' / 'metres'}: has voxels of" in capsys.readouterr().err
    assert files(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": None}, "name is null, and must be a text"),
        ({"version": "1\n2"}, "version is .*, and must be a text"),
        ({"network_data_format": {}}, "lacks a key of a bundle's metadata"),
        ({"network_data_format": []}, "lacks a key of a bundle's metadata"),
    ],
)
def test_metadata_that_segmentations_cannot_say_are_named(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    metadata = json.loads((BUNDLE / "configs" / "metadata.json").read_text())
    (tmp_path / "metadata.json").write_text(json.dumps({**metadata, **change}))
    with pytest.raises(BadInput, match=rf"metadata\.json: {message}.*\. Take the bundle's own\.$"):
        read_metadata(tmp_path / "metadata.json")
