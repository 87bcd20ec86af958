"""From samples to intensities in [0, 1]: modality table or rescale, window or range, photometric interpretation, padding."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import HTJ2K, JPEG2000, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless

from mammo_fed.data.dicom.findings import Skipped
from mammo_fed.data.dicom.image.acquisition import is_raw
from mammo_fed.data.dicom.image.breast import COARSE, breast_region, enlarged, is_inverted
from mammo_fed.data.dicom.image.headers import code_of, text_of
from mammo_fed.data.dicom.image.lookup import LookupTable, table_of

__all__ = ["Intensity", "Windowing", "intensity_of"]

Windowing = Literal["minmax", "window", "stored", "paper"]
# Names of the VOI LUT functions, PS3.3 C.11.2.1.3.
LINEAR, EXACT, SIGMOID = "LINEAR", "LINEAR_EXACT", "SIGMOID"
# Beyond this a float32 no longer tells neighbouring values apart; no detector gives such a range.
WIDEST: Final = 1e7
# Standard deviation of an image in [0, 1] below which it shows nothing.
FLAT: Final = 0.003
# Padding after lossy compression, part of the range of the stored bits.
AROUND: Final = 0.005
LOSSY: Final = frozenset({JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000, HTJ2K})
# So much brighter than all tissue, what lies beside the breast is a lead marker and not for the range.
MARKER: Final = 1.05
MARKER_NOTE: Final = "marker_left_out"


@dataclass(frozen=True, kw_only=True, eq=False)
class Intensity:
    """How samples become intensities, pixel by pixel, so that it may be applied to a crop alone.

    Attributes:
      rule: "range" (low and high are mapped to 0 and 1), a window's function, or "table".
      inverted: low values are bright.
      slope, intercept: of the rescale; or
      modality: the table in its place.
      voi: for "table".
      logarithm: raw data that count photons: tissue takes them away by factors.
      low, high: in modality units, for "range".
      whole: what low and high were with everything that lies beside the breast, where that was left out.
      centre, width: in modality units, for windows.
      padding: samples from the first to the second are not part of the image, and black.
      notes: words of a fixed list about what was doubtful.
    """

    rule: str = "range"
    inverted: bool = False
    slope: float = 1.0
    intercept: float = 0.0
    modality: LookupTable | None = None
    voi: LookupTable | None = None
    logarithm: bool = False
    low: float = 0.0
    high: float = 1.0
    whole: tuple[float, float] | None = None
    centre: float = 0.0
    width: float = 1.0
    padding: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()

    def __call__(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """Intensities in [0, 1], float32, of samples of any shape."""
        values = self.units(stored)
        if self.rule == "range":
            unit = (values - self.low) / (self.high - self.low)
        elif self.rule == LINEAR:
            unit = (values - (self.centre - 0.5)) / max(self.width - 1.0, 1e-9) + 0.5
        elif self.rule == EXACT:
            unit = (values - self.centre) / self.width + 0.5
        elif self.rule == SIGMOID:
            unit = 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - self.centre) / self.width, -60.0, 60.0)))
        elif self.voi is not None:
            unit = self.voi(np.floor(values)) / self.voi.largest
        unit = np.clip(unit, 0.0, 1.0)
        shown = (1.0 - unit if self.inverted else unit).astype(np.float32)
        if self.padding is not None:
            shown[self.is_padding(stored)] = 0.0
        return shown

    def units(self, stored: NDArray[Any]) -> NDArray[np.float64]:
        """Samples in modality units, float64."""
        if self.modality is not None:
            return self.modality(stored)
        values: NDArray[np.float64] = stored.astype(np.float64)
        if self.logarithm:
            return np.log(np.maximum(values, 1.0))
        return values if self.slope == 1.0 and self.intercept == 0.0 else values * self.slope + self.intercept

    def is_padding(self, stored: NDArray[Any]) -> NDArray[np.bool_]:
        """Which samples are no part of the image."""
        low, high = self.padding or (1, 0)
        found: NDArray[np.bool_] = stored == low if low == high else (stored >= low) & (stored <= high)
        return found

    def holding(self, stored: NDArray[Any]) -> Intensity:
        """The mapping for a lesion's samples: with the whole range where they are brighter than what was taken for tissue."""
        if self.whole is None:
            return self
        values = self.units(stored[~self.is_padding(stored)])
        if not values.size or (self.low <= values.min() and values.max() <= self.high):
            return self
        notes = tuple(note for note in self.notes if note != MARKER_NOTE)
        return replace(self, low=self.whole[0], high=self.whole[1], whole=None, notes=notes)

    def describe(self) -> str:
        """The rule and its numbers, for a patch's provenance."""
        if self.rule == "range":
            return f"range {self.low:g} to {self.high:g}"
        if self.rule == "table":
            return "VOI table"
        return f"{self.rule.lower()} window, centre {self.centre:g}, width {self.width:g}"


def intensity_of(header: Dataset, stored: NDArray[Any], *, windowing: Windowing) -> Intensity:
    """The mapping that an image's header and `windowing` ask for.

    Args:
      header: of the image.
      stored: all of its samples: their range is what "minmax" maps.
      windowing: "minmax" (darkest to brightest, padding and lead markers beside the breast left out), "window" (the first VOI
        table or window of the file; without one as "minmax"), "stored" (all values that the stored bits can hold), or "paper"
        (darkest to brightest pixel, whatever it belongs to; padding left out).

    Raises:
      Skipped: If the image is flat, it is not known whether bright is dense, or the header's numbers are no numbers.
    """
    try:
        found = _begun(header, stored)
        if windowing == "window" and "raw" not in found.notes:
            found = _windowed(header, found, stored)
        if found.rule == "range":
            found = _stored_range(header, found) if windowing == "stored" else _used_range(found, stored)
    except Skipped:
        raise
    # pydicom converts values when they are asked for; of a damaged header it raises any of these, for an unknown VR the last.
    except (ValueError, TypeError, AttributeError, IndexError, KeyError, OverflowError, NotImplementedError) as error:
        raise Skipped("damaged", f"the header's intensity attributes make no sense ({type(error).__name__})") from error
    if not (np.isfinite([found.low, found.high]).all() and 0 < found.high - found.low < WIDEST):
        raise Skipped("flat_image", "all pixels have one value, or their range is no range")
    coarse = found(stored[::COARSE, ::COARSE])
    if found.rule != "range" and float(coarse.std()) < FLAT:
        raise Skipped("flat_image", "the file's window shows nothing of the image")
    if is_inverted(coarse):
        if not found.inverted:
            raise Skipped("unclear_polarity", "air is bright: the image is inverted, whatever its header says")
        # As its header asks for; with low values bright air that was blanked is bright too.
        found = replace(found, notes=(*found.notes, "bright_air"))
    if windowing == "minmax":
        found = _without_markers(found, stored, coarse)
    return found


def _begun(header: Dataset, stored: NDArray[Any]) -> Intensity:
    """Everything but the range: polarity, modality, padding."""
    shape = code_of(header, "PresentationLUTShape")
    inverted = code_of(header, "PhotometricInterpretation") == "MONOCHROME1"
    raw = is_raw(header)
    if shape == "INVERSE" and not inverted and not raw:
        # PS3.3, C.8.11.3.1.2: viewers disagree about what it means there.
        raise Skipped("unclear_polarity", "PresentationLUTShape is INVERSE with MONOCHROME2: nobody knows which is meant")
    found = Intensity(inverted=inverted, padding=_padding(header, stored))
    if raw:
        return _raw(header, found)
    if header.get("ModalityLUTSequence"):
        item = header.ModalityLUTSequence[0]
        return replace(found, modality=table_of(item, signed=stored.dtype.kind == "i", little_endian=_little(header)))
    slope, intercept = text_of(header, "RescaleSlope"), text_of(header, "RescaleIntercept")
    if not slope and not intercept:
        return found
    # They come together (PS3.3, C.11.1.1): with one of them missing, the other's plain meaning is likely, and noted.
    notes = () if slope and intercept else ("incomplete_rescale",)
    found = replace(found, slope=_decimal(slope or "1"), intercept=_decimal(intercept or "0"), notes=notes)
    if found.slope == 0 or not np.isfinite([found.slope, found.intercept]).all():
        raise ValueError("no rescale")
    return found


def _raw(header: Dataset, found: Intensity) -> Intensity:
    """Raw data: by the relation of samples to X-rays (PS3.3, C.8.11.3.1.2), more of which come where less is in the way."""
    relation, sign = code_of(header, "PixelIntensityRelationship"), text_of(header, "PixelIntensityRelationshipSign").strip()
    if relation not in ("LIN", "LOG") or sign not in ("1", "-1", "+1"):
        raise Skipped("unclear_polarity", "raw data that does not say how its values relate to X-rays")
    return replace(found, inverted=sign != "-1", logarithm=relation == "LIN" and sign != "-1", notes=("raw",))


def _padding(header: Dataset, stored: NDArray[Any]) -> tuple[int, int] | None:
    """Samples that are padding (PS3.3, C.7.5.1.1.2), whichever sign their VR gives them."""
    text = text_of(header, "PixelPaddingValue")
    if not text:
        return None
    first, last = int(text), int(text_of(header, "PixelPaddingRangeLimit") or text)
    width = 8 * stored.dtype.itemsize
    bits = int(text_of(header, "BitsStored") or width)
    signed = stored.dtype.kind == "i"
    found = [_as_sample(value, bits=bits, width=width, signed=signed) for value in (first, last)]
    # A limit that no sample can have leaves the value alone.
    kept = sorted(value for value in found if value is not None)
    # Lossy compression leaves of one value several.
    around = round(AROUND * (1 << bits)) if _is_lossy(header) else 0
    return (kept[0] - around, kept[-1] + around) if kept else None


def _is_lossy(header: Dataset) -> bool:
    meta = getattr(header, "file_meta", None)
    return code_of(header, "LossyImageCompression") == "01" or (meta is not None and meta.TransferSyntaxUID in LOSSY)


def _as_sample(value: int, *, bits: int, width: int, signed: bool) -> int | None:
    """A number that was written as a word of the other sign, or without its sign; None if no sample can be it."""
    lowest, highest = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    others = (value, value - (1 << width), value + (1 << width), value - (1 << bits) if signed else value)
    return next((one for one in others if lowest <= one <= highest), None)


def _stored_range(header: Dataset, found: Intensity) -> Intensity:
    bits = int(text_of(header, "BitsStored"))
    signed = text_of(header, "PixelRepresentation") == "1"
    if found.modality is not None:
        return replace(found, low=0.0, high=found.modality.largest)
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    return _between(found, np.array([low, high]))


def _used_range(found: Intensity, stored: NDArray[Any]) -> Intensity:
    kept = stored
    if found.padding is not None:
        inside = stored[~found.is_padding(stored)]
        kept = inside if inside.size else stored
    return _between(found, _of_interest(found, kept))


def _of_interest(found: Intensity, samples: NDArray[Any]) -> NDArray[Any]:
    """Samples that may be the darkest and the brightest: the ends, or every value where a table may go up and down."""
    if found.modality is None:
        return np.array([samples.min(), samples.max()])
    plain = samples.view(f"u{samples.dtype.itemsize}").ravel()
    values = np.flatnonzero(np.bincount(plain)).astype(plain.dtype)
    return values.view(samples.dtype)


def _between(found: Intensity, samples: NDArray[Any]) -> Intensity:
    values = found.units(samples)
    return replace(found, low=float(values.min()), high=float(values.max()))


def _without_markers(found: Intensity, stored: NDArray[Any], coarse: NDArray[np.float32]) -> Intensity:
    """The range of the breast, where something beside it is brighter than all of it: letters of lead, a bright frame.

    The darkest stays: air, which lies outside. With low values bright it is the other end of the range that a marker sets.
    """
    region = breast_region(coarse)
    if not region.any() or region.all():
        return found
    # Where the brightest pixel is in the breast, as it nearly always is, nothing beside it can set the range.
    brightest = stored.argmin() if found.inverted != (found.slope < 0) else stored.argmax()
    row, column = (int(place) for place in np.unravel_index(brightest, stored.shape))
    if found.modality is None and enlarged(region, shape=(1, 1), top=row, left=column, grow=0)[0, 0]:
        return found
    shape = (stored.shape[0], stored.shape[1])
    tissue = stored[enlarged(region, shape=shape, grow=0) & ~found.is_padding(stored)]
    if not tissue.size:
        return found
    values = found.units(_of_interest(found, tissue))
    low = float(values.min()) if found.inverted else found.low
    high = found.high if found.inverted else float(values.max())
    if found.high - found.low < MARKER * (high - low) or high <= low:
        return found
    return replace(found, notes=(*found.notes, MARKER_NOTE), low=low, high=high, whole=(found.low, found.high))


def _windowed(header: Dataset, found: Intensity, stored: NDArray[Any]) -> Intensity:
    """As the file's first VOI table or window says; `found` itself where it has none."""
    if header.get("VOILUTSequence"):
        signed = float(found.units(np.array([stored.min(), stored.max()])).min()) < 0
        voi = table_of(header.VOILUTSequence[0], signed=signed, little_endian=_little(header))
        return replace(found, rule="table", voi=voi)
    if not text_of(header, "WindowCenter") or not text_of(header, "WindowWidth"):
        return found
    centre, width = _first(header.WindowCenter), _first(header.WindowWidth)
    rule = code_of(header, "VOILUTFunction") or LINEAR
    if rule not in (LINEAR, EXACT, SIGMOID) or not (np.isfinite([centre, width]).all() and 0 < width < WIDEST):
        raise ValueError("no such window")
    return replace(found, rule=rule, centre=centre, width=width)


def _first(value: Any) -> float:
    return _decimal(str(value if isinstance(value, (int, float, str)) else value[0]))


def _decimal(text: str) -> float:
    """A number, with a comma for its point where a device wrote it so."""
    value = float(text.replace(",", "."))
    if not math.isfinite(value):
        raise ValueError("no number")
    return value


def _little(header: Dataset) -> bool:
    encoding = getattr(header, "original_encoding", (None, True))
    return encoding[1] is not False
