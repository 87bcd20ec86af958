"""Phantom patients as DICOM archives: every form and encoding is ingested again, pixel by pixel as it was drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from mammo_fed.cli.main import main
from mammo_fed.data.cohort import Cohort
from mammo_fed.data.dicom.archives.registry import SOURCES
from mammo_fed.data.dicom.geometry import CropRule
from mammo_fed.data.dicom.ingest import Ingested, IngestPlan, ingest
from mammo_fed.data.dicom.patch import PatchRecipe
from mammo_fed.data.dicom.phantom_archive.tree import FORMS, Drawn, Form, PhantomTree, write_phantom_tree
from mammo_fed.data.dicom.phantom_archive.writing import DEPTHS, ENCODINGS, Depth, largest_value
from mammo_fed.data.phantom.hospitals import phantom_cohort
from mammo_fed.data.phantom.masses import EXTERNAL_STYLE
from mammo_fed.data.pseudonyms import Pseudonyms
from mammo_fed.data.sources.cohort_folder import check_cohort_folder
from mammo_fed.errors import InvalidSetting

SIZE = 32


def phantom(images: int = 8) -> Cohort:
    return phantom_cohort(
        name="tree", num_images=images, style=EXTERNAL_STYLE, d_prime=2.4, image_size=SIZE, seed=3, split="train"
    )


def archive(root: Path, **changes: object) -> tuple[Drawn, ...]:
    return write_phantom_tree(root, phantom(), tree=PhantomTree(**{"form": "csv", "rows": 160, "columns": 128, **changes}))  # type: ignore[arg-type]


def ingested(root: Path, out: Path, form: Form) -> tuple[Ingested, Cohort | None]:
    recipe = PatchRecipe(crop=CropRule(margin=0.0, smallest=1, size=SIZE), windowing="stored", modality="MG")
    plan = IngestPlan(source=form, recipe=recipe, public=True, processes=2)
    done = ingest(SOURCES[form](root), out, plan=plan, pseudonyms=Pseudonyms.kept_at(out.with_name("salt")))
    return done, check_cohort_folder(out, public=True, reference=None)[0] if done.images else None


def as_patch(values: NDArray[np.integer], depth: Depth) -> bytes:
    """What a patch file must hold: bright is high, black 0, white 65535."""
    dtype, _, photometric = DEPTHS[depth]
    steps = values.astype(np.int64) - (np.iinfo(dtype).min if dtype.startswith("int") else 0)
    steps = largest_value(depth) - steps if photometric == "MONOCHROME1" else steps
    intensity = (steps / largest_value(depth)).astype(np.float32).astype(np.float64)
    return np.round(intensity * 65535).astype(np.uint16).tobytes()


def patches_of(out: Path) -> list[bytes]:
    from PIL import Image

    return sorted(np.asarray(Image.open(path)).astype(np.uint16).tobytes() for path in (out / "patches").iterdir())


@pytest.mark.parametrize("encoding", list(ENCODINGS))
@pytest.mark.parametrize("depth", list(DEPTHS))
def test_phantom_tree_in_every_encoding_is_ingested_exactly_as_it_was_drawn(tmp_path, encoding, depth):
    pytest.importorskip("gdcm", reason="needs the extra 'dicom'")
    drawn = archive(tmp_path / "tree", encoding=encoding, depth=depth)
    done, cohort = ingested(tmp_path / "tree", tmp_path / "cohort", "csv")
    assert (done.images, done.refused) == (8, {})
    assert patches_of(tmp_path / "cohort") == sorted(as_patch(one.values, depth) for one in drawn)
    assert cohort is not None
    assert sorted(cohort.labels.tolist()) == sorted(one.label for one in drawn)
    assert cohort.num_patients == len({one.patient for one in drawn})


@pytest.mark.parametrize("form", FORMS)
def test_phantom_tree_in_the_form_of_every_source_is_ingested(tmp_path, form):
    drawn = archive(tmp_path / "tree", form=form)
    done, cohort = ingested(tmp_path / "tree", tmp_path / "cohort", form)
    assert done.refused == {}
    assert done.images + done.unlabelled == done.findings == len(drawn)
    if form in ("inbreast", "vindr_mammo"):
        assert done.unlabelled == len(drawn)
    else:
        assert cohort is not None
        assert sorted(cohort.labels.tolist()) == sorted(one.label for one in drawn)
        assert cohort.num_patients == len({one.patient for one in drawn})
        assert sorted(cohort.views.tolist()) == sorted(one.view for one in drawn)
    if form != "cmmd":
        assert patches_of(tmp_path / "cohort") == sorted(as_patch(one.values, "mono2_16") for one in drawn)


def test_phantom_tree_is_the_same_twice_and_overwrites_nothing(tmp_path):
    for name in ("one", "two"):
        archive(tmp_path / name, form="cbis_ddsm", encoding="rle")
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) == 8 * 3 + 2
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)
    with pytest.raises(InvalidSetting, match="must be new or empty"):
        archive(tmp_path / "one")


def test_phantom_tree_in_lossless_jpeg_does_not_depend_on_the_clock(tmp_path):
    pytest.importorskip("gdcm", reason="needs the extra 'dicom'")
    archive(tmp_path / "one", encoding="jpeg_lossless")
    # gdcm's clock counts microseconds; two trees written one after the other would differ by it.
    archive(tmp_path / "two", encoding="jpeg_lossless")
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.dcm"))
    assert len(files) == 8
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)
    assert {pydicom.dcmread(tmp_path / "one" / file).StudyDate for file in files} == {"20000101"}


def test_phantom_tree_masks_and_crops_change_places_and_series(tmp_path):
    archive(tmp_path / "tree", form="cbis_ddsm")
    beside = [path for path in (tmp_path / "tree").rglob("*.dcm") if path.parts[len(tmp_path.parts) + 1].endswith("_1")]
    first = {pydicom.dcmread(path).Rows for path in beside if path.name == "1-1.dcm"}
    assert first == {SIZE, 160}
    assert len({len(list(path.parent.iterdir())) for path in beside}) == 2


def test_phantom_tree_refuses_patches_that_do_not_fit(tmp_path):
    with pytest.raises(InvalidSetting, match="do not fit"):
        archive(tmp_path / "tree", rows=33)


@pytest.mark.parametrize("form", ["csv", "cbis_ddsm", "bcdr", "cmmd", "embed"])
def test_phantom_tree_of_every_labelled_form_runs_from_archive_to_record(tmp_path, form, capsys):
    tree = ["--form", form, "--encoding", "rle", "--images", "16", "--size", "32", "--rows", "96", "--columns", "80"]
    assert main(["data", "phantom", str(tmp_path / "tree"), *tree]) == 0
    said = capsys.readouterr().err.split("then: mammo-fed ")[1].split("\n")[0]
    split = ["--split", "train"] if form in ("bcdr", "cmmd") else []
    assert said.endswith(" ".join(["--public", *split]))
    out = tmp_path / "cohort"
    assert main(["data", "ingest", str(tmp_path / "tree"), str(out), "--source", form, "--public", "--size", "32", *split]) == 0
    run = ["simulate", "data=cohort", f"data.root={out}", "data.public=true", "federation.num_sites=2", "federation.rounds=1"]
    run += ["model=efficientnet_lite0", "model.input_size=32", "synthesis.count=16", "data.image_size=32", "model.components=8"]
    assert main([*run, "--json", f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["data"]["source"] == "cohort"
    assert sum(site["images"] for site in record["data"]["sites"]) >= 16


def test_steps_to_public_data_are_printed_and_nothing_is_downloaded(capsys):
    for name in ("mammo_dp", "cbis_ddsm", "cmmd", "bcdr", "inbreast"):
        assert main(["data", "fetch", name, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["steps"]


@pytest.mark.parametrize("seed", [0, 1])
def test_phantom_tree_of_the_usual_size_passes_its_preflight(tmp_path, seed, capsys):
    """Nothing around a mass is the same in all crops, so that no two are taken for copies of one image."""
    tree, out = tmp_path / "tree", tmp_path / "cohort"
    assert main(["data", "phantom", str(tree), "--form", "cbis_ddsm", "--images", "30", "--seed", str(seed)]) == 0
    assert main(["data", "ingest", str(tree), str(out), "--source", "cbis_ddsm", "--public"]) == 0
    assert main(["data", "check", str(out), "--json"]) == 0, capsys.readouterr().out
