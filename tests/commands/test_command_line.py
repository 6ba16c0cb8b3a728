from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from conftest import BUNDLE, CONFIGS
from terminal import TINY_DEMO, type_in

from cyclic_committee.scripts.commands.arguments import channel_list, one_or_several
from cyclic_committee.scripts.estimate.model_size import committee_from, count_macs, size_table
from cyclic_committee.scripts.experiments import cross_validation, demo
from cyclic_committee.scripts.networks.unet import UNet2d
from cyclic_committee.scripts.phantoms.data_set import write_phantoms
from cyclic_committee.scripts.runtime.errors import BadInput


def test_parameters_of_the_default_are_the_papers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(monkeypatch, "parameters")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[3] for line in lines[1:4]] == ["41,268,192"] * 3
    assert lines[4].split()[:4] == ["committee", "of", "3", "123,804,576"]
    assert "1 x 512 x 512" in lines[0]


def test_parameters_of_any_configuration(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    type_in(monkeypatch, "parameters", str(CONFIGS / "train.yaml"), str(CONFIGS / "variants" / "mixed.yaml"))
    out = capsys.readouterr().out
    for name in ("UNet", "SegResNet", "AttentionUnet", "committee of 3"):
        assert name in out


def test_macs_are_those_of_the_convolutions() -> None:
    network = UNet2d(in_channels=1, out_channels=3, features=[4, 8])
    by_hand = (
        16 * 16 * 9 * (1 * 4 + 4 * 4)  # first stage
        + 8 * 8 * 9 * (4 * 8 + 8 * 8)  # second stage
        + 8 * 8 * 4 * 8 * 4  # transposed convolution: each input pixel to 2 x 2
        + 16 * 16 * 9 * (8 * 4 + 4 * 4)  # decoder
        + 16 * 16 * 4 * 3  # head
    )
    assert count_macs(network, [1, 1, 16, 16]) == by_hand


def test_the_size_of_a_committee_is_that_of_its_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(CONFIGS.parent))
    table = size_table(*committee_from([str(CONFIGS / "train.yaml"), str(CONFIGS / "variants" / "small.yaml")]))
    numbers = [int(line.split()[-2].replace(",", "")) for line in table.splitlines()[1:]]
    assert sum(numbers[:3]) == numbers[3]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["parameters", "gone.yaml"], "error: gone.yaml: no such configuration file, neither here nor in "),
        (["evaluate", "gone", "also_gone", "--out", "scores.csv"], "gone: no such"),
        (["evaluate", "a", "b", "--out", "scores.csv", "--labels", "liver"], "labels must be ids with names"),
        (["bundle", "."], "exists already"),
        (["predict", "gone", "--out", "labels"], "error: gone: no such file or folder."),
    ],
)
def test_bad_input_is_one_line_on_stderr_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        type_in(monkeypatch, *words)
    assert caught.value.code == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert list(tmp_path.iterdir()) == []


def test_two_folders_are_compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for case in write_phantoms(tmp_path / "data", cases=2):
        label = nib.load(case["label"])
        voxels = np.roll(np.asanyarray(label.dataobj), 1, axis=0)
        (tmp_path / "predictions").mkdir(exist_ok=True)
        nib.save(
            nib.Nifti1Image(voxels, label.affine, label.header), tmp_path / "predictions" / Path(case["label"]).name
        )
    references, out = tmp_path / "data" / "TrainingMask", tmp_path / "scores.csv"
    type_in(monkeypatch, "evaluate", str(tmp_path / "predictions"), str(references), "--out", str(out))
    lines = out.read_text().splitlines()
    assert lines[0] == "case,label,organ,dsc,nsd"
    assert len(lines) == 1 + 2 * 4
    assert (tmp_path / "scores.json").is_file()
    assert "pancreas" in capsys.readouterr().out


def test_a_copied_bundle_has_all_but_what_was_made_by_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    type_in(monkeypatch, "bundle", str(tmp_path / "mine"))
    files = {str(path.relative_to(tmp_path / "mine")) for path in (tmp_path / "mine").rglob("*") if path.is_file()}
    assert {"LICENSE", "configs/train.yaml", "configs/variants/small.yaml", "scripts/report/page.html"} <= files
    assert {str(path.relative_to(BUNDLE)) for path in (BUNDLE / "scripts").rglob("*.py")} <= files
    assert not [name for name in files if name.endswith((".pt", ".pyc"))]


def test_the_demo_goes_from_nothing_to_a_table(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(demo, "TRAINING_CASES", 3)
    monkeypatch.setattr(demo, "UNSEEN_CASES", 1)
    monkeypatch.setattr(demo, "FOLDS", 3)
    overlay = tmp_path / "tiny.yaml"
    overlay.write_text(yaml.safe_dump(TINY_DEMO))
    out = tmp_path / "demo"
    type_in(monkeypatch, "demo", str(overlay), "--out", str(out))
    printed, noise = capfd.readouterr()
    for line in ("1/4", "epoch 1/1  loss", "3/4", "liver", "pancreas", "Pictures:", "Label maps:", "Tracked run:"):
        assert line in printed
    assert noise == ""  # no terminal listens, so no progress bars; and nothing is wrong
    assert len(printed.splitlines()) < 25
    assert [path.name for path in (out / "labels").iterdir()] == ["train_000_0000.nii.gz"]
    assert (out / "evaluation" / "scores.csv").is_file()
    assert (out / "evaluation" / "pictures" / "train_000_0000.png").is_file()
    assert (out / "output" / "mlflow" / "mlflow.db").is_file()
    assert (out / "bundle" / "models" / "model.pt").is_file()


def test_the_demo_replaces_an_earlier_demo_and_nothing_else(tmp_path: Path) -> None:
    demo.make_room(tmp_path / "demo")
    (tmp_path / "demo" / "old").write_text("")
    demo.make_room(tmp_path / "demo")
    assert not (tmp_path / "demo" / "old").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("")
    with pytest.raises(BadInput, match="mine: holds other things than an earlier demo"):
        demo.make_room(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis").exists()


def test_a_workflow_that_fails_stops_the_demo(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="The workflow training failed"):
        demo.run_bundle(BUNDLE, "training", ["train.yaml"], dataset_dir=tmp_path / "nothing")


def test_an_overlay_that_is_nowhere_is_named_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"gone\.yaml: no such configuration file"):
        demo.run_demo(tmp_path / "demo", overlays=["gone.yaml"])
    assert not (tmp_path / "demo").exists()


def test_the_command_is_installed() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("cyclic-committee")), "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    for command in ("demo", "bundle", "parameters", "predict", "evaluate"):
        assert command in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--help"], "cyclic-committee"),
        (["predict", "--help"], "Label NIfTI files"),
        (["predikt"], "Cannot find key"),
        (["check", ".", "--lables", "x"], "Did you mean --labels?"),
        (["predict", "nothing", "--out", "x"], "nothing: no such file or folder"),
        (["predict", ".", "--out", "x", "--mirrro", "true"], "Did you mean mirror?"),
        (["predict", ".", "--out", "x", "--config", "variants/smal.yaml"], "no such configuration file"),
        (["estimate", "--batch_sise", "3"], "Did you mean batch_size?"),
        (["parameters", "variants/nothing.yaml"], "no such configuration file"),
        (["cross-validate", "nowhere", "--out", "x"], "nowhere: no such file or folder"),
        (["audit", "nowhere"], "nowhere: no such file or folder"),
        (["evaluate", ".", ".", "--out", "x.json"], "out: x.json must be a file that ends in .csv"),
        (["evaluate", ".", ".", "--out", "."], "out: . must be a file that ends in .csv"),
        (["evaluate", "nowhere", ".", "--out", "x.csv"], "nowhere: no such file or folder"),
    ],
)
def test_help_typos_and_wrong_paths_are_answered_before_anything_large_is_imported(
    tmp_path: Path, words: list[str], said: str
) -> None:
    """MONAI, PyTorch and MLflow take many seconds."""
    program = "import sys, atexit; from cyclic_committee.scripts.commands.main import main; "
    program += "atexit.register(lambda: print('imported', {'torch', 'monai', 'mlflow'} & sys.modules.keys())); main()"
    command = [sys.executable, "-c", program, *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert said in done.stdout + done.stderr
    assert "imported set()" in done.stdout
    assert list(tmp_path.iterdir()) == []


AS_THEY_STAND = [
    "20180217_064501",
    "1.10",
    "a,b",
    "007",
    "1e5",
    "0x10",
    "True",
    "None",
    "[x]",
    "{a}",
    "(a,b)",
    r"a\tb",
    "'a'",
]


@pytest.mark.parametrize("folder", AS_THEY_STAND)
def test_folders_are_named_as_they_were_typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, folder: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["predict", folder, "--out", "o"], ["check", folder], ["release", folder, "url"], ["audit", folder]):
        with pytest.raises(SystemExit):
            type_in(monkeypatch, *words)
        assert capsys.readouterr().err == f"error: {folder}: no such file or folder. Check the path.\n"
    with pytest.raises(SystemExit):
        type_in(monkeypatch, "report", "known", folder)
    assert "known: no such" in capsys.readouterr().err
    (tmp_path / "known").mkdir()
    with pytest.raises(SystemExit):
        type_in(monkeypatch, "report", "known", folder)
    assert capsys.readouterr().err == f"error: {folder}: no such file or folder. Check the path.\n"


@pytest.mark.parametrize("folder", AS_THEY_STAND)
@pytest.mark.parametrize("how", [["{}"], ["--out", "{}"], ["--out={}"]], ids=["word", "option", "equals"])
def test_outputs_go_where_they_were_sent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: str, how: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    type_in(monkeypatch, "phantom", *(word.format(folder) for word in how), "--cases", "1")
    assert [path.name for path in tmp_path.iterdir()] == [folder]


def test_paths_among_a_configurations_keys_are_as_typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = {}
    monkeypatch.setattr(cross_validation, "cross_validate", lambda *_, values, **rest: given.update(values, **rest))
    type_in(
        monkeypatch,
        *(
            "cross-validate",
            str(tmp_path),
            "--out",
            "o",
            "--cache_dir",
            "2024_01",
            "--max_epochs",
            "10",
            "--folds",
            "0,1",
        ),
    )
    assert given["cache_dir"] == "2024_01"
    assert given["max_epochs"] == 10
    assert given["folds"] == (0, 1)


@pytest.mark.parametrize("typed", ["T1,7", "[T1,7]", "['T1','7']", "('T1',7)"])
def test_several_words_have_commas_between_them_or_brackets(typed: str) -> None:
    assert channel_list(one_or_several(typed)) == ["T1", "7"]


def test_help_has_no_commands_of_fires_own(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        type_in(monkeypatch, "check", "--help")
    said = capsys.readouterr()
    assert "DATASET" in said.out + said.err
    assert "GROUP" not in said.out + said.err


@pytest.mark.parametrize("typed", ["dilation,shift", "[dilation,shift]"])
def test_several_corruptions_may_be_typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, typed: str
) -> None:
    type_in(monkeypatch, "phantom", str(tmp_path), "--cases", "2", "--corrupt", "1", "--corruptions", typed)
    assert {"dilation", "shift"} == {
        row.split(",")[1] for row in (tmp_path / "corruption.csv").read_text().splitlines()[1:]
    }
