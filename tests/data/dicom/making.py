"""Small DICOM files for tests, written by pydicom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import DigitalMammographyXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid


def mammogram(stored: NDArray[Any], *, bits: int = 16, **attributes: Any) -> Dataset:
    """A header with pixels; `attributes` are set on top, None takes one away."""
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = DigitalMammographyXRayImageStorageForPresentation
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["one"])
    header.Modality = "MG"
    header.SamplesPerPixel = 1
    header.PhotometricInterpretation = "MONOCHROME2"
    header.Rows, header.Columns = stored.shape
    header.BitsAllocated = 8 * stored.dtype.itemsize
    header.BitsStored, header.HighBit = bits, bits - 1
    header.PixelRepresentation = int(stored.dtype.kind == "i")
    header.PixelData = stored.tobytes()
    header["PixelData"].VR = "OW"
    for name, value in attributes.items():
        if value is None:
            delattr(header, name)
        else:
            setattr(header, name, value)
    return header


def write(header: Dataset, path: Path) -> Path:
    """Write the file and return its path."""
    header.save_as(path, enforce_file_format=True)
    return path


def gradient(rows: int = 96, columns: int = 64, *, dtype: str = "uint16", top: int = 65535) -> NDArray[Any]:
    """An image whose every pixel differs from its neighbours."""
    return np.linspace(0, top, rows * columns).reshape(rows, columns).astype(dtype)
