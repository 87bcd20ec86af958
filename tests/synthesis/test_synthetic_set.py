"""A synthetic set as an artefact: written whole, read with every byte checked."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from mammo_fed.data.cohort import Cohort
from mammo_fed.data.sources.synthetic_set import (
    Donor,
    GeneratorOrigin,
    SetPrivacy,
    SetProvenance,
    image_digests,
    is_synthetic_set,
    read_provenance,
    read_synthetic_set,
    write_synthetic_set,
)
from mammo_fed.errors import DataError, InvalidSetting

ORIGIN = SetProvenance(
    generator=GeneratorOrigin(kind="mcgan", sha256="a" * 64, settings_sha256="b" * 64, step=6, chosen="last"),
    donor=Donor(name="hospital", source="csv", public=False, patients=40, images=80, fingerprint="c" * 64, image_digests=()),
    privacy=SetPrivacy(
        unit="patient",
        epsilon=6.0,
        delta=1e-4,
        patient_epsilon=6.0,
        accountant="pld",
        noise="operating system",
        events="[]",
        ledger="site",
    ),
    seed=3,
    licence="CC-BY-4.0",
)


@pytest.fixture
def written(tmp_path, images):
    folder = tmp_path / "set"
    write_synthetic_set(folder, images(6), np.arange(6) % 2, provenance=ORIGIN)
    return folder


def test_synthetic_set_comes_back_as_it_was_written(written, images):
    cohort, provenance = read_synthetic_set(written)
    assert np.abs(cohort.pixels - images(6)).max() <= 0.5 / 255 + 1e-6
    assert cohort.labels.tolist() == [0, 1] * 3
    assert cohort.public
    assert (provenance.images, provenance.malignant, provenance.image_size) == (6, 3, 32)
    assert provenance.generator == ORIGIN.generator
    assert provenance.donor == ORIGIN.donor
    assert provenance.privacy == ORIGIN.privacy
    assert is_synthetic_set(written)


def test_synthetic_set_has_the_same_hash_twice(written, tmp_path, images):
    again = write_synthetic_set(tmp_path / "again", images(6), np.arange(6) % 2, provenance=ORIGIN)
    assert again.sha256 == read_provenance(written).sha256
    for changed in (replace(ORIGIN, seed=4), replace(ORIGIN, licence="other"), replace(ORIGIN, privacy=None)):
        folder = tmp_path / f"changed-{changed.seed}-{changed.licence}-{changed.privacy is None}"
        assert write_synthetic_set(folder, images(6), np.arange(6) % 2, provenance=changed).sha256 != again.sha256


def test_synthetic_set_refuses_a_flipped_byte_anywhere(written):
    """Of every file, bytes spread over all of it; the last newline of the provenance alone means nothing."""
    for path in sorted(path for path in written.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for place in np.unique(np.linspace(0, len(content) - 2, 40).astype(int)):
            flipped = bytearray(content)
            flipped[place] ^= 1
            path.write_bytes(flipped)
            with pytest.raises(DataError):
                read_synthetic_set(written)
        path.write_bytes(content)
    read_synthetic_set(written)


@pytest.mark.parametrize("harm", ["missing", "additional", "exchanged", "link", "no_table", "not_json", "other_format"])
def test_synthetic_set_refuses_what_is_not_whole(written, harm, tmp_path):
    first, second = sorted((written / "images").iterdir())[:2]
    if harm == "missing":
        first.unlink()
    elif harm == "additional":
        (written / "images" / "000099_benign.png").write_bytes(first.read_bytes())
    elif harm == "exchanged":
        one, other = first.read_bytes(), second.read_bytes()
        first.write_bytes(other)
        second.write_bytes(one)
    elif harm == "link":
        first.rename(tmp_path / "elsewhere.png")
        first.symlink_to(tmp_path / "elsewhere.png")
    elif harm == "no_table":
        (written / "images.csv").unlink()
    elif harm == "not_json":
        (written / "provenance.json").write_text("[" * 100_000)
    else:
        values = json.loads((written / "provenance.json").read_text())
        (written / "provenance.json").write_text(json.dumps({**values, "format": "another"}))
    with pytest.raises(DataError):
        read_synthetic_set(written)


def test_synthetic_set_refuses_an_improved_provenance(written):
    """Whoever lowers epsilon must also find a new hash, and then it is not the set that others know."""
    path = written / "provenance.json"
    values = json.loads(path.read_text())
    values["privacy"]["epsilon"] = 0.1
    path.write_text(json.dumps(values))
    with pytest.raises(DataError, match="hash"):
        read_provenance(written)


def test_synthetic_set_can_be_held_against_a_hash_known_from_elsewhere(written):
    known = read_provenance(written).sha256
    read_synthetic_set(written, expected_sha256=known)
    with pytest.raises(DataError, match="not the expected"):
        read_synthetic_set(written, expected_sha256="0" * 64)


def test_synthetic_set_is_not_written_over_anything(written, images):
    with pytest.raises(InvalidSetting, match="holds something"):
        write_synthetic_set(written, images(2), np.arange(2), provenance=ORIGIN)


def test_synthetic_set_says_in_a_word_what_its_generator_promises():
    injected = replace(ORIGIN, privacy=replace(ORIGIN.privacy, noise="injected"))
    assert [one.kind for one in (ORIGIN, injected, replace(ORIGIN, privacy=None))] == ["dp", "no_dp", "no_dp"]
    assert replace(ORIGIN, privacy=None, donor=replace(ORIGIN.donor, source="unknown")).kind == "unknown"


def test_synthetic_set_digests_are_for_public_cohorts_only(images):
    names = np.array([f"i{row}" for row in range(4)])
    columns = {"labels": np.arange(4) % 2, "patients": names, "images": names}
    blank = np.full(4, "", dtype=np.str_)
    public = Cohort(name="c", pixels=images(4), views=blank, splits=np.full(4, "train"), public=True, **columns)
    assert len(image_digests(public)) == 4
    assert image_digests(public.select(np.array([2, 0]))) == tuple(sorted(set(image_digests(public.select(np.array([0, 2]))))))
    with pytest.raises(DataError, match="not public"):
        image_digests(replace(public, public=False))


def test_relation_of_a_sets_price_to_floating_point_is_under_its_hash_and_older_sets_are_read(tmp_path, images):
    pixels, labels = images(2), np.array([0, 1])
    exact, floating = (
        write_synthetic_set(
            tmp_path / str(kind), pixels, labels, provenance=replace(ORIGIN, privacy=replace(ORIGIN.privacy, floating=kind))
        )
        for kind in (False, True)
    )
    assert exact.sha256 != floating.sha256
    assert read_provenance(tmp_path / "True").privacy.floating
    assert not read_provenance(tmp_path / "False").privacy.floating
    # As earlier versions wrote it: no word of it.
    assert "floating" not in (tmp_path / "False" / "provenance.json").read_text(encoding="utf-8")
