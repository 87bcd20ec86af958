"""Phantom patients as an archive of DICOM files, in the form of each source: to try an ingestion without a patient's data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mammo_fed.data.cohort import Cohort
from mammo_fed.data.dicom.findings import Box
from mammo_fed.data.dicom.phantom_archive.tables import FORMS, TABLES, Drawn, Form, PhantomTree, path_of
from mammo_fed.data.dicom.phantom_archive.writing import mammogram_header, store, write_dicom
from mammo_fed.errors import InvalidSetting

__all__ = ["FORMS", "Drawn", "Form", "PhantomTree", "write_phantom_tree"]

# Mean brightness of the breast around a mass, in [0, 1]; the background is black.
BREAST: Final = 0.35
SIDES: Final = ("L", "R")
VIEWS: Final = ("CC", "MLO")


def write_phantom_tree(root: Path, cohort: Cohort, *, tree: PhantomTree) -> tuple[Drawn, ...]:
    """Write an archive with a mammogram for every patch of a phantom cohort; the same arguments give the same files.

    Args:
      root: folder to make; must be new or empty.
      cohort: drawn patches, square.
      tree: how the archive looks.

    Returns:
      What was drawn where, in the cohort's order.

    Raises:
      InvalidSetting: If the folder holds something, the patches do not fit into the mammograms, or an encoder is missing.
    """
    size = cohort.image_size[0]
    if root.exists() and any(root.iterdir()):
        raise InvalidSetting(f"FOLDER={root} must be new or empty, and it holds something; choose another")
    if size + 2 > min(tree.rows, tree.columns):
        raise InvalidSetting(f"patches of {size} pixels do not fit into mammograms of {tree.rows} x {tree.columns}")
    root.mkdir(parents=True, exist_ok=True)
    people: dict[str, list[int]] = {}
    for number, patient in enumerate(cohort.patients.tolist()):
        people.setdefault(patient, []).append(number)
    if max(map(len, people.values())) > len(SIDES) * len(VIEWS):
        raise InvalidSetting("a phantom patient has more than four patches; each goes into a mammogram of its own")
    persons = {patient: person for person, patient in enumerate(people)}
    drawn = []
    for number, patient in enumerate(cohort.patients.tolist()):
        image, one = _draw(cohort, number, tree, person=persons[patient], place=people[patient].index(number))
        header = mammogram_header(image, tree.depth, name=f"{cohort.name}/{number}", view=one.view, side=one.side)
        tree.decorate(header, one.patient)
        write_dicom(header, root / path_of(one, tree.form), tree.encoding)
        drawn.append(one)
    TABLES[tree.form](root, drawn, tree)
    return tuple(drawn)


def _draw(cohort: Cohort, number: int, tree: PhantomTree, *, person: int, place: int) -> tuple[NDArray[Any], Drawn]:
    """A breast-shaped canvas with the patch inside."""
    size, rng = cohort.image_size[0], np.random.default_rng([number, tree.rows, tree.columns])
    down, across = np.mgrid[-1 : 1 : tree.rows * 1j, 0 : 1 : tree.columns * 1j]
    inside = np.hypot(down, across / 0.9) < 1
    scene = np.where(inside, BREAST + 0.05 * rng.standard_normal(inside.shape), 0.0).astype(np.float32)
    top = int(rng.integers(1, tree.rows - size))
    left = int(rng.integers(1, max(2, (tree.columns - size) // 2 + 1)))
    scene = np.where(inside, _surrounded(scene, cohort.pixels[number], top=top, left=left), 0.0)
    scene[top : top + size, left : left + size] = cohort.pixels[number]
    stored = store(np.clip(scene, 0.0, 1.0), tree.depth)
    return stored, Drawn(
        patient=f"person-{person + 1}",
        label=int(cohort.labels[number]),
        view=VIEWS[place % 2],
        split="test" if str(cohort.splits[number]) in ("test", "external") else "train",
        side=SIDES[place // 2],
        number=number,
        box=Box(top=float(top), left=float(left), bottom=float(top + size), right=float(left + size)),
        values=stored[top : top + size, left : left + size].copy(),
    )


def _surrounded(scene: NDArray[np.float32], patch: NDArray[np.float32], *, top: int, left: int) -> NDArray[np.float32]:
    """The scene with the patch in it, mirrored beyond its border and faded into what lies around.

    A border would be the same in all crops, and a preflight would take them for copies of one another.
    """
    pad = len(patch) // 2
    ramp = np.minimum(1.0, np.arange(1, len(patch) + 2 * pad + 1) / (pad + 1))
    weight = (np.minimum(ramp, ramp[::-1])[:, None] * np.minimum(ramp, ramp[::-1])).astype(np.float32)
    # On a larger canvas, for what is mirrored may lie beyond the scene.
    canvas = np.pad(scene, pad)
    place = (slice(top, top + len(weight)), slice(left, left + len(weight)))
    canvas[place] = weight * np.pad(patch, pad, mode="reflect") + (1 - weight) * canvas[place]
    return canvas[pad:-pad, pad:-pad]
