"""How long does a whole volume take from file to file, and how much memory, beside nnU-Net v2's predictor?

    pip install '.[benchmarks]'    # without it, ours alone
    python benchmarks/inference.py [--image CT.nii.gz] [--slices 119] [--rounds N] [--config OVERLAY] [--monai]
                                   [--json FILE]
    python benchmarks/inference.py --memory [--config variants/small.yaml] [--slices 119] [--many 480]
                                   [--rounds N]    # ours, with few and with many slices in turn, by both ways to run it

Without an image, a phantom is brought to slices of 512 x 512 pixels of 0.8 mm, each of them one tile, with a scanner's
noise. Each measurement is a process of its own that labels the same file: ours with three networks and with one,
nnU-Net v2's predictor with one network of the same architecture on the CPU, without mirroring, as it comes and with
the allocator told to keep freed memory, and with --monai MONAI's SliceInferer with one DynUNet. They take turns, round
by round. Seconds are from the image's file to the label map's file: reading, preparing, networks, resampling, writing;
imports and the loading of weights aren't counted. The weights are random: they take the same time as trained ones.
nnU-Net's predictor works file by file in one process (predict_from_files_sequential): starting its workers for a single
volume would only cost it time. Peak memory is that of the whole process, its libraries included.
With networks of 41 M parameters, a round takes about ten minutes on two cores.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json as json_format
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np
import torch
from monai import transforms
from monai.bundle import ConfigParser, run
from monai.data import decollate_batch, list_data_collate
from monai.inferers import SliceInferer
from monai.networks.nets import DynUNet
from scipy import ndimage

from cyclic_committee.scripts.inference.predictor import Predictor
from cyclic_committee.scripts.phantoms.phantom import make_phantom
from cyclic_committee.scripts.runtime.bundle_paths import bundle_root
from cyclic_committee.scripts.runtime.config_files import find_config
from cyclic_committee.scripts.transforms.resampling import resample_slices

SIZE, PIXEL_MM, SLICE_MM, NOISE_HU = 512, 0.8, 2.5, 10  # 512 pixels are 502 at the training's spacing: one tile of 512
FEW, MANY = 119, 480  # slices
KEPT = {  # glibc's allocator: freed memory stays with the process
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**28),
    "MALLOC_ARENA_MAX": "1",
}
ALLOCATOR = "cyclic_committee.scripts.runtime.allocator"
THEIRS = "nnU-Net v2, one network, as it comes"
Result = dict[str, float]


def write_volume(path: Path, slices: int) -> None:
    """Write a phantom CT, HU int16, 512 x 512 x slices, with axes that point to the left and back, as most have."""
    phantom = make_phantom(0)
    hu = phantom.image_hu.astype(np.float32)
    hu = hu[..., np.linspace(0, hu.shape[2] - 1, slices).round().astype(int)]
    sides = [max(hu.shape[:2]) - n for n in hu.shape[:2]]
    pad = [*((n // 2, n - n // 2) for n in sides), (0, 0)]
    rng = np.random.default_rng(0)
    out = np.empty((SIZE, SIZE, slices), np.int16)
    for z, one in enumerate(np.moveaxis(np.pad(hu, pad, constant_values=hu.min()), 2, 0)):
        noise = ndimage.gaussian_filter(rng.standard_normal((SIZE, SIZE), np.float32), 0.7)
        resampled = resample_slices(torch.from_numpy(one.copy()), [SIZE, SIZE], order=3).numpy()
        out[..., z] = (resampled + noise * np.float32(NOISE_HU / noise.std())).round().clip(-1024, 3071)
    nib.save(nib.Nifti1Image(out, np.diag([-PIXEL_MM, -PIXEL_MM, SLICE_MM, 1])), path)


def recipe_of(config: str | None) -> dict[str, Any]:
    """Return what both sides need of inference.yaml and the overlay."""
    parser = ConfigParser()
    parser.read_config([f"{bundle_root()}/configs/inference.yaml", *overlays_of(config)])
    figures = {key: parser[key] for key in ("spacing_mm", "patch_size", "labels", "member#features")}
    return {**figures, "normalise": parser["normalise"][0]}


def overlays_of(config: str | None) -> list[str]:
    return [str(find_config(config))] if config else []


def ours(ensemble_members: Sequence[int] | None) -> Callable[..., Callable[[], Any]]:
    def make(image: Path, folder: Path, config: str | None) -> Callable[[], Any]:
        if find_spec(ALLOCATOR):
            importlib.import_module(ALLOCATOR).keep_freed_memory()
        values = {"ensemble_members": ensemble_members, "device": "cpu"}
        predictor = Predictor.from_config(overlays=overlays_of(config), ckpt_path=folder / "model.pt", **values)
        return lambda: predictor.predict_file(image, folder / "ours.nii.gz")

    return make


def by_monai_bundle(image: Path, folder: Path, config: str | None) -> Callable[[], Any]:
    files = [f"{bundle_root()}/configs/inference.yaml", *overlays_of(config)]
    places = {"dataset_dir": str(image), "output_dir": str(folder / "labels"), "ckpt_path": str(folder / "model.pt")}
    return lambda: run(config_file=files, **places, device="cpu")


def save_random_weights(folder: Path, config: str | None) -> None:
    if bundle_root() not in sys.path:
        sys.path.insert(1, bundle_root())
    parser = ConfigParser()
    parser.read_config([f"{bundle_root()}/configs/inference.yaml", *overlays_of(config)])
    network = parser.get_parsed_content("network_def")
    network.iterations_trained += 1  # or it would refuse to infer
    torch.save(network.state_dict(), folder / "model.pt")


def nnunet_plans(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return plans for the same spacing, tile, normalisation and architecture; all else is nnU-Net's default."""
    stages, normalise = len(recipe["member#features"]), recipe["normalise"]
    low, high = normalise["clip"]
    intensities = {"percentile_00_5": low, "percentile_99_5": high, "mean": normalise["mean"], "std": normalise["sd"]}
    architecture = {
        "n_stages": stages,
        "features_per_stage": recipe["member#features"],
        "conv_op": "torch.nn.modules.conv.Conv2d",
        "kernel_sizes": [[3, 3]] * stages,
        "strides": [[1, 1], *[[2, 2]] * (stages - 1)],
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "nnUNetPlans_2d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 8,
        "patch_size": recipe["patch_size"][::-1],
        "median_image_size_in_voxels": [float(n) for n in recipe["patch_size"][::-1]],
        "spacing": recipe["spacing_mm"][::-1],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": architecture,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": True,
    }
    for what, changed in {"data": {}, "seg": {"is_seg": True, "order": 1}, "probabilities": {"order": 1}}.items():
        configuration[f"resampling_fn_{what}"] = "resample_data_or_seg_to_shape"
        configuration[f"resampling_fn_{what}_kwargs"] = {**resampling, **changed}
    return {
        "dataset_name": "Dataset001_CT",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [SLICE_MM, *recipe["spacing_mm"][::-1]],
        "original_median_shape_after_transp": [FEW, SIZE, SIZE],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"2d": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": intensities},
    }


def nnunet(image: Path, folder: Path, config: str | None) -> Callable[[], Any]:
    recipe = recipe_of(config)
    handler = importlib.import_module("nnunetv2.utilities.plans_handling.plans_handler").PlansManager
    plans = handler(nnunet_plans(recipe))
    configuration = plans.get_configuration("2d")
    labels = {"background": 0, **{name: int(label) for label, name in recipe["labels"].items()}}
    described = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    network = importlib.import_module("nnunetv2.utilities.get_network_from_plans").get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        1,
        len(labels),
        deep_supervision=False,
    )
    predictor = importlib.import_module("nnunetv2.inference.predict_from_raw_data").nnUNetPredictor(
        use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False
    )
    trainer, weights = "nnUNetTrainer", [network.state_dict()]
    predictor.manual_initialization(network, plans, configuration, weights, described, trainer, None)
    return lambda: predictor.predict_from_files_sequential([[str(image)]], [str(folder / "nnunet")])


def monai(image: Path, folder: Path, config: str | None) -> Callable[[], Any]:
    recipe = recipe_of(config)
    stages, normalise = len(recipe["member#features"]), recipe["normalise"]
    (low, high), mean, sd = normalise["clip"], normalise["mean"], normalise["sd"]
    network = DynUNet(
        spatial_dims=2,
        in_channels=1,
        out_channels=len(recipe["labels"]) + 1,
        kernel_size=[3] * stages,
        strides=[1, *[2] * (stages - 1)],
        upsample_kernel_size=[2] * (stages - 1),
        filters=recipe["member#features"],
    ).eval()
    preprocessing = transforms.Compose(
        [
            transforms.LoadImaged("image", image_only=True),
            transforms.EnsureChannelFirstd("image"),
            transforms.Orientationd("image", axcodes="RAS", labels=None),
            transforms.Spacingd("image", pixdim=(*recipe["spacing_mm"], -1), mode="bilinear"),
            transforms.ScaleIntensityRanged("image", low, high, (low - mean) / sd, (high - mean) / sd, clip=True),
        ]
    )
    postprocessing = transforms.Compose(
        [
            transforms.Invertd("pred", preprocessing, "image", nearest_interp=False),
            transforms.AsDiscreted("pred", argmax=True),
            transforms.SaveImaged("pred", folder / "monai", output_dtype=np.uint8, print_log=False),
        ]
    )
    inferer = SliceInferer(roi_size=recipe["patch_size"], sw_batch_size=8, spatial_dim=2, overlap=0.5, mode="gaussian")

    @torch.no_grad()
    def label() -> None:
        batch = list_data_collate([preprocessing({"image": str(image)})])
        for one in decollate_batch({**batch, "pred": inferer(batch["image"], network)}):
            postprocessing(one)

    return label


OURS, WORKFLOW = "ours, three networks", "the same by python -m monai.bundle run"
SIDES = {  # what is measured -> how it is made, and its environment
    OURS: (ours(None), {}),
    WORKFLOW: (by_monai_bundle, {"PYTHONWARNINGS": "ignore"}),  # MONAI warns of what configurations may do
    "ours, one network": (ours([0]), {}),
    THEIRS: (nnunet, {}),
    "the same, freed memory kept": (nnunet, KEPT),
    "MONAI, one network, as it comes": (monai, {}),
    "MONAI, freed memory kept": (monai, KEPT),
}


def peak_gb() -> float:
    """Return the largest memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9


def measure_one(one: str, image: Path, folder: Path, config: str | None) -> None:
    """Measure in this process, and print the result as JSON."""
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()):
        work = SIDES[one][0](image, folder, config)
        began_s = time.perf_counter()
        work()
        seconds = time.perf_counter() - began_s
    print(json_format.dumps({"seconds": seconds, "peak_gb": peak_gb()}))


def measure(one: str, *, image: Path, folder: Path, config: str | None) -> Result:
    """Measure in a process of its own."""
    printed = run_child(one, image=image, folder=folder, config=config, environment=SIDES[one][1])
    return json_format.loads(printed.splitlines()[-1])


def run_child(one: str, *, environment: Mapping[str, str] | None = None, **values: Any) -> str:
    command = [sys.executable, __file__, f"--one={one}"]
    command += [f"--{key}={value}" for key, value in values.items() if value is not None]
    places = {name: str(values["folder"]) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    variables = {**os.environ, **places, **(environment or {})}
    done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{one} failed: the reason is in the lines above.")
    return done.stdout


def print_table(results: Mapping[str, Sequence[Result]]) -> None:
    medians = {
        name: {what: float(np.median([one[what] for one in found])) for what in ("seconds", "peak_gb")}
        for name, found in results.items()
    }
    print(f"\n{'median of the rounds (min-max)':38}{'seconds':>22}{'ratio':>8}{'peak GB':>10}{'ratio':>8}")
    for name, found in results.items():
        seconds = [one["seconds"] for one in found]
        line = f"{name:38}{f'{np.median(seconds):.1f} ({min(seconds):.1f}-{max(seconds):.1f})':>22}"
        for what in ("seconds", "peak_gb"):
            ratio = medians[name][what] / medians[THEIRS][what] if THEIRS in medians else float("nan")
            line += f"{'' if what == 'seconds' else format(medians[name][what], '10.2f')}{ratio:8.2f}"
        print(line)


def compare_memory(folder: Path, config: str | None, *, few: int, many: int, rounds: int) -> None:
    images = {slices: folder / f"{slices}.nii.gz" for slices in (few, many)}
    for slices, image in images.items():
        run_child("volume", folder=folder, image=image, slices=slices)
    results: dict[str, dict[int, list[Result]]] = {side: {few: [], many: []} for side in (OURS, WORKFLOW)}
    for _ in range(rounds):
        for slices, image in images.items():
            for side, found in results.items():
                found[slices].append(measure(side, image=image, folder=folder, config=config))
    for side, by_slices in results.items():
        print(side)
        peaks = {slices: np.array([one["peak_gb"] for one in found]) for slices, found in by_slices.items()}
        for slices, peak in peaks.items():
            seconds = np.median([one["seconds"] for one in by_slices[slices]])
            spread = f"{peak.min():.3f}-{peak.max():.3f}"
            print(f"{slices:4} slices: {seconds:6.1f} s, peak {np.median(peak):.3f} GB ({spread})")
        growth = (peaks[many] - peaks[few]) * 1e9 / ((many - few) * SIZE**2)
        error = f" ± {growth.std(ddof=1) / rounds**0.5:.3f}" if rounds > 1 else ""
        print(f"growth: {growth.mean():.3f}{error} bytes a voxel, mean of the rounds and its standard error")
    print("an int16 image has 2, with a uint8 label map beside it 3; a float32 image has 4")


def main(
    *,
    image: str | None = None,
    slices: int = FEW,
    rounds: int = 3,
    config: str | None = None,
    monai: bool = False,
    memory: bool = False,
    many: int = MANY,
    json: str | None = None,
    one: str | None = None,
    folder: str | None = None,
) -> None:
    if one == "volume":
        return write_volume(Path(str(image)), slices)
    if one == "weights":
        return save_random_weights(Path(str(folder)), config)
    if one:
        return measure_one(one, Path(str(image)), Path(str(folder)), config)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        # in other processes: a process that starts large ones must be small, or its own peak counts as theirs
        run_child("weights", folder=work, config=config)
        if memory:
            return compare_memory(work, config, few=slices, many=many, rounds=rounds)
        volume = Path(image).resolve() if image else work / "ct_0000.nii.gz"
        if not image:
            run_child("volume", folder=work, image=volume, slices=slices)
        names = [side for side in SIDES if side != WORKFLOW and (monai or not side.startswith("MONAI"))]
        libraries = ["torch", "monai", "nibabel", "numpy"]
        if find_spec("nnunetv2"):
            libraries.append("nnunetv2")
        else:
            print("nnU-Net isn't installed, so nothing is compared: pip install nnunetv2==2.8.1")
            names = [side for side in names if SIDES[side][0] is not nnunet]
        print(", ".join(f"{library} {version(library)}" for library in libraries))
        shape = " x ".join(map(str, nib.load(volume).shape))
        print(f"{shape} voxels, {rounds} rounds, {torch.get_num_threads()} threads", flush=True)
        results: dict[str, list[Result]] = {side: [] for side in names}
        for turn in range(rounds):
            for side in names[:: 1 if turn % 2 == 0 else -1]:
                results[side].append(measure(side, image=volume, folder=work, config=config))
                print(f"round {turn + 1}: {side:38}{results[side][-1]['seconds']:8.1f} s", flush=True)
        print_table(results)
        if json:
            Path(json).write_text(json_format.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    fire.Fire(main)
