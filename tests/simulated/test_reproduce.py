"""The reproduction on a made-up clone: every file, nothing twice, the same table after an interruption, absent sets."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mammo_fed.errors import InvalidSetting
from mammo_fed.simulations.reproduction.experiments import backbones, experiments, select
from mammo_fed.simulations.reproduction.jobs import Plan, jobs_of, run_jobs

ROWS = "dbr9,dbr15,image-phantom-1-1"
SMALL = (
    "model.weights=none",
    "model.input_size=32",
    "model.hidden=8",
    "privacy.batch_size=6",
    "privacy.noise_seed=1",
    "synthesis.count=16",
    "data.folds=2",
    "data.image_size=32",
)
ASKED = ("seeds=1,2", "cv_seeds=0", "epochs=2", "every=1", "jobs=1")
FILES = {"table.md", "table.csv", "table.html", "record.json", "reproduce.log", "rows"}


def settings_of(root: Path, cache: Path) -> tuple[str, ...]:
    return (*SMALL, f"data.root={root}", f"engine.cache={cache}")


@pytest.fixture(scope="module")
def reproduce(cli, cache):
    """`reproduce(root, folder)`: the command line; asks for the same rows every time unless told otherwise."""

    def go(root, folder, *more, rows=ROWS):
        return cli("reproduce", f"experiment={rows}", *ASKED, *settings_of(root, cache), *more, f"hydra.run.dir={folder}")

    return go


@pytest.fixture(scope="module")
def whole(reproduce, clone, tmp_path_factory):
    """A reproduction that nothing interrupted."""
    folder = tmp_path_factory.mktemp("reproduce") / "whole"
    code, out, err = reproduce(clone, folder)
    assert code == 0, err
    return folder, out


def lines_of(folder):
    with (folder / "table.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def times_of(folder):
    return {path: path.stat().st_mtime_ns for path in sorted((folder / "rows").rglob("*")) if path.is_file()}


def test_every_file_is_written_and_a_run_leaves_its_record_and_scores_alone(whole):
    folder, out = whole
    assert {path.name for path in folder.iterdir()} == FILES
    assert out == (folder / "table.md").read_text(encoding="utf-8")
    runs = sorted(path for row in (folder / "rows").iterdir() for path in row.iterdir())
    # Two seeds of three rows, and a seed on two folds of the one that is cross-validated.
    assert len(runs) == 8
    assert {tuple(sorted(path.name for path in run.iterdir())) for run in runs} == {("record.json", "scores.npz")}
    assert sum("-fold-" in run.name for run in runs) == 2


def test_the_table_has_every_row_and_fills_every_set(whole):
    lines = lines_of(whole[0])
    assert {line["key"] for line in lines} == set(ROWS.split(","))
    filled = {key: {line["set"] for line in lines if line["key"] == key and line["value"]} for key in ROWS.split(",")}
    held_out = {"val", "test", "external"}
    assert filled == {"dbr9": held_out, "dbr15": held_out, "image-phantom-1-1": {*held_out, "cv"}}
    assert {line["seeds"] for line in lines if line["set"] in held_out} == {"2"}
    assert "Not at hand" not in whole[1]
    published = {line["key"]: line["paper"] for line in lines if (line["set"], line["metric"]) == ("test", "auroc")}
    assert float(published["dbr9"]) == 0.525
    assert published["image-phantom-1-1"] == ""


def test_figures_are_means_over_seeds_of_what_the_runs_scored(whole):
    folder, _ = whole
    values = []
    for run in (folder / "rows" / "dbr9").iterdir():
        with np.load(run / "scores.npz", allow_pickle=False) as scores:
            values.append(roc_auc_score(scores["test/label"], scores["test/score"]))
    (line,) = (line for line in lines_of(folder) if (line["key"], line["set"], line["metric"]) == ("dbr9", "test", "auroc"))
    assert float(line["value"]) == pytest.approx(np.mean(values), abs=1e-5)
    assert float(line["seed_std"]) == pytest.approx(np.std(values, ddof=1), abs=1e-5)


def test_the_record_says_what_was_asked_and_what_epsilon_does_not_cover(whole):
    record = json.loads((whole[0] / "record.json").read_text(encoding="utf-8"))
    assert record["mode"] == "reproduce"
    assert record["settings"]["experiment"] == ROWS
    assert "without differential privacy" in record["hyper_parameters"]
    rows = {row["key"]: row for row in record["rows"]}
    assert 0 < rows["dbr9"]["epsilon"] <= 1.0
    assert {run["seed"] for run in rows["dbr9"]["runs"]} == {1, 2}
    assert all(run["not_covered"] for run in rows["dbr9"]["runs"])


def test_a_second_time_runs_nothing_and_writes_the_same_table(whole, reproduce, clone):
    folder, out = whole
    before, table = times_of(folder), (folder / "table.csv").read_bytes()
    code, again, err = reproduce(clone, folder)
    assert code == 0, err
    assert "8 of 8 runs" in err
    assert times_of(folder) == before
    assert (folder / "table.csv").read_bytes() == table
    assert again == out


class Interrupted(Exception):
    """Stands for whatever stops a reproduction."""


def plan_of(root, cache):
    return Plan(
        rows=select(ROWS),
        seeds=(1, 2),
        cv_seeds=(0,),
        epochs=2,
        overrides=settings_of(root, cache),
        paper_overrides=backbones()["lite0"],
    )


def test_an_interrupted_reproduction_goes_on_to_the_same_table(whole, reproduce, clone, cache, tmp_path):
    folder = tmp_path / "interrupted"
    jobs = jobs_of(plan_of(clone, cache), folder)

    def stop(job, done, total):
        assert total == 8
        if done == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        run_jobs(jobs, processes=1, finished=stop)
    done = [job for job in jobs if job.done]
    assert 2 <= len(done) < 8
    # What a kill in the middle of a run would leave.
    (job, *_) = (job for job in jobs if not job.done)
    shutil.copytree(done[0].folder, job.folder.with_suffix(".work") / "sites")
    job.folder.mkdir()
    before = times_of_jobs(done)
    code, _, err = reproduce(clone, folder)
    assert code == 0, err
    assert times_of_jobs(done) == before
    assert (folder / "table.csv").read_bytes() == (whole[0] / "table.csv").read_bytes()
    assert {path.name for path in folder.iterdir()} == FILES
    assert not list(folder.rglob("*.work"))


def times_of_jobs(jobs):
    return [path.stat().st_mtime_ns for job in jobs for path in sorted(job.folder.iterdir())]


def children_of(pid):
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(status.parent.name))
    return found


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_for(condition, seconds=120):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc to see whether processes are left behind")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_reproduction_that_was_killed_leaves_no_process_and_goes_on_to_the_same_table(
    whole, reproduce, start_cli, clone, cache, tmp_path, how
):
    folder = tmp_path / "killed"
    arguments = ("reproduce", f"experiment={ROWS}", *ASKED, *settings_of(clone, cache), f"hydra.run.dir={folder}")
    process = start_cli(*arguments)
    wait_for(lambda: len(list(folder.glob("rows/*/*/record.json"))) >= 2)
    workers = children_of(process.pid)
    assert workers
    process.send_signal(how)
    try:
        process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    wait_for(lambda: not any(alive(worker) for worker in workers), seconds=30)
    code, _, err = reproduce(clone, folder)
    assert code == 0, err
    assert (folder / "table.csv").read_bytes() == (whole[0] / "table.csv").read_bytes()


def test_with_train_and_val_only_the_table_says_so_and_fills_val_and_cross_validation(reproduce, make_clone, tmp_path):
    root = make_clone("train", "val")
    code, out, err = reproduce(root, tmp_path / "run", "seeds=1", rows="image-phantom-1-1")
    assert code == 0, err
    assert "Not at hand, so not filled: CBIS-DDSM test, BCDR (external test); a full clone of the data has them." in out
    lines = lines_of(tmp_path / "run")
    assert {line["set"] for line in lines if line["value"]} == {"val", "cv"}
    assert "Not at hand" in (tmp_path / "run" / "table.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_sets_that_have_come_since_are_scored_the_next_time(reproduce, make_clone, clone, tmp_path):
    root = make_clone("train", "val")
    rows = "dbr9"
    assert reproduce(root, tmp_path / "run", "seeds=1", rows=rows)[0] == 0
    before = {line["metric"]: line["value"] for line in lines_of(tmp_path / "run") if line["set"] == "val"}
    shutil.copytree(clone / "dataset16062024/bcdr", root / "dataset16062024/bcdr")
    code, out, err = reproduce(root, tmp_path / "run", "seeds=1", rows=rows)
    assert code == 0, err
    lines = lines_of(tmp_path / "run")
    assert {line["set"] for line in lines if line["value"]} == {"val", "external"}
    assert {line["metric"]: line["value"] for line in lines if line["set"] == "val"} == before
    assert "Not at hand, so not filled: CBIS-DDSM test;" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("experiment=dbr77",), "experiment=dbr77 must be all, a group"),
        (("experiment=dbr9,dbr77",), "experiment=dbr77 must be all, a group"),
        (("experiment=",), "experiment= must be all, a group"),
        (("backbone=resnet",), "backbone=resnet must be one of lite0, swin_tiny"),
        (("seeds=",), "seeds= must be whole numbers"),
        (("seeds=1,x",), "seeds=1,x must be whole numbers"),
        (("seeds=-1",), "seeds=-1 must be whole numbers"),
        (("seeds=1,1",), "seeds=1,1 must not repeat a number"),
        (("seeds=1,01",), "seeds=1,01 must not repeat a number"),
        (("epochs=0",), "epochs=0 must be whole numbers"),
        (("epochs=2,3",), "epochs=2,3 must be"),
        (("epochs=4", "every=3"), "every=3 must divide epochs=4"),
        (("every=0",), "every=0 must be whole numbers"),
        (("jobs=0",), "jobs=0 must be whole numbers"),
        (("privacy.target_epsilon=-1",), "privacy.target_epsilon=-1"),
        (("privacy.targt_epsilon=1",), "privacy.targt_epsilon is not a setting"),
        (("data.root=absent",), "absent does not exist"),
    ],
)
def test_wrong_input_is_refused_in_one_line(cli, clone, cache, tmp_path, arguments, said):
    asked = ("experiment=dbr9", *settings_of(clone, cache), *arguments, f"hydra.run.dir={tmp_path / 'run'}")
    code, out, err = cli("reproduce", *asked)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run" / "table.csv").exists()


def test_the_list_shows_every_row_with_its_groups_and_runs_nothing(cli, tmp_path):
    code, out, err = cli("reproduce", "--list", f"hydra.run.dir={tmp_path / 'run'}")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == [row.key for row in experiments()]
    assert all(all(group in line for group in row.groups) for row, line in zip(experiments(), out.splitlines(), strict=True))
    assert not (tmp_path / "run").exists()
    code, out, _ = cli("reproduce", "--list", "experiment=pretrain")
    assert (code, {line.split()[0] for line in out.splitlines()}) == (0, {row.key for row in select("pretrain")})


def test_every_row_composes_to_a_training_of_its_own():
    rows = [(row, row.settings(["data.root=x", *(backbones()["lite0"] if row.paper else ())])) for row in experiments()]
    for row, settings in rows:
        assert settings.data.source == "mammo_dp"
        assert row.paper == ("paper" in row.groups)
        if not row.paper:
            unit, source, sites, epsilon = row.key.split("-")
            assert (settings.privacy.unit, settings.synthesis.source) == (unit, source)
            assert (settings.federation.num_sites, settings.privacy.target_epsilon) == (int(sites), float(epsilon))
    assert len({settings.sha256() for _, settings in rows}) == len({row.key for row, _ in rows}) == len(rows)


def test_epochs_are_so_many_steps_whatever_the_rounds_that_they_are_cut_into(clone, cache, tmp_path):
    rows = {**vars(plan_of(clone, cache)), "rows": select("dbr9,dbr12,dbr15"), "epochs": 6}
    for every in (1, 2, 3, 6):
        found = {job.key: job.settings.federation for job in jobs_of(Plan(**{**rows, "every": every}), tmp_path)}
        assert {key: federation.rounds for key, federation in found.items()} == {
            "dbr9": 6 // every,
            "dbr12": 6 // every,
            "dbr15": 0,
        }
        assert (found["dbr9"].local_steps, found["dbr12"].local_steps) == (9 * every, 24 * every)


def test_groups_choose_rows_in_the_order_of_the_table():
    keys = [row.key for row in experiments()]
    assert [row.key for row in select("all")] == keys
    assert [row.key for row in select("beyond,paper")] == keys
    assert [row.key for row in select("dbr9, dbr0")] == sorted(["dbr9", "dbr0"], key=keys.index)
    with pytest.raises(InvalidSetting, match="experiment=nothing must be all, a group"):
        select("dbr9,nothing")


def test_a_patient_cohort_that_is_not_public_is_not_cross_validated_or_compared(table, cache, tmp_path):
    jobs = jobs_of(
        Plan(
            rows=select("image-phantom-1-1"),
            seeds=(1,),
            cv_seeds=(),
            epochs=2,
            overrides=(*SMALL, f"engine.cache={cache}", "data=csv", f"data.root={table.path}"),
        ),
        tmp_path,
    )
    with pytest.raises(InvalidSetting, match="runs on published cohorts only"):
        run_jobs(jobs, processes=1)


def test_jobs_of_other_settings_have_other_folders(clone, cache, tmp_path):
    plan = plan_of(clone, cache)
    jobs = jobs_of(plan, tmp_path)
    assert len({job.folder for job in jobs}) == len(jobs) == 8
    changed = jobs_of(Plan(**{**vars(plan), "epochs": 3}), tmp_path)
    # A row that trains on no patient has no rounds, and the recipe has its own number: only the paper's rows that train change.
    moved = {job.key for job, other in zip(jobs, changed, strict=True) if job.folder != other.folder}
    assert moved == {key for key in ("dbr9", "dbr15") if "federation.rounds=0" not in select(key)[0].overrides}
