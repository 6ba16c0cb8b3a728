from __future__ import annotations

import csv
from pathlib import Path

import pytest
from cross_validations import cross_validation, data_set
from terminal import type_in

from cyclic_committee.scripts.audit.joint_audit import JointAudit, combine
from cyclic_committee.scripts.audit.label_audit import Suspect
from cyclic_committee.scripts.data.exclusion import excluded_names
from cyclic_committee.scripts.handlers.loss_record import FILE
from cyclic_committee.scripts.report.audit import (
    audit_folds,
    audit_run,
    audit_table,
    write_suspects,
)
from cyclic_committee.scripts.report.runs import Run, read_runs
from cyclic_committee.scripts.runtime.errors import BadInput


@pytest.fixture(scope="module")
def run(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("audit")
    data = data_set(folder / "data", phantoms, cases=6)
    return read_runs([cross_validation(folder / "cv", data, done=[0, 1, 2], wrong="case_03")])[0]


def suspect(case: str, distrust: float, *, index: int | None = None, label: str = "liver") -> Suspect:
    return Suspect(case, index, 1, distrust, label, dsc=distrust / 10, loss=0.5, dropped=0.25, seen=4)


def test_folds_are_put_together_by_their_means() -> None:
    folds = [
        {("/a.nii", None): suspect("a", 1.0), ("/b.nii", None): suspect("b", 2.0)},
        {("/a.nii", None): suspect("x_a", 5.0, label="spleen")},
    ]
    first, second = combine(folds)
    assert (first.case, first.rank, first.distrust, first.label, first.seen) == ("x_a", 1, 3.0, "spleen", 8)
    assert first.dsc == pytest.approx(0.3)
    assert (second.case, second.rank, second.distrust, second.seen) == ("b", 2, 2.0, 4)


def test_the_wrong_label_is_distrusted_most_by_all_folds(run: Run) -> None:
    audit = audit_run(run)
    assert (audit.cases[0].case, audit.cases[0].label) == ("case_03", "kidney")
    assert audit.cases[0].distrust > 3 > audit.cases[1].distrust
    assert len(audit.cases) == 6
    own = sum(run.folds.get("case_03") == fold for fold in (0, 1, 2))
    assert audit.cases[0].seen == 3 * (3 - own)  # samples of the second epoch
    assert {one.case for one in audit.slices[:3]} == {"case_03"}
    rows = audit_table(run, audit).shown
    assert rows[0][:2] == ["1", "case_03"]
    assert rows[0][3] == "kidney"
    assert {row[1] for row in rows if row[-1] == "–"} == {row[1] for row in rows} - run.folds.keys()


def test_a_cross_validations_folder_is_audited_as_a_trainings(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(monkeypatch, "audit", str(run.folder), "--out", str(tmp_path / "audit"), "--top", "1")
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["1", "case_03"]
    assert excluded_names(str(tmp_path / "audit" / "suspects.txt")) == ["case_03"]
    assert [path.name for path in (tmp_path / "audit" / "pictures").iterdir()] == ["001_case_03.png"]
    with (tmp_path / "audit" / "cases.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 6
    for fold in (0, 1, 2):
        (run.folder / f"fold_{fold}" / FILE).rename(tmp_path / f"{fold}")
    try:
        with pytest.raises(BadInput, match="The labels are judged without fold 0"):
            audit_folds(run.folder)
    finally:
        for fold in (0, 1, 2):
            (tmp_path / f"{fold}").rename(run.folder / f"fold_{fold}" / FILE)


def test_committees_that_have_learned_nothing_are_no_judges(run: Run) -> None:
    assert "too little" not in audit_table(run, audit_run(run)).note
    note = audit_table(run, JointAudit([suspect(case, distrust=3.0) for case in "ab"])).note
    assert "In the median case the DSC of label and committee is 30.0 %: the committees have learned too little" in note


def test_the_list_can_be_excluded_and_the_first_are_drawn(run: Run, tmp_path: Path) -> None:
    drawn = write_suspects(run, audit_run(run), count=2, folder=tmp_path)
    assert excluded_names(str(tmp_path / "suspects_cv.txt")) == ["case_03"]
    assert sorted(path.name for path in (tmp_path / "suspects_cv").iterdir()) == [
        "001_case_03.png",
        f"002_{drawn[1].case}.png",
    ]


def test_a_fold_without_a_record_is_named(run: Run, tmp_path: Path) -> None:
    elsewhere = Run("cv", "cv", tmp_path, run.settings, run.scores, {})
    audit = audit_run(elsewhere)
    assert audit.cases == []
    assert len(audit.problems) == 3
    assert audit.problems[0].startswith(f"The labels are judged without fold 0: {tmp_path}/fold_0/losses.arrow: can't")


def test_files_that_are_gone_are_named(run: Run, tmp_path: Path) -> None:
    audit = audit_run(run)
    gone = {case: {"image": "/gone/a.nii.gz", "label": "/gone/b.nii.gz"} for case in audit.about["cases"]}
    with pytest.raises(BadInput, match=r"/gone/a\.nii\.gz can't be drawn"):
        write_suspects(
            run, JointAudit(audit.cases, audit.slices, {**audit.about, "cases": gone}), count=1, folder=tmp_path
        )
    assert (tmp_path / "suspects_cv.txt").is_file()
