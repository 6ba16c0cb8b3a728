"""Does `cyclic-committee estimate` say what a training then needs?

    python benchmarks/estimate.py [OVERLAY ...] [--iterations N] [--rounds N] [--KEY VALUE ...]
    python benchmarks/estimate.py variants/small.yaml
    python benchmarks/estimate.py --patch_size [256,256] --crop_size [302,302]

Estimates a configuration, then trains it for some iterations on phantoms, on the CPU, each in a process of its own and
in turn, and prints both with their ratio: the median seconds of an iteration but for the first, and the peak of the
resident memory of the training process (Linux). Any key can be given as for training. The whole of train.yaml needs
some minutes and 10 GB, the small variant half a minute.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import fire
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow

from cyclic_committee.scripts.phantoms.data_set import write_phantoms
from cyclic_committee.scripts.runtime.bundle_paths import bundle_root
from cyclic_committee.scripts.runtime.config_files import find_config

CASES = 2


def peak_bytes() -> int:
    """Return this process' peak: that of `resource` begins with what the parent process had."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def train(files: list[str], values: dict[str, Any]) -> dict[str, Any]:
    """Train for some iterations, and return seconds and peak memory."""
    sys.path.insert(0, bundle_root())
    workflow = ConfigWorkflow(files, workflow_type="train", **values)
    workflow.initialize()
    seconds: list[float] = []
    began_s = [0.0]

    def note(engine: Engine) -> None:
        now_s = time.perf_counter()
        seconds.append(now_s - began_s[0])
        began_s[0] = now_s

    trainer = workflow.parser.get_parsed_content("train#trainer")
    trainer.add_event_handler(Events.ITERATION_COMPLETED, note)
    workflow.run()
    return {"seconds": seconds[1:], "bytes": peak_bytes()}


def in_a_process(*command: str) -> dict[str, Any]:
    """Run Python and return the JSON in the last line that it prints."""
    done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def estimate(files: list[str], values: dict[str, Any]) -> dict[str, Any]:
    """Estimate as the command does, and return seconds and peak memory."""
    words = [word for key, value in values.items() for word in (f"--{key}", str(value))]
    main_of = "from cyclic_committee.scripts.commands.main import main; main()"
    found = in_a_process("-c", main_of, "estimate", *files, "--json", *words)
    return {"seconds": found["iteration_s"], "bytes": sum(found["memory"]["CPU"].values())}


def main(*overlays: str, iterations: int = 3, rounds: int = 1, **values: Any) -> None:
    """Print the estimate beside what was measured.

    Args:
        overlays: configurations over train.yaml.
        iterations: measured, after a first one.
        rounds: each estimates and trains once.
        values: keys of the configuration.
    """
    files = [f"{bundle_root()}/configs/train.yaml", *(str(find_config(overlay)) for overlay in overlays)]
    estimates: list[dict[str, Any]] = []
    seconds, peaks = [], []
    with tempfile.TemporaryDirectory() as folder:
        write_phantoms(Path(folder, "data"), cases=CASES)
        for turn in range(rounds):
            estimates.append(estimate(files, values))
            output = f"{folder}/{turn}"
            run = {
                "dataset_dir": f"{folder}/data",
                "cache_dir": f"{folder}/slices",
                "output_dir": output,
                "model_path": f"{output}/model.pt",
                "fold": "none",
                "max_epochs": 1,
                "iterations_per_epoch": iterations + 1,
                "device": "$torch.device('cpu')",
            }
            found = in_a_process(__file__, "--train", json.dumps(files), json.dumps({**values, **run}))
            seconds += found["seconds"]
            peaks.append(found["bytes"])
    print(f"{'':24}{'estimated':>12}{'measured':>12}{'ratio':>8}")
    for what, unit, scale, estimated, measured in (
        ("time per iteration", "s", 1.0, [one["seconds"] for one in estimates], seconds),
        ("peak memory", "GiB", 2.0**30, [one["bytes"] for one in estimates], peaks),
    ):
        a, b = statistics.median(estimated) / scale, statistics.median(measured) / scale
        print(f"{what + ', ' + unit:24}{a:12.2f}{b:12.2f}{a / b:8.2f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        print(json.dumps(train(json.loads(sys.argv[2]), json.loads(sys.argv[3]))))
    else:
        fire.Fire(main)
