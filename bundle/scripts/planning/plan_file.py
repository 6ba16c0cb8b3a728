"""The plan as YAML: an overlay on train.yaml and inference.yaml, with a reason for each number."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..runtime.atomic_files import write_whole
from ..runtime.config_files import require_no_code
from .fingerprint import ForegroundIntensities
from .plan import FIRST_FEATURES, MOST_FEATURES, PAPER_BATCH, SMALLEST_MAP, Plan

CT = "ct"  # what nnU-Net calls it; every other name is normalised image by image
HEADER = """\
# The plan for {cases} cases, made by `cyclic-committee prepare` after the rules of nnU-Net v1's planner for 2D.
#
# It goes over train.yaml and inference.yaml as it is. Any number may be changed by hand: `prepare` keeps this file, and
# prepares the cases anew where they depend on the change. Take the file away, and it plans afresh.
"""


def write_plan(plan: Plan, path: Path, *, labels: Mapping[int, str], places: Mapping[str, Any]) -> None:
    """Write a plan as YAML: an overlay on train.yaml and inference.yaml, each number with its reason.

    Args:
        plan: what was planned.
        path: of the file, which appears whole or not at all.
        labels: label id -> name.
        places: further keys, such as dataset_dir.
    """
    write_whole(path, plan_text(plan, labels=labels, places=places))


def plan_text(plan: Plan, *, labels: Mapping[int, str], places: Mapping[str, Any]) -> str:
    """Return the YAML of a plan, with comments."""
    for name in (*labels.values(), *plan.channel_names):
        require_no_code(name, "a name in the plan")
    (x_low, x_high), (y_low, y_high) = plan.spacing_range_mm
    turning = "any angle" if plan.rotation_degrees == 180 else "the patch is elongated, so only"
    entries = [
        *(entry(key, value) for key, value in places.items()),
        entry("labels", {str(key): name for key, name in sorted(labels.items())}, "Label ids and their names."),
        entry("channels", len(plan.channel_names), f"{', '.join(plan.channel_names)}."),
        entry(
            "orientation",
            plan.orientation,
            f"Slices lie along the last axis, the coarsest: {plan.slice_spacing_mm:.4g} mm (median), never resampled.",
        ),
        entry(
            "spacing_mm",
            list(plan.spacing_mm),
            f"In-plane, the medians; the cases have {x_low:.4g} to {x_high:.4g} mm and {y_low:.4g} to {y_high:.4g} mm.",
        ),
        "\nnormalise:",
        *(channel_text(*one, masked=plan.masked) for one in zip(plan.channel_names, plan.intensities, strict=True)),
        entry(
            "patch_size",
            list(plan.patch_size),
            f"The median slice at that spacing, {plan.median_size[0]} x {plan.median_size[1]} pixels, rounded up to "
            "what the strides divide.",
        ),
        entry("crop_size", list(plan.crop_size), "Cut out before rotation and scaling, so that few borders come in."),
        entry("rotation_degrees", plan.rotation_degrees, f"Augmentation: {turning} up to this to either side."),
        entry(
            "member#features",
            list(plan.features),
            f"{len(plan.features)} stages: an axis is halved while at least {SMALLEST_MAP} pixels remain. Features are "
            f"doubled from {FIRST_FEATURES} to {MOST_FEATURES} at most.",
        ),
        entry("member#strides", [list(stride) for stride in plan.strides]),
        entry("batch_size", plan.batch_size, batch_reason(plan)),
    ]
    return "\n".join([*HEADER.format(cases=plan.cases).splitlines(), *entries]) + "\n"


def entry(key: str, value: Any, reason: str = "") -> str:
    """Return a key with its value, and its reason above it."""
    return (f"\n# {reason}\n" if reason else "") + f"{key}: {json.dumps(value)}"


def channel_text(name: str, values: ForegroundIntensities, *, masked: bool) -> str:
    """Return the normalisation of one channel as nnU-Net chooses it by the channel's name."""
    if name.lower() == CT:
        clip = f"[{values.percentile_00_5:.8g}, {values.percentile_99_5:.8g}]"
        return (
            f"  # {name}: clipped at the 0.5 and 99.5 percentiles of the labelled voxels, which range from "
            f"{values.smallest:.5g} to\n"
            f"  # {values.largest:.5g} with a median of {values.median:.5g}; less their mean, over their deviation.\n"
            "  - {_target_: scripts.transforms.normalisation.ClipAndStandardise, "
            f"clip: {clip}, mean: {values.mean:.8g}, sd: {values.sd:.8g}}}"
        )
    why = "of the voxels that aren't 0, as the images are masked" if masked else "of all voxels"
    return (
        f"  # {name}, not CT: each image less its own mean, over its own deviation, {why}.\n"
        f"  - {{_target_: scripts.transforms.normalisation.StandardiseImage, nonzero: {str(masked).lower()}}}"
    )


def batch_reason(plan: Plan) -> str:
    """Return why the batch has its size."""
    if plan.batch_size == PAPER_BATCH:
        return (
            f"The paper's, of which the rule keeps three quarters; nnU-Net's planner gives {plan.planned_batch_size}."
        )
    return f"By nnU-Net's planner: memory, and at most 5 % of the data set's voxels; the paper has {PAPER_BATCH}."
