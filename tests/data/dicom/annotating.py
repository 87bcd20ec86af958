"""Annotations of drawn mammograms, written by highdicom where it writes them, and by hand where a sloppy program would not."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileDataset
from pydicom.pixels.utils import pack_bits
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian, SegmentationStorage, generate_uid

from mammo_fed.data.dicom.annotations.marking import is_annotation, marked_region
from mammo_fed.data.dicom.findings import Box, Outline, Skipped
from mammo_fed.data.dicom.geometry import mask_box, outline_box
from tests.data.dicom.making import gradient, mammogram

SHAPE = (96, 64)
# Top, left, bottom, right.
DRAWN = (30, 12, 58, 44)
MASS = Code("4147007", "SCT", "Mass")
MADE = {
    "series_instance_uid": generate_uid(entropy_srcs=["series"]),
    "series_number": 7,
    "instance_number": 1,
    "manufacturer": "none",
    "manufacturer_model_name": "none",
    "software_versions": "1",
    "device_serial_number": "1",
}


def drawn_mammogram(number: int = 0, **attributes: Any) -> Dataset:
    """A mammogram that annotations may refer to."""
    about: dict[str, Any] = {
        "SOPInstanceUID": generate_uid(entropy_srcs=["image", str(number)]),
        "StudyInstanceUID": generate_uid(entropy_srcs=["study"]),
        "SeriesInstanceUID": generate_uid(entropy_srcs=["images"]),
        "FrameOfReferenceUID": generate_uid(entropy_srcs=["frame"]),
        "PatientID": "P1",
        "PatientName": "PHANTOM^ONE",
        "PatientBirthDate": "",
        "PatientSex": "F",
        "StudyDate": "20200101",
        "StudyTime": "101010",
        "StudyID": "1",
        "AccessionNumber": "",
        "ReferringPhysicianName": "",
        "ImagerPixelSpacing": [0.1, 0.2],
        "ImageLaterality": "L",
        "PatientOrientation": ["A", "F"],
        "InstanceNumber": 1,
    }
    return mammogram(gradient(*SHAPE), **{name: value for name, value in {**about, **attributes}.items() if value is not None})


def drawn_mask(box: Sequence[int] = DRAWN) -> NDArray[np.uint8]:
    mask = np.zeros(SHAPE, np.uint8)
    mask[box[0] : box[2], box[1] : box[3]] = 1
    return mask


def described(number: int, label: str, kind: Code = MASS, **more: Any) -> hd.seg.SegmentDescription:
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=label,
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=kind,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
        **more,
    )


def segmentation(
    images: Sequence[Dataset], pixels: NDArray[Any], segments: Sequence[Any], kind: str = "BINARY", **more: Any
) -> hd.seg.Segmentation:
    """`pixels`: images, rows, columns and, with several segments, segments."""
    return hd.seg.Segmentation(
        source_images=[spaced(image) for image in images],
        pixel_array=pixels,
        segmentation_type=kind,
        segment_descriptions=segments,
        sop_instance_uid=generate_uid(entropy_srcs=["segmentation"]),
        **{**MADE, **more},
    )


def spaced(image: Dataset) -> Dataset:
    """A copy that highdicom takes: with a place in space, which a projection image has not."""
    copy = Dataset()
    copy.update(image)
    copy.file_meta = image.file_meta
    copy.PixelSpacing, copy.ImageOrientationPatient = [0.1, 0.2], [1, 0, 0, 0, 1, 0]
    copy.ImagePositionPatient, copy.SliceThickness = [0, 0, int(image.SOPInstanceUID[-3:])], 1
    return copy


def sloppy_segmentation(mask: NDArray[Any], **attributes: Any) -> Dataset:
    """One bit, one frame, and nothing said of segments or images."""
    header = mammogram(mask, bits=1, BitsAllocated=1, HighBit=0, Modality="SEG", SegmentationType="BINARY", NumberOfFrames=1)
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = SegmentationStorage
    header.PixelData = pack_bits(mask.ravel())
    for name, value in attributes.items():
        if value is None:
            delattr(header, name)
        else:
            setattr(header, name, value)
    return header


def item(**attributes: Any) -> Dataset:
    made = Dataset()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def annotation(sop_class: str, modality: str, **attributes: Any) -> Dataset:
    """A file without pixels, made by hand."""
    made = item(
        SOPClassUID=sop_class, SOPInstanceUID=generate_uid(entropy_srcs=["annotation"]), Modality=modality, **attributes
    )
    made.file_meta = mammogram(gradient()).file_meta
    made.file_meta.MediaStorageSOPClassUID, made.file_meta.TransferSyntaxUID = sop_class, ExplicitVRLittleEndian
    return made


def reference(image: Dataset) -> Dataset:
    return item(ReferencedSOPClassUID=image.SOPClassUID, ReferencedSOPInstanceUID=image.SOPInstanceUID)


def marked(made: Dataset, image: Dataset, region: str = "", *, shape: tuple[int, int] = SHAPE) -> tuple[float, ...] | str:
    """The box around the region, as (top, left, bottom, right); or the reason for which there is none."""
    written = read_again(made)
    assert is_annotation(written)
    try:
        found = marked_region(written, image=read_again(image), shape=shape, region=region)
        box = found if isinstance(found, Box) else outline_box(found) if isinstance(found, Outline) else mask_box(found)
    except Skipped as error:
        return error.reason
    return tuple(round(edge, 3) for edge in (box.top, box.left, box.bottom, box.right))


def read_again(made: Dataset) -> FileDataset:
    """What a reader sees of an object that was written."""
    file = io.BytesIO()
    made.save_as(file, enforce_file_format=True)
    file.seek(0)
    return pydicom.dcmread(file)
