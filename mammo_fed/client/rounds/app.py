"""The site's Flower app: unpack, ask the site, pack. Errors go to the operator's log; the network gets a fixed word."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from mammo_fed.client.rounds.replies import reason_for, refusal
from mammo_fed.client.rounds.site import Site, open_site
from mammo_fed.errors import PrivacyRefused, VersionMismatch
from mammo_fed.federation.flwr_internals.messages import CLIENT_FAILED
from mammo_fed.federation.protocol.messages import SECURE, pack_reply, read_declaration, read_task
from mammo_fed.federation.protocol.replies import Reply
from mammo_fed.federation.protocol.secure_messages import Answer, pack_answer, read_parcels, read_question
from mammo_fed.federation.run_folder import SITES_NAME, run_folder_of

__all__ = ["app"]

logger = logging.getLogger(__name__)

app = ClientApp()


@app.query()
def declare(message: Message, context: Context) -> Message:
    """Answer the declaration of a run."""

    def answer(site: Site) -> Reply:
        declaration, payload = read_declaration(message)
        return site.declare(declaration, payload)

    return _answer(message, context, answer)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer one round."""

    def answer(site: Site) -> Reply:
        task, feature_mean, arrays = read_task(message)
        return site.round(task, feature_mean, arrays, read_parcels(message.content) if SECURE in message.content else None)

    return _answer(message, context, answer)


@app.query("secure")
def secure(message: Message, context: Context) -> Message:
    """Answer a stage of a masked sum."""
    site = _open(context)
    if site is None:
        return _closed(message)
    try:
        answer = site.masked_sum_stage(read_question(message.content))
    except Exception as error:
        logger.warning("site %s refuses: %s", site.file.site, error, exc_info=not _is_expected(error))
        answer = Answer(reason=reason_for(error))
    return Message(pack_answer(answer), reply_to=message)


def _answer(message: Message, context: Context, answer: Callable[[Site], Reply]) -> Message:
    # Whatever happens, the text of it stays here: Flower would send str(error) to the server.
    site = _open(context)
    if site is None:
        return _closed(message)
    try:
        packed = pack_reply(answer(site))
    except Exception as error:
        logger.warning("site %s refuses: %s", site.file.site, error, exc_info=not _is_expected(error))
        packed = pack_reply(refusal(site.file, reason_for(error)))
    return Message(packed, reply_to=message)


def _open(context: Context) -> Site | None:
    try:
        return open_site(_site_path(context))
    except Exception:
        logger.exception("this site cannot be opened; its operator must look at the site file and the cohort")
        return None


def _closed(message: Message) -> Message:
    return Message(Error(code=CLIENT_FAILED, reason="internal"), reply_to=message)


def _is_expected(error: Exception) -> bool:
    """Whether the error's text tells the operator all there is to know."""
    return isinstance(error, PrivacyRefused | VersionMismatch)


def _site_path(context: Context) -> Path:
    """A real site names its own file; a simulated one is found by its number in the simulation's folder."""
    own = context.node_config.get("site-file")
    if own is not None:
        return Path(str(own))
    named = context.run_config.get("sites-folder")
    folder = run_folder_of(context) / SITES_NAME if named is None else Path(str(named))
    return folder / f"site-{int(context.node_config['partition-id']) + 1}.json"
