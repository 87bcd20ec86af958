"""What people write for a class, a view, a side, a patient: one place that reads it for every archive."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Final

from mammo_fed.data.cohort import BENIGN, MALIGNANT
from mammo_fed.privacy.patient_identity import normal_identifier

__all__ = ["is_blank", "label_of", "side_of", "view_of", "whole"]

LABELS: Final[Mapping[str, int]] = {
    **dict.fromkeys(("malignant", "malign", "maligno", "maligna", "bösartig", "boesartig", "malin", "maligne"), MALIGNANT),
    **dict.fromkeys(("benign", "benigno", "benigna", "gutartig", "bénin", "bénigne", "benin"), BENIGN),
}
SIDES: Final[Mapping[str, str]] = {"l": "L", "left": "L", "r": "R", "right": "R"}
CC: Final = frozenset({"cc", "ccid", "idcc", "craniocaudal"})
MLO: Final = frozenset({"mlo", "mloid", "idmlo", "mediolateraloblique"})
# Views of mammography that are neither (PS3.16 CID 4014, and how they are shortened): the side is taken off before.
OTHERS: Final = frozenset(
    {"ml", "lm", "lmo", "sio", "iso", "xcc", "xccl", "xccm", "fb", "ccfb", "lat", "at", "cv", "tan", "rl", "rm", "spot", "mag"}
    | {"mediolateral", "lateromedial", "lateromedialoblique", "lateral", "caudocranial", "frombelow", "exaggeratedcraniocaudal"}
    | {"exaggeratedcraniocaudallaterally", "exaggeratedcraniocaudallateral", "exaggeratedcraniocaudalmedially"}
    | {"exaggeratedcraniocaudalmedial", "superolateraltoinferomedialoblique", "inferomedialtosuperolateraloblique"}
    | {"axillarytail", "cleavage", "cleopatra", "tangential", "specimen", "rolled", "rolledlateral", "rolledmedial", "oblique"}
)
MODIFIERS: Final = re.compile(r"(spot|mag|magnification|magnified|compression|rolled|tangential|tan)+")
BEFORE: Final = re.compile(r"(left|right|[lr])(?=\W|_|cc|ml|xcc|lm|sio|fb|craniocaudal|medio|latero|lat)(.+)")
AFTER: Final = re.compile(r"(.+?)(?:[\W_]+(?:left|right|[lr])|left|right)")


def label_of(text: str) -> int | None:
    """MALIGNANT or BENIGN, or None for another word."""
    return LABELS.get(unicodedata.normalize("NFC", text).strip().casefold())


def side_of(text: str) -> str:
    """ "L" or "R", or "" for another word."""
    return SIDES.get(text.strip().casefold(), "")


def view_of(text: str) -> str | None:
    """ "CC" or "MLO"; "" for no view or another one of mammography; None for what is no view.

    >>> [view_of(text) for text in ("LCC", "r-mlo", "cc", "L CC", "Left CC", "MLO_R", "XCCL", "ML", "")]
    ['CC', 'MLO', 'CC', 'CC', 'CC', 'MLO', '', '', '']
    """
    text = text.strip().casefold()
    for side in (BEFORE.fullmatch(text), AFTER.fullmatch(text)):
        if side is not None:
            text = side[2] if side.re is BEFORE else side[1]
            break
    word = re.sub(r"[\W_]+", "", text)
    if word in CC:
        return "CC"
    if word in MLO:
        return "MLO"
    # A spot view or a magnification of a CC is no CC of the breast.
    rest = MODIFIERS.sub("", word)
    return "" if not word or word in OTHERS or (rest != word and rest in {"", *CC, *MLO, *OTHERS}) else None


def is_blank(identifier: str) -> bool:
    """Whether nothing of it is seen."""
    return not normal_identifier(identifier)


def whole(text: str) -> str:
    """A whole number as a data frame writes one that it took for a decimal, without its zeros; other text as it is.

    >>> whole("17.0"), whole("17"), whole("1.5"), whole("P17.0")
    ('17', '17', '1.5', 'P17.0')
    """
    found = re.fullmatch(r"([0-9]+)[.,]0+", text.strip())
    return found[1] if found else text.strip()
