from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from ignite.engine import Engine
from monai.engines.utils import IterationEvents

from cyclic_committee.scripts.handlers import loss_record
from cyclic_committee.scripts.handlers.loss_record import LossRecord, class_areas, read_losses
from cyclic_committee.scripts.runtime.errors import BadInput

LABELS = {"1": "liver", "2": "kidney"}
CASES = [{"image": f"/data/{name}_0000.nii.gz", "label": f"/data/{name}.nii.gz"} for name in "ab"]


def make_trainer(folder: Path, *, resume: bool = False, start: int = 0, members: int = 3) -> Engine:
    """Return what fires the events of a trainer: two samples an iteration, two iterations an epoch."""

    def iteration(engine: Any, seed: int) -> None:
        torch.manual_seed(seed)
        pred = torch.rand(2, 3, 4, 4).softmax(dim=1)
        engine.state.output = {"pred": pred, "label": torch.randint(0, 3, (2, 1, 4, 4), dtype=torch.uint8)}
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        losses = torch.rand(members, 2)
        samples = [("ab"[seed % 2], seed), ("b", 9)]
        engine.state.selection = SimpleNamespace(losses=losses, kept=losses < 0.5, samples=samples)

    engine = Engine(iteration)
    engine.register_events(*IterationEvents)
    LossRecord(folder, resume=resume, data=CASES, labels=LABELS).attach(engine)
    engine.state.epoch = start
    engine.load_state_dict({"epoch": start, "max_epochs": 9, "epoch_length": 2})
    return engine


def train(folder: Path, *, epochs: int, **arguments: Any) -> Path:
    make_trainer(folder, **arguments).run([0, 1], max_epochs=epochs, epoch_length=2)
    return folder / "losses.arrow"


def epochs_of(path: Path) -> list[int]:
    return read_losses(path)[0]["epoch"].to_pylist()[::4]


def test_every_sample_has_a_row(tmp_path: Path) -> None:
    table, about = read_losses(train(tmp_path, epochs=2))
    assert table["epoch"].to_pylist() == [1] * 4 + [2] * 4
    assert table["iteration"].to_pylist() == [1, 1, 2, 2, 3, 3, 4, 4]
    assert table["case"].to_pylist() == ["a", "b", "b", "b"] * 2
    assert table["slice"].to_pylist() == [0, 9, 1, 9] * 2
    torch.manual_seed(1)
    pred, label = torch.rand(2, 3, 4, 4).softmax(dim=1), torch.randint(0, 3, (2, 1, 4, 4), dtype=torch.uint8)
    losses = torch.rand(3, 2)
    rows = table.slice(2, 2).to_pydict()
    assert rows["losses"] == losses.T.tolist()  # float32, as they were
    assert rows["kept"] == (losses < 0.5).T.tolist()
    areas = class_areas(pred, label)
    for k, name in enumerate(("labelled", "expected", "agreed")):
        assert rows[name] == areas[:, k].tolist()
    assert about == {"cases": dict(zip("ab", CASES, strict=True)), "labels": LABELS, "orientation": "RAS"}


def test_areas_are_counted_in_pixels() -> None:
    label = torch.tensor([[[[0, 1], [1, 2]]]], dtype=torch.uint8)
    pred = torch.tensor([[[0.3, 0.0], [0.0, 1.0]], [[0.5, 1.0], [0.8, 0.0]], [[0.2, 0.0], [0.2, 0.0]]])[None]
    labelled, expected, agreed = class_areas(pred, label)[0].tolist()
    assert labelled == [1, 2, 1]
    assert expected == [1, 3, 0]
    assert agreed == [0, 2, 0]


def test_the_file_is_a_stream_that_pyarrow_reads(tmp_path: Path) -> None:
    path = train(tmp_path, epochs=3)
    with path.open("rb") as file:
        assert pa.ipc.open_stream(file).read_all().num_rows == 12


def test_an_epoch_is_on_the_disk_before_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(loss_record, "flush", lambda path: flushed.append(path.stat().st_size))
    path = train(tmp_path, epochs=3)
    assert flushed[-1] == path.stat().st_size
    assert len(flushed) == 2  # the first epoch's file was renamed into place


@pytest.mark.parametrize("lost", [1, 100, 400])
def test_a_file_that_ends_in_the_middle_of_an_epoch_holds_the_epochs_before(tmp_path: Path, lost: int) -> None:
    path = train(tmp_path, epochs=3)
    path.write_bytes(path.read_bytes()[:-lost])
    assert epochs_of(path) == [1, 2]


def test_a_training_that_goes_on_drops_the_epochs_that_it_trains_again(tmp_path: Path) -> None:
    path = train(tmp_path, epochs=4)
    undisturbed = read_losses(path)
    path.write_bytes(path.read_bytes()[:-50])  # killed while it wrote epoch 4; the checkpoint is of epoch 2
    train(tmp_path, epochs=4, resume=True, start=2)
    assert epochs_of(path) == [1, 2, 3, 4]
    assert read_losses(path) == undisturbed
    assert list(tmp_path.iterdir()) == [path]


def test_a_training_that_begins_replaces_what_it_finds(tmp_path: Path) -> None:
    train(tmp_path, epochs=3)
    assert epochs_of(train(tmp_path, epochs=1)) == [1]
    (tmp_path / "losses.arrow").write_bytes(b"no stream")
    assert epochs_of(train(tmp_path, epochs=1)) == [1]


def test_a_training_that_went_on_before_there_was_a_record_begins_one(tmp_path: Path) -> None:
    assert epochs_of(train(tmp_path, epochs=4, resume=True, start=2)) == [3, 4]


def test_the_record_of_another_committee_is_named(tmp_path: Path) -> None:
    path = train(tmp_path, epochs=2)
    before = read_losses(path)
    with pytest.raises(BadInput, match=r"losses\.arrow: is of another training, with other members or classes\."):
        train(tmp_path, epochs=3, resume=True, start=2, members=4)
    assert read_losses(path) == before


def test_the_samples_of_all_processes_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_record, "string_list_all_gather", lambda texts: texts * 2)
    table, _ = read_losses(train(tmp_path, epochs=2))
    assert table["epoch"].to_pylist() == [1] * 8 + [2] * 8
    assert table["slice"].to_pylist() == [0, 9, 1, 9] * 4


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_record.idist, "get_rank", lambda: 1)
    assert not train(tmp_path, epochs=1).exists()


@pytest.mark.parametrize("content", [None, b"", b"no stream", b"\xff\xff\xff\xff\x10\x00\x00\x00"])
def test_a_file_that_is_no_record_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "losses.arrow").write_bytes(content)
    with pytest.raises(BadInput, match=r"losses\.arrow: can't be read .*\. Give the output folder of a training\.$"):
        read_losses(tmp_path / "losses.arrow")


def test_the_stream_of_another_program_is_named(tmp_path: Path) -> None:
    with pa.ipc.new_stream(str(tmp_path / "losses.arrow"), pa.schema([("epoch", pa.int32())])):
        pass
    with pytest.raises(BadInput, match="it is no record of losses"):
        read_losses(tmp_path / "losses.arrow")


def test_a_record_without_a_whole_epoch_is_named(tmp_path: Path) -> None:
    path = train(tmp_path, epochs=1)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BadInput, match=r"losses\.arrow: holds no whole epoch\."):
        read_losses(path)


def test_an_epoch_within_the_record_that_is_damaged_is_no_unfinished_one(tmp_path: Path) -> None:
    """A length that leads beyond the end looks like an epoch that was never written to its end."""
    path = train(tmp_path, epochs=1)
    begin = path.stat().st_size
    data = bytearray(train(tmp_path, epochs=3).read_bytes())
    for length in (b"\xff\xff\xff\x0f", bytes(4)):  # too much; the end of a stream
        path.write_bytes(data[: begin + 4] + length + data[begin + 8 :])
        with pytest.raises(BadInput, match=r"losses\.arrow: can't be read"):
            read_losses(path)


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 10))])
def test_a_damaged_record_is_refused_or_says_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    """50 flipped bits and 10 cuts a seed: pyarrow alone crashes on some, and believes others."""
    path = train(tmp_path, epochs=3)
    whole, about = read_losses(path)
    data, rng = path.read_bytes(), np.random.default_rng(seed)
    refused = 0
    for number in range(60):
        damaged = bytearray(data)
        place = int(rng.integers(len(data)))
        if number < 50:
            damaged[place] ^= 1 << int(rng.integers(8))
        else:
            del damaged[place:]
        path.write_bytes(damaged)
        caplog.clear()
        with contextlib.suppress(BadInput):
            refused += 1
            table, told = read_losses(path)
            refused -= 1
            same_or_shorter(table, whole, said=caplog.text)
            assert told == about
    assert refused > 20


def same_or_shorter(table: pa.Table, whole: pa.Table, *, said: str) -> None:
    assert table.to_pylist() == whole.slice(0, table.num_rows).to_pylist()
    assert table.num_rows % (whole.num_rows // 3) == 0
    assert table.num_rows == whole.num_rows or "its last epoch isn't whole" in said


def test_a_record_of_version_0_1_has_no_checksums_and_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = train(tmp_path, epochs=2)
    whole, _ = read_losses(path)
    monkeypatch.setattr(loss_record, "CHECKSUM", "unknown")
    assert read_losses(path)[0].equals(whole)
