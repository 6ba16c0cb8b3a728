"""A fold's metadata.json: the network's inputs, outputs and labels."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

CT = "ct"
USUAL_RANGE = [-5.0, 5.0]  # of an image less its mean over its deviation: no bounds, but hardly any voxel beyond


def fit_metadata(
    metadata: Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    channel_names: Sequence[str] | None = None,
    source: str | None = None,
) -> dict[str, Any]:
    """Return a bundle's metadata.json for a configuration and data set; what doesn't depend on them is kept.

    Args:
        metadata: of the template, or of the fold as it was.
        config: train.yaml with the overlay merged in.
        channel_names: of the image; None: as the metadata have them.
        source: the data set's name; None: name and source are kept.
    """
    fitted = copy.deepcopy(dict(metadata))
    image, pred = (fitted["network_data_format"][kind] for kind in ("inputs", "outputs"))
    image, pred = image["image"], pred["pred"]
    names = list(image["channel_def"].values()) if channel_names is None else list(channel_names)
    labels = {int(label): name for label, name in config["labels"].items()}
    classes = ["background", *(labels[label] for label in sorted(labels))]
    is_ct = all(name.lower() == CT for name in names)
    modality = names[0] if len(set(names)) == 1 else ", ".join(names)
    if channel_names is not None:
        image["modality"] = modality
        image["format"] = "hounsfield" if is_ct else "magnitude"
        image["channel_def"] = {str(number): name for number, name in enumerate(names)}
        fitted["image_classes"] = f"{len(names)} channel{'s' if len(names) > 1 else ''}: {', '.join(names)}"
        fitted["task"] = f"Segmentation of {', '.join(classes[1:])} in {modality}"
    image["num_channels"], pred["num_channels"] = len(names), len(classes)
    image["spatial_shape"] = [f"{divisor}*n" for divisor in divisors(config)]
    pred["spatial_shape"] = list(image["spatial_shape"])
    image["value_range"] = value_range(config["normalise"])
    pred["channel_def"] = {str(number): name for number, name in enumerate(classes)}
    fitted["label_classes"] = ", ".join(["0 background", *(f"{label} {labels[label]}" for label in sorted(labels))])
    fitted["pred_classes"] = f"probabilities of {', '.join(classes)}"
    if source is not None:
        fitted["name"] = f"Cyclic committee, {source}, fold {config['fold']}"
        fitted["data_source"] = f"{source}, fold {config['fold']} left out for validation."
    return fitted


def divisors(config: Mapping[str, Any]) -> list[int]:
    """Return what the network's height and width must be multiples of: twice its strides, or the patch it learns on.

    Twice, as InstanceNorm needs more than one pixel in the last stage.
    """
    member = config["member"]
    plain = all(one == "%member" for one in config["network_def"]["members"])
    if not plain or str(member["_target_"]).rpartition(".")[2] != "UNet2d":
        return [int(size) for size in config["patch_size"]]
    strides = member.get("strides") or [[2, 2]] * (len(member["features"]) - 1)
    return [2 * math.prod(stride[axis] for stride in strides) for axis in (0, 1)]


def value_range(normalise: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the range of the network's input: exact where intensities are clipped, else what is usual."""
    ranges = [
        [(bound - one["mean"]) / one["sd"] for bound in one["clip"]] if "clip" in one else USUAL_RANGE
        for one in normalise
    ]
    return [round(min(low for low, _ in ranges), 4), round(max(high for _, high in ranges), 4)]
