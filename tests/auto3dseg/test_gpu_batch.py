from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from auto3dseg_runs import made_fold, phantom_list
from monai.bundle import ConfigParser

from cyclic_committee.scripts.auto3dseg import gpu_batch
from cyclic_committee.scripts.auto3dseg.gpu_batch import cuda_bytes, largest_batch
from cyclic_committee.scripts.runtime.errors import BadInput

SMALL = {"overlays": ["variants/small.yaml"], "member#features": [4, 8, 16], "patch_size": [32, 32]}


def stand_in(monkeypatch: pytest.MonkeyPatch, memory: float | None) -> list[int]:
    asked: list[int] = []

    def bytes_of(batch: int, fold: Path) -> int:
        asked.append(batch)
        return 100 * batch

    monkeypatch.setattr(gpu_batch, "smallest_gpu_bytes", lambda: memory)
    monkeypatch.setattr(gpu_batch, "cuda_bytes", bytes_of)
    return asked


@pytest.mark.parametrize(
    ("memory", "limits", "batch"),
    [
        (1000, [1, 20], 9),
        (1111, [1, 20], 9),
        (1112, [1, 20], 10),
        (9000, [1, 20], 20),
        (1000, [4, 6], 6),
        (100, [2, 5], 2),
    ],
)
def test_the_largest_batch_that_fits_nine_tenths_of_the_memory(
    monkeypatch: pytest.MonkeyPatch, memory: float, limits: list[int], batch: int
) -> None:
    asked = stand_in(monkeypatch, memory)
    assert largest_batch({"range_num_images_per_batch": limits}, Path()) == batch
    assert len(asked) <= 6  # each is a trace of the networks


def test_without_a_gpu_the_batch_stays_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert stand_in(monkeypatch, None) == []
    assert largest_batch({}, Path()) is None
    assert "no GPU is visible" in caplog.text


@pytest.mark.parametrize("limits", [[0, 2], [5, 2], [1], 3, "1,2"])
def test_a_range_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch, limits: Any) -> None:
    stand_in(monkeypatch, 1000)
    with pytest.raises(BadInput, match="range_num_images_per_batch must be the smallest and the largest batch"):
        largest_batch({"range_num_images_per_batch": limits}, Path())


def test_a_folds_batch_is_estimated_and_written(
    process_state: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data_list = phantom_list(tmp_path / "data")
    fold = Path(made_fold(tmp_path / "work", data_list, **SMALL).output_path)
    few, many = (cuda_bytes(batch, fold) for batch in (2, 6))
    assert 0 < few < many
    monkeypatch.setattr(gpu_batch, "smallest_gpu_bytes", lambda: (many + 1) / gpu_batch.SHARE)
    specs = {"universal": {"range_num_images_per_batch": [1, 3]}, "committee": {"range_num_images_per_batch": [4, 9]}}
    algo = made_fold(tmp_path / "work", data_list, gpu_customization=True, gpu_customization_specs=specs, **SMALL)
    assert ConfigParser.load_config_file(f"{algo.output_path}/configs/train.yaml")["batch_size"] == 6
    assert (
        "# The largest that fits the GPUs.\nbatch_size: 6" in Path(algo.output_path, "configs/overlay.yaml").read_text()
    )
