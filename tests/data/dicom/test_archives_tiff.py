"""TIFF images in place of DICOM files: read as they are bright, or refused with the reason that is true."""

from __future__ import annotations

import io
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mammo_fed.cli.main import main
from mammo_fed.data.dicom.findings import Skipped
from mammo_fed.data.dicom.image.tiff import read_tiff

EIGHT = (np.arange(48, dtype=np.uint8) * 5).reshape(6, 8)
SIXTEEN = (np.arange(48, dtype=np.uint16) * 1000).reshape(6, 8)
WIDTH, HEIGHT, BITS, PHOTOMETRIC, ORIENTATION, SAMPLES, FORMAT = 256, 257, 258, 262, 274, 277, 339


def tiff(pixels: NDArray[Any], *, order: str = "<", **tags: int) -> bytes:
    """One strip without compression, its directory at the end."""
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()  # type: ignore[call-overload]
    entries = {WIDTH: pixels.shape[1], HEIGHT: pixels.shape[0], BITS: 8 * pixels.dtype.itemsize, 259: 1, PHOTOMETRIC: 1, 273: 8}
    entries |= {SAMPLES: 1, 278: pixels.shape[0], 279: len(data)} | {int(number[1:]): value for number, value in tags.items()}
    content = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(data)) + data
    content += struct.pack(f"{order}H", len(entries))
    for number, value in sorted(entries.items()):
        content += struct.pack(f"{order}HHII", number, 4, 1, value)
    return content + struct.pack(f"{order}I", 0)


def saved(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="TIFF", **options)
    return buffer.getvalue()


def palette(colours: list[int]) -> Image.Image:
    image = Image.fromarray(EIGHT).convert("P")
    image.putpalette(colours)
    return image


def read(path: Path, content: bytes) -> NDArray[Any]:
    path.write_bytes(content)
    return read_tiff(path)


@pytest.mark.parametrize(
    ("content", "pixels"),
    [
        (tiff(EIGHT), EIGHT),
        (tiff(SIXTEEN), SIXTEEN),
        (tiff(SIXTEEN, order=">"), SIXTEEN),
        (tiff(EIGHT, _262=0), 255 - EIGHT),
        (tiff(SIXTEEN, _262=0), 65535 - SIXTEEN),
        (saved(Image.fromarray(EIGHT), compression="tiff_lzw"), EIGHT),
        (saved(Image.fromarray(SIXTEEN), compression="tiff_adobe_deflate"), SIXTEEN),
        (saved(palette([255 - value // 3 for value in range(768)])), 255 - EIGHT),
    ],
    ids=["8", "16", "16-big-endian", "8-white-is-zero", "16-white-is-zero", "8-lzw", "16-deflate", "grey-palette"],
)
def test_tiff_beside_dicom_is_read_with_bright_as_high(tmp_path, content, pixels):
    found = read(tmp_path / "a.tif", content)
    assert (found.dtype, found.tolist()) == (pixels.dtype, pixels.tolist())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (saved(Image.fromarray(EIGHT).convert("RGB")), "colour"),
        (saved(Image.fromarray(EIGHT).convert("LA")), "colour"),
        (saved(palette([value % 256 if value % 3 == 0 else 0 for value in range(768)])), "colour"),
        (saved(palette([(value // 3 * 37) % 256 for value in range(768)])), "colour"),
        (saved(Image.fromarray(EIGHT), save_all=True, append_images=[Image.fromarray(EIGHT)]), "several_frames"),
        (saved(Image.fromarray(EIGHT > 100)), "unsupported_encoding"),
        (saved(Image.fromarray(EIGHT.astype(np.float32))), "unsupported_encoding"),
        (tiff(EIGHT, _258=12), "unsupported_encoding"),
        (tiff(SIXTEEN, _339=2), "unsupported_encoding"),
        (tiff(EIGHT, _274=6), "unsupported_encoding"),
        (tiff(EIGHT, _259=34712), "unsupported_encoding"),
        (tiff(EIGHT, _256=20000, _257=20000), "too_large"),
        (tiff(EIGHT, _256=10**6, _257=10**6), "too_large"),
        (tiff(EIGHT, _256=2**31, _257=2**31), "too_large"),
        (tiff(EIGHT, _256=4000, _257=4000, _278=4000), "damaged"),
        (tiff(SIXTEEN)[:60], "damaged"),
        (b"", "damaged"),
        (b"this is no image at all", "unsupported_encoding"),
    ],
)
def test_tiff_that_is_no_grey_mammogram_is_refused_with_its_reason(tmp_path, content, reason):
    with pytest.raises(Skipped) as raised:
        read(tmp_path / "a.tif", content)
    assert raised.value.reason == reason


def test_tiff_that_is_none_or_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.tif")
    for name, reason in (("pipe.tif", "damaged"), ("none.tif", "missing_file")):
        with pytest.raises(Skipped) as raised:
            read_tiff(tmp_path / name)
        assert raised.value.reason == reason


def test_damaged_tiffs_give_pixels_or_a_reason(tmp_path):
    rng = np.random.default_rng(0)
    originals = [tiff(SIXTEEN), saved(Image.fromarray(EIGHT), compression="tiff_lzw")]
    refused = 0
    for number in range(400):
        content = bytearray(originals[number % 2])
        for place in rng.integers(len(content), size=4):
            content[place] = rng.integers(256)
        try:
            assert read(tmp_path / "a.tif", bytes(content)).ndim == 2
        except Skipped:
            refused += 1
    assert 0 < refused < 400


def test_published_bcdr_is_ingested_from_its_tiff_files_without_a_dicom_export(tmp_path, capsys):
    rows = []
    for number in range(4):
        pixels = np.zeros((192, 160), np.uint8)
        pixels[20:170, 0:120] = np.random.default_rng(number).integers(60, 200, (150, 120))
        (tmp_path / f"bcdr/p{number}").mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / f"bcdr/p{number}/img.tif")
        grade = "Malign" if number % 2 else "Benign"
        rows.append(f"{number}, 1,1,1,1,{number + 1}, p{number}/img.TIF, 40 80 80 40, 60 60 100 100,1, {grade}")
    header = "patient_id,study_id,series,lesion_id,segmentation_id,image_view,image_filename,lw_x_points,lw_y_points,"
    (tmp_path / "bcdr/bcdr_f01_outlines.csv").write_text(
        f"{header}mammography_nodule,classification\n" + "\n".join(rows) + "\n"
    )
    ingest = [
        "data",
        "ingest",
        str(tmp_path / "bcdr"),
        str(tmp_path / "out"),
        "--source",
        "bcdr",
        "--public",
        "--split",
        "train",
    ]
    assert main([*ingest, "--smallest", "32", "--size", "32", "--jobs", "1", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["images"], done["refused"]) == (4, {})
