from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from conftest import BUNDLE, TINY, Workflow
from monai.data import MetaTensor

from cyclic_committee.scripts.bundles.fold_bundle import copy_template, entry_text, write_fold
from cyclic_committee.scripts.inference.predictor import Predictor
from cyclic_committee.scripts.phantoms.phantom import make_phantom
from cyclic_committee.scripts.runtime.errors import BadInput

VALUES = {key: value for key, value in TINY.items() if key != "crop_size"}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom as it is, and turned: its first axis to the back, its second to the left, its third down."""
    folder = tmp_path_factory.mktemp("images")
    phantom = make_phantom(3)
    straight = nib.Nifti1Image(phantom.image_hu, phantom.affine)
    turn = nib.orientations.axcodes2ornt("PLI")
    nib.save(straight, folder / "straight.nii.gz")
    nib.save(
        straight.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(straight.affine), turn)),
        folder / "turned.nii.gz",
    )
    return folder


@pytest.fixture
def predictor(process_state: None, model: Path) -> Predictor:
    return Predictor.from_config(ckpt_path=model, **VALUES)


def voxels(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


@pytest.mark.parametrize(
    "overrides", [{}, {"ensemble_members": [1]}, {"mirror": True}], ids=["all", "one member", "mirrored"]
)
def test_it_labels_as_the_workflow_does_voxel_for_voxel(
    workflow: Workflow, model: Path, images: Path, tmp_path: Path, overrides: dict[str, Any]
) -> None:
    places = {"dataset_dir": str(images), "output_dir": str(tmp_path), "ckpt_path": str(model)}
    workflow("inference", "inference.yaml", **places, **VALUES, **overrides).run()
    predictor = Predictor.from_config(ckpt_path=model, **VALUES, **overrides)
    for name in ("straight.nii.gz", "turned.nii.gz"):
        label, written = predictor.predict(images / name), voxels(tmp_path / name)
        assert label.dtype == torch.uint8
        assert np.array_equal(label[0].numpy(), written)
        assert len(np.unique(written)) > 1
        assert np.allclose(label.affine, nib.load(images / name).affine)  # type: ignore[attr-defined]


def test_volumes_come_one_after_another_in_any_order(predictor: Predictor, images: Path) -> None:
    first, _, again = (predictor.predict(str(images / f"{name}.nii.gz")) for name in ("straight", "turned", "straight"))
    assert torch.equal(first, again)


@pytest.mark.parametrize("name", ["straight", "turned"])
def test_a_metatensor_is_labelled_on_its_own_grid_and_left_as_it_was(
    predictor: Predictor, images: Path, name: str
) -> None:
    file = nib.load(images / f"{name}.nii.gz")
    image = MetaTensor(torch.from_numpy(np.asanyarray(file.dataobj).copy())[None], affine=torch.tensor(file.affine))
    before = image.clone()
    for _ in range(2):
        label = predictor.predict(image)
        assert torch.equal(torch.as_tensor(label), torch.as_tensor(predictor.predict(images / f"{name}.nii.gz")))
        assert np.allclose(label.affine, file.affine)  # type: ignore[attr-defined]
    assert torch.equal(image, before)
    assert image.applied_operations == []


def test_a_plain_tensor_is_taken_as_training_saw_it(predictor: Predictor) -> None:
    image = 300 * torch.rand(1, 48, 48, 3)
    before = image.clone()
    label = predictor.predict(image)
    assert not isinstance(label, MetaTensor)
    assert torch.equal(image, before)
    assert torch.equal(label, predictor.inferer(image[None], predictor.network)[0])


def test_a_label_map_keeps_no_more_than_its_own_memory(predictor: Predictor, images: Path) -> None:
    for image in (images / "turned.nii.gz", 300 * torch.rand(1, 48, 48, 3)):
        label = predictor.predict(image)
        assert label.untyped_storage().nbytes() == label.numel()


@pytest.mark.parametrize(("out", "path"), [("labels", "labels/turned.nii.gz"), ("deep/label.nii", "deep/label.nii")])
def test_a_label_map_is_written_with_its_images_header(
    predictor: Predictor, images: Path, tmp_path: Path, out: str, path: str
) -> None:
    assert predictor.predict_file(images / "turned.nii.gz", tmp_path / out) == tmp_path / path
    written, image = nib.load(tmp_path / path), nib.load(images / "turned.nii.gz")
    assert written.get_data_dtype() == np.uint8
    assert np.array_equal(written.affine, image.affine)
    assert np.array_equal(voxels(tmp_path / path), predictor.predict(images / "turned.nii.gz")[0].numpy())
    assert [file.name for file in (tmp_path / path).parent.iterdir()] == [Path(path).name]


def test_an_image_is_never_overwritten(predictor: Predictor, images: Path) -> None:
    before = (images / "straight.nii.gz").read_bytes()
    with pytest.raises(BadInput, match="would replace its image"):
        predictor.predict_file(images / "straight.nii.gz", images)
    assert (images / "straight.nii.gz").read_bytes() == before


def test_overlays_are_those_of_the_bundle_or_files(
    process_state: None, model: Path, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({k: v for k, v in VALUES.items() if k != "device"}))
    overlaid = Predictor.from_config(overlays=["variants/small.yaml", str(tmp_path / "tiny.yaml")], ckpt_path=model)
    label = overlaid.predict(images / "straight.nii.gz")
    expected = Predictor.from_config(ckpt_path=model, **VALUES).predict(images / "straight.nii.gz")
    assert torch.equal(label.cpu(), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"overlays": ["none.yaml"]}, r"none\.yaml: no such configuration file"),
        ({"ckpt_path": "none.pt"}, r"none\.pt: no such checkpoint"),
        ({"ensemble_member": [0]}, "ensemble_member: no such key.* Did you mean ensemble_members"),
        ({"ensemble_members": [3]}, "ensemble_members must be indices of the 3 members"),
        ({"member#features": [4, 8]}, "doesn't fit the network"),
    ],
)
def test_what_cannot_be_made_is_told_in_one_line(
    process_state: None, model: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        Predictor.from_config(**{"ckpt_path": model, **VALUES, **arguments})


def test_random_weights_make_no_predictor(process_state: None, model: Path, tmp_path: Path) -> None:
    state = torch.load(model, weights_only=True)
    torch.save({**state, "iterations_trained": torch.tensor(0)}, tmp_path / "random.pt")
    with pytest.raises(BadInput, match="never loaded or trained"):
        Predictor.from_config(ckpt_path=tmp_path / "random.pt", **VALUES)


def test_images_that_cannot_be_labelled_are_named(predictor: Predictor, images: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.nii.gz"
    damaged.write_bytes((images / "straight.nii.gz").read_bytes()[:20000])
    with pytest.raises(BadInput, match=r"damaged\.nii\.gz: damaged or truncated"):
        predictor.predict_file(damaged, tmp_path / "labels")
    assert not (tmp_path / "labels").exists()
    with pytest.raises(BadInput, match="has 2 channels, but the configuration normalises 1"):
        predictor.predict(torch.zeros(2, 8, 8, 2))


@pytest.mark.parametrize("name", ["straight", "turned"])
def test_probabilities_lie_on_the_files_grid_as_the_labels_do(predictor: Predictor, images: Path, name: str) -> None:
    file = images / f"{name}.nii.gz"
    probability, label = predictor.predict_probabilities(file), predictor.predict(file)
    assert probability.shape == (5, *label.shape[1:])
    assert torch.equal(torch.as_tensor(probability).argmax(dim=0), torch.as_tensor(label)[0].long())
    assert np.allclose(probability.affine, nib.load(file).affine)  # type: ignore[attr-defined]


def test_another_bundles_configuration_and_weights_are_taken(
    process_state: None, model: Path, images: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "a copy"
    copy_template(BUNDLE, bundle)
    overlay = "".join(f"{entry_text(key, value)}\n" for key, value in VALUES.items() if key != "device")
    write_fold(bundle, f"{overlay}fold: 0\nown: 1\nmomentum: '@own'\n")
    shutil.copy(model, bundle / "models" / "model.pt")
    labels = Predictor.from_config(bundle=bundle, device="cpu").predict(images / "turned.nii.gz")
    expected = Predictor.from_config(ckpt_path=model, **VALUES).predict(images / "turned.nii.gz")
    assert torch.equal(torch.as_tensor(labels), torch.as_tensor(expected))
    with pytest.raises(BadInput, match="votes: no such key"):
        Predictor.from_config(bundle=bundle, votes=[0])
    with pytest.raises(BadInput, match=r"none: holds no configs/inference\.yaml"):
        Predictor.from_config(bundle=tmp_path / "none")
