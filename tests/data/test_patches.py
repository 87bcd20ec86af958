"""Grey PNGs become numbers in [0, 1]; anything else is refused in one line that names file, rule and remedy."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from mammo_fed.data.patches import read_patch, read_patches
from mammo_fed.errors import DataError


def save(path: Path, values: np.ndarray, **options: object) -> Path:
    Image.fromarray(values).save(path, format="PNG", **options)
    return path


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bit_depth: int, colour_type: int, *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_patch(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.uint16, 65535)])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_grey_value_is_divided_by_the_largest_of_its_depth(tmp_path, dtype, top, data):
    shape = st.tuples(st.integers(1, 9), st.integers(1, 9))
    values = data.draw(hnp.arrays(dtype, shape, elements=st.integers(0, top)))
    patch = read_patch(save(tmp_path / "a.png", values))
    assert patch.dtype == np.float32
    np.testing.assert_array_equal(patch, values.astype(np.float32) / np.float32(top))
    assert patch.min() >= 0
    assert patch.max() <= 1


def test_black_is_zero_and_white_is_one_at_both_depths(tmp_path):
    for dtype, white in ((np.uint8, 255), (np.uint16, 65535)):
        np.testing.assert_array_equal(read_patch(save(tmp_path / "a.png", np.array([[0, white]], dtype))), [[0.0, 1.0]])


@pytest.mark.parametrize(
    ("mode", "said"),
    [("RGB", "RGB image"), ("RGBA", "RGB with alpha"), ("P", "palette"), ("LA", "grey with alpha"), ("1", "1 bits per pixel")],
)
def test_an_image_that_is_not_plain_grey_is_refused(tmp_path, mode, said):
    path = tmp_path / "a.png"
    Image.new(mode, (8, 8)).save(path)
    assert said in refusal(path)


def test_a_transparent_grey_value_is_refused(tmp_path):
    assert "transparent" in refusal(save(tmp_path / "a.png", np.zeros((4, 4), np.uint8), transparency=0))


def test_an_animated_png_is_refused(tmp_path):
    path = tmp_path / "a.png"
    frames = [Image.new("L", (4, 4), value) for value in (0, 255)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert "2 frames" in refusal(path)


def test_another_format_under_a_png_name_is_refused(tmp_path):
    path = tmp_path / "a.png"
    Image.new("L", (8, 8)).save(path, format="JPEG")
    assert "is not a PNG; convert it" in refusal(path)


def test_missing_empty_and_irregular_files_are_told_apart(tmp_path):
    assert "does not exist" in refusal(tmp_path / "absent.png")
    (tmp_path / "empty.png").touch()
    assert "is empty (0 bytes)" in refusal(tmp_path / "empty.png")
    (tmp_path / "folder.png").mkdir()
    assert "not a regular file" in refusal(tmp_path / "folder.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert "not a regular file" in refusal(tmp_path / "pipe.png")


def test_a_file_cut_anywhere_is_refused(tmp_path):
    whole = save(tmp_path / "whole.png", np.arange(64, dtype=np.uint8).reshape(8, 8)).read_bytes()
    path = tmp_path / "cut.png"
    # The checksum of the closing chunk, its last 4 bytes, guards nothing.
    for length in range(len(whole) - 4):
        path.write_bytes(whole[:length])
        assert refusal(path)


def test_a_damaged_byte_is_refused_or_leaves_every_pixel_as_it_was(tmp_path):
    intact = save(tmp_path / "whole.png", np.arange(64, dtype=np.uint8).reshape(8, 8))
    content, pixels = intact.read_bytes(), read_patch(intact)
    path, accepted = tmp_path / "damaged.png", []
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :])
        try:
            np.testing.assert_array_equal(read_patch(path), pixels)
        except DataError:
            continue
        accepted.append(position)
    # The closing chunk has no content: nobody reads its length or its checksum.
    closing = content.index(b"IEND") - 4
    assert all(position >= closing for position in accepted)


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(60_000, 60_000, 8, 0, chunk(b"IDAT", zlib.compress(bytes(1000)))))
    assert "claims 60000 x 60000 pixels" in refusal(path)


def test_a_compressed_text_that_unfolds_to_gigabytes_is_refused(tmp_path):
    path = tmp_path / "text.png"
    text = b"Comment\x00\x00" + zlib.compress(bytes(100_000_000), 9)
    path.write_bytes(png(1, 1, 8, 0, chunk(b"zTXt", text), chunk(b"IDAT", zlib.compress(b"\x00\x07"))))
    assert "truncated or damaged" in refusal(path)


def test_many_patches_keep_their_order(tmp_path):
    paths = [save(tmp_path / f"{value}.png", np.full((6, 6), value, np.uint8)) for value in range(60)]
    patches = read_patches(paths[::-1], image_size=6)
    assert patches.shape == (60, 6, 6)
    np.testing.assert_array_equal(patches[:, 0, 0], np.arange(59, -1, -1, dtype=np.float32) / np.float32(255))


def test_the_first_image_sets_the_size_unless_one_is_asked_for(tmp_path):
    paths = [save(tmp_path / f"{side}.png", np.zeros((side, side), np.uint8)) for side in (6, 7)]
    assert read_patches(paths[:1], image_size=None).shape == (1, 6, 6)
    with pytest.raises(DataError, match=r"7\.png is 7 x 7 pixels; all patches must be 6 x 6"):
        read_patches(paths, image_size=None)
    with pytest.raises(DataError, match=r"6\.png is 6 x 6 pixels; all patches must be 7 x 7"):
        read_patches(paths, image_size=7)


def test_a_patch_that_is_not_square_is_refused(tmp_path):
    path = save(tmp_path / "wide.png", np.zeros((4, 5), np.uint8))
    for size in (None, 4, 5):
        with pytest.raises(DataError, match=r"wide\.png is 5 x 4 pixels"):
            read_patches([path], image_size=size)


def test_the_first_bad_file_in_order_is_the_one_named(tmp_path):
    good = save(tmp_path / "good.png", np.zeros((4, 4), np.uint8))
    for name in ("one.png", "two.png"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"one\.png is empty"):
        read_patches([good, tmp_path / "one.png", good, tmp_path / "two.png"], image_size=None)


def test_no_paths_at_all_are_refused():
    with pytest.raises(DataError, match="no image to read"):
        read_patches([], image_size=None)
