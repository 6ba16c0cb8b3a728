from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import TESTS, contents, preparation

from cyclic_committee.scripts.data.cases import find_cases
from cyclic_committee.scripts.data.slice_store import index_foreground, store_cases, what_is_stored
from cyclic_committee.scripts.runtime.atomic_files import HOST, UNFINISHED, with_checksum
from cyclic_committee.scripts.runtime.errors import BadInput
from cyclic_committee.scripts.transforms.normalisation import ClipAndStandardise, StandardiseImage
from cyclic_committee.scripts.transforms.resampling import NormaliseThenResample, ResampleThenNormalise, resample_slices


def cases_of(folder: Path) -> list[dict[str, str]]:
    return find_cases(str(folder), part="training", fold="none")


def write(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)
    return str(path)


def test_stored_slices_lie_at_the_spacing_with_three_bytes_a_voxel(phantoms: Path, tmp_path: Path) -> None:
    data = cases_of(phantoms)[:1]
    [case] = store_cases(data, folder=tmp_path, preparation=preparation(spacing_mm=[4.0, 4.0]))
    original = nib.load(data[0]["label"])
    spacing_mm = original.header.get_zooms()
    size = [round(n * s / 4.0) for n, s in zip(original.shape[:2], spacing_mm[:2], strict=True)]
    image, label = case.read(10)
    assert image.shape == (1, *size)
    assert label.shape == tuple(size)
    assert (image.dtype, label.dtype) == (np.float32, np.uint8)
    assert case.shape == (*size, original.shape[2])
    on_disk = sum(os.path.getsize(case.folder / name) for name in ("image_0000.nii", "label.nii"))
    assert on_disk == 3 * np.prod(case.shape) + 2 * 352


def test_stored_voxels_are_the_resampled_and_normalised_ones(phantoms: Path, tmp_path: Path) -> None:
    data = cases_of(phantoms)[:1]
    ct = ClipAndStandardise([-16, 270], 116.6, 47.9)
    original = torch.from_numpy(np.asanyarray(nib.load(data[0]["image"]).dataobj).astype(np.float32)).permute(2, 0, 1)
    normalised = ct.apply(original)
    limits = normalised.amin(dim=(1, 2), keepdim=True), normalised.amax(dim=(1, 2), keepdim=True)
    for order in (ResampleThenNormalise(), NormaliseThenResample()):
        settings = preparation(spacing_mm=[2.5, 2.5], normalise=[ct], resampling=order)
        [case] = store_cases(data, folder=tmp_path, preparation=settings)
        size = case.shape[:2]
        if order == ResampleThenNormalise():
            expected = ct.apply(resample_slices(original, size, order=3))
        else:
            expected = resample_slices(normalised, size, order=3).clamp(*limits)  # as skimage's resize in nnU-Net
        stored = np.stack([case.read(index)[0][0] for index in range(case.shape[2])])
        assert np.abs(stored - expected.numpy()).max() < 1e-4  # half a step of int16
        assert len(np.unique(stored)) > 1000


def test_other_programs_open_the_store_and_see_the_case_where_it_was(phantoms: Path, tmp_path: Path) -> None:
    data = cases_of(phantoms)[:1]
    [case] = store_cases(data, folder=tmp_path, preparation=preparation(spacing_mm=[4.0, 4.0]))
    image, label = nib.load(case.folder / "image_0000.nii"), nib.load(case.folder / "label.nii")
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert image.header.get_zooms()[:2] == pytest.approx((4.0, 4.0), rel=0.02)
    for index in (0, 12):
        assert np.allclose(image.dataobj[..., index], case.read(index)[0][0], atol=1e-6)
        assert np.array_equal(label.dataobj[..., index], case.read(index)[1])
    truth = nib.load(data[0]["label"])
    for value in (1, 2, 3, 4):  # an organ's centre in mm is where it was
        centres = [
            nib.affines.apply_affine(v.affine, np.argwhere(np.asanyarray(v.dataobj) == value)).mean(axis=0)
            for v in (truth, label)
        ]
        assert np.abs(centres[0] - centres[1]).max() < 1.0


@pytest.mark.parametrize("axcodes", ["LPS", "PIR", "RAI"])
def test_a_volume_in_another_orientation_gives_the_same_slices(phantoms: Path, tmp_path: Path, axcodes: str) -> None:
    case = cases_of(phantoms)[0]
    turned = {}
    for key, path in case.items():
        volume = nib.load(path)
        transform = nib.orientations.ornt_transform(
            nib.io_orientation(volume.affine), nib.orientations.axcodes2ornt(axcodes)
        )
        turned[key] = str(tmp_path / f"{key}.nii.gz")
        nib.save(volume.as_reoriented(transform), turned[key])
    settings: dict[str, Any] = {"folder": tmp_path / "store", "preparation": preparation(spacing_mm=[4.0, 4.0])}
    [straight], [other] = store_cases([case], **settings), store_cases([turned], **settings)
    for index in (3, 15):
        for one, two in zip(straight.read(index), other.read(index), strict=True):
            assert np.array_equal(one, two)


@pytest.mark.parametrize(("orientation", "order"), [("RAS", (0, 1, 2)), ("RSA", (0, 2, 1)), ("ASR", (1, 2, 0))])
def test_slices_lie_along_the_last_axis_of_the_orientation(
    tmp_path: Path, orientation: str, order: tuple[int, ...]
) -> None:
    voxels = np.random.default_rng(0).integers(1, 100, (6, 7, 8)).astype(np.int16)
    label = (voxels > 50).astype(np.uint8)
    case = {"image": write(tmp_path / "i.nii", voxels), "label": write(tmp_path / "l.nii", label)}
    settings = preparation(orientation=orientation, labels={1: "a"}, normalise=[ClipAndStandardise([0, 100], 0, 1)])
    [stored] = store_cases([case], folder=tmp_path / "store", preparation=settings)
    expected = voxels.transpose(order)
    assert stored.shape == expected.shape
    for index in range(expected.shape[2]):
        image, ids = stored.read(index)
        assert np.allclose(image[0], expected[..., index], atol=0.01)
        assert np.array_equal(ids, label.transpose(order)[..., index])


@pytest.mark.parametrize(
    ("starts", "size", "source", "target"),
    [
        ((0, 0), (6, 5), np.s_[:, :], np.s_[:, :]),
        ((-2, 1), (4, 9), np.s_[:2, 1:], np.s_[2:, :4]),
        ((2, -3), (3, 4), np.s_[2:5, :1], np.s_[:, 3:]),
        ((-9, 0), (5, 5), np.s_[:0, :], np.s_[:0, :]),
        ((6, 2), (5, 5), np.s_[:0, 2:], np.s_[:0, :3]),
    ],
)
def test_a_part_of_a_slice_is_the_slices_and_0_beyond_its_border(
    tmp_path: Path, starts: tuple[int, int], size: tuple[int, int], source: Any, target: Any
) -> None:
    voxels = np.random.default_rng(0).integers(1, 100, (6, 5, 3)).astype(np.int16)
    label = (voxels > 50).astype(np.uint8)
    case = {"image": write(tmp_path / "i.nii", voxels), "label": write(tmp_path / "l.nii", label)}
    [stored] = store_cases([case], folder=tmp_path / "store", preparation=preparation(labels={1: "a"}))
    for whole, part in zip(stored.read(1), stored.read(1, starts=starts, size=size), strict=True):
        expected = np.zeros((*whole.shape[:-2], *size), whole.dtype)
        expected[(..., *target)] = whole[(..., *source)]
        assert np.array_equal(part, expected)
        assert part.dtype == whole.dtype


def test_channels_are_stored_each_with_its_normalisation(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ct, mr = rng.integers(-1000, 1000, (9, 8, 5)).astype(np.int16), rng.normal(500, 90, (9, 8, 5)).astype(np.float32)
    label = write(tmp_path / "l.nii.gz", (ct > 0).astype(np.uint8))
    apart = [write(tmp_path / "c_0000.nii.gz", ct), write(tmp_path / "c_0001.nii.gz", mr)]
    together = write(tmp_path / "both.nii.gz", np.stack([ct, mr], axis=-1).astype(np.float32))
    settings = preparation(labels={1: "a"}, normalise=[ClipAndStandardise([-100, 100], 0, 50), StandardiseImage()])
    cases = [{"image": image, "label": label} for image in (apart, together)]
    for case in store_cases(cases, folder=tmp_path / "store", preparation=settings):
        stored = np.stack([case.read(index)[0] for index in range(5)], axis=-1)
        assert np.allclose(stored[0], np.clip(ct, -100, 100) / 50, atol=1e-4)
        assert np.allclose(stored[1], (mr - mr.mean()) / mr.std(), atol=1e-3)
    with pytest.raises(BadInput, match=r"both\.nii\.gz: has 2 channels, but the configuration normalises 1"):
        store_cases(cases[1:], folder=tmp_path / "store", preparation=preparation(labels={1: "a"}))


def test_a_case_is_cropped_to_what_is_not_zero(tmp_path: Path) -> None:
    voxels = np.zeros((12, 11, 10), np.int16)
    voxels[2:9, 3:10, 4:8] = 50
    label = (voxels > 0).astype(np.uint8)
    affine = np.diag([1.0, 1, 2, 1])
    case = {"image": write(tmp_path / "i.nii", voxels, affine), "label": write(tmp_path / "l.nii", label, affine)}
    [stored] = store_cases([case], folder=tmp_path / "store", preparation=preparation(labels={1: "a"}))
    assert stored.shape == (7, 7, 4)
    assert nib.load(stored.folder / "label.nii").affine[:3, 3].tolist() == [2, 3, 8]


def test_ids_that_are_not_in_a_row_are_stored_as_classes(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).choice([0, 3, 7, 200], (6, 6, 4)).astype(np.uint8)
    case = {"image": write(tmp_path / "i.nii", np.ones((6, 6, 4), np.int16)), "label": write(tmp_path / "l.nii", ids)}
    settings = preparation(labels={"200": "c", "7": "b", "3": "a"})
    [stored] = store_cases([case], folder=tmp_path / "store", preparation=settings)
    classes = np.stack([stored.read(index)[1] for index in range(4)], axis=-1)
    assert np.array_equal(np.array([0, 3, 7, 200])[classes], ids)


def test_forced_foreground_is_drawn_uniformly_over_classes_slices_and_pixels(tmp_path: Path) -> None:
    label = np.zeros((40, 40, 6), np.uint8)
    label[:2, :2, 1] = 1  # 4 pixels in one slice
    label[10:, :, 2:4] = 2  # 1200 pixels in two
    case = {
        "image": write(tmp_path / "i.nii", np.ones(label.shape, np.int16)),
        "label": write(tmp_path / "l.nii", label),
    }
    settings = preparation(labels={1: "a", 2: "b", 3: "never"})
    [stored] = store_cases([case], folder=tmp_path / "store", preparation=settings)
    rng = np.random.default_rng(0)
    draws = [stored.draw_foreground(rng) for _ in range(3000)]
    shown = np.array([label[x, y, index] for index, (x, y) in draws])  # type: ignore[misc]
    assert shown.min() == 1
    assert (shown == 1).mean() == pytest.approx(0.5, abs=0.04)  # 4 sd
    assert np.mean([index == 2 for index, _ in draws]) == pytest.approx(0.25, abs=0.04)  # type: ignore[misc]
    x_of_2 = np.array([x for index, (x, _) in draws if index > 1])  # type: ignore[misc]
    assert np.bincount(x_of_2, minlength=40)[10:].min() > 20  # of 50 each: all rows are reached


def test_an_index_holds_all_pixels_of_small_shapes_and_a_thousand_spread_ones_of_large() -> None:
    label = np.zeros((3, 50, 60), np.uint8)
    label[1, 5:8, 5] = 1
    label[2, :, :] = 2
    places, counts = index_foreground(label, classes=2)
    assert counts.tolist() == [[0, 3, 0], [0, 0, 1000]]
    assert places[:3].tolist() == [5 * 60 + 5, 6 * 60 + 5, 7 * 60 + 5]
    assert len(np.unique(places[3:])) == 1000
    assert np.bincount(places[3:] // 60, minlength=50).min() >= 19


def test_a_case_without_foreground_draws_none(tmp_path: Path) -> None:
    empty = np.zeros((6, 6, 4), np.uint8)
    case = {"image": write(tmp_path / "i.nii", empty + np.int16(1)), "label": write(tmp_path / "l.nii", empty)}
    [stored] = store_cases([case], folder=tmp_path / "store", preparation=preparation())
    assert stored.draw_foreground(np.random.default_rng(0)) is None
    assert not stored.shows_foreground


def test_a_case_is_stored_once_and_anew_when_a_file_or_a_setting_changes(phantoms: Path, tmp_path: Path) -> None:
    case = cases_of(phantoms)[0]
    copies = {key: tmp_path / Path(path).name for key, path in case.items()}
    for key, path in copies.items():
        path.write_bytes(Path(case[key]).read_bytes())

    def stored(**settings: Any) -> Path:
        return store_cases([copies], folder=tmp_path / "store", preparation=preparation(**settings))[0].folder

    first = stored()
    written = (first / "label.nii").stat().st_mtime_ns
    assert stored() == first
    assert (first / "label.nii").stat().st_mtime_ns == written
    changed = [
        stored(spacing_mm=[5.0, 4.0]),
        stored(orientation="RSA"),
        stored(resampling=NormaliseThenResample()),
        stored(normalise=[StandardiseImage()]),
    ]
    os.utime(copies["image"], ns=(1, 1))
    changed.append(stored())
    assert len({first, *changed}) == 6


@pytest.mark.parametrize("file", ["image_0000.nii", "label.nii", "places.npy", "place_counts.npy", "case.json"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_a_damaged_entry_is_found_and_prepared_anew(
    phantoms: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str, damage: str
) -> None:
    [case, *_] = cases_of(phantoms)
    [stored] = store_cases([case], folder=tmp_path, preparation=preparation())
    whole = contents(stored.folder)
    path = stored.folder / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    if damage != "missing":
        path.write_bytes(data if damage == "flipped" else data[:-3])
    [again] = store_cases([case], folder=tmp_path, preparation=preparation())
    assert again == stored
    assert contents(again.folder) == whole
    assert f"{stored.folder}: is damaged, or of an older version. It is prepared anew." in caplog.text
    assert [one.name for one in tmp_path.iterdir()] == [stored.folder.name]


def test_no_bit_of_a_stored_cases_description_can_be_flipped_unseen(phantoms: Path, tmp_path: Path) -> None:
    [case, *_] = cases_of(phantoms)
    [stored] = store_cases([case], folder=tmp_path, preparation=preparation())
    path = stored.folder / "case.json"
    about, whole = what_is_stored(stored.folder), path.read_bytes()
    for place in range(len(whole)):
        for bit in (1, 4, 32):
            data = bytearray(whole)
            data[place] ^= bit
            path.write_bytes(data)
            assert what_is_stored(stored.folder) in (None, about)


def test_a_case_that_cannot_be_stored_leaves_nothing_behind_and_the_others_there(
    phantoms: Path, tmp_path: Path
) -> None:
    good = cases_of(phantoms)[0]
    label = np.full((8, 8, 4), 9, np.uint8)
    bad = {"image": write(tmp_path / "i.nii", label.astype(np.int16)), "label": write(tmp_path / "label.nii.gz", label)}
    with pytest.raises(BadInput, match=r"label\.nii\.gz: holds the label ids 9, which are not in labels"):
        store_cases([good, bad], folder=tmp_path / "store", preparation=preparation(), processes=0)
    [left] = (tmp_path / "store").iterdir()
    assert left.name.startswith("train_000-")


FILL = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from conftest import preparation
from cyclic_committee.scripts.data.cases import find_cases
from cyclic_committee.scripts.data.slice_store import store_cases
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
if len(sys.argv) > 4:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), resource.RLIM_INFINITY))
data = find_cases(sys.argv[2], part="training", fold="none")
store_cases(data, folder=Path(sys.argv[3]), preparation=preparation(spacing_mm=[1.0, 1.0]), processes=0)
"""


def start(phantoms: Path, store: Path, *limit: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FILL, str(TESTS), str(phantoms), str(store), *limit]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_a_full_disk_stops_with_one_line_and_leaves_nothing_half_written(phantoms: Path, tmp_path: Path) -> None:
    process = start(phantoms, tmp_path / "store", "100000")  # bytes that a file may have: the image's writing fails
    _, stderr = process.communicate()
    assert process.returncode == 1
    assert "can't be written" in stderr.splitlines()[-1]
    assert "Make room, or choose another folder." in stderr.splitlines()[-1]
    assert list((tmp_path / "store").iterdir()) == []


def test_killed_at_any_moment_and_started_again_the_store_is_the_same_byte_for_byte(
    phantoms: Path, tmp_path: Path
) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    store_cases(cases_of(phantoms), folder=straight, preparation=preparation(spacing_mm=[1.0, 1.0]))
    process = start(phantoms, broken)
    while len(list(broken.glob("[!.]*"))) < 2:  # two cases are there, the third is being made
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished = contents(broken)
    (broken / f"{UNFINISHED}{HOST}-{process.pid}-left").mkdir()  # as if it had died while writing
    (broken / f"{UNFINISHED}{HOST}-{process.pid}-left" / "label.nii").write_bytes(b"half")
    store_cases(cases_of(phantoms), folder=broken, preparation=preparation(spacing_mm=[1.0, 1.0]))
    assert contents(broken) == contents(straight)
    assert finished.items() <= contents(broken).items() or any(".unfinished" in name for name in finished)


@pytest.mark.parametrize("key", ["shape", "scales", "files"])
def test_a_description_that_lacks_a_key_is_that_of_another_version(phantoms: Path, tmp_path: Path, key: str) -> None:
    [case] = store_cases(cases_of(phantoms)[:1], folder=tmp_path, preparation=preparation(spacing_mm=[6.0, 6.0]))
    path = case.folder / "case.json"
    about = {name: value for name, value in json.loads(path.read_text()).items() if name not in ("checksum", key)}
    path.write_text(with_checksum(about))
    assert what_is_stored(case.folder) is None
    path.write_text("[" * 100_000)
    assert what_is_stored(case.folder) is None
