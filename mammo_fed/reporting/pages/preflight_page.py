"""What a cohort's preflight found, as one page for the site's own people: it shows patients' images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from mammo_fed.common.private_files import write_private
from mammo_fed.data.cohort import BENIGN, MALIGNANT, Cohort
from mammo_fed.data.preflight import Finding, count_text
from mammo_fed.privacy.patient_identity import count_patients
from mammo_fed.reporting.pages.pictures import Picture, picture
from mammo_fed.reporting.pages.rendering import Figure, Table, render
from mammo_fed.reporting.plots.svg import SERIES, Svg, draw

__all__ = ["write_preflight_page"]

SHEET_COLUMNS: Final = 10
SHEET_ROWS: Final = 6
THUMB_PIXELS: Final = 96
BINS: Final = 64


def write_preflight_page(
    path: Path, cohort: Cohort, findings: Sequence[Finding], *, refused: Mapping[str, int], identifying: Mapping[str, int]
) -> Path:
    """Write the page, readable by its owner only.

    Args:
      path: of the HTML file.
      cohort: labelled patches.
      findings: what the checks found.
      refused: findings without a patch, by reason.
      identifying: files of the archive by attribute that identifies people; empty where it was not looked at.

    Returns:
      `path`.
    """
    rows = [(one.name.replace("_", " "), one.level, one.message) for one in findings]
    reasons = [(reason.replace("_", " "), count_text(count, public=cohort.public)) for reason, count in sorted(refused.items())]
    names = [(name, str(count)) for name, count in identifying.items()]
    page = render(
        "preflight.html",
        checks=Table(head=("Check", "Outcome", "What was found"), rows=rows, caption="An error keeps the site out"),
        patches=Table(head=("Split and label", "Images", "Patients"), rows=_counts(cohort), caption="Class balance"),
        refused=Table(head=("Reason", "Findings"), rows=reasons, caption="Reasons"),
        headers=Table(head=("Attribute", "Files"), rows=names, caption="What the archive holds"),
        intensities=Figure(svg=_histogram(cohort), caption="Fraction of pixels by intensity, benign and malignant"),
        sheet=_sheet(cohort),
    )
    write_private(path, page.encode())
    return path


def _counts(cohort: Cohort) -> list[tuple[str, str, str]]:
    rows = []
    for split in sorted(set(cohort.splits.tolist())):
        for word, label in (("malignant", MALIGNANT), ("benign", BENIGN)):
            chosen = (cohort.splits == split) & (cohort.labels == label)
            patients = count_patients(cohort.patients[chosen])
            shown = (count_text(int(chosen.sum()), public=cohort.public), count_text(patients, public=cohort.public))
            rows.append((f"{split}, {word}", *shown))
    return rows


def _histogram(cohort: Cohort) -> Svg:
    def paint(axes: Any) -> None:
        edges = np.linspace(0.0, 1.0, BINS + 1)
        for word, label, (colour, dash, _) in zip(("benign", "malignant"), (BENIGN, MALIGNANT), SERIES, strict=False):
            patches = cohort.pixels[cohort.labels == label]
            if len(patches):
                counts = np.histogram(patches, bins=edges)[0]
                axes.stairs(counts / counts.sum(), edges, color=colour, linestyle=dash, label=word)
        axes.legend()
        axes.set_xlim(0, 1)

    return draw("intensities", paint, label="intensities of the patches", xlabel="Intensity", ylabel="Fraction of pixels")


def _sheet(cohort: Cohort) -> Picture:
    """Patches evenly spread over the cohort, as one embedded picture."""
    places = np.unique(np.linspace(0, len(cohort) - 1, SHEET_COLUMNS * SHEET_ROWS).astype(int))
    sheet = Image.new("L", (SHEET_COLUMNS * THUMB_PIXELS, -(-len(places) // SHEET_COLUMNS) * THUMB_PIXELS))
    for number, place in enumerate(places):
        values = (cohort.pixels[place] * 255).round().astype(np.uint8)
        thumb = Image.new("L", (THUMB_PIXELS, THUMB_PIXELS), 255 if cohort.labels[place] == MALIGNANT else 64)
        thumb.paste(Image.fromarray(values).resize((THUMB_PIXELS - 4, THUMB_PIXELS - 4)), (2, 2))
        sheet.paste(thumb, (number % SHEET_COLUMNS * THUMB_PIXELS, number // SHEET_COLUMNS * THUMB_PIXELS))
    return picture(sheet, title="patches of the cohort")
