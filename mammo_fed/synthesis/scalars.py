"""TensorBoard's scalars of a training: an extra, for who wants to look at curves while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from mammo_fed.errors import InvalidSetting
from mammo_fed.synthesis.adversarial import Losses

__all__ = ["TENSORBOARD_ABSENT", "TENSORBOARD_NAME", "Scalars", "has_tensorboard", "open_scalars", "require_tensorboard"]

TENSORBOARD_NAME: Final = "tensorboard"
TENSORBOARD_ABSENT: Final = (
    'TensorBoard is not installed and gets no scalars: pip install "mammo-fed[tensorboard]"; losses.csv has them'
)


def has_tensorboard() -> bool:
    """Whether TensorBoard is installed; imports nothing."""
    return find_spec("tensorboard") is not None


def require_tensorboard() -> None:
    """Raise InvalidSetting where TensorBoard is not installed."""
    if not has_tensorboard():
        raise InvalidSetting(TENSORBOARD_ABSENT)


class Scalars:
    """Losses as TensorBoard reads them.

    Args:
      writer: a `torch.utils.tensorboard.SummaryWriter`.
    """

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def add(self, losses: Sequence[Losses]) -> None:
        """Append the losses of further steps; on their way to the disk when this returns."""
        for one in losses:
            scalars = {"loss/generator": one.generator, "loss/fake": one.fake, "loss/real": one.real}
            for name, value in scalars.items():
                if value is not None:
                    self._writer.add_scalar(name, value, one.step)
        self._writer.flush()

    def close(self) -> None:
        """Close the files."""
        self._writer.close()


def open_scalars(folder: Path) -> Scalars:
    """A writer into the folder "tensorboard" of a training.

    Raises:
      InvalidSetting: If TensorBoard is not installed.
    """
    require_tensorboard()
    # An extra, and slow to import.
    from torch.utils.tensorboard import SummaryWriter

    return Scalars(SummaryWriter(str(folder / TENSORBOARD_NAME)))
