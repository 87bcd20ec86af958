"""Frames of a segmentation, decoded one at a time: the mammogram's size, not the file, decides how much is allocated."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, ExplicitVRBigEndian, RLELossless

from mammo_fed.data.dicom.findings import Skipped
from mammo_fed.data.dicom.image.codestream import frame_size
from mammo_fed.data.dicom.image.headers import number_of, text_of

__all__ = ["Frames"]

MOST_FRAMES: Final = 10_000


class Frames:
    """Frames of a file, of `shape` pixels each, by their index from 0."""

    def __init__(self, annotation: FileDataset, *, shape: tuple[int, int]) -> None:
        """Look at what the header claims.

        Raises:
          Skipped: If there are no pixels, or no number of frames or bits that is read.
        """
        if "PixelData" not in annotation:
            raise Skipped("no_pixels", "the segmentation has no pixels")
        self.count = number_of(annotation, "NumberOfFrames", otherwise=1)
        if not 1 <= self.count <= MOST_FRAMES:
            raise Skipped("too_large", f"the segmentation claims {self.count} frames; 1 to {MOST_FRAMES} are read")
        self._bits = number_of(annotation, "BitsAllocated")
        samples = number_of(annotation, "SamplesPerPixel", otherwise=1)
        if self._bits not in (1, 8, 16) or samples != 1 or number_of(annotation, "PixelRepresentation", otherwise=0):
            raise Skipped("unsupported_encoding", f"the segmentation has {self._bits} bits and {samples} samples a pixel")
        self._file, self._shape = annotation, shape
        self._syntax = UID(str(annotation.file_meta.TransferSyntaxUID))
        self._bytes: bytes = annotation.PixelData

    def __getitem__(self, index: int) -> NDArray[Any]:
        """One frame: unsigned, shape `shape`.

        Raises:
          Skipped: If it is not there, or cannot be decoded.
        """
        packed = self._native(index) if not self._syntax.is_encapsulated else self._encapsulated(index)
        if isinstance(packed, np.ndarray):
            return packed
        pixels = self._shape[0] * self._shape[1]
        if self._bits == 1:
            # PS3.5, 8.1.1: the first pixel is the lowest bit.
            return np.unpackbits(np.frombuffer(packed, np.uint8), count=pixels, bitorder="little").reshape(self._shape)
        return np.frombuffer(packed, f"<u{self._bits // 8}", count=pixels).reshape(self._shape)

    def _native(self, index: int) -> bytes | NDArray[Any]:
        pixels, held = self._shape[0] * self._shape[1], self._bytes
        if 8 * len(held) < self.count * pixels * self._bits:
            raise Skipped("size_mismatch", "the segmentation has fewer pixels than its header says")
        swapped = self._syntax == ExplicitVRBigEndian
        if self._bits > 1:
            dtype = np.dtype(f"{'>' if swapped else '<'}u{self._bits // 8}")
            part = held[index * pixels * dtype.itemsize : (index + 1) * pixels * dtype.itemsize]
            # PS3.5, annex A.3: bytes in words are swapped in pairs; this is done for 8 bits only where the words say so.
            if swapped and self._bits == 8 and self._file["PixelData"].VR == "OW":
                raise Skipped("unsupported_encoding", "segmentations of 8 bits in big-endian words are not read")
            return np.frombuffer(part, dtype).reshape(self._shape)
        if swapped and self._file["PixelData"].VR == "OW":
            held = np.frombuffer(held[: len(held) // 2 * 2], ">u2").astype("<u2").tobytes()
        # Frames follow each other without a gap: one may begin within a byte.
        first = index * pixels
        bits = np.unpackbits(np.frombuffer(held[first // 8 : -(-(first + pixels) // 8)], np.uint8), bitorder="little")
        return bits[first % 8 : first % 8 + pixels].reshape(self._shape)

    def _encapsulated(self, index: int) -> bytes | NDArray[Any]:
        frame = next(
            (one for at, one in enumerate(generate_frames(self._bytes, number_of_frames=self.count)) if at == index), None
        )
        if frame is None:
            raise Skipped("size_mismatch", "the segmentation has fewer frames than its header says")
        needed = -(-self._shape[0] * self._shape[1] * self._bits // 8)
        if self._syntax == RLELossless:
            if 64 * len(frame) < needed:
                raise Skipped("size_mismatch", "the run-length segments are too short for the segmentation")
            if self._bits == 1:
                return self._run_length_bits(frame, needed)
        else:
            size = frame_size(frame)
            if size is None or (size.rows, size.columns, size.samples) != (*self._shape, 1):
                raise Skipped("size_mismatch", "a frame of the segmentation has another size than the header says")
        return self._decoded(frame)

    def _run_length_bits(self, frame: bytes, needed: int) -> bytes | NDArray[Any]:
        """One bit a pixel, eight to a byte; some programs write a byte for each."""
        (segments, start), pixels = np.frombuffer(frame[:8], "<u4"), self._shape[0] * self._shape[1]
        if segments != 1:
            raise Skipped("decoding_failed", "the run-length segments of one bit a pixel are more than one")
        unpacked = _unpacked(frame[int(start) :], pixels)
        if len(unpacked) >= pixels:
            return np.frombuffer(unpacked, np.uint8, count=pixels).reshape(self._shape)
        return _long_enough(unpacked, needed)

    def _decoded(self, frame: bytes) -> NDArray[Any]:
        header = Dataset()
        header.file_meta = self._file.file_meta
        for name in ("SamplesPerPixel", "PhotometricInterpretation", "PixelRepresentation", "BitsStored", "BitsAllocated"):
            setattr(header, name, self._file.get(name))
        header.SamplesPerPixel, header.PixelRepresentation, header.PhotometricInterpretation = 1, 0, "MONOCHROME2"
        header.Rows, header.Columns = self._shape
        # Codestreams of one bit a pixel come out as a byte for each.
        header.BitsAllocated = max(8, self._bits)
        header.BitsStored = number_of(self._file, "BitsStored") if text_of(self._file, "BitsStored") else header.BitsAllocated
        header.HighBit, header.PixelData = header.BitsStored - 1, encapsulate([frame])
        try:
            pixels: NDArray[Any] = get_decoder(self._syntax).as_array(header)[0]
        except MemoryError:
            raise
        except Exception as error:
            name = self._syntax.name
            raise Skipped("decoding_failed", f"a frame in {name} cannot be decoded ({type(error).__name__})") from error
        if pixels.shape != self._shape or pixels.dtype.kind != "u":
            raise Skipped("size_mismatch", "a frame of the segmentation has another size than the header says")
        return pixels


def _long_enough(content: bytes, needed: int) -> bytes:
    if len(content) < needed:
        raise Skipped("size_mismatch", "a frame of the segmentation has fewer pixels than the header says")
    return content


def _unpacked(packed: bytes, most: int) -> bytes:
    """PackBits (PS3.5, annex G.3), at most `most` bytes."""
    out, place = bytearray(), 0
    while place < len(packed) and len(out) < most:
        head = packed[place]
        if head < 128:
            out += packed[place + 1 : place + 2 + head]
            place += 2 + head
        else:
            # 128 does nothing.
            out += packed[place + 1 : place + 2] * (257 - head) if head > 128 else b""
            place += 2 if head > 128 else 1
    return bytes(out)
