"""How quick is our operator for the gradient of a convolution's weights, beside PyTorch's?

    python benchmarks/weight_gradient.py [--size 512] [--samples 6] [--rounds 9] [--config OVERLAY]

The 3 x 3 convolutions of train.yaml's network that our operator is taken for, patches of `size` x `size` pixels, in
bfloat16, channels last, on the CPU. Prints for each the median milliseconds, taken in turn, and the work per second of
the forward pass beside it, which PyTorch's library does at nearly full speed; then the sum over the network. Two
minutes at 512.
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

from cyclic_committee.scripts.allocator import keep_freed_memory
from cyclic_committee.scripts.convolution_gradients import BACKWARD, CHANNELS, LEAST_COLUMNS, native_is_there
from cyclic_committee.scripts.location import bundle_root, find_config

Layer = tuple[int, int, int, int]  # channels of input and output, columns of the output, stride
SETTINGS: tuple[Any, ...] = ([1, 1], [1, 1], False, [0, 0], 1)  # padding, dilation, ..., groups


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


def milliseconds(layer: Layer, samples: int, rounds: int) -> dict[str, float]:
    """Return the median time of each way, taken in turn; the first two rounds don't count."""
    channels, out, columns, stride = layer

    def images(channels: int, size: int) -> Tensor:
        return torch.randn(samples, channels, size, size).bfloat16().to(memory_format=torch.channels_last)

    x, grad = images(channels, columns * stride), images(out, columns)
    weight = torch.randn(out, channels, 3, 3).bfloat16().to(memory_format=torch.channels_last)
    ways: dict[str, Callable[[], Any]] = {
        "forward": lambda: torch.conv2d(x, weight, None, stride, 1),
        "PyTorch": lambda: BACKWARD(grad, x, weight, [out], [stride] * 2, *SETTINGS, [False, True, True]),
        "ours": lambda: torch.ops.cyclic_committee.weight_gradient(grad, [x], stride),
    }
    taken: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds + 2):
        for name, way in ways.items():
            began_s = time.perf_counter()
            way()
            taken[name].append((time.perf_counter() - began_s) * 1000)
    return {name: statistics.median(of_one[2:]) for name, of_one in taken.items()}


@torch.no_grad()
def main(*, size: int = 512, samples: int = 6, rounds: int = 9, config: str | None = None) -> None:
    if not native_is_there():
        print("This CPU doesn't take the operator: it needs AVX-512's bfloat16, no AMX, and a C++ compiler.")
        return
    keep_freed_memory()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {samples} samples")
    print(f"{'3 x 3 convolutions':32}|{'milliseconds':^26}|{'GFLOP/s':^27}")
    print("channels     columns stride times|  PyTorch    ours   ratio |  PyTorch    ours  forward")
    total = dict.fromkeys(("PyTorch", "ours"), 0.0)
    for layer, count in layers(size, config).items():
        channels, out, columns, stride = layer
        found = milliseconds(layer, samples, rounds)
        work = 2e-6 * samples * channels * out * 9 * columns**2
        speeds = "".join(f"{work / found[name]:9.0f}" for name in ("PyTorch", "ours", "forward"))
        print(f"{channels:4} -> {out:<4} {columns:7} {stride:6} {count:5} {times(found)}{speeds}", flush=True)
        for name in total:
            total[name] += count * found[name]
    if total["PyTorch"]:
        print(f"{'all':31} {times(total)}")
    else:
        print("None of the network's convolutions is ours.")


def times(found: dict[str, float]) -> str:
    """Return both times and their ratio, for a line of the table."""
    return f"|{found['PyTorch']:9.1f} {found['ours']:7.1f} {found['ours'] / found['PyTorch']:7.2f} |"


if __name__ == "__main__":
    fire.Fire(main)
