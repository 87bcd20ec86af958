"""Mammograms as DICOM files, in every encoding that the reader knows: for phantoms, tests and trials of a hospital's export."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    DigitalMammographyXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from mammo_fed.errors import InvalidSetting

__all__ = ["DEPTHS", "ENCODINGS", "Depth", "Encoding", "largest_value", "mammogram_header", "store", "write_dicom"]

Encoding = Literal["explicit", "implicit", "deflated", "rle", "jpeg2000", "jpegls", "jpeg_lossless"]
Depth = Literal["mono1_12", "mono2_16", "mono2_8", "signed_16"]
ENCODINGS: Final[Mapping[Encoding, UID]] = {
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
    "rle": RLELossless,
    "jpeg2000": JPEG2000Lossless,
    "jpegls": JPEGLSLossless,
    "jpeg_lossless": JPEGLosslessSV1,
}
# (dtype, bits stored, photometric interpretation)
DEPTHS: Final[Mapping[Depth, tuple[str, int, str]]] = {
    "mono1_12": ("uint16", 12, "MONOCHROME1"),
    "mono2_16": ("uint16", 16, "MONOCHROME2"),
    "mono2_8": ("uint8", 8, "MONOCHROME2"),
    "signed_16": ("int16", 16, "MONOCHROME2"),
}
EXTRA: Final = 'pip install "mammo-fed[dicom]" brings the encoder'
# gdcm writes the clock where a header has no date.
DATE_FOR_GDCM: Final = "20000101"
TIME_FOR_GDCM: Final = "120000"


def largest_value(depth: Depth) -> int:
    """Number of steps between black and white."""
    return (1 << DEPTHS[depth][1]) - 1


def store(intensities: NDArray[np.float32], depth: Depth) -> NDArray[Any]:
    """Stored values of intensities in [0, 1], rounded."""
    dtype, _, photometric = DEPTHS[depth]
    steps = np.round(intensities.astype(np.float64) * largest_value(depth)).astype(np.int64)
    if photometric == "MONOCHROME1":
        steps = largest_value(depth) - steps
    return (steps + np.iinfo(dtype).min if dtype.startswith("int") else steps).astype(dtype)


def mammogram_header(stored: NDArray[Any], depth: Depth, *, name: str, view: str, side: str) -> Dataset:
    """A header with uncompressed pixels; `name` makes its identifiers, the same every time.

    Args:
      stored: shape (rows, columns), of the depth's dtype.
      depth: how values are stored.
      name: of the image.
      view: "CC" or "MLO".
      side: "L" or "R".
    """
    _, bits, photometric = DEPTHS[depth]
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = DigitalMammographyXRayImageStorageForPresentation
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = _uid("instance", name)
    header.StudyInstanceUID, header.SeriesInstanceUID = _uid("study", name), _uid("series", name)
    header.Modality, header.ViewPosition, header.ImageLaterality = "MG", view, side
    header.BurnedInAnnotation = "NO"
    header.ImagerPixelSpacing = [0.07, 0.07]
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, photometric
    header.Rows, header.Columns = stored.shape
    header.BitsAllocated, header.BitsStored, header.HighBit = 8 * stored.dtype.itemsize, bits, bits - 1
    header.PixelRepresentation = int(stored.dtype.kind == "i")
    middle = float(np.iinfo(stored.dtype).min) * (stored.dtype.kind == "i") + (1 << (bits - 1))
    header.WindowCenter, header.WindowWidth = middle, float(1 << bits)
    header.PixelData = stored.tobytes() + b"\0" * (stored.nbytes % 2)
    header["PixelData"].VR = "OB" if stored.dtype.itemsize == 1 else "OW"
    return header


def write_dicom(header: Dataset, path: Path, encoding: Encoding) -> Path:
    """Encode the pixels and write the file.

    Raises:
      InvalidSetting: If the encoder is not installed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    syntax = ENCODINGS[encoding]
    with warnings.catch_warnings():
        # What pydicom says of odd attributes quotes them.
        warnings.simplefilter("ignore")
        try:
            if syntax == JPEGLosslessSV1:
                _write_by_gdcm(header, path)
                return path
            if syntax.is_encapsulated:
                header.compress(syntax, generate_instance_uid=False)
            else:
                header.file_meta.TransferSyntaxUID = syntax
            header.save_as(path, enforce_file_format=True)
        except (ImportError, RuntimeError, NotImplementedError) as error:
            raise InvalidSetting(f"encoding={encoding} cannot be written here ({type(error).__name__}); {EXTRA}") from error
    return path


def _write_by_gdcm(header: Dataset, path: Path) -> None:
    """Lossless JPEG, for which pydicom has no encoder."""
    # Of the extra `dicom`.
    import gdcm

    if "StudyDate" not in header:
        header.StudyDate = DATE_FOR_GDCM
    if "StudyTime" not in header:
        header.StudyTime = TIME_FOR_GDCM
    plain = path.with_suffix(".plain")
    header.save_as(plain, enforce_file_format=True)
    try:
        reader = gdcm.ImageReader()
        reader.SetFileName(str(plain))
        read = reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
        change.SetInput(reader.GetImage())
        writer = gdcm.ImageWriter()
        if not (read and change.Change()):
            raise RuntimeError("gdcm does not encode it")
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(str(path))
        if not writer.Write():
            raise RuntimeError("gdcm does not write it")
    finally:
        plain.unlink()


def _uid(kind: str, name: str) -> UID:
    return generate_uid(entropy_srcs=[kind, hashlib.sha256(name.encode()).hexdigest()])
