"""From stored pixel values to intensities in [0, 1]: modality LUT, window or range, photometric interpretation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi

from mammo_fed.data.dicom.findings import Skipped

__all__ = ["Intensity", "Windowing", "intensity_of"]

Windowing = Literal["minmax", "window", "stored"]
# Names of the VOI LUT functions, PS3.3 C.11.2.1.3.
LINEAR, EXACT, SIGMOID = "LINEAR", "LINEAR_EXACT", "SIGMOID"
# Beyond this a float32 no longer tells neighbouring values apart; no detector gives such a range.
WIDEST: Final = 1e7


@dataclass(frozen=True, kw_only=True, eq=False)
class Intensity:
    """How values become intensities, pixel by pixel, so that it may be applied to a crop alone.

    Attributes:
      header: attributes that hold look-up tables.
      rule: "range" (low and high are mapped to 0 and 1), a window's function, or "table".
      low, high: in modality units, for "range".
      centre, width: in modality units, for windows.
      inverted: MONOCHROME1: low values are bright.
    """

    header: Dataset
    rule: str
    inverted: bool
    low: float = 0.0
    high: float = 1.0
    centre: float = 0.0
    width: float = 1.0

    def __call__(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """Intensities in [0, 1], float32, of stored values of any shape."""
        values = _modality(stored, self.header).astype(np.float64)
        if self.rule == "range":
            unit = (values - self.low) / (self.high - self.low)
        elif self.rule == LINEAR:
            unit = (values - (self.centre - 0.5)) / max(self.width - 1.0, 1e-9) + 0.5
        elif self.rule == EXACT:
            unit = (values - self.centre) / self.width + 0.5
        elif self.rule == SIGMOID:
            unit = 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - self.centre) / self.width, -60.0, 60.0)))
        else:
            unit = _table(values, self.header)
        unit = np.clip(unit, 0.0, 1.0)
        return (1.0 - unit if self.inverted else unit).astype(np.float32)

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
      stored: all of its pixels: their range is what "minmax" maps.
      windowing: "minmax" (the paper's: darkest and brightest pixel, padding left out), "window" (the first VOI table or window
        of the file; without one as "minmax"), or "stored" (all values that the stored bits can hold).

    Raises:
      Skipped: If the image is flat, or the header's numbers are no numbers.
    """
    inverted = str(header.get("PhotometricInterpretation", "")).strip() == "MONOCHROME1"
    try:
        if windowing == "window":
            found = _window(header, inverted)
            if found is not None:
                return found
        low, high = _stored_range(header) if windowing == "stored" else _used_range(header, stored)
    except (ValueError, TypeError, AttributeError, IndexError, KeyError, OverflowError, NotImplementedError) as error:
        raise Skipped("damaged", f"the header's intensity attributes make no sense ({type(error).__name__})") from error
    if not (np.isfinite([low, high]).all() and 0 < high - low < WIDEST):
        raise Skipped("flat_image", "all pixels have one value, or their range is no range")
    return Intensity(header=header, rule="range", inverted=inverted, low=low, high=high)


def _modality(stored: NDArray[Any], header: Dataset) -> NDArray[Any]:
    if "ModalityLUTSequence" in header or "RescaleSlope" in header:
        found: NDArray[Any] = apply_modality_lut(stored, header)
        return found
    return stored


def _stored_range(header: Dataset) -> tuple[float, float]:
    bits = int(header.BitsStored)
    signed = int(header.get("PixelRepresentation", 0)) == 1
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    if "ModalityLUTSequence" in header:
        return 0.0, float((1 << int(header.ModalityLUTSequence[0].LUTDescriptor[2])) - 1)
    return _ordered(_modality(np.array([low, high]), header))


def _used_range(header: Dataset, stored: NDArray[Any]) -> tuple[float, float]:
    padding = header.get("PixelPaddingValue")
    if padding is not None:
        kept = stored[stored != int(padding)]
        stored = kept if kept.size else stored
    if "ModalityLUTSequence" in header:
        return _ordered(_modality(stored, header))
    return _ordered(_modality(np.array([stored.min(), stored.max()]), header))


def _ordered(values: NDArray[Any]) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _window(header: Dataset, inverted: bool) -> Intensity | None:
    if header.get("VOILUTSequence"):
        return Intensity(header=header, rule="table", inverted=inverted)
    if "WindowCenter" not in header or "WindowWidth" not in header:
        return None
    centre, width = _first(header.WindowCenter), _first(header.WindowWidth)
    rule = str(header.get("VOILUTFunction", LINEAR)).strip().upper() or LINEAR
    if rule not in (LINEAR, EXACT, SIGMOID) or not (np.isfinite([centre, width]).all() and 0 < width < WIDEST):
        raise ValueError("no such window")
    return Intensity(header=header, rule=rule, inverted=inverted, centre=centre, width=width)


def _first(value: Any) -> float:
    return float(value if isinstance(value, (int, float, str)) else value[0])


def _table(values: NDArray[np.float64], header: Dataset) -> NDArray[np.float64]:
    bits = int(header.VOILUTSequence[0].LUTDescriptor[2])
    mapped: NDArray[np.float64] = apply_voi(values.astype(np.int64), header, index=0).astype(np.float64)
    return mapped / ((1 << bits) - 1)
