"""OHIF, the viewer in MONAI Label's package, in a real browser."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import highdicom
import nibabel as nib
import numpy as np
import pytest
import requests
from conftest import LABELS
from documented_nginx import READER, WHY_NOT, documented_nginx
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support import expected_conditions as expected
from selenium.webdriver.support.ui import WebDriverWait
from viewer_stack import Stack, in_order, on_grid_of, viewer_stack, why_not

from cyclic_committee.scripts.bundles.server_folder import MODEL
from cyclic_committee.scripts.inference.prediction import predict_command
from cyclic_committee.scripts.inference.predictor import Predictor

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
REASON = why_not() or (
    None if CHROMIUM and DRIVER else "Chromium isn't installed: apt-get install chromium chromium-driver"
)
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--window-size=1500,900",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # OHIF asks for fonts elsewhere
]
SHOWN = """
    const volume = services.segmentationService.getLabelmapVolume('1');
    const numbers = ['dimensions', 'spacing', 'origin', 'direction'];
    const segments = Object.values(services.segmentationService.getSegmentation('1').segments);
    return {
        ...Object.fromEntries(numbers.map(name => [name, Array.from(volume[name])])),
        labels: segments.map(segment => [segment.segmentIndex, segment.label]),
        voxels: Array.from(volume.voxelManager.getCompleteScalarDataArray()),
    };
"""

LOADED = """
    const [segmentation] = services.segmentationService.getSegmentations();
    const slices = segmentation.representationData.Labelmap.imageIds.map(id => {
        const image = cornerstone.cache.getImage(id);
        const source = cornerstone.metaData.get('instance', image.referencedImageId);
        return [source.SOPInstanceUID, Array.from(image.voxelManager.getScalarData())];
    });
    const segments = Object.values(segmentation.segments);
    return [segments.map(segment => [segment.segmentIndex, segment.label]), Object.fromEntries(slices)];
"""
IDS = {name: int(number) for number, name in LABELS.items()}


@dataclass(frozen=True)
class Shown:
    """The segmentation in the browser: label ids `(x, y, z)` of the bundle, and the affine from voxels to RAS mm."""

    labels: np.ndarray
    affine: np.ndarray


class Viewer:
    """A reader at the browser, who waits for what is to be seen."""

    def __init__(self, browser: Any, pictures: Path) -> None:
        self.browser, self.pictures = browser, pictures

    def wait(self, condition: Callable[[Any], Any]) -> Any:
        return WebDriverWait(self.browser, 90, poll_frequency=0.2).until(condition)

    def find(self, by: str, what: str) -> WebElement:
        element: WebElement = self.wait(expected.element_to_be_clickable((by, what)))
        return element

    def script(self, code: str, *values: Any) -> Any:
        return self.browser.execute_script(code, *values)

    def picture(self, name: str) -> None:
        self.browser.save_screenshot(str(self.pictures / f"{name}.png"))

    def open_study(self, server: str, patient: str, *, mode: str = "MONAI Label") -> None:
        """Choose a patient in the list of studies, and there one of OHIF's modes."""
        self.browser.get(f"{server}/ohif/")
        row, button = f"//*[text()='{patient}']", f"//button[contains(., '{mode}')]"
        self.find(By.XPATH, row)
        for notice in self.browser.find_elements(By.XPATH, "//button[contains(., 'Confirm and Hide')]"):
            notice.click()

        def choices(_: Any) -> list[WebElement]:
            """The list may be drawn anew, closed: then the row is chosen again."""
            if not self.browser.find_elements(By.XPATH, button):
                self.find(By.XPATH, row).click()
            return list(self.browser.find_elements(By.XPATH, button))

        self.wait(choices)
        self.picture(f"{patient} study list")
        self.find(By.XPATH, button).click()
        self.find(By.CSS_SELECTOR, "[data-cy='viewport-pane'] canvas")

    def connect(self, server: str) -> None:
        """Connect the panel to its server."""
        address = self.find(By.ID, "monailabelServerURL").get_attribute("value")
        assert address == f"{server}/"
        loaded = "return window.cornerstone?.cache.getVolumes().some(volume => volume.loadStatus?.loaded)"
        self.wait(lambda _: self.script(loaded))
        self.find(By.CSS_SELECTOR, ".settingsTable button.actionButton").click()

    def open_tab(self, name: str) -> None:
        """Open a part of the panel."""
        self.find(By.XPATH, f"//label[@class='tab-label'][.='{name}']").click()

    def run_model(self, server: str) -> None:
        """Connect the panel to its server, and run the model that it offers."""
        self.connect(server)
        there = (
            "return !!(services.segmentationService.getSegmentation('1') && cornerstone.cache.getVolumes().length > 1)"
        )
        self.wait(lambda _: self.script(there))
        self.find(By.CSS_SELECTOR, "button[title='Run Segmentation']").click()
        self.wait(lambda _: (self.shown().labels > 0).any())

    def shown(self) -> Shown:
        said = self.script(SHOWN)
        numbers = np.zeros(256, np.uint8)
        for index, name in said["labels"]:
            numbers[index] = IDS[name]
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(said["direction"], (3, 3)).T * said["spacing"]
        affine[:3, 3] = said["origin"]
        labels = numbers[np.reshape(said["voxels"], said["dimensions"], order="F")]
        return Shown(labels, np.diag([-1, -1, 1, 1]) @ affine)

    def paint(self) -> None:
        """Draw with the brush across the first picture."""
        self.find(By.CSS_SELECTOR, "[data-cy='panelSegmentationWithTools-btn']").click()
        self.find(By.CSS_SELECTOR, "[data-cy='Brush']").click()
        self.find(By.XPATH, "//*[text()='Radius (mm)']")
        picture = self.find(By.CSS_SELECTOR, "[data-cy='viewport-pane'] canvas")
        ActionChains(self.browser).move_to_element(picture).click_and_hold().move_by_offset(20, 40).release().perform()

    def store(self, name: str) -> None:
        """Store the segmentation in the archive, under a name."""
        title = "//*[text()='Segmentations']/ancestor::*[.//button[@aria-haspopup='menu']][1]"
        menu = self.find(By.XPATH, f"{title}//button[@aria-haspopup='menu']")
        ActionChains(self.browser).move_to_element(menu).click().perform()
        self.picture("menu")
        self.find(By.XPATH, "//*[@role='menuitem'][contains(., 'Export & Download')]").click()
        choice = self.find(By.XPATH, "//*[@role='menuitem'][.='Export DICOM SEG']")
        self.script("arguments[0].click()", choice)
        self.find(By.CSS_SELECTOR, "[data-cy='input-undefined']").send_keys(name)
        self.find(By.CSS_SELECTOR, "[data-cy='Save-btn']").click()
        self.wait(expected.presence_of_element_located((By.XPATH, "//*[contains(text(), 'Stored in the archive')]")))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with viewer_stack(tmp_path_factory.mktemp("stack")) as running:
        yield running


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewer]:
    """A browser with nothing in it; its pictures are kept in the folder that VIEWER_PICTURES names, if it does."""
    folder = tmp_path_factory.mktemp("viewer")
    pictures = Path(os.environ.get("VIEWER_PICTURES", folder / "pictures"))
    pictures.mkdir(parents=True, exist_ok=True)
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.accept_insecure_certs = True
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    try:
        yield Viewer(browser, pictures)
    finally:
        browser.quit()


def ended(stack: Stack, task: str) -> dict[str, Any]:
    """Wait until what the server does in the background has ended, and return what it says of it."""
    while True:
        said: dict[str, Any] = requests.get(f"{stack.server}/{task}/", timeout=60).json()
        if said["status"] not in ("RUNNING", "SUBMITTED"):
            return said
        time.sleep(0.2)


PATIENTS = pytest.mark.parametrize("patient", ["upwards", "downwards", "oblique"])


def predicted(stack: Stack, patient: str, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Return what the model says of the same scan as a NIfTI file, on a viewer's grid."""
    labels = Predictor.from_config(bundle=stack.bundle, device="cpu").predict(stack.images[patient])
    own = np.asarray(labels.affine)  # type: ignore[attr-defined]
    wanted = on_grid_of(labels[0].numpy(), own, shape, affine)
    assert len(np.unique(wanted)) > 2
    return wanted


def test_the_next_sample_is_the_study_on_which_the_members_disagree_most(stack: Stack, viewer: Viewer) -> None:
    viewer.open_study(stack.server, "upwards")
    viewer.connect(stack.server)
    said = ended(stack, "scoring")
    assert said["status"] == "DONE"
    scores = json.loads((stack.work / "scores.json").read_text())
    assert len(scores) == len(stack.series)
    assert all(one["disagreement"] is not None for one in scores.values()), said["details"]
    viewer.open_tab("Active Learning")
    viewer.find(By.XPATH, "//button[.='Next Sample']").click()
    shown = viewer.find(By.CSS_SELECTOR, ".nextSampleForm")
    viewer.picture("next sample")
    most = max(one["disagreement"] for one in scores.values())  # the same phantom, turned, has the same score
    [most_disputed] = [uid for uid, one in scores.items() if one["disagreement"] == most and uid in shown.text]
    viewer.find(By.XPATH, "//button[.='OK']").click()
    viewer.wait(expected.alert_is_present()).accept()
    [series] = stack.archive.series(SeriesInstanceUID=most_disputed)
    viewer.wait(expected.url_contains(series.StudyInstanceUID))
    viewer.find(By.CSS_SELECTOR, "[data-cy='viewport-pane'] canvas")


@PATIENTS
def test_the_viewer_shows_what_the_model_says_voxel_for_voxel(
    process_state: None, stack: Stack, viewer: Viewer, patient: str
) -> None:
    viewer.open_study(stack.server, patient)
    viewer.run_model(stack.server)
    viewer.picture(f"{patient} segmentation")
    shown = viewer.shown()
    assert np.array_equal(shown.labels, predicted(stack, patient, shown.labels.shape, shown.affine))


@PATIENTS
def test_a_correction_is_stored_as_it_is_seen_with_names_and_codes(stack: Stack, viewer: Viewer, patient: str) -> None:
    viewer.open_study(stack.server, patient)
    viewer.run_model(stack.server)
    before = viewer.shown().labels
    viewer.paint()
    viewer.wait(lambda _: not np.array_equal(viewer.shown().labels, before))
    viewer.picture(f"{patient} corrected")
    corrected = viewer.shown()
    viewer.store("Corrected")
    viewer.picture(f"{patient} stored")
    [series] = stack.archive.series(Modality="SEG", PatientID=patient)
    [file] = stack.archive.instances(series)
    assert file.SeriesDescription == "Corrected"
    segments = sorted(file.SegmentSequence, key=lambda segment: int(segment.SegmentNumber))
    assert {segment.SegmentLabel: segment.SegmentedPropertyTypeCodeSequence[0].CodeValue for segment in segments} == {
        "Liver": "10200004",
        "Kidney": "64033007",
        "Spleen": "78961009",
        "Pancreas": "15776009",
    }
    read = highdicom.seg.Segmentation.from_dataset(file).get_pixels_by_source_instance(
        [one.SOPInstanceUID for one in in_order(stack.series[patient], corrected.affine)],
        combine_segments=True,
        ignore_spatial_locations=True,
        assert_missing_frames_are_empty=True,
    )
    ids = np.array([0, *(IDS[segment.SegmentLabel.lower()] for segment in segments)])
    assert np.array_equal(ids[read].transpose(2, 1, 0), corrected.labels)


def test_the_model_is_trained_on_with_what_was_corrected(stack: Stack, viewer: Viewer) -> None:
    viewer.open_study(stack.server, "upwards")
    viewer.connect(stack.server)
    viewer.open_tab("Active Learning")
    viewer.find(By.XPATH, "//button[.='Update Model']").click()
    viewer.find(By.XPATH, "//button[.='Stop Training']")
    viewer.picture("training")
    said = ended(stack, "train")
    assert said["status"] == "DONE", said
    came_of_it = json.loads((stack.work / "trainings" / "0001" / "round.json").read_text())
    labelled = {one.PatientID for one in stack.archive.series(Modality="SEG")}
    series = [one for one in stack.archive.series(Modality="CT") if one.PatientID in labelled]
    trained_on = came_of_it["training_cases"] + came_of_it["validation_cases"]
    assert sorted(trained_on) == sorted(one.SeriesInstanceUID for one in series)
    released, served = (stack.work / name for name in ("released/model.pt", f"model/{MODEL}/models/model.pt"))
    assert (released.read_bytes() != served.read_bytes()) == came_of_it["replaced"]


@PATIENTS
def test_a_segmentation_by_the_predict_command_is_shown_as_it_is(
    process_state: None, stack: Stack, viewer: Viewer, tmp_path: Path, patient: str
) -> None:
    predict_command(stack.series[patient][0].parent, out=tmp_path, bundle=stack.bundle, device="cpu")
    stack.archive.store([tmp_path / f"{patient}.dcm"])
    viewer.open_study(stack.server, patient, mode="Segmentation")
    thumbnail = viewer.find(By.XPATH, "//*[contains(text(), 'cyclic-committee: ')]")
    ActionChains(viewer.browser).double_click(thumbnail).perform()
    load = expected.presence_of_element_located((By.CSS_SELECTOR, "[data-cy='yes-hydrate-btn']"))
    viewer.script("arguments[0].click()", viewer.wait(load))
    viewer.wait(lambda _: viewer.script("return services.segmentationService.getSegmentations().length > 0"))
    viewer.picture(f"{patient} loaded")
    segments, slices = viewer.script(LOADED)
    numbers = np.zeros(256, np.uint8)
    for number, name in segments:
        numbers[number] = IDS[name.lower()]
    label_map = nib.load(tmp_path / f"{patient}.nii.gz")
    voxels = np.asanyarray(label_map.dataobj)
    assert len(np.unique(voxels)) > 2
    for k, source in enumerate(in_order(stack.series[patient], label_map.affine)):
        seen = numbers[slices[source.SOPInstanceUID]].reshape(voxels.shape[1::-1]).T
        assert np.array_equal(seen, voxels[:, :, k])


@pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
def test_it_works_behind_the_documented_nginx(
    process_state: None, stack: Stack, viewer: Viewer, tmp_path: Path
) -> None:
    with documented_nginx(tmp_path, stack.server) as (address, _):
        name, password = map(quote, READER)
        viewer.browser.get(f"{address.replace('//', f'//{name}:{password}@')}/info/")  # as typed when the browser asks
        viewer.open_study(address, "upwards")
        viewer.run_model(address)
        shown = viewer.shown()
        viewer.browser.get("about:blank")
    assert np.array_equal(shown.labels, predicted(stack, "upwards", shown.labels.shape, shown.affine))
