"""nnU-Net 2.8.1's own planner and preprocessor on the same data as ours, where it is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from conftest import CT_EXAMPLE

from cyclic_committee.scripts.phantoms.data_set import write_phantoms
from cyclic_committee.scripts.planning.preparation import prepare
from cyclic_committee.scripts.runtime.configuration import open_config

pytestmark = pytest.mark.skipif(find_spec("nnunetv2") is None, reason="nnU-Net isn't installed (nnunetv2==2.8.1)")

THEIRS = """
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
if __name__ == "__main__":
    extract_fingerprints([1], num_processes=2)
    plan_experiments([1])
    preprocess([1], configurations=["2d"], num_processes=[2])
"""


@dataclass(frozen=True)
class Both:
    """What nnU-Net and we made of a data set."""

    raw: Path
    theirs: Path  # nnUNet_preprocessed/Dataset001_X
    ours: Path  # plan.yaml and so on

    @property
    def plan(self) -> Any:
        return json.loads((self.theirs / "nnUNetPlans.json").read_text())["configurations"]["2d"]

    @property
    def their_intensities(self) -> Mapping[str, float]:
        found = json.loads((self.theirs / "dataset_fingerprint.json").read_text())
        return found["foreground_intensity_properties_per_channel"]["0"]  # type: ignore[no-any-return]

    @property
    def our_intensities(self) -> Mapping[str, float]:
        return json.loads((self.ours / "fingerprint.json").read_text())["foreground"]["0 CT"]  # type: ignore[no-any-return]


def run_both(root: Path, raw: Path) -> Both:
    places = {name: str(root / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    script = root / "theirs.py"
    script.write_text(THEIRS)
    command = [sys.executable, str(script)]
    done = subprocess.run(command, env={**os.environ, **places}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    prepare(raw, root / "ours")
    return Both(raw, root / "nnUNet_preprocessed" / raw.name, root / "ours")


@pytest.fixture(scope="module")
def phantoms_by_both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    root = tmp_path_factory.mktemp("nnunet")
    raw = root / "nnUNet_raw" / "Dataset001_Phantoms"
    write_phantoms(raw, cases=12, seed=3, layout="nnunet")
    return run_both(root, raw)


@pytest.fixture(scope="module")
def real_ct_by_both(tmp_path_factory: pytest.TempPathFactory) -> Both:
    """The real CT as it is, and once more on coarser pixels, so that both are resampled."""
    if not CT_EXAMPLE.is_dir():
        pytest.skip("no real CT at ../shared/data/ct_example")
    root = tmp_path_factory.mktemp("nnunet_ct")
    raw = root / "nnUNet_raw" / "Dataset001_CT"
    for part, source in (("imagesTr", "image"), ("labelsTr", "label")):
        (raw / part).mkdir(parents=True)
        volume = nib.load(CT_EXAMPLE / f"{source}.nii.gz")
        voxels = np.asanyarray(volume.dataobj)
        for number, step in enumerate((1.0, 1.37)):  # the same voxels, said to be larger: another spacing
            affine = volume.affine @ np.diag([step, step, 1.0, 1.0])
            suffix = "_0000" if part == "imagesTr" else ""
            nib.save(nib.Nifti1Image(voxels, affine), raw / part / f"ct_{number}{suffix}.nii.gz")
    labels = {"background": 0, "liver": 1, "kidney": 2, "spleen": 3, "pancreas": 4}
    about = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 2, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(about))
    return run_both(root, raw)


def both(request: pytest.FixtureRequest, name: str) -> Both:
    found: Both = request.getfixturevalue(name)
    return found


DATA = ["phantoms_by_both", "real_ct_by_both"]


@pytest.mark.parametrize("data", DATA)
def test_the_plan_has_nnunets_spacing_and_patch(request: pytest.FixtureRequest, data: str) -> None:
    made = both(request, data)
    ours = open_config("train.yaml", [made.ours / "plan.yaml"], values={"fold": "all"})
    assert ours["spacing_mm"] == made.plan["spacing"][::-1]  # theirs is y, x
    assert ours["patch_size"] == made.plan["patch_size"][::-1]


@pytest.mark.parametrize("data", DATA)
def test_the_foregrounds_intensities_are_nnunets(request: pytest.FixtureRequest, data: str) -> None:
    made = both(request, data)
    theirs, ours = made.their_intensities, made.our_intensities
    for name in ("percentile_00_5", "percentile_99_5", "median"):
        assert ours[name] == pytest.approx(theirs[name], abs=1.0)  # HU
    assert ours["mean"] == pytest.approx(theirs["mean"], rel=0.01)
    assert ours["sd"] == pytest.approx(theirs["std"], rel=0.01)


def compare(made: Both, *overlays: str) -> tuple[float, float, float]:
    """Return correlation, 99th percentile of the absolute difference, and the share of equal labels, over all cases."""
    import blosc2  # comes with nnU-Net

    parser = open_config("train.yaml", [made.ours / "plan.yaml", *overlays], values={"fold": "all"})
    dataset = parser.get_parsed_content("train#dataset")
    one, other, equal = [], [], []
    for case in dataset.prepare():
        stem = made.theirs / made.plan["data_identifier"] / case.name
        theirs = np.asarray(blosc2.open(f"{stem}.b2nd", mode="r")[:])[0]  # (slices, y, x)
        their_label = np.asarray(blosc2.open(f"{stem}_seg.b2nd", mode="r")[:])[0]
        slices = [case.read(index) for index in range(case.shape[2])]
        ours = np.stack([image[0].T for image, _ in slices])
        our_label = np.stack([label.T for _, label in slices])
        flips = nib.aff2axcodes(nib.load(made.raw / "labelsTr" / f"{case.name}.nii.gz").affine)
        assert flips == ("R", "A", "S")
        assert ours.shape == theirs.shape
        one.append(ours.ravel())
        other.append(theirs.ravel())
        equal.append((our_label == np.maximum(their_label, 0)).ravel())
    a, b = np.concatenate(one).astype(float), np.concatenate(other).astype(float)
    return float(np.corrcoef(a, b)[0, 1]), float(np.percentile(np.abs(a - b), 99)), float(np.concatenate(equal).mean())


@pytest.mark.parametrize("data", DATA)
def test_in_nnunet_v2s_order_the_prepared_cases_are_nnunets(request: pytest.FixtureRequest, data: str) -> None:
    correlation, difference_sd, labels = compare(both(request, data), "variants/normalise_first.yaml")
    print(f"{data}: correlation {correlation:.6f}, 99th percentile {difference_sd:.4f} sd, labels {labels:.6f}")
    assert correlation >= 0.9995
    assert difference_sd <= 0.05
    assert labels > 0.9995  # where a mask is half a pixel, rounding decides


@pytest.mark.parametrize("data", DATA)
def test_the_default_is_nnunet_v1s_order_and_differs_at_edges_only(request: pytest.FixtureRequest, data: str) -> None:
    correlation, difference_sd, labels = compare(both(request, data))
    print(f"{data}: correlation {correlation:.6f}, 99th percentile {difference_sd:.4f} sd, labels {labels:.6f}")
    assert 0.97 < correlation < 0.9995
    assert labels > 0.9995  # where a mask is half a pixel, rounding decides
