from __future__ import annotations

import json
import os
import shutil
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
from conftest import CT_EXAMPLE, Workflow, contents

from cyclic_committee.scripts.data.slice_store import StoredCase
from cyclic_committee.scripts.phantoms.data_set import write_phantoms
from cyclic_committee.scripts.planning.preparation import prepare
from cyclic_committee.scripts.runtime.configuration import open_config
from cyclic_committee.scripts.runtime.errors import BadInput


def stored(out: Path, *overlays: str) -> list[StoredCase]:
    config = open_config("train.yaml", [out / "plan.yaml", *overlays], values={"fold": "all"})
    cases: list[StoredCase] = config.get_parsed_content("train#dataset").prepare()
    return cases


def test_a_prepared_data_set_trains_and_infers_with_its_plan_as_it_is(
    phantoms: Path, tmp_path: Path, workflow: Workflow
) -> None:
    plan = prepare(phantoms, tmp_path / "prepared")
    settings: dict[str, Any] = {
        "member#features": [4, 4, 8, 8, 8],
        "output_dir": str(tmp_path / "run"),
        "model_path": str(tmp_path / "model.pt"),
        "max_epochs": 1,
        "iterations_per_epoch": 2,
        "batch_size": 2,
        "num_workers": 0,
        "val_interval": 1,
        "track": False,
        "device": "$torch.device('cpu')",
        "precision": "float32",
    }
    before = contents(tmp_path / "prepared")
    workflow("train", "train.yaml", str(plan), **settings).run()
    assert torch.load(tmp_path / "model.pt", weights_only=True)["iterations_trained"] == 2
    assert contents(tmp_path / "prepared") == before  # training found all cases prepared
    where = {"dataset_dir": str(phantoms / "TrainingImg"), "output_dir": str(tmp_path / "labels")}
    values = {"member#features": [4, 4, 8, 8, 8], "ckpt_path": str(tmp_path / "model.pt"), **where}
    workflow("infer", "inference.yaml", str(plan), **values).run()
    assert len(list((tmp_path / "labels").iterdir())) == 5


def test_two_channels_other_than_ct_and_labels_with_gaps_go_all_the_way(tmp_path: Path, workflow: Workflow) -> None:
    rng = np.random.default_rng(0)
    data = tmp_path / "data"
    for folder in ("imagesTr", "labelsTr"):
        (data / folder).mkdir(parents=True)
    for number in range(5):
        label = np.zeros((40, 36, 6), np.uint8)
        label[5:20, 5:20, 1:5], label[22:35, 10:30, 2:5] = 3, 7
        for channel, scale in enumerate((200.0, 5.0)):
            voxels = rng.normal(scale, scale / 10, label.shape) + scale * (label == (3, 7)[channel])
            path = data / "imagesTr" / f"mr_{number}_{channel:04d}.nii.gz"
            nib.save(nib.Nifti1Image(voxels.astype(np.float32), np.diag([1.0, 1, 5, 1])), path)
        nib.save(nib.Nifti1Image(label, np.diag([1.0, 1, 5, 1])), data / "labelsTr" / f"mr_{number}.nii.gz")
    about = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "gland": 3, "lesion": 7},
             "numTraining": 5, "file_ending": ".nii.gz"}  # fmt: skip
    (data / "dataset.json").write_text(json.dumps(about))
    plan = prepare(data, tmp_path / "out")
    shared = {"member#features": [8, 16, 16, 16], "device": "$torch.device('cpu')", "precision": "float32"}
    training: dict[str, Any] = {
        "output_dir": str(tmp_path / "run"), "model_path": str(tmp_path / "model.pt"), "max_epochs": 1,
        "iterations_per_epoch": 30, "batch_size": 4, "num_workers": 0, "val_interval": 1, "track": False,
        "momentum": 0.9,
    }  # fmt: skip
    workflow("train", "train.yaml", str(plan), **shared, **training).run()
    where = {"output_dir": str(tmp_path / "labels"), "ckpt_path": str(tmp_path / "model.pt")}
    workflow("infer", "inference.yaml", str(plan), **shared, **where).run()
    labelled = sorted((tmp_path / "labels").iterdir())
    assert len(labelled) == 5
    truth = np.asanyarray(nib.load(data / "labelsTr" / "mr_0.nii.gz").dataobj)
    found = np.asanyarray(nib.load(labelled[0]).dataobj)
    assert set(np.unique(found)) <= {0, 3, 7}
    assert (found == truth).mean() > 0.8


def test_a_plan_changed_by_hand_is_kept_and_followed(phantoms: Path, tmp_path: Path) -> None:
    plan = prepare(phantoms, tmp_path)
    text = plan.read_text().replace("spacing_mm: [", "spacing_mm: [5.0, 4.0]  # was [")
    plan.write_text(text)
    prepare(phantoms, tmp_path)
    assert plan.read_text() == text
    image = nib.load(stored(tmp_path)[0].folder / "image_0000.nii")
    assert image.header.get_zooms()[:2] == pytest.approx((5.0, 4.0), rel=0.05)


def test_overlays_say_how_the_cases_are_prepared(phantoms: Path, tmp_path: Path) -> None:
    prepare(phantoms, tmp_path, overlays=["variants/small.yaml"])
    assert len(list((tmp_path / "cases").iterdir())) == 5
    image = nib.load(stored(tmp_path, "variants/small.yaml")[0].folder / "image_0000.nii")
    assert image.header.get_zooms()[:2] == pytest.approx((3.0, 3.0), rel=0.02)
    assert len(list((tmp_path / "cases").iterdir())) == 5


def test_another_data_sets_plan_is_left_alone(phantoms: Path, tmp_path: Path) -> None:
    prepare(phantoms, tmp_path / "out")
    other = tmp_path / "other"
    write_phantoms(other, cases=1)
    with pytest.raises(BadInput, match=r"plan\.yaml: is the plan of .*Choose another folder with --out"):
        prepare(other, tmp_path / "out")


def test_a_bad_case_stops_with_one_line_and_finished_cases_stay(tmp_path: Path) -> None:
    data = tmp_path / "data"
    files = write_phantoms(data, cases=3)
    bad = Path(files[2]["image"])
    good = bad.read_bytes()
    bad.write_bytes(good[: len(good) // 2])
    with pytest.raises(BadInput, match=rf"{bad.name}: damaged or truncated") as caught:
        prepare(data, tmp_path / "out", processes=0)
    assert "\n" not in str(caught.value)
    assert len(list((tmp_path / "out" / "fingerprints").iterdir())) == 2
    bad.write_bytes(good)
    prepare(data, tmp_path / "out")
    assert len(list((tmp_path / "out" / "cases").iterdir())) == 3


def test_a_missing_partner_is_named_and_check_is_recommended(tmp_path: Path) -> None:
    for case in write_phantoms(tmp_path / "data", cases=3)[:2]:
        Path(case["label"]).unlink()
    with pytest.raises(BadInput, match=r"train_000_0000\.nii\.gz: has no label map .* `cyclic-committee check"):
        prepare(tmp_path / "data", tmp_path / "out")
    assert not (tmp_path / "out").exists()


FILL = """
import resource, signal, sys
from cyclic_committee.scripts.commands.main import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), resource.RLIM_INFINITY))
main()
"""


@pytest.mark.parametrize(("largest_file", "where"), [(100, "fingerprints"), (20_000, "cases")])
def test_a_full_disk_stops_with_one_line_at_any_stage(
    phantoms: Path, tmp_path: Path, largest_file: int, where: str
) -> None:
    command = [sys.executable, "-c", FILL, str(largest_file), "prepare", str(phantoms), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert f"out/{where}/" in line
    assert "can't be written" in line
    assert line.endswith("Make room, or choose another folder.")
    assert list((tmp_path / "out" / where).iterdir()) == []


def test_too_little_room_is_said_before_the_work(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(BadInput, match=r"the prepared cases need \d+\.\d MB, but only 1\.0 MB are free"):
        prepare(phantoms, tmp_path / "out")
    assert not (tmp_path / "out" / "cases").exists()


def test_labels_and_channels_can_be_given(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_phantoms(data, cases=2)
    with pytest.raises(BadInput, match="holds the label ids 3, 4, which are not in labels"):
        prepare(data, tmp_path / "a", labels={1: "liver", 2: "kidney"})
    with pytest.raises(BadInput, match=r"has 1 channels, expected 2 \(T1, T2\)"):
        prepare(data, tmp_path / "b", channel_names=["T1", "T2"])
    plan = prepare(data, tmp_path / "c", channel_names=["MR"])
    assert "StandardiseImage" in plan.read_text()


@pytest.mark.slow
def test_killed_and_started_again_on_the_command_line_it_ends_the_same_byte_for_byte(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_phantoms(data, cases=12)
    straight, out = tmp_path / "straight", tmp_path / "out"
    program = "import sys; from cyclic_committee.scripts.commands.main import main; main()"
    command = [sys.executable, "-c", program, "prepare", str(data), "--out", str(out), "--processes", "2"]
    stages = ["fingerprints/*.json", "cases/train_*"]
    for stage in stages:  # killed while measuring, then while storing
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        while not list(out.glob(stage)) and process.poll() is None:
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "Prepared. Train" in finished.stdout
    shutil.move(out, straight)
    subprocess.run(command, check=True, capture_output=True)
    assert contents(straight) == contents(out)


def five_layouts(folder: Path, cases: list[tuple[Path, Path]]) -> dict[str, Path]:
    """Write the same cases in every layout; returns what `prepare` takes."""
    names = [f"ct_{number}" for number in range(len(cases))]
    about = {"1": "liver", "2": "kidney", "3": "spleen", "4": "pancreas"}
    patterns = {
        "flare21": ("TrainingImg/{}_0000.nii.gz", "TrainingMask/{}.nii.gz"),
        "nnunet": ("imagesTr/{}_0000.nii.gz", "labelsTr/{}.nii.gz"),
        "decathlon": ("imagesTr/{}.nii.gz", "labelsTr/{}.nii.gz"),
        "datalist": ("scans/{}/{}.nii.gz", "scans/{}/{}.seg.nii.gz"),
        "folders": ("images/{}.nii.gz", "labels/{}.nii.gz"),
    }
    for layout, pattern in patterns.items():
        for name, files in zip(names, cases, strict=True):
            for place, file in zip(pattern, files, strict=True):
                target = folder / layout / place.format(name, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target)
    nnunet = {"channel_names": {"0": "CT"}, "labels": {"background": 0, **{v: int(k) for k, v in about.items()}},
              "numTraining": len(cases), "file_ending": ".nii.gz"}  # fmt: skip
    (folder / "nnunet" / "dataset.json").write_text(json.dumps(nnunet))
    listed = {
        layout: [{"image": patterns[layout][0].format(n, n), "label": patterns[layout][1].format(n, n)} for n in names]
        for layout in ("decathlon", "datalist")
    }
    decathlon = {"modality": {"0": "CT"}, "labels": {"0": "background", **about}, "training": listed["decathlon"]}
    (folder / "decathlon" / "dataset.json").write_text(json.dumps(decathlon))
    datalist = {"training": [{**entry, "fold": n} for n, entry in enumerate(listed["datalist"])]}
    (folder / "datalist" / "folds.json").write_text(json.dumps(datalist))
    return {layout: folder / layout for layout in patterns}


def assert_all_layouts_give_the_same(tmp_path: Path, cases: list[tuple[Path, Path]]) -> None:
    made: dict[str, list[bytes]] = {}
    for layout, folder in five_layouts(tmp_path / "data", cases).items():
        plan = prepare(folder, tmp_path / "out" / layout)
        assert f'layout: "{layout}"' in plan.read_text()
        prepared = stored(tmp_path / "out" / layout)
        names = ("image_0000.nii", "label.nii", "places.npy", "place_counts.npy", "case.json")
        made[layout] = [(case.folder / name).read_bytes() for case in prepared for name in names]
        assert len(prepared) == len(cases)
    assert all(arrays == made["flare21"] for arrays in made.values())


def test_all_layouts_give_the_same_prepared_cases(phantoms: Path, tmp_path: Path) -> None:
    files = [sorted((phantoms / part).iterdir())[:2] for part in ("TrainingImg", "TrainingMask")]
    assert_all_layouts_give_the_same(tmp_path, list(zip(*files, strict=True)))


@pytest.mark.skipif(not CT_EXAMPLE.is_dir(), reason="no real CT at ../shared/data/ct_example")
def test_a_real_ct_in_all_layouts_gives_the_same_prepared_cases(tmp_path: Path) -> None:
    assert_all_layouts_give_the_same(tmp_path, [(CT_EXAMPLE / "image.nii.gz", CT_EXAMPLE / "label.nii.gz")])
