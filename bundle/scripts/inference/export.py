"""Export of a trained committee to TorchScript, pt2 or ONNX."""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..data.volumes import Files, label_ids
from ..networks.committee import ensemble_attribute
from ..runtime.atomic_files import put_in_place, unfinished_path
from ..runtime.configuration import open_config
from ..runtime.errors import BadInput
from .export_check import Agreement, Network, compare_on_random_input, compare_on_volume
from .predictor import Predictor

METADATA = "metadata.json"  # its name in the exported file


class Format(NamedTuple):
    """How a network is written to a file, with an image as an example and metadata, and loaded from there."""

    write: Callable[[nn.Module, Tensor, Path, str], None]
    load: Callable[[Path], Network]
    needs: tuple[str, ...] = ()  # packages that come with the extra `export`


def export(
    out: str | Path,
    *,
    format: str,
    bundle: str | Path | None = None,
    overlays: Sequence[str] = (),
    ckpt_path: str | Path | None = None,
    member: int | None = None,
    image: Files | None = None,
) -> list[Agreement]:
    """Write a trained committee to a file that needs nothing of ours, and return how near it is to the original.

    The file takes slices `(samples, channels, height, width)` float32, at the training's spacing and normalised, of any
    number and of all sizes that the network takes, and gives probabilities `(samples, classes, height, width)`: the
    mean of the ensemble members' softmaxes. Its metadata.json says how slices are prepared and what the classes are.

    Before it appears it is loaded and compared with the original in float32 on a CPU: on random numbers, and on all
    slices of a volume as the bundle's inference prepares them, which takes twice as long as labelling it. The
    probabilities must agree to 1e-4. The label maps must be the same, ties aside: pixels on which the original's
    probabilities of the two classes differ by less than 1e-5. So a label map on a volume's own grid may differ in a
    voxel of a million where the networks can't decide.

    Args:
        out: the file; one that is there is replaced.
        format: torchscript, pt2 (`torch.export`) or onnx.
        bundle: the bundle's folder; by default the installed one.
        overlays: configurations that go over inference.yaml, by path or by name in the bundle's configs: those that
            the networks were trained with.
        ckpt_path: the weights; by default the configuration's, models/model.pt of the bundle.
        member: the one whose softmax is written, from 0; by default the mean of all that are in the ensemble.
        image: a volume's file, or a file a channel.

    Raises:
        BadInput: an unknown format or member, packages that aren't there, weights or an image that can't be used, a
            network that PyTorch can't write in this format, or a file that doesn't agree with the original.
    """
    out = Path(out)
    way = known_format(format)
    if out.is_dir():
        raise BadInput(f"{out}: is a folder. Give the name of a file.")
    values: dict[str, Any] = {"device": "cpu", "precision": "float32"}  # the file has no autocast, so neither has this
    values |= {} if ckpt_path is None else {"ckpt_path": str(ckpt_path)}
    config = open_config("inference.yaml", overlays, bundle=bundle, values=values)
    predictor = Predictor.from_parser(config)
    network = keep_ensemble(predictor.network, member).requires_grad_(False)
    metadata = describe(predictor, config)
    example = torch.zeros(2, metadata["channels"], *metadata["patch_size"])
    folder = unfinished_path(out)  # a folder: what PyTorch writes into the file has its name in it
    unfinished = folder / out.name
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of what will be in later versions of PyTorch
            exported = write_and_load(network, example, unfinished, way, name=format, metadata=metadata, out=out)
            agreements = [compare_on_random_input(network, exported, example, out)]
            if image is not None:
                agreements.append(compare_on_volume(network, exported, predictor, image, out))
        put_in_place(unfinished, out)
    except OSError as error:
        raise BadInput(f"{out}: can't be written ({error}). Make room, or choose another folder.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return agreements


def known_format(name: str) -> Format:
    """Return a format by its name.

    Raises:
        BadInput: there is none of that name, or a package that it needs isn't installed.
    """
    if name not in FORMATS:
        raise BadInput(f"format: {name} is none of {', '.join(FORMATS)}. Choose one of them.")
    needs = FORMATS[name].needs
    missing = [package for package in needs if importlib.util.find_spec(package) is None]
    if missing:
        raise BadInput(f"format: {name} needs {', '.join(missing)}. Install with: pip install {' '.join(needs)}")
    return FORMATS[name]


def keep_ensemble(network: nn.Module, member: int | None) -> nn.Module:
    """Take all but the ensemble's members out of a committee: their weights would go into the file for nothing.

    Raises:
        BadInput: no such member.
    """
    committee: Any = network
    count = len(committee.members)
    if member is not None and member not in range(count):
        raise BadInput(f"member: {member} is none of the {count} members. Give one from 0 to {count - 1}.")
    ensemble = ensemble_attribute(committee)
    kept = sorted(getattr(committee, ensemble)) if member is None else [member]
    committee.members = nn.ModuleList(committee.members[k] for k in kept)
    setattr(committee, ensemble, list(range(len(kept))))
    return network


def describe(predictor: Predictor, config: ConfigParser) -> dict[str, Any]:
    """Return what somebody must know who feeds the exported file."""
    labels = config.get_parsed_content("labels")
    inferer: Any = predictor.inferer
    names = {int(label): name for label, name in labels.items()}
    return {
        "input": "image: (samples, channels, x, y) float32, slices along z of a volume that was turned to orientation, "
        "resampled in-plane to spacing_mm (cubic) and normalised",
        "output": "pred: (samples, classes, x, y) float32, the probability of each class",
        "classes": [{"label": label, "name": names.get(label, "background")} for label in (0, *label_ids(labels))],
        "channels": len(inferer.normalise),
        "orientation": config.get_parsed_content("orientation"),
        "spacing_mm": inferer.spacing_mm,
        "patch_size": inferer.tile_size,
        "order": type(inferer.resampling).__name__,
        "normalise": [{"kind": type(one).__name__, **vars(one)} for one in inferer.normalise],
        "averaged_networks": len(predictor.network.members),  # type: ignore[arg-type]
    }


def write_and_load(
    network: nn.Module,
    example: Tensor,
    unfinished: Path,
    way: Format,
    *,
    name: str,
    metadata: dict[str, Any],
    out: Path,
) -> Network:
    """Write a file and return the network that it holds.

    Raises:
        BadInput: PyTorch can't write this network in this format, or the file can't be loaded.
    """
    try:
        way.write(network, example, unfinished, json.dumps(metadata, indent=2, default=str))
        return way.load(unfinished)
    except OSError:  # no room
        raise
    except Exception as error:  # whatever the tracers and runtimes can't do
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise BadInput(
            f"{out}: this network can't be written as {name} ({reason}). Choose another --format."
        ) from error


def write_torchscript(network: nn.Module, example: Tensor, path: Path, metadata: str) -> None:
    """Script, not trace: a trace would take other sizes for granted that the network refuses."""
    torch.jit.save(torch.jit.script(network), str(path), _extra_files={METADATA: metadata})


def write_pt2(network: nn.Module, example: Tensor, path: Path, metadata: str) -> None:
    """Write a program of `torch.export`."""
    torch.export.save(program_of(network, example), path, extra_files={METADATA: metadata})


def write_onnx(network: nn.Module, example: Tensor, path: Path, metadata: str) -> None:
    """Write ONNX, in one file: of 2 GB at most, as ONNX has it.

    By PyTorch's newer exporter (dynamo). The older one gave as good a file, in a quarter of the time, for all networks
    that were tried; but it is deprecated, and writes a trace, in which sizes may have become constants unnoticed.
    """
    written: Any = torch.onnx.export(
        program_of(network, example),
        dynamo=True,
        input_names=["image"],
        output_names=["pred"],
        dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
        verbose=False,
    )
    written.model.metadata_props[METADATA] = metadata
    written.save(path, external_data=False)


def program_of(network: nn.Module, example: Tensor) -> ExportedProgram:
    """Return the network as operators; it is an error, not a constant, if a size can't be left open."""
    sizes = dict.fromkeys((0, 2, 3), Dim.DYNAMIC)
    return torch.export.export(network, (example,), dynamic_shapes=(sizes,))


def load_onnx(path: Path) -> Network:
    """Return what runs an ONNX file on a CPU."""
    runtime = importlib.import_module("onnxruntime")  # only when it is asked for: an extra
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # errors come as exceptions
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(["pred"], {"image": image.numpy()})[0])


FORMATS = {
    "torchscript": Format(write_torchscript, lambda path: torch.jit.load(str(path), map_location="cpu")),
    "pt2": Format(write_pt2, lambda path: torch.export.load(path).module()),
    "onnx": Format(write_onnx, load_onnx, ("onnx", "onnxscript", "onnxruntime")),
}
