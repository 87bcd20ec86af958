"""What a record says of its settings, compared with the config.yaml beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from mammo_fed.errors import MammoFedError
from mammo_fed.settings.compose import read_composed

__all__ = ["settings_figures"]

CONFIG_NAME: Final = "config.yaml"
TERMS: Final = ("unit", "target_epsilon", "delta", "accountant")


def settings_figures(record: Path) -> list[dict[str, Any]]:
    """Figures, as a recomputation gives them, of a record's hash of the settings and of the terms that these asked for.

    Args:
      record: a record.json that was read before; the settings lie beside it in the folder of a run.
    """
    values = json.loads(record.read_text(encoding="utf-8"))
    name, recorded = "hash of the settings", str(values.get("config_hash", ""))
    if not (record.parent / CONFIG_NAME).is_file():
        return [_figure(name, recorded, "", None, f"{CONFIG_NAME} is not beside the record")]
    try:
        settings = read_composed(record.parent).settings
    except MammoFedError as error:
        return [_figure(name, recorded, "", None, str(error))]
    except (RecursionError, AssertionError):
        # What OmegaConf raises of a text that is nested without end, or is no group.
        return [_figure(name, recorded, "", None, f"{CONFIG_NAME} is not a run's configuration")]
    found = settings.sha256()
    terms = {term: getattr(settings.privacy, term) for term in TERMS}
    return [
        _figure(name, recorded, found, recorded == found, f"of {CONFIG_NAME}"),
        *(
            _figure(f"settings: privacy.{term}", _text(values["privacy"].get(term)), _text(asked), same, f"in {CONFIG_NAME}")
            for term, asked in terms.items()
            for same in [_text(values["privacy"].get(term)) == _text(asked)]
        ),
    ]


def _text(value: object) -> str:
    # A record has null where a number is infinite.
    return "inf" if value is None else str(value)


def _figure(name: str, recorded: str, recomputed: str, agrees: bool | None, note: str) -> dict[str, Any]:
    return {"name": name, "recorded": recorded, "recomputed": recomputed, "agrees": agrees, "note": note}
