"""The error tree. Every error that a person can cause names the value, the rule it breaks and the remedy."""

from __future__ import annotations

__all__ = [
    "DataError",
    "InvalidSetting",
    "LedgerError",
    "LedgerUnavailable",
    "MammoFedError",
    "PolicyRefused",
    "PrivacyRefused",
    "RunFailed",
    "SiteNotReady",
    "VersionMismatch",
    "WeightsError",
    "WithdrawnMeanwhile",
]


class MammoFedError(Exception):
    """Base of all errors that mammo-fed raises on purpose.

    Attributes:
      exit_code: what a command line returns: 1 internal failure, 2 bad input, 3 refused for privacy.
    """

    exit_code = 1


class InvalidSetting(MammoFedError, ValueError):
    """A setting breaks its rule; the message names the setting, its value, the rule and where to change it."""

    exit_code = 2


class DataError(MammoFedError, ValueError):
    """A cohort, an image or a table cannot be read as what it claims to be."""

    exit_code = 2


class WeightsError(MammoFedError, ValueError):
    """Backbone weights are missing or do not fit; the message names the ways out."""

    exit_code = 2


class RunFailed(MammoFedError, RuntimeError):
    """A run could not be completed for a reason that is not the user's input."""

    exit_code = 1


class PrivacyRefused(MammoFedError):
    """A release would pass a site's budget, or a privacy rule forbids it.

    Attributes:
      fits: where a whole run was refused for its budget: the largest target epsilon at which a run of its shape fits.
    """

    exit_code = 3
    fits: float | None = None


class PolicyRefused(PrivacyRefused):
    """A task asks for something that the site's own policy does not allow."""


class LedgerError(PrivacyRefused):
    """The ledger is damaged, was tampered with, or is asked to contradict itself; nothing is released."""


class LedgerUnavailable(LedgerError):
    """The ledger cannot be written or locked at the moment, as where a disk is full; nothing is wrong with what it holds."""


class SiteNotReady(MammoFedError):
    """A site cannot answer a round now, and has reserved nothing for it; it is to be declared to, and asked, again."""


class WithdrawnMeanwhile(LedgerError):
    """A patient withdrew since a round was reserved: what was trained is dropped, and trained again without that patient."""


class VersionMismatch(MammoFedError):
    """The other side speaks another version of the protocol; nothing else of its message is read.

    Args:
      theirs: the version of the message.
      ours: the version of this program.
    """

    exit_code = 2

    def __init__(self, *, theirs: int, ours: int) -> None:
        super().__init__(
            f"version: the other side speaks version {theirs} of the protocol and this one version {ours}; install the same "
            "release of mammo-fed on both"
        )
        self.theirs, self.ours = theirs, ours
