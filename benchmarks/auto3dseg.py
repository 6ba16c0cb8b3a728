"""What does AutoRunner's ensemble of committees reach on phantoms?

    python benchmarks/auto3dseg.py [--config variants/small.yaml] [--out FOLDER]

MONAI's AutoRunner analyses 40 phantoms, plans, trains two folds with the small variant (550 iterations each) and labels
8 unseen phantoms with the ensemble of both. The DSC is that of the ensemble, and of each fold on what it left out.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import fire
from monai.apps.auto3dseg import AutoRunner, import_bundle_algo_history

from cyclic_committee.scripts.experiments.demo import make_room
from cyclic_committee.scripts.metrics.score_table import evaluate_folders, format_table, summarise
from cyclic_committee.scripts.phantoms.data_set import write_phantoms
from cyclic_committee.scripts.phantoms.phantom import LABELS
from cyclic_committee.scripts.runtime.bundle_paths import bundle_root
from cyclic_committee.scripts.runtime.config_files import find_config

ALGOS = {"committee": {"_target_": "cyclic_committee.scripts.algo.CommitteeAlgo", "template_path": bundle_root()}}


def main(*, out: str = "auto3dseg", config: str = "variants/small.yaml", cases: int = 40, unseen: int = 8) -> None:
    folder, overlay = Path(out).resolve(), str(find_config(config).resolve())
    make_room(folder)
    data, work, labels = folder / "data", folder / "a work folder", folder / "labels"
    train = write_phantoms(data / "train", cases=cases, seed=1, layout="decathlon")
    test = write_phantoms(data / "unseen", cases=unseen, seed=2, layout="decathlon")
    described = {
        "training": [{**entry, "fold": number % 2} for number, entry in enumerate(train)],
        "testing": [{"image": entry["image"]} for entry in test],
    }
    (folder / "phantoms.json").write_text(json.dumps(described))
    (folder / "elsewhere").mkdir()
    os.chdir(folder / "elsewhere")

    began_s = time.monotonic()
    given = {"modality": "CT", "datalist": str(folder / "phantoms.json"), "dataroot": str(data)}
    runner = AutoRunner(work_dir=str(work), input={**given, "class_names": list(LABELS.values())}, algos=ALGOS)
    runner.set_analyze_params({"do_ccp": False, "device": "cpu"})
    runner.set_training_params({"overlays": [overlay], "num_epochs_per_validation": 10})
    images = str(data / "unseen" / "imagesTr")
    runner.set_image_save_transform(output_dir=str(labels), output_postfix="", data_root_dir=images)
    runner.run()
    minutes = (time.monotonic() - began_s) / 60

    for fold in import_bundle_algo_history(str(work)):
        print(f"{fold['identifier']}: validation DSC {fold['best_metric']:.3f}")
    rows = evaluate_folders(str(labels), str(data / "unseen" / "labelsTr"), labels=LABELS)
    print(f"the ensemble on {unseen} unseen phantoms, {minutes:.1f} minutes from analysis to label maps")
    print(format_table(summarise(rows)))


if __name__ == "__main__":
    fire.Fire(main)
