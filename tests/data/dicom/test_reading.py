"""One DICOM file: read as it is, or refused with a reason."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.pixels.processing import apply_windowing
from pydicom.uid import BreastTomosynthesisImageStorage, JPEG2000Lossless, MRImageStorage, RLELossless

from mammo_fed.data.dicom.findings import Skipped
from mammo_fed.data.dicom.image.codestream import FrameSize, frame_size
from mammo_fed.data.dicom.image.headers import dataset
from mammo_fed.data.dicom.image.intensity import intensity_of
from mammo_fed.data.dicom.image.reading import read_mammogram, samples_inside
from tests.data.dicom.making import gradient, mammogram, write


def reason(path, **options) -> str:
    with pytest.raises(Skipped) as refused:
        read_mammogram(path, **options)
    return refused.value.reason


@pytest.mark.parametrize(
    ("dtype", "bits", "top"), [("uint8", 8, 255), ("uint16", 12, 4095), ("uint16", 16, 65535), ("int16", 16, 30000)]
)
def test_reading_gives_stored_values_spacing_and_view(tmp_path, dtype, bits, top):
    stored = gradient(dtype=dtype, top=top) - (np.array(5000, dtype) if dtype == "int16" else np.array(0, dtype))
    path = write(mammogram(stored, bits=bits, ImagerPixelSpacing=[0.07, 0.08], ViewPosition="MLO"), tmp_path / "a.dcm")
    read = read_mammogram(path)
    assert np.array_equal(read.stored, stored)
    assert (read.spacing, read.view) == ((0.07, 0.08), "MLO")
    assert len(read.sha256) == 64


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"Modality": "CT"}, "wrong_modality"),
        ({"SOPClassUID": BreastTomosynthesisImageStorage}, "tomosynthesis"),
        ({"BreastImplantPresent": "YES"}, "implant"),
        ({"NumberOfFrames": 2}, "several_frames"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour"),
        ({"SamplesPerPixel": 3}, "colour"),
        ({"PixelData": None}, "no_pixels"),
        ({"Rows": 95}, "size_mismatch"),
        ({"Rows": 65535, "Columns": 65535}, "too_large"),
        ({"BitsAllocated": 32}, "unsupported_encoding"),
        ({"BitsStored": 0}, "unsupported_encoding"),
        ({"Rows": None}, "damaged"),
    ],
)
def test_reading_refuses_what_is_no_single_grey_mammogram(tmp_path, change, word):
    assert reason(write(mammogram(gradient(), **change), tmp_path / "a.dcm")) == word


def test_reading_refuses_files_that_are_not_there_not_dicom_or_cut_off(tmp_path):
    assert reason(tmp_path / "none.dcm") == "missing_file"
    (tmp_path / "text.dcm").write_text("patient,label\n" * 100)
    assert reason(tmp_path / "text.dcm") == "not_dicom"
    whole = write(mammogram(gradient()), tmp_path / "a.dcm").read_bytes()
    (tmp_path / "cut.dcm").write_bytes(whole[:-1000])
    assert reason(tmp_path / "cut.dcm") in ("size_mismatch", "no_pixels", "damaged")


def test_reading_refuses_pixels_of_which_a_download_left_the_rest_empty(tmp_path):
    rng = np.random.default_rng(0)
    breast = np.where(np.hypot(*np.mgrid[-1:1:96j, 0:1:64j]) < 0.9, rng.integers(1000, 3000, (96, 64)), 0).astype(np.uint16)
    assert np.array_equal(read_mammogram(write(mammogram(breast), tmp_path / "a.dcm")).stored, breast)
    cut = breast.copy()
    cut.reshape(-1)[48 * 64 + 20 :] = 0
    assert reason(write(mammogram(cut), tmp_path / "b.dcm")) == "damaged"
    # Black below a straight edge is the image's own.
    cut[48:] = 0
    assert np.array_equal(read_mammogram(write(mammogram(cut), tmp_path / "c.dcm")).stored, cut)


def test_reading_takes_a_mask_of_another_modality(tmp_path):
    path = write(
        mammogram(gradient(dtype="uint8", top=255), bits=8, Modality="OT", SOPClassUID=MRImageStorage), tmp_path / "m.dcm"
    )
    assert samples_inside(dataset(path)).shape == (96, 64)
    assert reason(path) == "wrong_modality"
    assert read_mammogram(path, modality=None).stored.shape == (96, 64)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_reading_refuses_a_compressed_frame_of_another_size_than_the_header_says(tmp_path, syntax):
    pytest.importorskip("openjpeg", reason="needs the extra 'dicom'")
    header = mammogram(gradient())
    header.compress(syntax)
    path = write(header, tmp_path / "a.dcm")
    assert np.array_equal(read_mammogram(path).stored, gradient())
    header.Rows = 16000 if syntax == RLELossless else 95
    assert reason(write(header, tmp_path / "b.dcm")) == "size_mismatch"


def test_reading_says_nothing_of_a_header_in_logs_or_warnings(tmp_path, caplog):
    header = mammogram(gradient(), PatientName="DOE^JANE", PatientBirthDate="19610229x", AccessionNumber="A" * 40)
    path = write(header, tmp_path / "a.dcm")
    with warnings.catch_warnings(), caplog.at_level(logging.DEBUG):
        warnings.simplefilter("error")
        read_mammogram(path)
    assert "DOE" not in caplog.text
    assert not caplog.records


def test_reading_takes_away_what_a_device_wrote_above_the_stored_bits(tmp_path):
    stored = gradient(top=4095)
    overlaid = stored | np.uint16(1 << 15)
    assert np.array_equal(read_mammogram(write(mammogram(overlaid, bits=12), tmp_path / "a.dcm")).stored, stored)


@pytest.mark.parametrize(
    ("function", "centre", "width"),
    [("LINEAR", 2000, 1500), ("LINEAR_EXACT", 2000, 1500), ("SIGMOID", 2000, 900), (None, [1500, 7], [800, 9])],
)
def test_intensity_of_a_window_is_pydicoms_own(function, centre, width):
    stored = gradient(top=4095)
    header = mammogram(
        stored, bits=12, WindowCenter=centre, WindowWidth=width, **({"VOILUTFunction": function} if function else {})
    )
    expected = apply_windowing(stored, header) / 4095
    assert np.abs(intensity_of(header, stored, windowing="window")(stored) - expected).max() < 1e-6


def test_intensity_by_range_uses_the_darkest_and_brightest_pixel_without_padding():
    stored = gradient(top=3000) + np.uint16(100)
    stored[0, :10] = 0
    header = mammogram(stored, bits=12, PixelPaddingValue=0)
    found = intensity_of(header, stored, windowing="minmax")
    assert (found.low, found.high) == (float(stored[stored > 0].min()), 3100.0)
    assert found(stored).max() == 1.0


def test_intensity_of_monochrome1_is_turned_round_and_stored_values_map_exactly():
    stored = gradient(top=4095)
    header = mammogram(stored, bits=12, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(intensity_of(header, stored, windowing="stored")(stored), (1 - stored / 4095).astype(np.float32))


def test_intensity_follows_the_modality_rescale_and_a_voi_table():
    stored = gradient(top=255, dtype="uint8")
    header = mammogram(stored, bits=8, RescaleSlope=-2.0, RescaleIntercept=100.0)
    falling = intensity_of(header, stored, windowing="minmax")(stored)
    assert falling[0, 0] == 1.0
    assert falling[-1, -1] == 0.0
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [256, 0, 8], [255 - value for value in range(256)]
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "US"
    turned = mammogram(stored, bits=8, VOILUTSequence=[table])
    assert np.allclose(intensity_of(turned, stored, windowing="window")(stored), 1 - stored / 255, atol=1e-6)


@pytest.mark.parametrize(
    "change", [{"WindowCenter": 10, "WindowWidth": 0}, {"WindowCenter": 10, "WindowWidth": 5, "VOILUTFunction": "CUBIC"}]
)
def test_intensity_refuses_a_window_that_is_none(change):
    header = mammogram(gradient(), **change)
    with pytest.raises(Skipped, match="damaged"):
        intensity_of(header, gradient(), windowing="window")


def test_intensity_refuses_an_image_of_one_value():
    flat = np.full((32, 32), 7, np.uint16)
    with pytest.raises(Skipped, match="flat_image"):
        intensity_of(mammogram(flat), flat, windowing="minmax")


def test_frame_size_reads_the_codestreams_own_header():
    jpeg = bytes.fromhex("ffd8ffe000040000ffc3000b0c01000080011100")
    assert frame_size(jpeg) == FrameSize(rows=256, columns=128, samples=1, precision=12, kind="lossless JPEG")
    siz = bytes.fromhex("ff4fff51002900000000008000000100") + bytes(24) + bytes.fromhex("00010f")
    assert frame_size(siz) == FrameSize(rows=256, columns=128, samples=1, precision=16, kind="JPEG 2000")
    assert frame_size(b"\xff\xd8" + b"\xff\xe0\xff\xff") is None
    assert frame_size(b"GIF89a") is None
