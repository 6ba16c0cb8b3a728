"""Predictor for Python: inference.yaml's parts, kept between volumes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from torch import Tensor, nn

from ..data.volumes import SUFFIXES, Files, first_file
from ..handlers.checkpoint import load_file, load_parts
from ..handlers.label_map_writer import write_label_file
from ..networks.committee import require_training
from ..runtime.configuration import open_config
from ..runtime.errors import BadInput, find_bad_input
from .disagreement import MemberProbabilities, member_predictions
from .inferer import SliceInferer


class Predictor:
    """The parts of inference.yaml, kept between volumes: the same labels, voxel for voxel, as its workflow.

    One volume at a time: a predictor isn't to be called by several threads at once.

    Args:
        network: with its weights, on its device; set to eval mode. `predict_members` wants a `Committee`. That of
            inference.yaml keeps its weights narrow, see `precision.narrow_weights`: call it within `autocast` only.
        inferer: see `inferer.SliceInferer`.
        preprocessing: from `{"image": files}` to the image `(channels, x, y, z)`, slices along z.
        postprocessing: brings `pred` back to the grid of the file.
        device: of the network.

    Raises:
        BadInput: the network's weights were never loaded or trained.
    """

    def __init__(
        self,
        *,
        network: nn.Module,
        inferer: SliceInferer,
        preprocessing: Compose,
        postprocessing: Compose,
        device: torch.device | str,
    ) -> None:
        require_training(network)
        self.network = network.eval()
        self.inferer = inferer
        self.preprocessing = preprocessing
        self.postprocessing = postprocessing
        self.device = torch.device(device)
        in_memory = (LoadImaged, EnsureChannelFirstd)  # what an image that is a tensor already is spared
        self.orienting = Compose([one for one in preprocessing.transforms if not isinstance(one, in_memory)])

    @classmethod
    def from_config(
        cls,
        *,
        bundle: str | Path | None = None,
        overlays: Sequence[str] = (),
        ckpt_path: str | Path | None = None,
        **values: Any,
    ) -> Predictor:
        """Return the predictor of inference.yaml, the weights loaded.

        Args:
            bundle: the folder of a bundle, such as a copy or a fold of Auto3DSeg, whose inference.yaml and weights are
                taken; by default this one.
            overlays: configurations that go over it, by path or by name in the bundle's configs, such as
                variants/small.yaml: those that the networks were trained with.
            ckpt_path: the weights; by default the configuration's, models/model.pt of the bundle.
            values: keys of the configuration with other values, such as `ensemble_members=[0]`; "member#features" as
                `**{"member#features": [...]}`.

        Raises:
            BadInput: no such overlay or key; weights that are missing or of other networks; see `LoadWeights`.
        """
        given = {} if ckpt_path is None else {"ckpt_path": str(ckpt_path)}
        return cls.from_parser(open_config("inference.yaml", overlays, bundle=bundle, values={**given, **values}))

    @classmethod
    def from_parser(cls, parser: ConfigParser) -> Predictor:
        """Return the predictor of an inference.yaml that `open_config` has opened, the weights loaded.

        Raises:
            BadInput: weights that are missing or of other networks; see `LoadWeights`.
        """
        names = ("network", "inferer", "preprocessing", "postprocessing", "device")
        with plain_errors():
            parts = {name: parser.get_parsed_content(name) for name in names}
            weights = Path(parser.get_parsed_content("ckpt_path"))
            checkpoint = load_file(weights, map_location=parts["device"])
            load_parts({"network": parts["network"]}, {"network": checkpoint.get("network", checkpoint)}, weights)
            return cls(**parts)

    @torch.no_grad()
    def predict(self, image: Files | Tensor) -> Tensor:
        """Return the label map `(1, x, y, z)`, uint8 ids, of one image.

        Args:
            image: its file, or a list with a file a channel: the result is a MetaTensor on the file's grid, whatever
                its orientation. Or a MetaTensor `(channels, x, y, z)` with an affine: the result is one on its grid. Or
                a plain tensor, taken to be at the training's spacing and orientation: the result is a plain one.

        Raises:
            BadInput: a file that can't be read, or an image that doesn't fit the configuration.
        """
        return self.on_own_grid(image, self.label)

    @torch.no_grad()
    def predict_probabilities(self, image: Files | Tensor) -> Tensor:
        """Return the probabilities `(classes, x, y, z)`, float32, of one image, on the same grid as the label map.

        The classes are the background and the label ids in rising order; the largest is what `predict` says.

        Args:
            image: as for `predict`.

        Raises:
            BadInput: see `predict`.
        """
        return self.on_own_grid(image, self.probabilities)

    @torch.no_grad()
    def predict_members(self, image: Files | Tensor) -> Tensor:
        """Return the members' label maps of one image, `(2 + members, x, y, z)` uint8, on the grid of the label map.

        The committee's label map, as `predict` has it; each ensemble member's own; and last how much they disagree, in
        255ths: see `disagreement.member_predictions`. One pass over the image.

        Args:
            image: as for `predict`.

        Raises:
            BadInput: see `predict`; one ensemble member alone.
        """
        return self.on_own_grid(image, self.member_predictions)

    def on_own_grid(self, image: Files | Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Return what is computed for an image whose slices lie along z, on the image's own grid; see `predict`."""
        with plain_errors():
            if isinstance(image, Tensor) and not isinstance(image, MetaTensor):
                return compute(image)
            if isinstance(image, MetaTensor):
                copy = MetaTensor(image.as_tensor().clone(), meta=dict(image.meta))  # it is turned in its memory
                prepared = self.orienting({"image": copy})
            else:
                prepared = self.preprocessing({"image": image if isinstance(image, Sequence) else str(image)})
            result: Tensor = self.postprocessing({**prepared, "pred": compute(prepared["image"])})["pred"]
            return result

    def predict_file(self, image: Files, out: str | Path) -> Path:
        """Label an image's file and write the label map with its header; return the label map's file.

        Args:
            image: as for `predict`.
            out: a file, .nii.gz or .nii, or a folder, where the label map takes the image's name.

        Raises:
            BadInput: see `predict` and `write_label_file`.
        """
        source = first_file(image)
        path = Path(out) if str(out).endswith(SUFFIXES) else Path(out) / Path(source).name
        return write_label_file(self.on_own_grid(image, self.label)[0].cpu().numpy(), source, path)

    def label(self, image: Tensor) -> Tensor:
        """Return the label map `(1, x, y, z)` of an image `(channels, x, y, z)` that has its slices along z."""
        return self.inferer(image[None].to(self.device), self.network)[0]

    def probabilities(self, image: Tensor) -> Tensor:
        """Return the probabilities `(classes, x, y, z)` of an image `(channels, x, y, z)` with its slices along z."""
        return self.inferer.probabilities(image[None].to(self.device), self.network)[0]

    def member_predictions(self, image: Tensor) -> Tensor:
        """Return `predict_members` of an image `(channels, x, y, z)` that has its slices along z."""
        members = MemberProbabilities(self.network)  # type: ignore[arg-type]
        return member_predictions(image[None].to(self.device), members, self.inferer)[0]

    predict_opinions, opinions = predict_members, member_predictions  # their names in version 0.1


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raise the `BadInput` behind an error, out of what MONAI wrapped it in, as one of this module's."""
    try:
        yield
    except Exception as error:
        bad_input = find_bad_input(error)
        if bad_input is None:
            raise
        raise BadInput(str(bad_input)) from error
