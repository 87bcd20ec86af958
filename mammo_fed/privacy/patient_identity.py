"""Who is one patient: the one place that compares identifiers, for cohorts, pseudonyms, ledgers and everything that counts.

Two identifiers name one patient exactly where `normal_identifier` gives the same text. Whatever clips, samples, counts,
divides, resamples or charges by patient asks here, so that nobody is one patient to a ledger and two to a mechanism.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mammo_fed.errors import DataError

__all__ = [
    "caseless",
    "count_patients",
    "is_placeholder",
    "loose_identifiers",
    "normal_identifier",
    "patient_index",
    "require_identifier",
    "respelt",
]

# Default-ignorable characters that are no format characters (Unicode 15, DerivedCoreProperties).
IGNORABLE: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff]"
)
# Letters of other scripts that look like Latin ones in most typefaces (Unicode TR 39, of single letters).
LOOKALIKES: Final = str.maketrans("аверсорхукмнтіјѕԁһԛԝɡαβερονχυικτμ", "abepcopxykmhtijsdhqwgabepovxyiktm")
# A whole number as spreadsheets and data frames write one that was read as a decimal.
DECIMAL_ZERO: Final = re.compile(r"([0-9]+)[.,]0+")
RUNS: Final = re.compile(r"[0-9]+|[^\W\d_]+")
# What anonymisers and people write where there is no identifier, as `_letters` gives it.
PLACEHOLDERS: Final = frozenset(
    {"", "0", "anon", "anonym", "anonymised", "anonymized", "anonymous", "anonymouspatient", "anonymize", "anonymise"}
    | {"blank", "confidential", "deidentified", "dummy", "empty", "hidden", "id", "masked", "missing", "mrn", "na", "nan"}
    | {"nil", "no", "noid", "noidentifier", "noname", "none", "nopatientid", "notapplicable", "notavailable", "notknown"}
    | {"null", "patient", "patientid", "pid", "private", "pseudonym", "redacted", "removed", "deleted", "subject", "test"}
    | {"undefined", "unidentified", "unknown", "unknownpatient", "unnamed", "withheld", "xid", "erased", "cleared"}
)
REPEATED: Final = re.compile(r"(x+|z+|9{4,})")
CACHED: Final = 1 << 16


@lru_cache(maxsize=CACHED)
def normal_identifier(identifier: str) -> str:
    """An identifier without what people do not see or do not mean: case, width, composition, invisible characters, blanks.

    The text decides who is one patient, and the digests of every ledger are made from it: it must never change.

    >>> normal_identifier(" \\uff30-1\\u200b  Left\\t") == normal_identifier("p-1 left")
    True
    """
    if identifier.isascii() and identifier.isprintable():
        return " ".join(identifier.casefold().split())
    # Twice, as each normal form can bring forth what the other step changes.
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", _visible(identifier)).casefold())
    return " ".join(unicodedata.normalize("NFKC", _visible(folded)).split())


def _visible(text: str) -> str:
    """`text` with every kind of blank as a space, and without control and default-ignorable characters."""
    spaced = (" " if character.isspace() else character for character in text)
    return "".join(
        character
        for character in spaced
        if unicodedata.category(character) not in ("Cc", "Cf") and not IGNORABLE.match(character)
    )


def caseless(text: str) -> str:
    """A name without case, outer blanks and Unicode form: how pseudonyms compare what is no patient.

    Patients were compared so, too, by cohorts that were ingested before `normal_identifier` did it everywhere.
    """
    return unicodedata.normalize("NFKC", text).strip().casefold()


def require_identifier(identifier: str, *, where: str) -> str:
    """`normal_identifier` of an identifier that names somebody.

    Args:
      identifier: as the source writes it.
      where: what the identifier belongs to, for the message; the identifier itself is not in it.

    Raises:
      DataError: If nothing of it is visible, or it is no text that can be encoded.
    """
    normal = normal_identifier(identifier)
    if not normal:
        raise DataError(f"{where}: patient is empty, the identifier is blank; give every image its patient's identifier")
    if any(unicodedata.category(character) == "Cs" for character in normal):
        raise DataError(f"{where}: the patient identifier is no text that can be encoded; correct it")
    return normal


def respelt(identifiers: Sequence[str]) -> tuple[int, int] | None:
    """Positions of the first identifier that repeats an earlier one in another spelling, the earlier one first; else None."""
    first: dict[str, int] = {}
    for position, identifier in enumerate(identifiers):
        earlier = first.setdefault(normal_identifier(identifier), position)
        if identifiers[earlier] != identifier:
            return earlier, position
    return None


def patient_index(patients: Sequence[Any] | NDArray[Any]) -> NDArray[np.int64]:
    """Dense index of the patient of every row, int64, shape (rows,); rows of one patient have one index whatever the spelling.

    Args:
      patients: identifiers as text, or numbers that somebody else made dense; shape (rows,).

    Returns:
      From 0, in the order of the identifiers' first spelling by code points.
    """
    spellings, index = np.unique(np.asarray(patients), return_inverse=True)
    index = index.astype(np.int64)
    if spellings.dtype.kind != "U":
        return index
    seen: dict[str, int] = {}
    of_spelling = [seen.setdefault(normal_identifier(spelling), len(seen)) for spelling in spellings.tolist()]
    return np.array(of_spelling, dtype=np.int64)[index]


def count_patients(patients: Sequence[Any] | NDArray[Any]) -> int:
    """Number of patients among identifiers."""
    return int(patient_index(patients).max(initial=-1)) + 1


@lru_cache(maxsize=CACHED)
def loose_identifiers(identifier: str) -> frozenset[str]:
    """Forms of an identifier that a second one shares where a person might have meant the same by both.

    Separators, dashes, apostrophes, accents, leading zeros and the order of words make no difference, nor do digits and letters
    of other scripts that look alike, and `17.0` is what a spreadsheet makes of `17`. No proof that two are one patient: it is
    for warnings, and charges nobody.

    >>> not loose_identifiers("P-017").isdisjoint(loose_identifiers("p17"))
    True
    """
    letters = _letters(identifier)
    number = DECIMAL_ZERO.fullmatch(letters)
    return _loose_forms(letters) if number is None else _loose_forms(letters) | _loose_forms(number[1])


def _loose_forms(letters: str) -> frozenset[str]:
    runs = RUNS.findall(letters)
    by_run = [run.lstrip("0") or "0" if run[0].isdigit() else run for run in runs]
    joined = [run.lstrip("0") or "0" if run[0].isdigit() else run for run in RUNS.findall("".join(runs))]
    # Names are written with the family's first or last; numbers have an order that matters.
    words = sorted(by_run) if not any(run[0].isdigit() for run in by_run) else by_run
    return frozenset({"joined " + "".join(joined), "runs " + " ".join(by_run), "words " + " ".join(words)})


def is_placeholder(identifier: str) -> bool:
    """Whether an identifier is what is written where there is none, such as ANONYMOUS, REMOVED, N/A, 0 or XXXX."""
    letters = "".join(RUNS.findall(_letters(identifier)))
    bare = letters.rstrip("0") if not letters.isdigit() else letters.lstrip("0") or "0"
    return letters in PLACEHOLDERS or bare in PLACEHOLDERS or bool(REPEATED.fullmatch(letters))


def _letters(identifier: str) -> str:
    """Lower-case letters without accents, digits as 0 to 9, and whatever separates them."""
    apart = unicodedata.normalize("NFKD", normal_identifier(identifier))
    digits = (str(unicodedata.decimal(one)) if one.isdecimal() else one for one in apart if not unicodedata.combining(one))
    return "".join(digits).translate(LOOKALIKES)
