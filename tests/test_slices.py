from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandFlipd, RandGaussianNoised

from cyclic_committee.scripts.cases import find_cases
from cyclic_committee.scripts.errors import BadInput
from cyclic_committee.scripts.slice_store import store_cases
from cyclic_committee.scripts.slices import SliceDataset, SliceSampler

LABELS = {"1": "liver", "2": "kidney", "3": "spleen", "4": "pancreas"}


def dataset(phantoms: Path, cache: Path, **arguments: Any) -> SliceDataset:
    settings: dict[str, Any] = {
        "transform": Compose([]),
        "crop_size": [48, 40],
        "spacing_mm": [4.0, 4.0],
        "labels": LABELS,
        "cache_dir": str(cache),
        **arguments,
    }
    return SliceDataset(find_cases(str(phantoms), part="training", fold="none"), **settings)


def test_the_last_third_of_a_batch_must_show_foreground() -> None:
    batch = next(iter(SliceSampler(batch_size=8, iterations=1)))
    assert [foreground for _, foreground in batch] == [False] * 5 + [True] * 3


def test_an_epoch_has_its_iterations_whatever_the_data_set() -> None:
    sampler = SliceSampler(batch_size=2, iterations=250)
    assert len(sampler) == 250
    assert len(list(sampler)) == 250


def test_draws_repeat_with_seed_and_epoch_and_else_differ() -> None:
    def draws(seed: int, epoch: int) -> list[list[tuple[int, bool]]]:
        sampler = SliceSampler(batch_size=4, iterations=5, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert draws(0, 3) == draws(0, 3)
    assert draws(0, 3) != draws(0, 4)
    assert draws(0, 3) != draws(1, 3)
    seeds = [seed for batch in draws(0, 3) for seed, _ in batch]
    assert len(set(seeds)) == len(seeds)


def test_a_sample_is_a_function_of_its_draw(phantoms: Path, tmp_path: Path) -> None:
    random = Compose([RandFlipd("image", prob=0.5), RandGaussianNoised("image", prob=0.5)])
    slices = dataset(phantoms, tmp_path, transform=random)
    first = [slices[(seed, False)] for seed in range(6)]
    again = [slices[(seed, False)] for seed in reversed(range(6))][::-1]
    for one, other in zip(first, again, strict=True):
        assert torch.equal(torch.as_tensor(one["image"]), torch.as_tensor(other["image"]))
        assert (one["case"], one["slice"]) == (other["case"], other["slice"])


def test_forced_foreground_shows_all_classes_and_lies_around_the_middle(phantoms: Path, tmp_path: Path) -> None:
    slices = dataset(phantoms, tmp_path)
    centred, classes = [], set()
    for seed in range(40):
        label = slices[(seed, True)]["label"][0]
        assert label.max() > 0
        centred.append(int(label[24, 20]))
        classes |= set(label.unique().tolist())
    assert classes == {0, 1, 2, 3, 4}
    assert np.mean([value > 0 for value in centred]) > 0.7  # less at the border, where the cut stays inside


def test_a_cut_is_where_the_label_is(phantoms: Path, tmp_path: Path) -> None:
    sample = dataset(phantoms, tmp_path, spacing_mm=[3.0, 3.0])[(5, True)]
    assert sample["image"].shape == (1, 48, 40)
    organs, air = sample["image"][sample["label"] > 0], sample["image"][sample["image"] < -900]
    assert 0 < organs.mean() < 250
    assert len(air) == 0 or (sample["label"][sample["image"] < -900] == 0).all()


def test_stored_slices_are_in_ras_order_at_the_spacing_with_three_bytes_a_voxel(phantoms: Path, tmp_path: Path) -> None:
    data = find_cases(str(phantoms), part="training", fold="none")[:1]
    [case] = store_cases(data, folder=tmp_path, spacing_mm=[4.0, 4.0], labels=LABELS)
    original = nib.load(data[0]["label"])
    spacing_mm = original.header.get_zooms()
    size = [round(n * s / 4.0) for n, s in zip(original.shape[:2], spacing_mm[:2], strict=True)]
    image, label = case.read(10)
    assert image.shape == (1, *size)
    assert label.shape == tuple(size)
    assert (image.dtype, label.dtype) == (np.int16, np.uint8)
    assert case.slices == original.shape[2]
    voxels = case.slices * size[0] * size[1]
    on_disk = sum(os.path.getsize(case.folder / name) for name in ("image.npy", "label.npy"))
    assert on_disk <= 3 * voxels + 1024
    for label_id, shown in case.slices_with.items():
        for index in range(case.slices):
            assert (label_id in case.read(index)[1]) == (index in shown)


@pytest.mark.parametrize("axcodes", ["LPS", "PIR", "RAI"])
def test_a_volume_in_another_orientation_gives_the_same_slices(phantoms: Path, tmp_path: Path, axcodes: str) -> None:
    case = find_cases(str(phantoms), part="training", fold="none")[0]
    turned = {}
    for key, path in case.items():
        volume = nib.load(path)
        transform = nib.orientations.ornt_transform(
            nib.io_orientation(volume.affine), nib.orientations.axcodes2ornt(axcodes)
        )
        turned[key] = str(tmp_path / f"{key}.nii.gz")
        nib.save(volume.as_reoriented(transform), turned[key])
    settings: dict[str, Any] = {"folder": tmp_path / "store", "spacing_mm": [4.0, 4.0], "labels": LABELS}
    [straight], [other] = store_cases([case], **settings), store_cases([turned], **settings)
    for index in (3, 15):
        for one, two in zip(straight.read(index), other.read(index), strict=True):
            assert np.array_equal(one, two)


def test_a_case_is_stored_once_and_anew_when_its_file_changes(phantoms: Path, tmp_path: Path) -> None:
    case = find_cases(str(phantoms), part="training", fold="none")[0]
    copies = {key: tmp_path / Path(path).name for key, path in case.items()}
    for key, path in copies.items():
        path.write_bytes(Path(case[key]).read_bytes())
    settings: dict[str, Any] = {"folder": tmp_path / "store", "spacing_mm": [4.0, 4.0], "labels": LABELS}
    [first] = store_cases([copies], **settings)
    written = (first.folder / "image.npy").stat().st_mtime_ns
    [second] = store_cases([copies], **settings)
    assert second.folder == first.folder
    assert (second.folder / "image.npy").stat().st_mtime_ns == written
    os.utime(copies["image"], ns=(1, 1))
    [third] = store_cases([copies], **settings)
    assert third.folder != first.folder


def test_a_case_that_cannot_be_stored_leaves_nothing_behind(tmp_path: Path) -> None:
    image, label = tmp_path / "image.nii.gz", tmp_path / "label.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 4), np.int16), np.eye(4)), image)
    nib.save(nib.Nifti1Image(np.full((8, 8, 4), 9, np.uint8), np.eye(4)), label)
    case = {"image": str(image), "label": str(label)}
    with pytest.raises(BadInput, match=r"label\.nii\.gz: holds the label ids 9, which are not in labels"):
        store_cases([case], folder=tmp_path / "store", spacing_mm=[1, 1], labels=LABELS)
    assert not list(tmp_path.glob("store/*"))


def test_a_data_set_without_any_label_is_refused(tmp_path: Path) -> None:
    for folder, dtype in (("images", np.int16), ("labels", np.uint8)):
        (tmp_path / folder).mkdir()
        nib.save(nib.Nifti1Image(np.zeros((8, 8, 4), dtype), np.eye(4)), tmp_path / folder / "a.nii.gz")
    with pytest.raises(BadInput, match=r"a\.nii\.gz: no label map shows any label"):
        dataset(tmp_path, tmp_path / "store").prepare()


@pytest.mark.parametrize("values", [{"batch_size": 0, "iterations": 5}, {"batch_size": 2, "iterations": 0}])
def test_empty_batches_and_epochs_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(BadInput, match="batch_size and iterations must be at least 1"):
        SliceSampler(**values)


def test_workers_make_the_same_samples_as_the_main_process(phantoms: Path, tmp_path: Path) -> None:
    slices = dataset(phantoms, tmp_path)
    slices.prepare()
    sampler = SliceSampler(batch_size=3, iterations=2, seed=4)
    alone = [sample["slice"].tolist() for sample in torch.utils.data.DataLoader(slices, batch_sampler=sampler)]
    with_workers = torch.utils.data.DataLoader(slices, batch_sampler=sampler, num_workers=2)
    assert alone == [sample["slice"].tolist() for sample in with_workers]
