from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import TINY
from cross_validations import cross_validation, data_set

from cyclic_committee.scripts.estimate.model_size import count_macs
from cyclic_committee.scripts.experiments.inference_costs import CaseCost
from cyclic_committee.scripts.networks.unet import UNet2d
from cyclic_committee.scripts.report import costs as report_costs
from cyclic_committee.scripts.report.costs import cost_table, size_table
from cyclic_committee.scripts.report.runs import Run, read_runs
from cyclic_committee.scripts.runtime.errors import BadInput


@pytest.fixture
def run(process_state: None, phantoms: Path, tmp_path: Path) -> Run:
    data = data_set(tmp_path / "data", phantoms, cases=5)
    return read_runs([cross_validation(tmp_path / "cv", data, done=[0])])[0]


def test_sizes_are_those_of_the_runs_own_configuration(run: Run) -> None:
    table, problems = size_table([run])
    assert table is not None
    assert problems == []
    network = UNet2d(in_channels=1, out_channels=5, features=TINY["member#features"])
    parameters = sum(parameter.numel() for parameter in network.parameters())
    macs = count_macs(network, [1, 1, *TINY["patch_size"]])
    assert table.shown[0] == ["cv", "member 0 (UNet2d)", f"{parameters:,}", f"{macs:,}", "1 x 48 x 48"]
    assert table.shown[3] == ["cv", "committee of 3", f"{3 * parameters:,}", f"{3 * macs:,}", "1 x 48 x 48"]


def test_a_configuration_that_makes_no_networks_is_named(run: Run) -> None:
    (run.folder / "bundle" / "configs" / "overlay_0.yaml").write_text("patch_size: [48]\n")
    table, [problem] = size_table([run])
    assert table is None
    assert "no networks can be made of its train.yaml" in problem


@pytest.mark.parametrize(
    "overlay",
    [
        "channels: $__import__('pathlib').Path('{place}').touch() or 1",
        "member#in_channels: $open('{place}', 'w') and 1",
        "member: {{_target_: pathlib.Path.touch, self: {place}}}",
        "member: '%{place}::x'",
        "patch_size: '@mine'\nmine: [48, \"$open('{place}', 'w') and 48\"]",
    ],
)
def test_what_a_folder_of_somebody_else_says_is_not_run(run: Run, tmp_path: Path, overlay: str) -> None:
    place = tmp_path / "run"
    (run.folder / "bundle" / "configs" / "overlay_0.yaml").write_text(overlay.format(place=place) + "\n")
    (run.folder / "bundle" / "scripts" / "__init__.py").write_text(f"open({str(place)!r}, 'w')")
    table, [problem] = size_table([run])
    assert table is None
    assert "which none of the installed bundle's configurations does, and what others wrote isn't run here" in problem
    assert not place.exists()


def test_costs_are_what_was_measured(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run = replace(run, files={"case": {"image": "/data/case_0000.nii.gz"}})  # is named as in the scores
    measured = [CaseCost("case_0000", 12.345, 1500.4, None), CaseCost("b", 3.0, 900.0, 2048.0)]
    monkeypatch.setattr(report_costs, "case_costs", lambda folder, cases: measured[:cases])
    table, problems = cost_table([run], cases=2)
    assert table is not None
    assert problems == []
    assert table.shown == [["cv", "case", "12.3", "1500", "–"], ["cv", "b", "3.0", "900", "2048"]]
    assert "GPU memory is unknown" not in table.note
    alone, _ = cost_table([run], cases=1)
    assert alone is not None
    assert "No NVIDIA GPU was there, so GPU memory is unknown." in alone.note
    assert cost_table([run], cases=0) == (None, [])


def test_why_nothing_could_be_measured_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path, cases: int) -> list[CaseCost]:
        raise BadInput("x.nii.gz: no such file. Check the path.")

    monkeypatch.setattr(report_costs, "case_costs", fail)
    problem = "What a case costs wasn't measured: x.nii.gz: no such file. Check the path."
    assert cost_table([run], cases=1) == (None, [problem])
