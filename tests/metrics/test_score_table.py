from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from ignite.engine import Engine

from cyclic_committee.scripts.metrics import score_table as module
from cyclic_committee.scripts.metrics.dsc_nsd import OrganScore, ScoreRow, as_rows
from cyclic_committee.scripts.metrics.score_table import (
    ScoreReport,
    evaluate_folders,
    format_table,
    summarise,
    write_csv,
    write_json,
)
from cyclic_committee.scripts.runtime.errors import BadInput

LABELS = {1: "liver", 2: "kidney"}
ROWS = [
    *as_rows("train_000", [OrganScore(1, "liver", 0.9, 0.8), OrganScore(2, "kidney", 0.5, 0.4)]),
    *as_rows("train_001", [OrganScore(1, "liver", 1.0, 1 / 3), OrganScore(2, "kidney", 0.7, 0.2)]),
]


def label_map() -> np.ndarray:
    voxels = np.zeros((8, 7, 6), dtype=np.uint8)
    voxels[1:4, 1:4, 1:4], voxels[6, 5, 4] = 1, 2
    return voxels


def write(file: Path, voxels: np.ndarray | None = None, *, offset_mm: float = 0, z_mm: float = 2.5) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([0.5, 0.5, z_mm, 1.0])
    affine[0, 3] = offset_mm
    nib.save(nib.Nifti1Image(label_map() if voxels is None else voxels, affine), file)
    return file


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Return a folder of predictions and one of references with two cases in each."""
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    for folder in (predictions, references):
        write(folder / "train_000.nii.gz")
        write(folder / "train_001.nii.gz")
    return predictions, references


def evaluate(folders: tuple[Path, Path], **settings: Any) -> list[ScoreRow]:
    return evaluate_folders(*folders, **{"labels": LABELS, "processes": 0, **settings})


def test_the_table_has_one_line_per_case_and_organ(tmp_path: Path) -> None:
    write_csv(ROWS, tmp_path / "new/folder/scores.csv")
    assert (tmp_path / "new/folder/scores.csv").read_bytes().decode() == (
        "case,label,organ,dsc,nsd\n"
        "train_000,1,liver,0.900000,0.800000\n"
        "train_000,2,kidney,0.500000,0.400000\n"
        "train_001,1,liver,1.000000,0.333333\n"
        "train_001,2,kidney,0.700000,0.200000\n"
    )


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    write_csv(ROWS, tmp_path / "scores.csv")
    before = (tmp_path / "scores.csv").read_text()
    monkeypatch.setattr(os, "replace", fail)
    for attempt in (lambda: write_csv(ROWS[:1], tmp_path / "scores.csv"), lambda: write_json({}, tmp_path / "a.json")):
        with pytest.raises(OSError, match="disk full"):
            attempt()
    assert (tmp_path / "scores.csv").read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == ["scores.csv"]


def test_the_summary_holds_means_and_sample_standard_deviations() -> None:
    summary = summarise(ROWS)
    assert list(summary["organs"]) == ["liver", "kidney"]
    assert summary["organs"]["liver"]["cases"] == 2
    assert summary["organs"]["liver"]["dsc"] == pytest.approx({"mean": 0.95, "sd": np.std([0.9, 1.0], ddof=1)})
    assert summary["organs"]["kidney"]["nsd"] == pytest.approx({"mean": 0.3, "sd": np.std([0.4, 0.2], ddof=1)})
    assert summary["mean"]["dsc"] == pytest.approx({"mean": 0.775, "sd": np.std([0.7, 0.85], ddof=1)})
    assert summary["mean"]["nsd"]["mean"] == pytest.approx((0.6 + 4 / 15) / 2)


def test_the_scores_of_a_single_case_do_not_deviate() -> None:
    summary = summarise(ROWS[:2])
    assert summary["organs"]["liver"]["dsc"] == {"mean": 0.9, "sd": 0.0}
    assert summary["mean"]["dsc"]["sd"] == 0.0


def test_there_is_no_summary_of_nothing() -> None:
    with pytest.raises(BadInput, match="at least one score"):
        summarise([])


def test_the_summary_survives_its_file(tmp_path: Path) -> None:
    write_json(summarise(ROWS), tmp_path / "new" / "summary.json")
    assert json.loads((tmp_path / "new" / "summary.json").read_text()) == summarise(ROWS)


def test_the_terminal_shows_percentages_with_the_mean_last() -> None:
    assert format_table(summarise(ROWS)).splitlines() == [
        "organ         DSC, %        NSD, %  cases",
        "liver     95.0 ± 7.1   56.7 ± 33.0      2",
        "kidney   60.0 ± 14.1   30.0 ± 14.1      2",
        "mean     77.5 ± 10.6   43.3 ± 23.6      2",
    ]


def test_the_columns_stay_aligned_at_the_extremes() -> None:
    rows = as_rows("a", [OrganScore(1, "inferior vena cava", 1, 1)]) + as_rows("b", [OrganScore(2, "x", 0, 0)])
    assert len({len(line) for line in format_table(summarise(rows)).splitlines()}) == 1


def test_a_run_ends_with_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = Engine(lambda engine, batch: None)
    engine.state.metric_details = {"mean_dsc": ROWS}  # type: ignore[attr-defined]
    ScoreReport(csv_path=tmp_path / "out/scores.csv", json_path=str(tmp_path / "out/summary.json")).attach(engine)
    assert not (tmp_path / "out").exists()
    engine.run([0])
    assert (tmp_path / "out/scores.csv").read_text().count("\n") == 5
    assert json.loads((tmp_path / "out/summary.json").read_text()) == summarise(ROWS)
    assert capsys.readouterr().out == format_table(summarise(ROWS)) + "\n"


def test_only_the_first_process_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module.idist, "get_rank", lambda: 1)
    engine = Engine(lambda engine, batch: None)
    ScoreReport(csv_path=tmp_path / "scores.csv", json_path=tmp_path / "summary.json").attach(engine)
    engine.run([0])
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_a_report_without_scores_names_its_metric(tmp_path: Path) -> None:
    engine = Engine(lambda engine, batch: None)
    engine.state.metric_details = {"mean_dsc": ROWS}  # type: ignore[attr-defined]
    ScoreReport(csv_path=tmp_path / "a", json_path=tmp_path / "b", metric_name="val_dsc").attach(engine)
    with pytest.raises(BadInput, match=r"metric_name must be .* got 'val_dsc'"):
        engine.run([0])


def test_two_folders_are_scored_case_by_case(folders: tuple[Path, Path]) -> None:
    write(folders[0] / "train_001.nii.gz", np.roll(label_map(), 1, axis=2))
    assert evaluate(folders) == [
        {"case": "train_000", "label": 1, "organ": "liver", "dsc": 1.0, "nsd": 1.0},
        {"case": "train_000", "label": 2, "organ": "kidney", "dsc": 1.0, "nsd": 1.0},
        {
            "case": "train_001",
            "label": 1,
            "organ": "liver",
            "dsc": pytest.approx(2 / 3),
            "nsd": pytest.approx(0.829697, abs=1e-6),  # computed with DeepMind's package
        },
        {"case": "train_001", "label": 2, "organ": "kidney", "dsc": 0.0, "nsd": pytest.approx(0.5, abs=1e-6)},
    ]


def test_the_spacing_is_that_of_the_header_and_the_tolerance_that_of_the_caller(folders: tuple[Path, Path]) -> None:
    write(folders[0] / "train_001.nii.gz", np.roll(label_map(), 1, axis=2), z_mm=1)
    write(folders[1] / "train_001.nii.gz", z_mm=1)
    assert [row["nsd"] for row in evaluate(folders)] == [1, 1, 1, 1]
    assert evaluate(folders, tolerance_mm=0.9)[3]["nsd"] == pytest.approx(0.5, abs=1e-6)


def test_a_prediction_may_have_the_images_name_and_another_suffix(folders: tuple[Path, Path]) -> None:
    (folders[0] / "train_000.nii.gz").rename(folders[0] / "train_000_0000.nii.gz")
    (folders[0] / "train_001.nii.gz").unlink()
    write(folders[0] / "train_001_0000.nii")
    (folders[0] / "notes.txt").write_text("no label map")
    (folders[0] / "._train_000.nii.gz").write_text("what macOS leaves behind")
    assert [row["case"] for row in evaluate(folders)] == ["train_000", "train_000", "train_001", "train_001"]


def test_whole_numbers_may_be_stored_as_floats_and_label_ids_given_as_strings(folders: tuple[Path, Path]) -> None:
    write(folders[0] / "train_000.nii.gz", label_map().astype(np.float32))
    rows = evaluate_folders(*folders, labels={"1": "liver", "2": "kidney"})
    assert [row["dsc"] for row in rows] == [1, 1, 1, 1]


@pytest.mark.parametrize("processes", [1, 2, 5, None])
def test_several_processes_give_the_same_rows_in_the_same_order(
    processes: int | None, folders: tuple[Path, Path]
) -> None:
    for case in range(7):
        write(folders[0] / f"case_{case}.nii.gz", np.roll(label_map(), case % 3, axis=2))
        write(folders[1] / f"case_{case}.nii.gz")
    one_by_one = evaluate(folders, processes=0)
    assert len({row["nsd"] for row in one_by_one}) > 2
    assert evaluate(folders, processes=processes) == one_by_one


@pytest.mark.parametrize(("settings", "expected"), [({}, None), ({"processes": 3}, 3)])
def test_cases_are_scored_by_so_many_processes(
    settings: dict[str, int], expected: int | None, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def for_each(function: Callable[[Any], Any], items: Sequence[Any], *, processes: int | None, **_: str) -> Any:
        asked.append(processes)
        return map(function, items)

    monkeypatch.setattr(module, "for_each", for_each)
    assert len(evaluate_folders(*folders, labels=LABELS, **settings)) == 4
    assert asked == [expected]


def test_every_label_map_is_read_once_and_as_it_is_stored(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, scored, files = module.read_voxels, module.organ_scores, []

    def read_and_note(volume: Any) -> np.ndarray:
        files.append(Path(volume.get_filename()))
        return read(volume)

    def score_bytes(*maps: np.ndarray, **settings: Any) -> list[OrganScore]:
        assert [ids.dtype for ids in maps] == [np.uint8, np.uint8]
        return scored(*maps, **settings)

    monkeypatch.setattr(module, "read_voxels", read_and_note)
    monkeypatch.setattr(module, "organ_scores", score_bytes)
    evaluate(folders)
    assert sorted(files) == sorted(file for folder in folders for file in folder.iterdir())


def no_predictions(predictions: Path, references: Path) -> str:
    for file in predictions.iterdir():
        file.unlink()
    return "predictions"


def no_folder(predictions: Path, references: Path) -> str:
    references.rename(references.with_name("elsewhere"))
    return "references"


def missing_prediction(predictions: Path, references: Path) -> str:
    write(references / "train_002.nii.gz")
    write(references / "train_003.nii.gz")
    return r"train_002\.nii\.gz.* 2 of 4 references"


def missing_reference(predictions: Path, references: Path) -> str:
    return write(predictions / "train_007.nii.gz").name + ".* 1 of 3 predictions"


def two_predictions(predictions: Path, references: Path) -> str:
    return write(predictions / "train_001_0000.nii.gz").name


def two_references(predictions: Path, references: Path) -> str:
    return "train_001.*" + write(references / "train_001.nii").suffix


def no_nifti(predictions: Path, references: Path) -> str:
    (predictions / "train_001.nii.gz").write_bytes(b"not even gzip")
    return r"predictions/train_001\.nii\.gz"


def no_header(predictions: Path, references: Path) -> str:
    (references / "train_001.nii.gz").write_bytes(b"")
    return r"references/train_001\.nii\.gz"


def truncated(predictions: Path, references: Path) -> str:
    file = write(predictions / "train_001.nii.gz", np.random.default_rng(0).integers(0, 3, (8, 7, 6)).astype(np.uint8))
    file.write_bytes(file.read_bytes()[:-40])
    return r"predictions/train_001\.nii\.gz"


def four_dimensions(predictions: Path, references: Path) -> str:
    return write(predictions / "train_001.nii.gz", label_map()[..., None].repeat(2, axis=-1)).name + r".*\(8, 7, 6, 2\)"


def other_shape(predictions: Path, references: Path) -> str:
    write(predictions / "train_001.nii.gz", label_map()[:-1])
    return r"predictions/train_001\.nii\.gz.*shape.*\(7, 7, 6\).*\(8, 7, 6\)"


def other_place(predictions: Path, references: Path) -> str:
    write(predictions / "train_001.nii.gz", offset_mm=0.5)
    return r"predictions/train_001\.nii\.gz.*affine"


def fraction(predictions: Path, references: Path) -> str:
    write(predictions / "train_001.nii.gz", label_map().astype(np.float32) * 0.5)
    return r"predictions/train_001\.nii\.gz.*0\.5"


def not_a_number(predictions: Path, references: Path) -> str:
    write(predictions / "train_001.nii.gz", np.full((8, 7, 6), np.nan, dtype=np.float32))
    return r"predictions/train_001\.nii\.gz.*NaN"


def unknown_label(predictions: Path, references: Path) -> str:
    write(references / "train_001.nii.gz", label_map() * 5)
    return r"references/train_001\.nii\.gz.*5"


HEADERS = [no_predictions, no_folder, missing_prediction, missing_reference, two_predictions, two_references]
HEADERS += [no_nifti, no_header, four_dimensions, other_shape, other_place]
VOXELS = [truncated, fraction, not_a_number, unknown_label]


@pytest.mark.parametrize("spoil", HEADERS + VOXELS, ids=lambda spoil: spoil.__name__)
def test_what_cannot_be_compared_is_named_in_one_line(spoil: Any, folders: tuple[Path, Path]) -> None:
    pattern = spoil(*folders)
    with pytest.raises(BadInput, match=pattern) as error:
        evaluate(folders)
    assert "\n" not in str(error.value)


def refusal(folders: tuple[Path, Path], *, processes: int) -> str:
    try:
        evaluate(folders, processes=processes)
    except BadInput as error:
        return str(error)
    return ""


@pytest.mark.parametrize("spoil", VOXELS, ids=lambda spoil: spoil.__name__)
def test_what_another_process_refuses_is_named_in_the_same_line(spoil: Any, folders: tuple[Path, Path]) -> None:
    spoil(*folders)
    line = refusal(folders, processes=2)
    assert "train_001.nii.gz: " in line
    assert "\n" not in line
    assert line == refusal(folders, processes=0)


@pytest.mark.parametrize("spoil", HEADERS, ids=lambda spoil: spoil.__name__)
def test_all_headers_are_checked_before_anything_is_scored(
    spoil: Any, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        pytest.fail("scored before all headers were checked")

    spoil(*folders)
    monkeypatch.setattr(module, "organ_scores", fail)
    with pytest.raises(BadInput):
        evaluate(folders)


@pytest.mark.parametrize(("settings", "name"), [({"labels": {}}, "labels"), ({"tolerance_mm": -1}, "tolerance_mm")])
def test_wrong_settings_are_refused_first(settings: dict[str, Any], name: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"^{name} must"):
        evaluate((tmp_path / "missing", tmp_path / "missing"), **settings)


def test_a_case_that_is_empty_in_both_maps_counts_as_right(folders: tuple[Path, Path]) -> None:
    for folder in folders:
        write(folder / "train_001.nii.gz", np.zeros((8, 7, 6), np.uint8))
    empty = [row for row in evaluate(folders) if row["case"] == "train_001"]
    assert [(row["dsc"], row["nsd"]) for row in empty] == [(1, 1), (1, 1)]


def test_the_spacing_is_the_affines_where_the_header_says_another(folders: tuple[Path, Path]) -> None:
    shifted = np.roll(label_map(), 3, axis=0)
    write(folders[0] / "train_000.nii.gz", shifted)
    right = evaluate(folders)
    for file in (folder / f"train_00{number}.nii.gz" for folder in folders for number in (0, 1)):
        volume = nib.load(file)
        volume.header["pixdim"][1:4] = 0.01
        volume.header.structarr["sform_code"], volume.header.structarr["qform_code"] = 2, 0
        with file.with_suffix("").open("wb") as plain:  # nibabel's own writing would make them agree
            volume.header.write_to(plain)
            plain.write(bytes(int(volume.header["vox_offset"] or 352) - plain.tell()))
            plain.write(np.asarray(volume.dataobj).astype(np.uint8).tobytes("F"))
        file.unlink()
    assert nib.load(file.with_suffix("")).header.get_zooms() == pytest.approx([0.01] * 3)
    assert evaluate(folders) == right
    assert right[0]["nsd"] < 1
