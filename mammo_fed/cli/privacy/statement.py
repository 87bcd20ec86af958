"""mammo-fed privacy statement: one page for one patient of one site, from a record or from a site's ledger."""

from __future__ import annotations

import argparse
import hashlib
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from mammo_fed.cli.privacy.verify import record_path
from mammo_fed.common.command_line import print_json, say
from mammo_fed.common.private_files import write_atomically
from mammo_fed.common.serialization import RECORD, plain
from mammo_fed.errors import InvalidSetting
from mammo_fed.privacy.ledger.report import export_ledger, show_ledger
from mammo_fed.reporting.record.record import RECORD_NAME, read_record
from mammo_fed.reporting.statement.facts import Facts, facts_of_ledger, facts_of_record
from mammo_fed.reporting.statement.statement import as_page, as_text, statement_of

__all__ = ["statement"]


def statement(options: argparse.Namespace, console: Console) -> int:
    """Print a statement, or write it as a page; the exit code."""
    facts = _facts(options.target, site=options.patient_site)
    if options.json:
        found = [
            {**plain(asdict(each), form=RECORD), "statement": plain(asdict(statement_of(each, language=options.language)))}
            for each in facts
        ]
        print_json(found[0] if options.patient_site is not None and len(found) == 1 else found)
        return 0
    statements = [statement_of(each, language=options.language) for each in facts]
    if options.output is None:
        sys.stdout.write("\n".join(as_text(each) for each in statements))
        return 0
    page = options.output.suffix.lower() in (".html", ".htm")
    text = as_page(statements) if page else "\n".join(as_text(each, markdown=True) for each in statements)
    try:
        write_atomically(options.output, text)
    except OSError as error:
        raise InvalidSetting(f"--output={options.output} cannot be written ({error.strerror}); check the path") from error
    say(console, f"statement: {options.output.resolve()}")
    return 0


def _facts(target: Path, *, site: str | None) -> tuple[Facts, ...]:
    path = record_path(target)
    if path is not None:
        if path.name != RECORD_NAME:
            raise InvalidSetting(f"TARGET={target} must be called {RECORD_NAME}, as a run leaves it; check the path")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return facts_of_record(read_record(path.parent), site=site, sha256=digest)
    if not target.is_dir():
        raise InvalidSetting(
            f"TARGET={target} must be a run's folder, its {RECORD_NAME}, or a ledger's folder, such as "
            "RUN/sites/site-1/ledger; check the path"
        )
    summary = show_ledger(target, delta=None)
    if site not in (None, summary.site):
        raise InvalidSetting(f"--patient-site={site} must be the ledger's site, {summary.site}")
    found = facts_of_ledger(summary, export_ledger(target))
    if not found:
        raise InvalidSetting(f"LEDGER={target} holds no account: nothing was ever declared to it")
    return found
