"""Inference of a fold for MONAI's Auto3DSeg, which looks for a script of this name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor

from .data.volumes import first_file
from .inference.predictor import Predictor


class InferClass:
    """Returns one file's probabilities after another, the networks kept in memory.

    Args:
        bundle: the fold's folder.
        values: keys of the configuration with other values.
    """

    def __init__(self, bundle: str | Path, **values: Any) -> None:
        self.predictor = Predictor.from_config(bundle=bundle, **values)

    def infer(self, image: str | Path | Sequence[str] | Mapping[str, Any]) -> MetaTensor:
        """Return probabilities `(ids, x, y, z)`, float32, on the file's own grid: a MetaTensor on the CPU.

        The channels are label ids, so that their argmax is the label map: an id that isn't a label has probability 0.
        All classes of a volume are in memory: 4 bytes a voxel and id up to the largest.

        Args:
            image: a file, a list with a file a channel, or a data list's entry with one of the two under `image`.

        Raises:
            BadInput: see `Predictor.predict`.
        """
        files = image["image"] if isinstance(image, Mapping) else image
        files = files[0] if not isinstance(files, str | Path) and len(files) == 1 else files
        probabilities = MetaTensor(self.predictor.predict_probabilities(files).cpu())
        probabilities.meta["filename_or_obj"] = first_file(files)
        ids = self.predictor.inferer.label_ids.tolist()
        if ids == list(range(len(ids))):
            return probabilities
        by_id = torch.zeros((ids[-1] + 1, *probabilities.shape[1:]))
        by_id[ids] = torch.as_tensor(probabilities)
        return MetaTensor(by_id, meta=probabilities.meta)
