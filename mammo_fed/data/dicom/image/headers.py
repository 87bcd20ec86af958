"""DICOM files opened with care: bounded, quiet, and every fault of a file turned into a reason.

What pydicom would log or warn about quotes values of the file, names among them: it is silenced here, for the whole process.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import stat
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

import pydicom
from pydicom import Dataset, FileDataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import _read_file_meta_info
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from mammo_fed.data.dicom.findings import Skipped
from mammo_fed.privacy.patient_identity import is_placeholder, normal_identifier

__all__ = ["code_of", "codes_of", "dataset", "identities_of", "number_of", "opened", "parse", "quietly", "regular", "text_of"]

LARGEST_FILE: Final = 256 << 20
PREAMBLE: Final = 128
Value = TypeVar("Value")

pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)


def dataset(path: Path) -> FileDataset:
    """The whole file, pixels not decoded.

    Raises:
      Skipped: If it is no DICOM file, too large or damaged.
    """
    with opened(path) as file:
        return quietly(lambda: parse(file, path), path)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """A DICOM file, at its start.

    Raises:
      Skipped: If it cannot be read, is too large or is no DICOM file.
    """
    with regular(path) as file:
        start = file.read(PREAMBLE + 4)
        if start[PREAMBLE:] != b"DICM" and not _begins_like_a_data_set(start):
            raise Skipped("not_dicom", f"{path} is not a DICOM file")
        file.seek(0)
        yield file


@contextlib.contextmanager
def regular(path: Path) -> Iterator[io.BufferedReader]:
    """A file, at its start.

    Raises:
      Skipped: If it cannot be read, is too large or is no regular file.
    """
    try:
        # A pipe would be waited for until somebody writes into it.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Skipped("not_dicom", f"{path} is no regular file")
            size = os.fstat(descriptor).st_size
            if size > LARGEST_FILE:
                raise Skipped("too_large", f"{path} has {size} bytes; at most {LARGEST_FILE} are read")
            yield file
    except OSError as error:
        raise Skipped("missing_file", f"{path} cannot be read ({error.strerror})") from error


def parse(file: io.BufferedReader, path: Path) -> FileDataset:
    """The file as pydicom reads it; a deflated one only where it inflates within bounds. Call it through `quietly`.

    A data set alone, as archives and old exports store it (without preamble, or without the whole of group 2), is read too: its
    first element tells how it is encoded, unless its pixels are compressed.

    Raises:
      Skipped: If it inflates to too much, or its transfer syntax is unknown; pydicom raises whatever it likes.
    """
    file.seek(0)
    whole = file.read(PREAMBLE + 4)[PREAMBLE:] == b"DICM"
    meta = _read_file_meta_info(file) if whole else Dataset()
    syntax = meta.get("TransferSyntaxUID")
    if syntax is not None and not UID(syntax).is_transfer_syntax:
        raise Skipped("unsupported_encoding", f"{path} has no known transfer syntax")
    if syntax == DeflatedExplicitVRLittleEndian:
        _check_deflated(file, path)
    file.seek(0)
    # Without a transfer syntax pydicom looks at the first element, if it is told to.
    header = pydicom.dcmread(file, force=syntax is None)
    if "TransferSyntaxUID" not in header.file_meta:
        header.file_meta.TransferSyntaxUID = _syntax_of(header, path)
    return header


def _begins_like_a_data_set(start: bytes) -> bool:
    """Whether the first bytes are an element of the groups that a data set or a meta header begins with (PS3.5, 7.1)."""
    group, element = start[:2], start[2:4]
    if group in (b"\x02\x00", b"\x08\x00"):
        return element[1:] == b"\x00" or start[4:6].isalpha()
    return group == b"\x00\x08" and start[4:6].isalpha()


def _syntax_of(header: FileDataset, path: Path) -> UID:
    """How a data set is encoded that does not say it.

    Raises:
      Skipped: If it holds compressed pixels: nothing says by which method.
    """
    implicit, little = header.original_encoding
    if "PixelData" in header and header["PixelData"].is_undefined_length:
        raise Skipped("unsupported_encoding", f"{path} has no meta header that says how its pixels are compressed")
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _check_deflated(file: io.BufferedReader, path: Path) -> None:
    """Inflate without keeping more than the bound: what is small on the disk may be huge in memory."""
    inflater, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while not inflater.eof and (given := inflater.unconsumed_tail or file.read(1 << 20)):
        total += len(inflater.decompress(given, 1 << 20))
        if total > LARGEST_FILE:
            raise Skipped("too_large", f"{path} inflates to more than {LARGEST_FILE} bytes")


def quietly(read: Callable[[], Value], path: Path) -> Value:
    """Run a parser of `path`: whatever it raises is one reason, and its text, which may quote the file, is dropped.

    Raises:
      Skipped: If it raises anything.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read()
    except Skipped:
        raise
    except InvalidDicomError as error:
        raise Skipped("not_dicom", f"{path} is not a DICOM file") from error
    except MemoryError as error:
        raise Skipped("too_large", f"{path} does not fit into memory") from error
    except Exception as error:
        raise Skipped("damaged", f"{path} cannot be parsed ({type(error).__name__})") from error


def text_of(header: Dataset, name: str) -> str:
    """An attribute as text; a damaged one is empty."""
    try:
        value = header.get(name)
    except Exception:  # noqa: BLE001 - pydicom converts values when they are asked for, and damaged ones fail in any way
        return ""
    return "" if value is None else str(value).strip()


def code_of(header: Dataset, name: str) -> str:
    """A code string (VR CS) as the standard writes it: devices pad it with NUL, and write it in lower case."""
    return text_of(header, name).strip(" \0").upper()


def codes_of(header: Dataset, name: str) -> tuple[str, ...]:
    """The values of a code string with several, as `code_of`; none where it is absent or damaged."""
    try:
        value = header.get(name)
    except Exception:  # noqa: BLE001 - as in text_of
        return ()
    values = [value] if isinstance(value, str) else list(value or ())
    return tuple(str(one).strip(" \0").upper() for one in values)


def identities_of(header: Dataset) -> dict[str, str]:
    """What a header says of which image, examination and person it is, by a word for each; "" where it says nothing.

    A placeholder such as ANONYMOUS or 0 says nothing. The values identify people: whoever keeps them keeps keyed digests.
    """
    patient, issuer = text_of(header, "PatientID"), text_of(header, "IssuerOfPatientID")
    return {
        "instance": text_of(header, "SOPInstanceUID"),
        "study": text_of(header, "StudyInstanceUID"),
        "header_patient": "" if is_placeholder(patient) else f"{normal_identifier(issuer)}\0{normal_identifier(patient)}",
    }


def number_of(header: Dataset, name: str, *, otherwise: int | None = None) -> int:
    """An attribute as a whole number; `otherwise` where it is absent or empty.

    Raises:
      Skipped: If it is none.
    """
    text = text_of(header, name)
    if not text and otherwise is not None:
        return otherwise
    try:
        return int(text)
    except ValueError as error:
        raise Skipped("damaged", f"the header's {name} is no whole number") from error
