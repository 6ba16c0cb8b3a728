from __future__ import annotations

import copy
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import BUNDLE, CONFIGS
from monai.inferers import SimpleInferer
from monai.networks.nets import SegResNet
from torch import Tensor, nn

from cyclic_committee.scripts.autograd.forward import SharedForward
from cyclic_committee.scripts.autograd.traced import trace
from cyclic_committee.scripts.commands import main as command_line
from cyclic_committee.scripts.estimate import estimate as estimate_module
from cyclic_committee.scripts.estimate.activations import Alive, activation_memory, forward_sizes
from cyclic_committee.scripts.estimate.estimate import Estimate, duration, estimate, format_estimate, work
from cyclic_committee.scripts.estimate.memory import activations, member_activations, optimiser_bytes
from cyclic_committee.scripts.estimate.settings import read_settings
from cyclic_committee.scripts.networks import native_build
from cyclic_committee.scripts.networks.precision import autocast
from cyclic_committee.scripts.networks.unet import UNet2d
from cyclic_committee.scripts.runtime.errors import BadInput

SMALL = str(CONFIGS / "variants" / "small.yaml")
TWICE = {"backward_mode": {"_target_": "scripts.autograd.forward.RecomputeForward"}}
TINY: dict[str, Any] = {"member#features": [4, 8, 16], "patch_size": [48, 48], "crop_size": [48, 48]}


@pytest.fixture(autouse=True)
def bundle_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BUNDLE))


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate_module, "seconds_of", lambda *_: 0.5)
    monkeypatch.setattr(estimate_module, "keep_freed_memory", lambda: True)


def type_in(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["cyclic-committee", *words])
    monkeypatch.setattr(sys, "path", list(sys.path))
    command_line.main()


@pytest.mark.usefixtures("untimed")
def test_the_default_is_the_papers_network_and_60_forward_passes_an_iteration() -> None:
    found = estimate([])
    assert list(found.parameters.values()) == [41_268_192] * 3
    assert found.iteration_macs == 60 * next(iter(found.macs.values()))
    cpu, cuda = found.memory["CPU"], found.memory["CUDA"]
    assert cpu["weights"] == cuda["weights"] == 3 * 41_268_192 * 4
    assert cpu["gradients"] == cpu["optimiser's state"] == cpu["weights"]
    assert sum(cpu.values()) > 7 * 2**30


@pytest.mark.usefixtures("untimed")
def test_two_forward_passes_need_less_memory_and_78_units_of_work() -> None:
    wider = {**TINY, "member#features": [16, 32, 64]}
    once, twice = (estimate([SMALL], {**wider, **more}) for more in ({}, TWICE))
    assert twice.iteration_macs / once.iteration_macs == 78 / 60
    assert twice.memory["CPU"]["activations"] < 0.5 * once.memory["CPU"]["activations"]
    assert twice.memory["CUDA"]["activations"] < 0.5 * once.memory["CUDA"]["activations"]


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "UNet2d": lambda: UNet2d(in_channels=1, out_channels=3, features=[4, 8, 16]),
    "SegResNet": lambda: SegResNet(2, init_filters=8, in_channels=1, out_channels=3),
}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_what_is_kept_for_the_backward_pass_is_what_the_forward_pass_really_keeps(kind: str, precision: str) -> None:
    network, image = NETWORKS[kind]().train(), torch.randn(4, 1, 32, 32)
    context = {"inferer": SimpleInferer(), "autocast": autocast("cpu", precision)}
    forward = SharedForward()(network, image, **context)
    inputs = {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *network.buffers(), image)}
    held = {
        tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
        for tensor in (*forward.saved, *forward.outputs)  # type: ignore[attr-defined]
        if tensor.untyped_storage()._cdata not in inputs
    }
    kept, _, outputs = forward_sizes(trace(network, image, **context))
    # traced, GroupNorm's few statistics are bfloat16; computed, they are float32
    assert sum({**kept, **outputs}.values()) == pytest.approx(sum(held.values()), rel=0.002)


@pytest.mark.skipif(not native_build.find_compiler(), reason="there is no C++ compiler")
def test_a_gpu_keeps_what_pytorchs_own_operators_keep() -> None:
    settings = read_settings([SMALL], {**TINY, "member#features": [16, 32, 64]})
    on_cpu = member_activations(settings.members[0], settings)
    on_gpu = member_activations(settings.members[0], settings, device="CUDA")
    assert on_cpu is not None
    assert on_gpu is not None
    assert on_gpu.outputs == on_cpu.outputs
    assert on_gpu.kept > 1.5 * on_cpu.kept  # InstanceNorm's input and LeakyReLU's result


def test_the_peak_of_a_pass_is_that_of_its_operators() -> None:
    network, image = NETWORKS["SegResNet"]().train(), torch.randn(4, 1, 32, 32)
    context = {"inferer": SimpleInferer(), "autocast": autocast("cpu", "float32")}
    many = trace(network, image, **context)
    found = activation_memory(many, trace(network, image[:3], **context), in_one_pass=True, loss=0)
    backward_mode = SharedForward()
    backward_mode(network, image, **context)  # traces, which would be counted
    with Alive() as alive:
        forward = backward_mode(network, image, **context)
        held = alive.now
    assert held == found.kept
    assert alive.most == pytest.approx(found.forward, rel=0.05)
    del forward
    gc.collect()
    assert alive.now == 0


def test_memory_of_tensors_counts_once_and_while_they_are_alive() -> None:
    given = torch.zeros(1000)
    with Alive() as alive:
        first = given + 1
        view = first.view(10, 100)
        first.mul_(2)
        del first
        assert alive.now == 4000
        del view
        assert alive.now == 0
        given.add_(1)
    assert alive.most == 4000


@pytest.mark.parametrize(
    ("make", "tensors"),
    [
        (lambda parameters: torch.optim.SGD(parameters, lr=0.1), 0),
        (lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True), 1),
        (lambda parameters: torch.optim.AdamW(parameters, lr=0.1), 2),
    ],
)
def test_an_optimisers_state_is_so_many_times_the_parameters(make: Callable[..., Any], tensors: int) -> None:
    network = nn.Conv2d(8, 64, 3)
    before = copy.deepcopy(network.state_dict())
    parameters = sum(parameter.nbytes for parameter in network.parameters())
    optimizer = make(network.parameters())
    assert optimiser_bytes(optimizer) == pytest.approx(tensors * parameters, abs=16)  # Adam counts its steps
    assert not optimizer.state
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_twice_the_samples_take_twice_the_activations() -> None:
    found = []
    for batch in (8, 16):
        settings = read_settings([SMALL], {**TINY, "precision": "float32", "batch_size": batch})
        member = member_activations(settings.members[0], settings)
        assert member is not None
        found.append(activations(settings, [member] * 3))
    assert found[1] / found[0] == pytest.approx(2, rel=0.05)


class LooksAtValues(nn.Conv2d):
    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image if image.max() > 0 else -image)


class MixesSamples(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1))


def test_what_one_pass_cannot_do_is_estimated_as_two_or_not_at_all() -> None:
    settings = read_settings([SMALL], TINY)
    mixing = member_activations(MixesSamples().train(), settings)
    assert mixing is not None
    assert not mixing.in_one_pass
    assert member_activations(LooksAtValues(1, 5, 3, padding=1), settings) is None


@pytest.mark.usefixtures("untimed")
def test_a_network_that_cannot_be_traced_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate_module, "member_activations", lambda *_, **__: None)
    found = estimate([SMALL], TINY)
    assert found.memory["CPU"]["activations"] == 0
    assert "member 0 (UNet2d): can't be traced, so its activations are not in it." in format_estimate(found)


@pytest.mark.usefixtures("untimed")
def test_without_the_memory_for_one_network_no_time_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate_module, "available_bytes", lambda: 1000)
    found = estimate([SMALL], TINY)
    assert found.iteration_s is None
    assert "Time was not measured" in format_estimate(found)


def test_the_table_multiplies_an_iteration_by_those_of_the_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(estimate_module, "keep_freed_memory", lambda: True)
    monkeypatch.chdir(tmp_path)
    overlay = tmp_path / "mine.yaml"
    overlay.write_text(yaml.safe_dump({"iterations_per_epoch": 7, "max_epochs": 3, **TINY}))
    words = ["estimate", "variants/small.yaml", str(overlay), "--select#keep", "0.5"]
    type_in(monkeypatch, *words, "--json")
    found = Estimate(**json.loads(capsys.readouterr().out))
    assert (found.iterations, found.epochs, found.kept) == (7, 3, 4)
    assert found.iteration_s is not None
    assert found.iteration_s > 0
    lines = format_estimate(found).splitlines()
    times = {line.split("  ")[0]: line for line in lines if line.startswith(("an ", "the training"))}
    assert list(times) == ["an iteration", "an epoch of 7", "the training of 3 epochs"]
    assert duration(21 * found.iteration_s) in times["the training of 3 epochs"]
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_is_not_taken_for_a_key(
    word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        type_in(monkeypatch, "estimate", word)
    assert caught.value.code == 0
    captured = capsys.readouterr()
    assert "before it is run" in captured.out + captured.err


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"patch_sise": [96, 96]}, "patch_sise: no such key, nothing in the configuration uses it. Did you mean patch"),
        ({"member": {"_target_": "scripts.networks.unet.UNet3d"}}, "no training can be made of it"),
        (
            {"select": {"_target_": "scripts.training.selection.LossDifference", "keep": 3}},
            "keep must be in (0, 1], got 3.",
        ),
        ({"precision": "int3"}, "precision must be one of"),
    ],
)
def test_a_configuration_of_no_training_is_one_line(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(BadInput) as caught:
        estimate([SMALL, str(tmp_path / "mine.yaml")])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        type_in(monkeypatch, "estimate", "gone.yaml")
    assert capsys.readouterr().err.startswith("error: gone.yaml: no such configuration file")


def test_a_patch_that_the_network_cannot_take_is_bad_input() -> None:
    with pytest.raises(BadInput, match=r"member 0 \(UNet2d\): .*must be multiples of 16 .* 90"):
        estimate([SMALL], {"patch_size": [90, 90]})


@pytest.mark.usefixtures("untimed")
def test_a_share_that_falls_takes_memory_for_its_beginning_and_time_for_its_end() -> None:
    found = estimate([SMALL, "variants/warmup.yaml"], {**TINY, **TWICE, "max_epochs": 200})
    constant = estimate([SMALL], {**TINY, **TWICE})
    assert found.kept == constant.kept == 6
    assert found.memory["CPU"]["activations"] > constant.memory["CPU"]["activations"]
    assert "learn from up to 8" in format_estimate(found)


@pytest.mark.skipif(sys.platform != "linux", reason="the benchmark reads /proc")
def test_the_memory_of_a_small_training_is_within_a_fifth_of_the_estimate() -> None:
    benchmark = CONFIGS.parents[1] / "benchmarks" / "estimate.py"
    done = subprocess.run(
        [sys.executable, str(benchmark), "variants/small.yaml", "--iterations", "1"],
        capture_output=True,
        text=True,
        check=True,
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("peak memory"))
    assert float(line.split()[-1]) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4123, "0.41 s"), (99.7, "100 s"), (250, "4.2 min"), (7200, "2.0 h"), (864000, "10 days"), (1e8, "1,157 days")],
)
def test_times_are_told_in_the_unit_that_suits_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("macs", "words"), [(12, "12 MAC"), (3_492_000_000_000, "3.49 TMAC"), (873 * 10**15, "873 PMAC")]
)
def test_work_is_told_in_the_unit_that_suits_it(macs: int, words: str) -> None:
    assert work(macs) == words
