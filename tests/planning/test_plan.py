from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import yaml

from cyclic_committee.scripts.planning.fingerprint import CaseFingerprint
from cyclic_committee.scripts.planning.plan import crop_size, make_plan, planned_batch_size, pooling, target_spacing_mm
from cyclic_committee.scripts.planning.plan_file import plan_text
from cyclic_committee.scripts.runtime.errors import BadInput

LABELS = {1: "liver", 2: "kidney", 3: "spleen", 4: "pancreas"}
FLARE21 = ([0.81640601, 0.81640601, 2.5], [512, 512, 100])


def case(spacing_mm: list[float], size: list[int], **values: Any) -> CaseFingerprint:
    counted = [{"values": [-20.0, 100.0, 110.0, 300.0], "counts": [1.0, 500.0, 498.0, 1.0]}]
    usual = {"share_kept": 1.0, "label_voxels": {"1": 5}, "foreground": counted}
    return CaseFingerprint(**{"name": "a", "spacing_mm": spacing_mm, "size": size, **usual, **values})


def test_flare21_gets_the_papers_plan_and_nnunets_batch_of_twelve() -> None:
    plan = make_plan([case(*FLARE21)] * 361, channel_names=["CT"], labels=LABELS)
    assert plan.spacing_mm == (0.81640601, 0.81640601)
    assert plan.patch_size == (512, 512)
    assert plan.crop_size == (602, 602)
    assert plan.features == (32, 64, 128, 256, 480, 480, 480, 480)
    assert plan.strides == ((2, 2),) * 7
    assert (plan.batch_size, plan.planned_batch_size) == (8, 12)
    assert plan.orientation == "RAS"
    assert plan.rotation_degrees == 180


@pytest.mark.parametrize(
    ("spacing_mm", "orientation", "in_plane"),
    [
        ([0.8, 0.9, 2.5], "RAS", (0.8, 0.9)),
        ([1.0, 1.0, 1.0], "RAS", (1.0, 1.0)),
        ([4.0, 0.9, 0.8], "ASR", (0.9, 0.8)),
        ([0.8, 4.0, 0.9], "RSA", (0.8, 0.9)),
    ],
)
def test_slices_lie_along_the_coarsest_axis(
    spacing_mm: list[float], orientation: str, in_plane: tuple[float, float]
) -> None:
    plan = make_plan([case(spacing_mm, [128, 128, 128])] * 3, channel_names=["CT"], labels=LABELS)
    assert plan.orientation == orientation
    assert plan.spacing_mm == in_plane


@pytest.mark.parametrize(("axis", "orientation"), [(2, "RAS"), (1, "RSA"), (0, "ASR")])
def test_single_slices_are_cut_along_their_own_axis_however_thin_they_are(axis: int, orientation: str) -> None:
    spacing_mm, size = [1.4] * 3, [64] * 3
    spacing_mm[axis], size[axis] = 1.0, 1
    plan = make_plan([case(spacing_mm, size)] * 3, channel_names=["CT"], labels=LABELS)
    assert plan.orientation == orientation
    assert plan.patch_size == (64, 64)


def test_the_spacing_is_the_median_and_of_thick_slices_the_tenth_percentile() -> None:
    spacings_mm = np.array([[0.7, 0.7, z] for z in range(1, 12)] + [[0.9, 0.9, 30.0]] * 2)
    sizes = np.array([[512, 512, 60]] * len(spacings_mm))
    assert target_spacing_mm(spacings_mm, sizes) == pytest.approx([0.7, 0.7, np.percentile(spacings_mm[:, 2], 10)])
    many_slices = np.array([[512, 512, 300]] * len(spacings_mm))
    assert target_spacing_mm(spacings_mm, many_slices) == pytest.approx([0.7, 0.7, np.median(spacings_mm[:, 2])])


@pytest.mark.parametrize(
    ("spacing_mm", "size", "patch_size", "strides"),
    [
        ((1, 1), (512, 512), (512, 512), [[2, 2]] * 7),
        ((1, 1), (107, 84), (112, 96), [[2, 2]] * 4),
        ((1, 1), (384, 192), (384, 192), [[2, 2]] * 5 + [[2, 1]]),
        ((1, 1), (320, 192), (320, 192), [[2, 2]] * 5),
        ((0.6, 1.5), (320, 160), (320, 160), [[2, 1]] + [[2, 2]] * 5),
        ((1, 1), (8, 8), (8, 8), [[2, 2]]),
    ],
)
def test_an_axis_is_halved_while_four_pixels_remain(
    spacing_mm: tuple[float, float], size: tuple[int, int], patch_size: tuple[int, int], strides: list[list[int]]
) -> None:
    found, patch = pooling(spacing_mm, size)
    assert patch == patch_size
    assert [list(stride) for stride in found] == strides


def test_images_too_small_for_a_network_are_refused() -> None:
    with pytest.raises(BadInput, match="7 x 7 pixels are too few"):
        pooling((1, 1), (7, 7))


def test_a_batch_is_at_most_five_percent_of_the_data() -> None:
    strides, patch = pooling((1, 1), (512, 512))
    one_case = {"channels": 1, "classes": 5, "voxels": 100 * 512 * 512, "slice_pixels": 512 * 512}
    assert planned_batch_size(patch, strides, **one_case) == 5
    assert planned_batch_size(patch, strides, **{**one_case, "voxels": 3 * 512 * 512}) == 1


def test_a_cut_is_the_longest_side_over_085_and_of_elongated_patches_what_fifteen_degrees_need() -> None:
    assert crop_size((512, 448), elongated=False) == (602, 602)
    a, b = crop_size((512, 256), elongated=True)
    assert 512 / 0.85 < a < 720
    assert 256 / 0.85 < b < 480


def plan_of(cases: list[CaseFingerprint], channel_names: list[str]) -> tuple[str, Any]:
    plan = make_plan(cases, channel_names=channel_names, labels=LABELS)
    text = plan_text(plan, labels=LABELS, places={"dataset_dir": "/data/a b", "data_root": None})
    return text, yaml.safe_load(text)


def test_a_plan_is_yaml_with_a_reason_above_each_number() -> None:
    text, read = plan_of([case(*FLARE21)] * 20, ["CT"])
    assert read["dataset_dir"] == "/data/a b"
    assert read["data_root"] is None
    assert read["labels"] == {"1": "liver", "2": "kidney", "3": "spleen", "4": "pancreas"}
    [ct] = read["normalise"]
    assert ct["_target_"] == "scripts.transforms.normalisation.ClipAndStandardise"
    assert ct["clip"] == [100, 110]  # 2 of 1000 voxels are beyond
    lines = text.splitlines()
    for number, line in enumerate(lines):
        key = line.partition(":")[0]
        if key in ("spacing_mm", "patch_size", "crop_size", "batch_size", "orientation", "member#features"):
            assert lines[number - 1].startswith("# ")
    assert max(len(line) for line in lines) <= 120 or "labels" in max(lines, key=len)


def test_what_is_not_ct_is_normalised_image_by_image_and_masked_ones_without_their_zeros() -> None:
    foreground = case(*FLARE21).foreground * 2
    whole, masked = ([case(*FLARE21, foreground=foreground, share_kept=share)] * 9 for share in (0.9, 0.5))
    for cases, nonzero in ((whole, False), (masked, True)):
        _, read = plan_of(cases, ["CT", "T2"])
        assert [one["_target_"].rpartition(".")[2] for one in read["normalise"]] == [
            "ClipAndStandardise",
            "StandardiseImage",
        ]
        assert read["normalise"][1]["nonzero"] is nonzero
        assert read["channels"] == 2


def test_a_data_set_without_any_label_is_refused() -> None:
    with pytest.raises(BadInput, match="no case shows any label"):
        make_plan([case(*FLARE21, label_voxels={})], channel_names=["CT"], labels=LABELS)
