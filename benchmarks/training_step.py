"""What does a training step of the committee cost, beside the plain way and nnU-Net v2?

    pip install '.[benchmarks]'    # without it, all but nnU-Net
    python benchmarks/training_step.py [--size 256] [--rounds 3] [--steps 2] [--sides NAMES] [--config OVERLAY]

The paper's networks (41,268,192 parameters), batch 8, patches of `size` x `size` pixels, on the CPU:

    ours          train.yaml's committee: three networks, each learns from the 6 samples that the rule chooses
    ours-one      train.yaml's network alone, on all 8 samples
    plain         the committee as the paper tells it, of MONAI's DynUNet and DiceCELoss with deep supervision, float32:
                  score without gradients, then forward and backward on the chosen samples
    plain-bf16    the same in bfloat16, the memory of freed tensors kept by the process, as ours has it
    nnU-Net       a step of nnU-Net v2's trainer, its own network and loss, on all 8 samples
    nnU-Net-kept  the same, the memory of freed tensors kept

Each measurement is a process of its own, one after another, in turn; each first takes steps that aren't counted, two or
more, until a step adds less than a thousandth to its memory. Fresh memory is slow, and at 512 x 512 it takes five steps
or more until that of freed tensors serves all of the next step.
Prints the median seconds, the peak memory and the ratios. Takes about 5 minutes a round at 256 and 15 at 512.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import fire
import torch
from monai.bundle import ConfigParser
from monai.losses import DeepSupervisionLoss, DiceCELoss
from monai.networks.nets import DynUNet
from torch import Tensor, nn

from cyclic_committee.scripts.runtime.allocator import keep_freed_memory
from cyclic_committee.scripts.runtime.bundle_paths import bundle_root
from cyclic_committee.scripts.runtime.config_files import find_config
from cyclic_committee.scripts.training.selection import EverySample, LossDifference
from cyclic_committee.scripts.training.trainer import CommitteeTrainer

BATCH, CLASSES = 8, 5
WARM_UP = (2, 12)  # steps, at least and at most
FEATURES = [32, 64, 128, 256, 480, 480, 480, 480]
STRIDES = [1, 2, 2, 2, 2, 2, 2, 2]
Step = Callable[[], None]

# what is asked of each ratio: (of, to, times) -> at most
TARGETS = {
    256: {
        ("ours", "plain", 1): 0.28,
        ("ours", "plain-bf16", 1): 0.65,
        ("ours", "ours-one", 1): 2.75,
        ("ours", "nnU-Net", 3): 0.25,
        ("ours", "nnU-Net-kept", 3): None,
    },
    512: {("ours", "plain", 1): 0.22, ("ours", "ours-one", 1): 2.75},
}


def batch(size: int) -> tuple[Tensor, Tensor]:
    """Return image `(8, 1, size, size)` and label `(8, 1, size, size)`: noise, and blocks of all classes."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, CLASSES, (BATCH, 1, 8, 8), generator=generator, dtype=torch.uint8)
    label = blocks.repeat_interleave(size // 8, 2).repeat_interleave(size // 8, 3)
    return torch.randn(BATCH, 1, size, size, generator=generator), label


def ours(size: int, *, members: int, overlay: str | None) -> Step:
    parser = ConfigParser()
    parser.read_config([f"{bundle_root()}/configs/train.yaml", *([str(find_config(overlay))] if overlay else [])])
    parser["device"] = "$torch.device('cpu')"
    parser["network_def#members"] = ["%member"] * members
    image, label = batch(size)
    data = {"image": image, "label": label, "case": ["case"] * BATCH, "slice": torch.arange(BATCH)}
    keep_freed_memory()
    sys.path.insert(0, bundle_root())
    trainer = CommitteeTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=[data],
        network=parser.get_parsed_content("network"),
        optimizer=parser.get_parsed_content("optimizer"),
        loss_function=parser.get_parsed_content("loss"),
        select=parser.get_parsed_content("select") if members > 1 else EverySample(),
        backward_mode=parser.get_parsed_content("backward_mode"),
        gradient_clip=parser.get_parsed_content("gradient_clip"),
        precision=parser.get_parsed_content("precision"),
    )
    return lambda: trainer.run() and None


def plain(size: int, *, dtype: torch.dtype | None) -> Step:
    """The committee's step as anyone would write it."""
    if dtype:
        keep_freed_memory()
    members = nn.ModuleList(
        DynUNet(
            2,
            1,
            CLASSES,
            kernel_size=[3] * 8,
            strides=STRIDES,
            upsample_kernel_size=STRIDES[1:],
            filters=FEATURES,
            norm_name=("instance", {"affine": True}),
            deep_supervision=True,
            deep_supr_num=6,
        )
        for _ in range(3)
    ).train()
    loss = DeepSupervisionLoss(DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True))
    optimizer = torch.optim.SGD(members.parameters(), lr=0.01, momentum=0.99, nesterov=True, weight_decay=3e-5)
    image, label = batch(size)
    rule = LossDifference()

    def step() -> None:
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            with torch.no_grad():
                logits = [member(image)[:, 0].float() for member in members]
            losses = torch.stack(
                [nn.functional.cross_entropy(one, label[:, 0].long(), reduction="none").mean((1, 2)) for one in logits]
            )
            optimizer.zero_grad()
            for member, chosen in zip(members, rule(losses), strict=True):
                output = member(image[chosen])
                loss(list(output.float().unbind(dim=1)), label[chosen]).backward()
        for member in members:
            nn.utils.clip_grad_norm_(member.parameters(), 12)
        optimizer.step()

    return step


def nnunet(size: int, *, kept: bool) -> Step:
    if kept:
        keep_freed_memory()
    folder = tempfile.mkdtemp()
    cases = f"{folder}/Dataset001_CT/nnUNetPlans_2d"
    os.makedirs(cases)
    open(f"{cases}/case.npz", "w").close()  # the trainer looks at the names, to learn the format
    os.environ.update(dict.fromkeys(("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"), folder))
    trainer = importlib.import_module("nnunetv2.training.nnUNetTrainer.nnUNetTrainer").nnUNetTrainer
    architecture = {
        "n_stages": 8,
        "features_per_stage": FEATURES,
        "conv_op": "torch.nn.modules.conv.Conv2d",
        "kernel_sizes": [[3, 3]] * 8,
        "strides": [[stride] * 2 for stride in STRIDES],
        "n_conv_per_stage": [2] * 8,
        "n_conv_per_stage_decoder": [2] * 7,
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    configuration = {
        "data_identifier": "nnUNetPlans_2d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": BATCH,
        "patch_size": [size, size],
        "spacing": [0.81640601, 0.81640601],
        "batch_dice": True,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": architecture,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    plans = {
        "plans_name": "nnUNetPlans",
        "dataset_name": "Dataset001_CT",
        "continue_training": False,
        "configurations": {"2d": configuration},
    }
    labels = {"background": 0, "liver": 1, "kidney": 2, "spleen": 3, "pancreas": 4}
    description = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    made = trainer(plans, "2d", 0, description, device=torch.device("cpu"))
    made.initialize()
    made.network.train()
    image, label = batch(size)
    heads = [label[:, :, :: 2**i, :: 2**i].long() for i in range(7)]
    return lambda: made.train_step({"data": image, "target": heads}) and None


SIDES: dict[str, Callable[[int, str | None], Step]] = {
    "ours": lambda size, overlay: ours(size, members=3, overlay=overlay),
    "ours-one": lambda size, overlay: ours(size, members=1, overlay=overlay),
    "plain": lambda size, overlay: plain(size, dtype=None),
    "plain-bf16": lambda size, overlay: plain(size, dtype=torch.bfloat16),
    "nnU-Net": lambda size, overlay: nnunet(size, kept=False),
    "nnU-Net-kept": lambda size, overlay: nnunet(size, kept=True),
}


def measure(name: str, *, size: int, steps: int, config: str | None) -> None:
    """Print the seconds of some steps and the peak memory: what a process of its own does."""
    step = SIDES[name](size, config)
    for count in range(1, WARM_UP[1] + 1):
        before_gib = peak_gib()
        step()
        if count >= WARM_UP[0] and peak_gib() < 1.001 * before_gib:
            break
    seconds = []
    for _ in range(steps):
        began_s = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began_s)
    print(json.dumps({"seconds": seconds, "peak_gib": peak_gib()}))


def peak_gib() -> float:
    """Return the largest memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main(
    *,
    size: int = 256,
    rounds: int = 3,
    steps: int = 2,
    sides: str | list[str] | None = None,
    config: str | None = None,
    one: str | None = None,
) -> None:
    if one:
        measure(one, size=size, steps=steps, config=config)
        return
    names = sides.split(",") if isinstance(sides, str) else list(sides or SIDES)
    unknown = set(names) - set(SIDES)
    if unknown:
        sys.exit(f"error: --sides: there is no {min(unknown)}. Choose among {', '.join(SIDES)}.")
    if not find_spec("nnunetv2"):
        names = [name for name in names if not name.startswith("nnU-Net")]
        print("nnU-Net isn't installed, so it isn't measured: pip install nnunetv2==2.8.1")
    found: dict[str, dict[str, list[float]]] = {name: {"seconds": [], "peak_gib": []} for name in names}
    for turn in range(rounds):
        for name in names[:: 1 if turn % 2 == 0 else -1]:
            command = [sys.executable, __file__, "--one", name, "--size", str(size), "--steps", str(steps)]
            command += ["--config", config] if config else []
            result = json.loads(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            )
            found[name]["seconds"] += result["seconds"]
            found[name]["peak_gib"].append(result["peak_gib"])
            print(f"round {turn + 1}: {name}: {', '.join(f'{s:.2f}' for s in result['seconds'])} s", flush=True)
    report(found, size=size)


def report(found: dict[str, dict[str, Any]], *, size: int) -> None:
    print(f"\ntorch {version('torch')}, {torch.get_num_threads()} threads; batch {BATCH}, {size} x {size}")
    print(f"{'':14}{'median s':>10}{'min':>8}{'max':>8}{'peak GiB':>10}")
    median = {name: statistics.median(of["seconds"]) for name, of in found.items()}
    for name, of in found.items():
        low, high, peak = min(of["seconds"]), max(of["seconds"]), max(of["peak_gib"])
        print(f"{name:14}{median[name]:10.2f}{low:8.2f}{high:8.2f}{peak:10.1f}")
    for (of, to, times), target in TARGETS.get(size, TARGETS[256]).items():
        if of in median and to in median:
            what = f"{of} / {f'{times} x ' if times > 1 else ''}{to}"
            asked = f"   (asked: {target} or less)" if target and size in TARGETS else ""
            print(f"{what:26}{median[of] / median[to] / times:6.2f}{asked}")


if __name__ == "__main__":
    fire.Fire(main)
