from __future__ import annotations

import threading
import time

import pytest
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.transforms import Flip
from torch.utils.data import Dataset

from cyclic_committee.scripts.data.prefetch import PrefetchLoader, collate
from cyclic_committee.scripts.runtime.errors import BadInput, find_bad_input


class Files(Dataset[dict[str, torch.Tensor]]):
    """Numbers from 0; remembers what was read, and in which thread."""

    def __init__(self, count: int, *, damaged: int = -1) -> None:
        self.count = count
        self.damaged = damaged
        self.read: list[int] = []
        self.threads: set[str] = set()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self.threads.add(threading.current_thread().name)
        self.read.append(index)
        if index == self.damaged:
            raise BadInput(f"{index}.nii.gz: damaged or truncated. Replace it.")
        return {"image": torch.tensor([index])}


def wait_for(files: Files, count: int) -> None:
    for _ in range(500):
        if len(files.read) >= count:
            return
        time.sleep(0.01)


def test_all_batches_come_in_their_order_and_again_on_the_next_run() -> None:
    loader = PrefetchLoader(dataset=Files(5), batch_size=2)
    for _ in range(2):
        assert [batch["image"].flatten().tolist() for batch in loader] == [[0, 1], [2, 3], [4]]
    assert len(loader) == 3


def test_one_is_prefetched_in_a_thread_and_never_more() -> None:
    files = Files(6)
    for number, _ in enumerate(PrefetchLoader(dataset=files, batch_size=1)):
        wait_for(files, min(6, number + 2))
        time.sleep(0.05)  # time for one too many
        assert len(files.read) == min(6, number + 2)
    assert threading.current_thread().name not in files.threads


def test_what_cannot_be_read_is_told_when_its_turn_has_come() -> None:
    batches = iter(PrefetchLoader(dataset=Files(4, damaged=2), batch_size=1))
    assert [int(next(batches)["image"]) for _ in range(2)] == [0, 1]
    with pytest.raises(Exception, match="damaged or truncated") as caught:
        next(batches)
    assert str(find_bad_input(caught.value)).startswith("2.nii.gz: damaged")


def test_a_run_may_stop_early() -> None:
    files = Files(5)
    for _ in PrefetchLoader(dataset=files, batch_size=1):
        break
    assert files.read == [0, 1]


def test_nothing_to_read_is_no_batch() -> None:
    assert list(PrefetchLoader(dataset=Files(0), batch_size=1)) == []


def test_a_single_volume_is_a_batch_in_its_own_memory_with_what_monai_says_of_it() -> None:
    affine = torch.diag(torch.tensor([2.0, 3.0, 5.0, 1.0]))
    image = Flip(0)(MetaTensor(torch.rand(1, 4, 5, 6), affine=affine, meta={"filename_or_obj": "a.nii.gz"}))
    item = {"image": image, "name": "a", "number": 3}
    found, theirs = collate([item]), list_data_collate([item])
    assert found["image"].data_ptr() == image.data_ptr() != theirs["image"].data_ptr()
    assert found.keys() == theirs.keys()
    assert torch.equal(found["image"].as_tensor(), theirs["image"].as_tensor())
    assert torch.equal(found["image"].affine, theirs["image"].affine)
    assert found["image"].meta.keys() == theirs["image"].meta.keys()
    assert (found["name"], found["number"]) == (theirs["name"], theirs["number"])
    [one], [other] = decollate_batch(found), decollate_batch(theirs)
    assert one["image"].meta["filename_or_obj"] == other["image"].meta["filename_or_obj"] == "a.nii.gz"
    assert torch.equal(one["image"].affine, image.affine)
    assert one["image"].applied_operations == other["image"].applied_operations
    assert [done["class"] for done in one["image"].applied_operations] == ["Flip"]
