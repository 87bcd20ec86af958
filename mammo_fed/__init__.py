"""mammo-fed: federated, differentially private training of a breast-mass malignancy classifier.

`__all__` is the public Python interface; docs/python.md shows it at work. Importing this package loads neither torch nor
Flower: a name is fetched when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mammo_fed.api.privacy import Plan, charge, open_ledger, plan
    from mammo_fed.api.runs import compose_settings, simulate
    from mammo_fed.models.predict import Model, load_model
    from mammo_fed.privacy.accounting.pricing import epsilon, patient_epsilon
    from mammo_fed.privacy.events import PrivacyEvent
    from mammo_fed.privacy.ledger.ledger import Ledger
    from mammo_fed.privacy.ledger.rules import Budget
    from mammo_fed.reporting.record.record import Record, read_record
    from mammo_fed.settings import Settings

    __version__: str

__all__ = [
    "Budget",
    "Ledger",
    "Model",
    "Plan",
    "PrivacyEvent",
    "Record",
    "Settings",
    "__version__",
    "charge",
    "compose_settings",
    "epsilon",
    "load_model",
    "open_ledger",
    "patient_epsilon",
    "plan",
    "read_record",
    "simulate",
]

_HOMES = {
    "Budget": "mammo_fed.privacy.ledger.rules",
    "Ledger": "mammo_fed.privacy.ledger.ledger",
    "Model": "mammo_fed.models.predict",
    "Plan": "mammo_fed.api.privacy",
    "PrivacyEvent": "mammo_fed.privacy.events",
    "Record": "mammo_fed.reporting.record.record",
    "Settings": "mammo_fed.settings",
    "charge": "mammo_fed.api.privacy",
    "compose_settings": "mammo_fed.api.runs",
    "epsilon": "mammo_fed.privacy.accounting.pricing",
    "load_model": "mammo_fed.models.predict",
    "open_ledger": "mammo_fed.api.privacy",
    "patient_epsilon": "mammo_fed.privacy.accounting.pricing",
    "plan": "mammo_fed.api.privacy",
    "read_record": "mammo_fed.reporting.record.record",
    "simulate": "mammo_fed.api.runs",
}

# Hidden from type checkers: to them any name would then be there.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Fetch a public name from its home, once."""
        if name == "__version__":
            from importlib.metadata import version

            value = version("mammo-fed")
        elif name in _HOMES:
            value = getattr(import_module(_HOMES[name]), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
