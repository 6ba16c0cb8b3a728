from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
import yaml
from conftest import BUNDLE, CT_EXAMPLE, TINY, Workflow
from monai.networks.trt_compiler import TrtCompiler
from terminal import type_in
from torch import Tensor, nn

from cyclic_committee.scripts.inference import export_check as module
from cyclic_committee.scripts.inference.export import FORMATS, export
from cyclic_committee.scripts.inference.predictor import Predictor
from cyclic_committee.scripts.runtime.errors import BadInput

VALUES = {"member#features": [8, 16], "spacing_mm": TINY["spacing_mm"], "patch_size": TINY["patch_size"]}
needs_ct = pytest.mark.skipif(not CT_EXAMPLE.is_dir(), reason="no real CT at ../shared/data/ct_example")
Network = Callable[[Tensor], Tensor]
RUN_ALONE = """
import json, sys, torch
sys.modules |= dict.fromkeys(("cyclic_committee", "scripts", "bundle", "monai"))  # whoever asks for them gets an error
path, format, images = sys.argv[1:]
extra = {"metadata.json": ""}
if format == "pt2":
    network = torch.export.load(path, extra_files=extra).module()
else:
    network = torch.jit.load(path, _extra_files=extra)
given = torch.load(images, weights_only=True)
found = [network(image).detach() for image in given["images"]]
torch.save({"found": found, "metadata": json.loads(extra["metadata.json"])}, images)
"""


@pytest.fixture(scope="module")
def overlay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration that the tiny committee is trained with."""
    path = tmp_path_factory.mktemp("overlay") / "tiny.yaml"
    path.write_text(yaml.safe_dump(VALUES))
    return path


@pytest.fixture(autouse=True)
def undone(process_state: None) -> None:
    """Exporting sets the search path, too."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def model(train: Callable[..., Path], trained: Path) -> Path:
    """The weights of a small committee that has learned something: on undecided pixels labels may well differ."""
    if not (trained / "model.pt").is_file():
        features = {"member#features": VALUES["member#features"]}
        train(trained, "variants/small.yaml", learning_rate=0.01, iterations_per_epoch=60, **features)
    return trained / "model.pt"


def load(path: Path, format: str) -> Network:
    if format != "onnx":
        return FORMATS[format].load(path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


def network_of(model: Path, overlay: Path, **values: Any) -> nn.Module:
    values = {"device": "cpu", "precision": "float32", **values}  # as the file computes
    return Predictor.from_config(overlays=[str(overlay)], ckpt_path=model, **values).network


@pytest.mark.parametrize("member", [None, 1])
@pytest.mark.parametrize("format", FORMATS)
def test_a_file_gives_what_the_networks_give_for_any_number_and_size(
    model: Path, overlay: Path, tmp_path: Path, format: str, member: int | None
) -> None:
    out = tmp_path / "new" / f"exported.{format}"
    [agreement] = export(out, format=format, overlays=[str(overlay)], ckpt_path=model, member=member)
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert 0 < agreement.difference < 1e-5  # other operators than the original's: equal would be no comparison
    network = network_of(model, overlay, ensemble_members=None if member is None else [member])
    exported = load(out, format)
    for shape in ((1, 1, 48, 48), (5, 1, 24, 100), (2, 1, 8, 12)):
        image = torch.randn(shape)
        with torch.no_grad():
            probability, found = network(image), exported(image)
        assert torch.allclose(found, probability, rtol=0, atol=1e-5)
        assert torch.allclose(found.sum(dim=1), torch.ones(1), atol=1e-5)


def test_one_members_file_holds_no_other_members_weights(model: Path, overlay: Path, tmp_path: Path) -> None:
    for name, member in (("all", None), ("one", 2)):
        export(tmp_path / name, format="torchscript", overlays=[str(overlay)], ckpt_path=model, member=member)
    counts = [sum(p.numel() for p in torch.jit.load(tmp_path / name).parameters()) for name in ("all", "one")]
    assert counts[0] == 3 * counts[1]


def test_voters_of_the_configuration_are_those_of_the_file(model: Path, overlay: Path, tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text("ensemble_members: [2, 0]")
    overlays = [str(overlay), str(tmp_path / "two.yaml")]
    export(tmp_path / "two.ts", format="torchscript", overlays=overlays, ckpt_path=model)
    image = torch.randn(1, 1, 48, 48)
    with torch.no_grad():
        expected = network_of(model, overlay, ensemble_members=[0, 2])(image)
    assert torch.allclose(torch.jit.load(tmp_path / "two.ts")(image), expected, atol=1e-5)


@pytest.mark.parametrize("format", ["torchscript", "pt2"])
def test_a_process_without_our_package_runs_the_file(model: Path, overlay: Path, tmp_path: Path, format: str) -> None:
    out, images = tmp_path / f"exported.{format}", tmp_path / "images"
    export(out, format=format, overlays=[str(overlay)], ckpt_path=model)
    given = [torch.randn(1, 1, 48, 48), torch.randn(3, 1, 64, 96)]
    torch.save({"images": given}, images)
    command = [sys.executable, "-I", "-c", RUN_ALONE, str(out), format, str(images)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answer = torch.load(images, weights_only=True)
    with torch.no_grad():
        for image, found in zip(given, answer["found"], strict=True):
            assert torch.allclose(found, network_of(model, overlay)(image), atol=1e-5)
    assert answer["metadata"]["spacing_mm"] == [6.0, 6.0]


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_says_how_it_is_to_be_fed(model: Path, overlay: Path, tmp_path: Path, format: str) -> None:
    out = tmp_path / f"exported.{format}"
    (tmp_path / "ids.yaml").write_text('labels: {"7": spleen, "2": liver, "3": a, "4": b}')
    export(out, format=format, overlays=[str(overlay), str(tmp_path / "ids.yaml")], ckpt_path=model)
    extra = {"metadata.json": ""}
    if format == "torchscript":
        torch.jit.load(out, _extra_files=extra)
    elif format == "pt2":
        torch.export.load(out, extra_files=extra)
    else:
        loaded = onnx.load(out)
        onnx.checker.check_model(loaded, full_check=True)
        extra = {one.key: one.value for one in loaded.metadata_props}
        dims = [dim.dim_param or dim.dim_value for dim in loaded.graph.input[0].type.tensor_type.shape.dim]
        assert (loaded.graph.input[0].name, dims) == ("image", ["batch", 1, "height", "width"])
        assert loaded.graph.output[0].name == "pred"
    metadata = json.loads(extra["metadata.json"])
    names = ["background", "liver", "a", "b", "spleen"]  # in the order of the network's classes
    assert metadata["classes"] == [
        {"label": id_, "name": name} for id_, name in zip([0, 2, 3, 4, 7], names, strict=True)
    ]
    expected = {"spacing_mm": [6.0, 6.0], "orientation": "RAS", "channels": 1, "averaged_networks": 3}
    assert {key: metadata[key] for key in expected} == expected
    assert metadata["normalise"] == [
        {"kind": "ClipAndStandardise", "clip": [-16.0, 270.0], "mean": 116.62895, "sd": 47.89974}
    ]


@needs_ct
@pytest.mark.parametrize("format", FORMATS)
def test_on_a_real_ct_a_file_agrees_with_the_original(
    model: Path, overlay: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out, ct = tmp_path / f"exported.{format}", str(CT_EXAMPLE / "image.nii.gz")
    words = ["--format", format, "--config", str(overlay), "--ckpt_path", str(model), "--image", ct]
    type_in(monkeypatch, "export", str(out), *words)
    printed = capsys.readouterr()
    assert f"{ct}: probabilities within" in printed.out
    assert "the same labels on" in printed.out  # exactly: no ties
    assert printed.err == ""
    predictor = Predictor.from_config(overlays=[str(overlay)], ckpt_path=model, device="cpu", precision="float32")
    image = predictor.preprocessing({"image": ct})["image"][None]
    label = predictor.inferer(image, predictor.network)
    assert torch.equal(predictor.inferer(image, load(out, format)), label)
    assert len(label.unique()) > 2  # something was learned


class Answers(nn.Module):
    """Logits that put a share of the probability on the first class, and the other on the second."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.logits = torch.tensor([share, 1 - share]).log()

    def forward(self, image: Tensor) -> Tensor:
        return self.logits[None, :, None, None].expand(len(image), -1, *image.shape[2:]).softmax(dim=1)


@pytest.mark.parametrize(
    ("shares", "ties"),
    [((0.7, 0.70009), 0), ((0.7, 0.7002), None), ((0.499999, 0.500001), 16), ((0.49997, 0.50003), None),
     ((0.7, float("nan")), None), ((float("nan"), 0.7), None)],
)  # fmt: skip
def test_the_probabilities_must_agree_and_labels_too_but_for_ties(
    shares: tuple[float, float], ties: int | None
) -> None:
    agreement = module.Agreement("noise")
    original, exported = (Answers(share) for share in shares)
    arguments = (original, exported, torch.zeros(1, 1, 4, 4), agreement, Path("out.ts"))
    if ties is None:
        with pytest.raises(BadInput, match=r"^out\.ts: not written, since on noise \(1 x 1 x 4 x 4\)"):
            module.compare(*arguments)
    else:
        assert torch.equal(module.compare(*arguments), original(arguments[2]))
        assert (agreement.ties, agreement.pixels) == (ties, 16)


@pytest.mark.parametrize("damage", ["another answer", "an error", "another shape"])
def test_a_file_that_does_not_agree_never_appears(
    model: Path, overlay: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    way = FORMATS["torchscript"]

    def load_damaged(path: Path) -> Network:
        network = way.load(path)
        if damage == "another answer":
            return lambda image: network(image + 0.1)
        return (lambda image: network(image)[:1]) if damage == "another shape" else lambda image: network(image[:, :0])

    monkeypatch.setitem(FORMATS, "torchscript", way._replace(load=load_damaged))
    out = tmp_path / "out" / "committee.ts"
    out.parent.mkdir()
    out.write_text("an earlier one")
    with pytest.raises(BadInput, match=r"committee\.ts: not written, since"):
        export(out, format="torchscript", overlays=[str(overlay)], ckpt_path=model)
    assert [(path.name, path.read_text()) for path in out.parent.iterdir()] == [(out.name, "an earlier one")]


def test_a_network_that_can_not_be_written_is_told(
    model: Path, overlay: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("no such operator\nand much more")

    monkeypatch.setitem(FORMATS, "torchscript", FORMATS["torchscript"]._replace(write=fail))
    with pytest.raises(BadInput, match=r"can't be written as torchscript \(no such operator\)"):
        export(tmp_path / "out" / "a.ts", format="torchscript", overlays=[str(overlay)], ckpt_path=model)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": "tensorflow"}, "format: tensorflow is none of torchscript, pt2, onnx"),
        ({"member": 3}, "member: 3 is none of the 3 members. Give one from 0 to 2"),
        ({"member": -1}, "member: -1 is none of"),
        ({"bundle": "nowhere"}, r"nowhere: holds no configs/inference\.yaml"),
        ({"overlays": ["gone.yaml"]}, r"gone\.yaml: no such configuration file"),
        ({"ckpt_path": "gone.pt"}, r"gone\.pt: no such checkpoint"),
        ({"image": "gone.nii.gz"}, r"gone\.nii\.gz: no such file"),
    ],
)
def test_what_can_not_be_exported_is_told_in_one_line(
    model: Path, overlay: Path, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    out = tmp_path / "out" / "a.ts"
    usual: dict[str, Any] = {"format": "torchscript", "overlays": [str(overlay)], "ckpt_path": model}
    with pytest.raises(BadInput, match=message) as caught:
        export(out, **{**usual, **values})
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is a folder"):
        export(tmp_path, format="torchscript")


def test_without_onnxs_packages_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else there(name))
    with pytest.raises(BadInput, match=r"needs onnxruntime\. Install with: pip install onnx onnxscript onnxruntime$"):
        export(tmp_path / "a.onnx", format="onnx")


def test_a_bundle_elsewhere_is_exported_with_its_own_configuration_code_and_weights(
    model: Path, overlay: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "a copy"
    shutil.copytree(BUNDLE, copied, ignore=shutil.ignore_patterns("__pycache__", "*.pt", "output"))
    shutil.copy(model, copied / "models" / "model.pt")
    shutil.copy(overlay, copied / "configs" / "variants" / "mine.yaml")
    inference = copied / "configs" / "inference.yaml"
    inference.write_text(inference.read_text().replace("scripts.networks.unet.UNet2d", "scripts.mine.Mine"))
    mine = "from .network import UNet2d\n\n\nclass Mine(UNet2d):\n    pass\n"
    (copied / "scripts" / "mine.py").write_text(mine)
    command = [str(Path(sys.executable).with_name("cyclic-committee")), "export", "mine.ts", "--format", "torchscript"]
    command += ["--bundle", str(copied), "--config", "variants/mine.yaml", "--member", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    image = torch.randn(2, 1, 48, 48)
    with torch.no_grad():
        expected = network_of(model, overlay, ensemble_members=[1])(image)
    assert torch.allclose(torch.jit.load(tmp_path / "mine.ts")(image), expected, atol=1e-5)


def test_the_tensorrt_overlay_infers_by_pytorch_where_tensorrt_is_not(
    workflow: Workflow, model: Path, phantoms: Path, tmp_path: Path
) -> None:
    values = {**VALUES, "device": "cpu", "dataset_dir": str(phantoms / "TrainingImg"), "ckpt_path": str(model)}
    values["output_dir"] = str(tmp_path / "labels")
    made = workflow("inference", "inference.yaml", "inference_trt.yaml", **values)
    assert made.check_properties() == []
    made.run()
    assert len(list((tmp_path / "labels").iterdir())) == 5


def test_the_tensorrt_overlay_leads_to_an_onnx_file_for_any_number_of_slices(
    workflow: Workflow, overlay: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it that needs no TensorRT: MONAI's compiler with the overlay's arguments, up to the file for TensorRT."""
    made = workflow("inference", "inference.yaml", "inference_trt.yaml", **VALUES, device="cpu")
    network, arguments = made.parser.get_parsed_content("network").eval(), made.parser.get("network")["args"]
    image, found = torch.randn(7, 1, 48, 48), []

    def run(self: TrtCompiler, path: str) -> bytes:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        found.append(torch.from_numpy(session.run(None, {"image": image.numpy()})[0]))
        return b"a plan"

    monkeypatch.setattr(TrtCompiler, "_onnx_to_trt", run)
    compiler = TrtCompiler(network, str(tmp_path / "model.pt.plan"), **arguments)
    with torch.no_grad():
        compiler._build_and_save(network, {"image": torch.randn(1, 1, 48, 48)})
        assert torch.allclose(found[0], network(image), atol=1e-4)
    [profile] = compiler.profiles
    assert profile["image"] == [[n, 1, 48, 48] for n in (1, 4, 16)]
