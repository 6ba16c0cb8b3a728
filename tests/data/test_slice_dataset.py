from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import preparation
from monai.data import get_track_meta
from monai.transforms import Compose, RandFlipd, RandGaussianNoised

from cyclic_committee.scripts.data.cases import find_cases
from cyclic_committee.scripts.data.slice_dataset import Draw, SliceDataset, SliceSampler
from cyclic_committee.scripts.runtime.errors import BadInput


def dataset(phantoms: Path, cache: Path, **arguments: Any) -> SliceDataset:
    prepared = preparation(spacing_mm=arguments.pop("spacing_mm", [4.0, 4.0]))
    settings: dict[str, Any] = {
        "transform": Compose([]),
        "crop_size": [48, 40],
        "patch_size": [48, 40],
        "cache_dir": str(cache),
        **{field.name: getattr(prepared, field.name) for field in fields(prepared)},
        **arguments,
    }
    return SliceDataset(find_cases(str(phantoms), part="training", fold="none"), **settings)


def test_the_last_third_of_a_batch_must_show_foreground() -> None:
    batch = next(iter(SliceSampler(batch_size=8, iterations_per_epoch=1)))
    assert [draw.foreground for draw in batch] == [False] * 5 + [True] * 3


def test_an_epoch_has_its_iterations_whatever_the_data_set() -> None:
    sampler = SliceSampler(batch_size=2, iterations_per_epoch=250)
    assert len(sampler) == 250
    assert len(list(sampler)) == 250


def test_draws_repeat_with_seed_and_epoch_and_else_differ() -> None:
    def draws(seed: int, epoch: int) -> list[list[Draw]]:
        sampler = SliceSampler(batch_size=4, iterations_per_epoch=5, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert draws(0, 3) == draws(0, 3)
    assert draws(0, 3) != draws(0, 4)
    assert draws(0, 3) != draws(1, 3)
    seeds = [draw.seed for batch in draws(0, 3) for draw in batch]
    assert len(set(seeds)) == len(seeds)


def test_several_processes_draw_what_one_would_with_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def draws(rank: int, processes: int) -> list[list[Draw]]:
        monkeypatch.setattr(idist, "get_rank", lambda: rank)
        monkeypatch.setattr(idist, "get_world_size", lambda: processes)
        return list(SliceSampler(batch_size=12 // processes, iterations_per_epoch=5, seed=1))

    whole = draws(0, 1)
    for processes in (2, 3, 4):
        parts = [draws(rank, processes) for rank in range(processes)]
        for batch, *of_ranks in zip(whole, *parts, strict=True):
            assert [draw for place in zip(*of_ranks, strict=True) for draw in place] == batch


def test_a_sample_is_a_function_of_its_draw(phantoms: Path, tmp_path: Path) -> None:
    random = Compose([RandFlipd("image", prob=0.5), RandGaussianNoised("image", prob=0.5)])
    slices = dataset(phantoms, tmp_path, transform=random)
    first = [slices[Draw(seed, False)] for seed in range(6)]
    again = [slices[Draw(seed, False)] for seed in reversed(range(6))][::-1]
    for one, other in zip(first, again, strict=True):
        assert torch.equal(torch.as_tensor(one["image"]), torch.as_tensor(other["image"]))
        assert (one["case"], one["slice"]) == (other["case"], other["slice"])


def test_cases_that_are_left_out_are_not_drawn_from_and_without_them_nothing_changes(
    phantoms: Path, tmp_path: Path
) -> None:
    slices = dataset(phantoms, tmp_path)
    sampler = SliceSampler(batch_size=8, iterations_per_epoch=4)
    before = [slices[draw]["case"] for batch in sampler for draw in batch]
    assert before == [slices[Draw(draw.seed, draw.foreground)]["case"] for batch in sampler for draw in batch]
    sampler.left_out = (1, 3)
    after = {slices[draw]["case"] for batch in sampler for draw in batch}
    names = [case.name for case in slices.cases]
    assert set(before) == set(names)
    assert after == {names[0], names[2], names[4]}


@pytest.mark.parametrize("crop_size", [[48, 40], [25, 31]])
def test_forced_foreground_shows_all_classes_in_the_middle(
    phantoms: Path, tmp_path: Path, crop_size: list[int]
) -> None:
    slices = dataset(phantoms, tmp_path, crop_size=crop_size, patch_size=crop_size)
    centred, classes = [], set()
    for seed in range(60):
        label = slices[Draw(seed, True)]["label"][0]
        centred.append(int(label[crop_size[0] // 2, crop_size[1] // 2]))
        classes |= set(label.unique().tolist())
    assert classes == {0, 1, 2, 3, 4}
    # nnU-Net v1 keeps a cut from beginning beyond the near border, so that there the pixel isn't in the middle
    assert np.mean([value > 0 for value in centred]) > 0.9
    assert set(centred) >= {1, 2, 3, 4}


@pytest.mark.parametrize(
    ("size", "crop", "patch", "first", "last"),
    [
        (512, 602, 512, -45, -45),  # a slice as large as the patch: in the middle of the cut
        (700, 602, 512, -45, 143),  # up to 45 beyond the border, so that the patch, the cut's middle, reaches it
        (400, 602, 512, -101, -101),
        (100, 48, 48, 0, 52),
    ],
)
def test_random_cuts_reach_as_far_as_nnunets(size: int, crop: int, patch: int, first: int, last: int) -> None:
    one = SliceDataset.__new__(SliceDataset)
    one.crop_size, one.patch_size = [crop, crop], [patch, patch]
    rng = np.random.default_rng(0)
    starts = np.array([one.starts([size, size], None, rng) for _ in range(3000)])
    assert (starts.min(), starts.max()) == (first, last)


def test_a_cut_around_a_pixel_is_centred_on_it_except_at_the_near_border() -> None:
    one = SliceDataset.__new__(SliceDataset)
    one.crop_size, one.patch_size = [48, 48], [40, 40]
    rng = np.random.default_rng(0)
    assert one.starts([100, 100], (50, 99), rng) == [26, 75]
    assert one.starts([100, 100], (3, 50), rng) == [-4, 26]


def test_a_cut_is_where_the_label_is(phantoms: Path, tmp_path: Path) -> None:
    sample = dataset(phantoms, tmp_path, spacing_mm=[3.0, 3.0])[Draw(5, True)]
    assert sample["image"].shape == (1, 48, 40)
    organs, air = sample["image"][sample["label"] > 0], sample["image"] <= -2.49  # at -200 HU, where it is clipped
    assert -0.5 < organs.mean() < 2.0
    assert air.any()
    assert (sample["label"][air] == 0).all()


def test_transforms_see_plain_tensors_and_metatensors_are_on_again_afterwards(phantoms: Path, tmp_path: Path) -> None:
    kinds = set()

    def look(sample: dict[str, Any]) -> dict[str, Any]:
        kinds.add(type(sample["image"]))
        return sample

    slices = dataset(phantoms, tmp_path, transform=Compose([RandFlipd("image", prob=1.0), look]))
    slices[Draw(1, False)]
    assert kinds == {torch.Tensor}
    assert get_track_meta()


def test_a_data_set_without_any_label_is_refused(tmp_path: Path) -> None:
    for folder, dtype in (("images", np.int16), ("labels", np.uint8)):
        (tmp_path / folder).mkdir()
        nib.save(nib.Nifti1Image(np.zeros((8, 8, 4), dtype), np.eye(4)), tmp_path / folder / "a.nii.gz")
    with pytest.raises(BadInput, match=r"a\.nii\.gz: no label map shows any label"):
        dataset(tmp_path, tmp_path / "store").prepare()


@pytest.mark.parametrize(
    "values", [{"batch_size": 0, "iterations_per_epoch": 5}, {"batch_size": 2, "iterations_per_epoch": 0}]
)
def test_empty_batches_and_epochs_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(BadInput, match="batch_size and iterations_per_epoch must be at least 1"):
        SliceSampler(**values)


def test_workers_make_the_same_samples_as_the_main_process(phantoms: Path, tmp_path: Path) -> None:
    slices = dataset(phantoms, tmp_path)
    slices.prepare()
    sampler = SliceSampler(batch_size=3, iterations_per_epoch=2, seed=4)
    alone = [sample["slice"].tolist() for sample in torch.utils.data.DataLoader(slices, batch_sampler=sampler)]
    with_workers = torch.utils.data.DataLoader(slices, batch_sampler=sampler, num_workers=2)
    assert alone == [sample["slice"].tolist() for sample in with_workers]
