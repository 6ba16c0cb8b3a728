"""How quick are our convolutions and their gradients, beside PyTorch's?

    python benchmarks/convolutions.py [--size 512] [--samples 8] [--chosen 6] [--rounds 9] [--config OVERLAY]

The 3 x 3 convolutions of train.yaml's network that our operators are taken for, patches of `size` x `size` pixels, in
bfloat16, channels last, on the CPU: forward on `samples`, the gradients of input and weights on those `chosen`. Prints
the median milliseconds, taken in turn, and the sums over the network. "-" is PyTorch's in both. Two minutes at 512.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import fire
import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from cyclic_committee.scripts.autograd.convolution_passes import BACKWARD, MOST_WEIGHTS
from cyclic_committee.scripts.networks.convolutions import CHANNELS, LEAST_COLUMNS, native_is_there
from cyclic_committee.scripts.runtime.allocator import keep_freed_memory
from cyclic_committee.scripts.runtime.bundle_paths import bundle_root
from cyclic_committee.scripts.runtime.config_files import find_config

Layer = tuple[int, int, int, int]  # channels of input and output, columns of the output, stride
SETTINGS: tuple[Any, ...] = ([1, 1], [1, 1], False, [0, 0], 1)  # padding, dilation, ..., groups
KINDS = ("forward", "of the input", "of the weights")


def layers(size: int, overlay: str | None) -> Counter[Layer]:
    """Return how often the network has each layer that is ours."""
    parser = ConfigParser()
    parser.read_config([f"{bundle_root()}/configs/train.yaml", *([str(find_config(overlay))] if overlay else [])])
    parser["device"] = "$torch.device('cpu')"
    sys.path.insert(0, bundle_root())
    network = parser.get_parsed_content("network").members[0].train()
    found: Counter[Layer] = Counter()

    def note(layer: nn.Conv2d, _inputs: Any, output: Tensor) -> None:
        wide = layer.in_channels % CHANNELS == 0 and layer.out_channels % CHANNELS == 0
        if layer.kernel_size == (3, 3) and wide and output.shape[3] >= LEAST_COLUMNS:
            found[layer.in_channels, layer.out_channels, output.shape[3], layer.stride[0]] += 1

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    with torch.no_grad():
        network(torch.zeros(1, 1, size, size))
    return found


def milliseconds(layer: Layer, samples: int, chosen: int, rounds: int) -> dict[tuple[str, str], float]:
    """Return the median time of each way, taken in turn; the first two rounds don't count."""
    channels, out, columns, stride = layer

    def images(samples: int, channels: int, size: int) -> Tensor:
        return torch.randn(samples, channels, size, size).bfloat16().to(memory_format=torch.channels_last)

    x, grad = images(samples, channels, columns * stride), images(chosen, out, columns)
    weight, bias, few = images(out, channels, 3), torch.zeros(out).bfloat16(), x[:chosen]
    operators, strides = torch.ops.cyclic_committee, [stride] * 2

    def backward(*wanted: bool) -> Callable[[], Any]:
        return lambda: BACKWARD(grad, few, weight, [out], strides, *SETTINGS, wanted)

    ways: dict[tuple[str, str], Callable[[], Any]] = {
        ("forward", "PyTorch"): lambda: torch.conv2d(x, weight, bias, stride, 1),
        ("of the input", "PyTorch"): backward(True, False, False),
        ("of the weights", "PyTorch"): backward(False, True, True),
    }
    if stride == 1:
        ways["forward", "ours"] = lambda: operators.convolution([x], weight, bias)
        ways["of the input", "ours"] = lambda: operators.input_gradient(grad, weight)
    if weight.numel() <= MOST_WEIGHTS:
        ways["of the weights", "ours"] = lambda: operators.weight_gradient(grad, [few], stride)
    taken: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(rounds + 2):
        for name, way in ways.items():
            began_s = time.perf_counter()
            way()
            taken[name].append((time.perf_counter() - began_s) * 1000)
    return {name: statistics.median(of_one[2:]) for name, of_one in taken.items()}


@torch.no_grad()
def main(*, size: int = 512, samples: int = 8, chosen: int = 6, rounds: int = 9, config: str | None = None) -> None:
    if not native_is_there():
        print("This CPU doesn't take the operators: they need AVX-512's bfloat16, no AMX, and a C++ compiler.")
        return
    if not 1 <= chosen <= samples:
        sys.exit(f"error: --chosen: {chosen} of {samples} samples can't be chosen. Give 1 to {samples}.")
    keep_freed_memory()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; milliseconds of PyTorch, ours, ratio")
    print(f"{'channels':12} {'columns':7} {'stride':6} {'times':5}" + "".join(f" | {kind:22}" for kind in KINDS))
    total: dict[tuple[str, str], float] = defaultdict(float)
    for layer, count in layers(size, config).items():
        channels, out, columns, stride = layer
        found = milliseconds(layer, samples, chosen, rounds)
        print(f"{channels:4} -> {out:<4} {columns:7} {stride:6} {count:5}{row(found)}", flush=True)
        for kind in KINDS:
            for way in ("PyTorch", "ours"):
                total[kind, way] += count * found.get((kind, way), found[kind, "PyTorch"])
    print(f"{'all':33}{row(total)}" if total else "None of the network's convolutions is ours.")


def row(found: dict[tuple[str, str], float]) -> str:
    """Return both times and their ratio, for each kind."""
    cells = []
    for kind in KINDS:
        theirs, ours = found[kind, "PyTorch"], found.get((kind, "ours"))
        cells.append(f"{theirs:7.1f}" + (f"{ours:7.1f}{ours / theirs:8.2f}" if ours else f"{'-':>7}{'':8}"))
    return "".join(f" | {cell}" for cell in cells)


if __name__ == "__main__":
    fire.Fire(main)
