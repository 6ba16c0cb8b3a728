from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from cyclic_committee.scripts.networks import fused_norm, native_build
from cyclic_committee.scripts.networks.fused_norm import InstanceNormLeakyReLU

needs_compiler = pytest.mark.skipif(not native_build.find_compiler(), reason="there is no C++ compiler")
# one thread a sample and all threads on a sample; one chunk and several; rows that don't divide the pixels
SHAPES = [
    (1, 1, 1, 2),
    (2, 3, 1, 2),
    (3, 5, 7, 9),
    (2, 33, 17, 13),
    (8, 480, 2, 2),
    (4, 256, 8, 8),
    (2, 8, 96, 80),
    (1, 32, 128, 72),
    (1, 3, 300, 310),
]
FORWARD, BACKWARD = "instance_norm_leaky_relu", "instance_norm_leaky_relu_backward"


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def channels_last(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.to(dtype).to(memory_format=torch.channels_last)


def layer(channels: int, kind: type[InstanceNormLeakyReLU] = InstanceNormLeakyReLU) -> InstanceNormLeakyReLU:
    made = kind(channels)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        made.weight.copy_(torch.rand(channels, generator=generator) + 0.5)
        made.bias.copy_(torch.randn(channels, generator=generator))
    return made


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.leaky_relu(F.instance_norm(x, weight=weight, bias=bias), 0.01)


Function = Callable[[Tensor, Tensor, Tensor], Tensor]


def results(function: Function, tensors: tuple[Tensor, Tensor, Tensor], grad: Tensor) -> list[Tensor]:
    leaves = [tensor.detach().clone(memory_format=torch.preserve_format).requires_grad_() for tensor in tensors]
    result = function(*leaves)
    return [result.detach(), *torch.autograd.grad(result, leaves, grad)]


def fused(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    assert fused_norm.is_for_native(x, weight, bias)
    return fused_norm.NativeInstanceNormLeakyReLU.apply(x, weight, bias, 1e-5, 0.01)


def reference(tensors: tuple[Tensor, Tensor, Tensor], grad: Tensor) -> list[Tensor]:
    x, weight, bias = tensors
    return results(plain, (x.double(), weight.double(), bias.double()), grad.double())


def largest_error(result: Tensor, expected: Tensor) -> float:
    """Of the largest value, or of 1: the gradient of two pixels is 0 but for rounding."""
    return ((result.double() - expected).abs().max() / expected.abs().max().clamp_min(1)).item()


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_pytorchs(shape: tuple[int, int, int, int]) -> None:
    module = layer(shape[1])
    tensors, grad = (channels_last(*shape), module.weight, module.bias), channels_last(*shape, seed=2)
    for result, expected in zip(results(fused, tensors, grad), reference(tensors, grad), strict=True):
        assert largest_error(result, expected) <= 1e-5


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES[2:])
def test_in_bfloat16_the_error_is_no_larger_than_pytorchs(shape: tuple[int, int, int, int]) -> None:
    module = layer(shape[1])
    x, grad = (channels_last(*shape, seed=seed, dtype=torch.bfloat16) for seed in (0, 2))
    tensors = (x, module.weight, module.bias)
    pytorchs = results(plain, (x, module.weight.bfloat16(), module.bias.bfloat16()), grad)
    rounded = (x, module.weight.bfloat16().float(), module.bias.bfloat16().float())
    ours, expected, theirs_expected = results(fused, tensors, grad), reference(tensors, grad), reference(rounded, grad)
    assert [result.dtype for result in ours] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    for result, exact, theirs, theirs_exact in zip(ours, expected, pytorchs, theirs_expected, strict=True):
        rms, rms_theirs = (
            (a.double() - b).square().mean().sqrt() for a, b in ((result, exact), (theirs, theirs_exact))
        )
        assert rms <= 1.5 * rms_theirs + 1e-6
        assert largest_error(result, exact) <= 2**-8  # half a unit of the last place, of the largest value


@needs_compiler
def test_a_large_mean_costs_no_digits() -> None:
    x = channels_last(2, 8, 96, 80) + 1000
    y = fused(x, torch.ones(8), torch.zeros(8))
    expected = plain(x.double(), torch.ones(8).double(), torch.zeros(8).double())
    assert (y - expected).abs().max() < 1e-4  # the mean itself is a float32: 6e-5 at 1000


@needs_compiler
def test_a_first_pixel_far_off_costs_few_digits() -> None:
    x = channels_last(1, 8, 64, 64)
    x[:, :, 0, 0] = 1e4
    expected = plain(x.double(), torch.ones(8).double(), torch.zeros(8).double())
    assert largest_error(fused(x, torch.ones(8), torch.zeros(8)), expected) < 1e-4


@needs_compiler
def test_a_constant_image_becomes_the_bias() -> None:
    x = torch.full((1, 4, 40, 40), 1000.1).to(memory_format=torch.channels_last)
    assert (
        fused(x, torch.ones(4), torch.full((4,), 2.0)) - 2
    ).abs().max() < 0.03  # float32 of the mean, over sqrt(eps)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("pixel", [0, 30])
def test_nan_stays_in_its_sample_and_channel(dtype: torch.dtype, bad: float, pixel: int) -> None:
    x = channels_last(3, 4, 8, 8, dtype=dtype)
    x[1, 2, pixel // 8, pixel % 8] = bad
    y, dx, dweight, dbias = results(fused, (x, torch.ones(4), torch.zeros(4)), channels_last(3, 4, 8, 8, dtype=dtype))
    for result in (y, dx):
        assert result[1, 2].isnan().all()
        result[1, 2] = 0
        assert result.isfinite().all()
    assert dweight.isnan().tolist() == [False, False, True, False]
    assert dbias[[0, 1, 3]].isfinite().all()


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 32, 128, 72), (4, 33, 17, 13), (1, 64, 40, 40)])
def test_the_number_of_threads_changes_no_bit(
    shape: tuple[int, int, int, int], dtype: torch.dtype, threads: Callable[[int], None]
) -> None:
    module = layer(shape[1])
    tensors, grad = (channels_last(*shape, dtype=dtype), module.weight, module.bias), channels_last(*shape, dtype=dtype)
    runs = []
    for count in (1, 2, 3):
        threads(count)
        runs.append(results(fused, tensors, grad))
    for one, two, three in zip(*runs, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_from_its_statistics_the_result_comes_again_to_the_bit(
    shape: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    module, x = layer(shape[1]), channels_last(*shape, dtype=dtype)
    assert fused_norm.native_is_there()
    y, mean, rstd = torch.ops.cyclic_committee.instance_norm_leaky_relu(x, module.weight, module.bias, 1e-5, 0.01)
    again = torch.ops.cyclic_committee.instance_norm_leaky_relu_again
    assert torch.equal(again(x, mean, rstd, module.weight, module.bias, 0.01), y)
    alone = again(x[-1:], mean[-1:], rstd[-1:], module.weight, module.bias, 0.01)
    assert torch.equal(alone, y[-1:])  # whatever the number of samples, and so the threads of each
    with pytest.raises(RuntimeError, match="mean and rstd must be"):
        again(x, mean[:, :0], rstd, module.weight, module.bias, 0.01)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_result_keeps_dtype_and_order_in_memory(dtype: torch.dtype) -> None:
    x = channels_last(2, 8, 6, 10, dtype=dtype)
    y, dx, *_ = results(lambda *tensors: layer(8)(tensors[0]) + 0 * sum(t.sum() for t in tensors[1:]).to(dtype),
                        (x, torch.ones(8), torch.zeros(8)), torch.ones_like(x))  # fmt: skip
    for result in (y, dx):
        assert result.dtype == dtype
        assert result.is_contiguous(memory_format=torch.channels_last)


@needs_compiler
def test_a_gradient_may_come_in_any_order_in_memory() -> None:
    module, x, grad = layer(8), channels_last(2, 8, 6, 10), channels_last(2, 8, 6, 10, seed=2)
    expected = results(fused, (x, module.weight, module.bias), grad)
    for other in (grad.contiguous(), grad.transpose(2, 3).contiguous().transpose(2, 3)):
        assert all(map(torch.equal, results(fused, (x, module.weight, module.bias), other), expected))
    one = torch.ones(())
    expanded = results(fused, (x, module.weight, module.bias), one.expand(x.shape))
    assert all(map(torch.equal, expanded, results(fused, (x, module.weight, module.bias), torch.ones_like(x))))


@pytest.mark.parametrize(
    "x",
    [
        pytest.param(channels_last(2, 8, 6, 10).contiguous(), id="channels first"),
        pytest.param(channels_last(2, 8, 6, 10)[:, :, ::2], id="strided"),
        pytest.param(channels_last(2, 8, 6, 10).double(), id="float64"),
        pytest.param(channels_last(2, 8, 6, 10).permute(0, 2, 1, 3)[:, :8], id="of other channels"),
    ],
)
def test_what_the_operator_does_not_take_goes_pytorchs_way(x: Tensor) -> None:
    module = InstanceNormLeakyReLU(x.shape[1]).to(x.dtype)
    assert not fused_norm.is_for_native(x, module.weight, module.bias)
    assert torch.equal(module(x), plain(x, module.weight, module.bias))


def test_one_pixel_is_refused_as_pytorch_does() -> None:
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        InstanceNormLeakyReLU(3)(channels_last(2, 3, 1, 1))


@needs_compiler
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_infers_without_a_graph(mode: Callable[[], torch.no_grad]) -> None:
    module, x = layer(8), channels_last(2, 8, 6, 10)
    expected = module(x).detach()
    with mode():
        assert torch.equal(module(x), expected)


@needs_compiler
def test_under_autocast_activations_are_bfloat16_and_parameters_float32() -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), layer(8)).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(channels_last(2, 1, 12, 14))
    y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16
    assert y.grad_fn is not None
    assert "NativeInstanceNormLeakyReLU" in y.grad_fn.name()
    assert all(
        parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in module.parameters()
    )


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_trace_of_forward_and_backward_has_both_operators(dtype: torch.dtype) -> None:
    module, x, grad = layer(8), channels_last(2, 8, 6, 10, dtype=dtype), channels_last(2, 8, 6, 10, dtype=dtype)

    def step(x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor) -> list[Tensor]:
        result = fused(x, weight, bias)
        return [result, *torch.autograd.grad(result, [x, weight, bias], grad)]

    tensors = (x.requires_grad_(), module.weight, module.bias)
    traced = make_fx(step, tracing_mode="fake")(*tensors, grad)
    targets = [node.target.name() for node in traced.graph.nodes if hasattr(node.target, "name")]
    assert targets.count(f"cyclic_committee::{FORWARD}") == 1
    assert targets.count(f"cyclic_committee::{BACKWARD}") == 1
    assert all(map(torch.equal, traced(*tensors, grad), results(fused, tensors, grad)))


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operators_are_what_pytorch_expects_of_operators(dtype: torch.dtype) -> None:
    x, weight, bias = channels_last(2, 3, 4, 6, dtype=dtype), torch.ones(3), torch.zeros(3)
    assert fused_norm.native_is_there()
    forward = torch.ops.cyclic_committee.instance_norm_leaky_relu.default
    backward = torch.ops.cyclic_committee.instance_norm_leaky_relu_backward.default
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(forward, (x, weight, bias, 1e-5, 0.01), test_utils=checks)
    _, mean, rstd = forward(x, weight, bias, 1e-5, 0.01)
    again = torch.ops.cyclic_committee.instance_norm_leaky_relu_again.default
    torch.library.opcheck(again, (x, mean, rstd, weight, bias, 0.01), test_utils=checks)
    torch.library.opcheck(backward, (x, x, mean, rstd, weight, bias, 0.01), test_utils=checks)


@needs_compiler
@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (channels_last(2, 3, 4, 6).double(), torch.ones(3)),
        (channels_last(2, 3, 4, 6).contiguous(), torch.ones(3)),
        (channels_last(2, 3, 4, 6), torch.ones(4)),
        (channels_last(2, 3, 4, 6), torch.ones(3).bfloat16()),
    ],
)
def test_the_operator_refuses_what_it_can_not_compute(x: Tensor, weight: Tensor) -> None:
    assert fused_norm.native_is_there()
    with pytest.raises(RuntimeError, match="must be"):
        torch.ops.cyclic_committee.instance_norm_leaky_relu(x, weight, torch.zeros(3), 1e-5, 0.01)


@needs_compiler
def test_without_onednn_all_goes_pytorchs_way() -> None:
    module, x = layer(3), channels_last(2, 3, 4, 6)
    with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
        assert not fused_norm.is_for_native(x, module.weight, module.bias)
        assert not fused_norm.wants_channels_last(x)
        expected = module(x)
    assert fused_norm.is_for_native(x, module.weight, module.bias)
    assert torch.allclose(module(x), expected, atol=1e-6)


@pytest.mark.parametrize("export", ["script", "trace", "export"])
def test_an_exported_network_needs_no_operator_of_ours(export: str, tmp_path: Path) -> None:
    module, x = layer(8), channels_last(2, 8, 6, 10)
    expected = plain(x, module.weight, module.bias)
    if export == "export":
        exported = torch.export.export(module, (x,))
        text, run = str(exported.graph), exported.module()
    else:
        run = torch.jit.script(module) if export == "script" else torch.jit.trace(module, (x,))
        torch.jit.save(run, tmp_path / "network.ts")
        run = torch.jit.load(tmp_path / "network.ts")
        text = str(run.inlined_graph)
    assert FORWARD not in text
    assert torch.allclose(run(x), expected, atol=1e-6)


@needs_compiler
def test_a_compiled_network_takes_the_operator_without_a_break() -> None:
    module, x = layer(8), channels_last(2, 8, 6, 10)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), module(x))
    gradients = [torch.autograd.grad(run(x).square().sum(), module.weight)[0] for run in (compiled, module)]
    assert torch.equal(*gradients)


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """As in a fresh process: nothing is loaded or compiled; returns the cache folder."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(fused_norm.torch.ops, "cyclic_committee", object(), raising=False)
    fused_norm.load_once.cache_clear()
    yield tmp_path / "cache" / "cyclic_committee"
    fused_norm.load_once.cache_clear()


def falls_back(caplog: pytest.LogCaptureFixture, *, because: str, compiles: bool = False) -> None:
    """One line says why, once, and results are right."""
    module, x = layer(8), channels_last(2, 8, 6, 10)
    with caplog.at_level(logging.INFO, logger=native_build.logger.name):
        assert torch.equal(module(x), plain(x, module.weight, module.bias))
        assert torch.equal(module(x), plain(x, module.weight, module.bias))
    messages = [message for message in caplog.messages if not (compiles and message.startswith("Compiling"))]
    assert len(messages) == 1
    assert because in messages[0]
    assert "Training is right without it, but slower." in messages[0]
    assert "\n" not in messages[0]


@pytest.mark.parametrize("cxx", ["", "no-such-compiler -v"])
def test_without_a_compiler_it_is_slower_but_right(
    unloaded: Path, cxx: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", cxx)
    falls_back(caplog, because="there is no C++ compiler. Install one")


def compiler(folder: Path, body: str) -> str:
    """Write a program that acts as a compiler."""
    path = folder / "compiler"
    path.write_text(f"#!{sys.executable}\nimport sys, time\nif '--version' in sys.argv:\n    sys.exit()\n{body}\n")
    path.chmod(0o755)
    return str(path)


OUTPUT = "output = sys.argv[sys.argv.index('-o') + 1]"


@pytest.mark.parametrize(
    ("body", "because"),
    [
        ("sys.exit('x.cpp:1: error: no such header')", "error: no such header"),
        ("sys.exit(3)", "exit code 3"),
        ("", "failed (exit code 0)"),
        (f"{OUTPUT}; open(output, 'w').write('not a library')", "can't be loaded"),
    ],
    ids=["an error", "no reason", "nothing made", "not a library"],
)
def test_a_compiler_that_fails_is_not_the_end(
    unloaded: Path,
    body: str,
    because: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("CXX", compiler(tmp_path, body))
    falls_back(caplog, because=because, compiles=True)
    assert not list(unloaded.glob("*/*")), "nothing half-built may stay"


def test_a_broken_file_in_the_cache_is_named(
    unloaded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", compiler(tmp_path, f"{OUTPUT}; open(output, 'w').write('broken')"))
    assert not fused_norm.native_is_there()
    (broken,) = unloaded.iterdir()
    fused_norm.load_once.cache_clear()
    caplog.clear()
    falls_back(caplog, because=f"{broken} can't be loaded")


def test_a_build_that_is_killed_leaves_no_library(unloaded: Path, tmp_path: Path) -> None:
    slow = compiler(tmp_path, f"{OUTPUT}; open(output, 'w').write('half'); time.sleep(60)")
    code = f"import pathlib\nfrom {native_build.__name__} import load_native\nload_native(pathlib.Path({__file__!r}))"
    with subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "CXX": slow}, start_new_session=True) as run:
        while not list(unloaded.glob(".unfinished-*/*")):
            assert run.poll() is None, "the process ended without a build"
            time.sleep(0.05)
        os.killpg(run.pid, 9)
    assert not list(unloaded.glob("*.so"))


def test_several_processes_may_build_at_once(unloaded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = f"{OUTPUT}; file = open(output, 'w')\nfor _ in range(100):\n    file.write('x' * 100); file.flush()"
    monkeypatch.setenv("CXX", compiler(tmp_path, body))
    seen = []
    monkeypatch.setattr(native_build.torch.ops, "load_library", lambda path: seen.append(path.stat().st_size))
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda _: native_build.load_native(fused_norm.SOURCE), range(4)))
    assert seen == [10000] * 4
    assert len(list(unloaded.iterdir())) == 1


def test_a_cache_that_can_not_be_written_is_done_without(
    unloaded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unloaded.parent.write_text("a file where a folder should be")
    monkeypatch.setenv("CXX", compiler(tmp_path, f"{OUTPUT}; open(output, 'w').write('x')"))
    seen = []
    monkeypatch.setattr(native_build.torch.ops, "load_library", lambda path: seen.append(path.is_file()))
    assert native_build.load_native(fused_norm.SOURCE)
    assert seen == [True]


@needs_compiler
def test_under_both_its_names_the_module_shares_one_operator_and_pytorchs_threads() -> None:
    root = fused_norm.SOURCE.parents[2]
    code = (
        f"import sys, torch; sys.path.insert(0, {str(root)!r})\n"
        "import scripts.networks.fused_norm as one, cyclic_committee.scripts.networks.fused_norm as two\n"
        "assert one is not two and one.native_is_there() and two.native_is_there()\n"
        "x = torch.rand(1, 2, 4, 4).to(memory_format=torch.channels_last)\n"
        "assert torch.equal(one.InstanceNormLeakyReLU(2)(x), two.InstanceNormLeakyReLU(2)(x))\n"
        "if sys.platform == 'linux':\n"
        "    pools = {line.split()[-1] for line in open('/proc/self/maps') if 'libgomp' in line}\n"
        "    assert len(pools) == 1, pools"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
