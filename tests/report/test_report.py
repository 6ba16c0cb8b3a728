from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import BUNDLE, TINY, Workflow
from cross_validations import cross_validation, data_set

from cyclic_committee.scripts.experiments.inference_costs import CaseCost
from cyclic_committee.scripts.report import costs as report_costs
from cyclic_committee.scripts.report.report import write_report
from cyclic_committee.scripts.runtime.errors import BadInput

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OFFLINE = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--enable-logging=stderr",
    "--window-size=390,2000",
]
NUMBER = re.compile(r"-?\d[\d,.]*")
MEASURED = [CaseCost("case_00_0000", 12.34, 1500.6, None)]


@dataclass
class Page(HTMLParser):
    """What a page shows."""

    html: str
    tables: dict[str, list[list[str]]] = field(default_factory=dict)  # name -> rows of the body
    text: str = ""
    titles: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)  # what is loaded
    chapters: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.table = ""
        self.feed(self.html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.open.append(tag)
        self.table = found.get("data-table") or self.table
        self.places += [str(found[key]) for key in ("src", "href", "xlink:href", "data") if key in found]
        if tag == "tr" and "thead" not in self.open:
            self.tables.setdefault(self.table, []).append([])
        elif tag == "td":
            self.tables[self.table][-1].append("")
        elif tag == "title" and "svg" in self.open:
            self.titles.append("")

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "td" in self.open:
            self.tables[self.table][-1][-1] += data
        elif "title" in self.open and "svg" in self.open:
            self.titles[-1] += data
        elif not {"style", "script"} & set(self.open):
            self.text += data
            if self.open and self.open[-1] == "h2":
                self.chapters.append(data)


@dataclass(frozen=True)
class Report:
    """Two runs on 50 cases, reported on."""

    folder: Path
    page: Page
    size: int


@pytest.fixture(scope="module")
def report(phantoms: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("report")
    data = data_set(folder / "data", phantoms, cases=50)
    first = cross_validation(folder / "default", data, model=model, epochs=300)
    second = cross_validation(folder / "small_loss", data, model=model, epochs=300, done=[0, 1, 2, 3], better=0.01)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BUNDLE))
        patch.setattr(report_costs, "case_costs", lambda run, cases: MEASURED[:cases])
        path = write_report([first, second], out=folder / "report", suspects=2)
    return Report(path.parent, Page(path.read_text()), path.stat().st_size)


def test_every_number_of_the_tables_is_the_csvs(report: Report) -> None:
    files = {path.stem: path for path in (report.folder / "tables").glob("*.csv")}
    assert report.page.tables.keys() == files.keys()
    for name, rows in report.page.tables.items():
        with files[name].open(newline="") as file:
            _, *lines = csv.reader(file)
        assert len(rows) == min(len(lines), 10) if name.startswith("audit") else len(rows) == len(lines)
        for row, line in zip(rows, lines, strict=False):
            assert NUMBER.findall(" ".join(row)) == NUMBER.findall(" ".join(line))
        latex = files[name].with_suffix(".tex").read_text()
        for row in rows:
            assert " & ".join(row).replace("±", r"$\pm$").replace("_", r"\_").replace("%", r"\%") in latex.replace(
                "--", "–"
            )


def test_every_number_of_sentences_captions_and_points_is_a_tables(report: Report) -> None:
    sentences = {row[-1] for row in report.page.tables["difference_small_loss_less_default"]}
    assert len(sentences) == 10
    assert all(sentence in report.page.text for sentence in sentences)
    for run in ("default", "small_loss"):
        for organ, case, _, dsc, nsd, index, slices in report.page.tables[f"challenging_{run}"]:
            caption = f"{run}, {organ}: {case}, DSC {dsc} %, NSD {nsd} %, slice {index} of {slices}"
            assert caption in report.page.text
        for rank, case, distrust, label, *_ in report.page.tables[f"audit_{run}"][:2]:
            assert f"{run}: {rank}. {case}: distrust {distrust}, most of all {label}" in report.page.text
    points = [title for title in report.page.titles if " of " in title]
    assert len(points) == 4 * 2 * (50 + 40)
    organs = ["liver", "kidney", "spleen", "pancreas"]
    for title in points:
        found = re.fullmatch(r"(case_\d+): ([\d.]+) % (DSC|NSD) of (\w+), (\w+)", title)
        assert found is not None
        case, score, measure, organ, run = found.groups()
        [row] = [row for row in report.page.tables[f"cases_{run}"] if row[0] == case]
        assert row[2 + 2 * organs.index(organ) + (measure == "NSD")] == score


def test_the_better_run_is_called_better(report: Report) -> None:
    text = report.page.text
    assert "liver: small_loss is higher than default by " in text
    assert "kidney: the same DSC in all 40 cases." in text
    assert "10 of the 50 cases of default aren't in small_loss" in text
    assert "small_loss: not done yet: fold 4. Its cases are in no number of this page." in text


def test_the_page_holds_all_that_it_shows_in_five_megabytes(report: Report) -> None:
    assert all(place.startswith(("#", "data:")) for place in report.page.places)
    assert not re.findall(r"@import|url\((?!#)", report.page.html)
    assert report.size < 5e6
    assert report.page.chapters == [
        "Scores",
        "small_loss beside default",
        "Most challenging cases",
        "Training",
        "Running cost",
        "Labels that the committees distrust",
    ]
    assert report.page.html.count("data:image/jpeg") == 2 * (4 + 2)
    assert not re.search(r"\b(nan|None|Undefined)\b", report.page.text)


def test_figures_lie_beside_the_page(report: Report) -> None:
    names = {path.name for path in (report.folder / "figures").iterdir()}
    topics = [f"training_{run}_{topic}" for run in ("default", "small_loss") for topic in ("loss", "validation")]
    for name in ("dsc", "nsd", *topics):
        assert {f"{name}.svg", f"{name}.png"} <= names
    assert len([name for name in names if name.startswith("challenging_default_")]) == 4
    assert (report.folder / "suspects_default.txt").read_text().splitlines()[1].startswith("case_01  #")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
def test_a_browser_shows_the_page_without_a_complaint(report: Report, tmp_path: Path) -> None:
    page = (report.folder / "report.html").as_uri()
    command = [str(CHROMIUM), *OFFLINE, f"--user-data-dir={tmp_path}", "--dump-dom", page]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if ":CONSOLE" in line] == []
    shown = Page(done.stdout)
    assert shown.tables == report.page.tables
    assert len(shown.titles) == len(report.page.titles)


@pytest.fixture
def single(process_state: None, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(BUNDLE))
    monkeypatch.setattr(report_costs, "case_costs", lambda run, cases: [])
    return cross_validation(tmp_path / "cv", data_set(tmp_path / "data", phantoms, cases=5), done=[2])


def test_a_run_whose_data_and_weights_are_gone_is_reported_all_the_same(single: Path) -> None:
    settings = json.loads((single / "cross_validation.json").read_text())
    (single / "cross_validation.json").write_text(json.dumps({**settings, "dataset_dir": "/gone"}))
    for name in ("losses.arrow", "history.json"):
        (single / "fold_2" / name).unlink()
    path = write_report([single], timed_cases=0)
    assert path == single / "report" / "report.html"
    page = Page(path.read_text())
    assert "cv: its data set isn't to be had any more" in page.text
    assert "cv: no training has left a history." in page.text
    assert "What labelling a case takes wasn't measured." in page.text
    assert "The labels are judged without fold 2" in page.text
    assert [row[0] for row in page.tables["folds_cv"]] == ["fold 2", "average"]


def test_a_page_is_written_once_more(single: Path) -> None:
    pages = [write_report([single], timed_cases=0, challenging=0, suspects=0).read_text() for _ in range(2)]
    assert pages[0] == pages[1]
    assert not list((single / "report").rglob(".*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"timed_cases": -1}, r"timed_cases: must be 0 or a whole number above it, got -1\."),
        ({"challenging": 0.5}, r"challenging: must be 0 or a whole number above it, got 0\.5\."),
        ({"out": "file"}, r"file: is a file\. Choose a folder with --out\."),
    ],
)
def test_what_can_not_be_done_is_named(
    single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, object], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(BadInput, match=message):
        write_report([single], **arguments)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="is no cross-validation"):
        write_report([tmp_path])


def test_a_real_run_is_reported(
    train: Callable[..., Path], workflow: Workflow, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = cross_validation(tmp_path / "cv", phantoms, done=[])
    settings = json.loads((run / "cross_validation.json").read_text())
    (run / "cross_validation.json").write_text(json.dumps({**settings, "layout": "flare21"}))
    fold = train(run / "fold_0", cache_dir=str(tmp_path / "cases"))
    values = {key: value for key, value in TINY.items() if key != "crop_size"}
    places = {"dataset_dir": str(phantoms), "output_dir": str(fold), "ckpt_path": str(fold / "model.pt")}
    workflow("inference", "inference.yaml", "evaluate.yaml", "validate_fold.yaml", **places, **values).run()
    monkeypatch.setattr(report_costs, "case_costs", lambda run, cases: [])
    page = Page(write_report([run], timed_cases=0).read_text())
    assert [row[0] for row in page.tables["folds_cv"]] == ["fold 0", "average"]
    assert len(page.tables["challenging_cv"]) == 4
    assert len(page.tables["audit_cv"]) == 4
    assert page.html.count("data:image/jpeg") == 4 + 4
    assert "isn't" not in page.text.replace("isn't in it", "").replace("isn't that of", "")
