"""The site's Flower app: unpack, ask the site, pack. Errors go to the operator's log; the network gets a fixed word."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from mammo_fed.client.rounds.planned import check_planned, plan_refused
from mammo_fed.client.rounds.replies import reason_for, refusal
from mammo_fed.client.rounds.site import Site, open_site
from mammo_fed.errors import MammoFedError
from mammo_fed.federation.flwr_internals.messages import CLIENT_FAILED
from mammo_fed.federation.protocol.messages import SECURE, pack_reply, read_declaration, read_task
from mammo_fed.federation.protocol.plan_messages import PlanAnswer, pack_plan_answer, read_plan
from mammo_fed.federation.protocol.replies import Reply
from mammo_fed.federation.protocol.secure_messages import Answer, pack_answer, read_parcels, read_question
from mammo_fed.federation.protocol.task import DECLARATION_ROUND
from mammo_fed.federation.run_folder import SITES_NAME, run_folder_of

__all__ = ["Answered", "Asked", "app", "make_app"]

logger = logging.getLogger(__name__)

Asked: TypeAlias = Literal["declaration", "round", "sum", "plan"]
"""What a message asks for: a run, a round, a stage of a masked sum, or whether a run would be taken."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Answered:
    """One message and what became of it, for the site's own people.

    Attributes:
      site: that answered.
      asked: what for.
      run_id: of the run; "" where the message did not get so far as to say.
      round_index: DECLARATION_ROUND for the declaration and for a plan.
      error: why it was refused; None where it was not. Its text stays at the site.
    """

    site: Site
    asked: Asked
    run_id: str = ""
    round_index: int = DECLARATION_ROUND
    error: Exception | None = None


def make_app(told: Callable[[Answered], None] = lambda _: None) -> ClientApp:
    """A site's app that tells `told` of every message once its answer is made."""
    made = ClientApp()

    @made.query()
    def declare(message: Message, context: Context) -> Message:
        """Answer the declaration of a run."""

        def answer(site: Site, about: _About) -> Reply:
            declaration, payload = read_declaration(message)
            about.run_id = declaration.run_id
            return site.declare(declaration, payload)

        return _answer(message, context, "declaration", answer, told)

    @made.train()
    def train(message: Message, context: Context) -> Message:
        """Answer one round."""

        def answer(site: Site, about: _About) -> Reply:
            task, feature_mean, arrays = read_task(message)
            about.run_id, about.round_index = task.run_id, task.round_index
            return site.round(task, feature_mean, arrays, read_parcels(message.content) if SECURE in message.content else None)

        return _answer(message, context, "round", answer, told)

    @made.query("secure")
    def secure(message: Message, context: Context) -> Message:
        """Answer a stage of a masked sum."""
        site = _open(context)
        if site is None:
            return _closed(message)
        try:
            answer = site.masked_sum_stage(read_question(message.content))
        except Exception as error:  # noqa: BLE001 - whatever it is, the network gets one word
            _log_refusal(site, error)
            answer = Answer(reason=reason_for(error))
            told(Answered(site=site, asked="sum", error=error))
        return Message(pack_answer(answer), reply_to=message)

    @made.query("plan")
    def plan(message: Message, context: Context) -> Message:
        """Answer whether the site would take a run; nothing is charged."""
        site = _open(context)
        if site is None:
            return _closed(message)
        failure: Exception | None = None
        try:
            check_planned(site.file, read_plan(message.content), public=site.cohort.public)
            answer = PlanAnswer(site=site.file.site)
        except Exception as error:  # noqa: BLE001 - whatever it is, the network gets one word
            _log_refusal(site, error)
            answer, failure = plan_refused(site.file, error), error
        told(Answered(site=site, asked="plan", error=failure))
        return Message(pack_plan_answer(answer), reply_to=message)

    return made


@dataclass(kw_only=True)
class _About:
    """What a message has said of itself so far."""

    run_id: str = ""
    round_index: int = DECLARATION_ROUND


def _answer(
    message: Message,
    context: Context,
    asked: Asked,
    answer: Callable[[Site, _About], Reply],
    told: Callable[[Answered], None],
) -> Message:
    # Whatever happens, the text of it stays here: Flower would send str(error) to the server.
    failure: Exception | None = None
    site, about = _open(context), _About()
    if site is None:
        return _closed(message)
    try:
        packed = pack_reply(answer(site, about))
    except Exception as error:  # noqa: BLE001 - see above
        _log_refusal(site, error)
        packed, failure = pack_reply(refusal(site.file, reason_for(error))), error
    told(Answered(site=site, asked=asked, run_id=about.run_id, round_index=about.round_index, error=failure))
    return Message(packed, reply_to=message)


def _log_refusal(site: Site, error: Exception) -> None:
    logger.warning("site %s refuses: %s", site.file.site, error, exc_info=not _is_expected(error))


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
    return isinstance(error, MammoFedError)


def _site_path(context: Context) -> Path:
    """A real site names its own file; a simulated one is found by its number in the simulation's folder."""
    own = context.node_config.get("site-file")
    if own is not None:
        return Path(str(own))
    named = context.run_config.get("sites-folder")
    folder = run_folder_of(context) / SITES_NAME if named is None else Path(str(named))
    return folder / f"site-{int(context.node_config['partition-id']) + 1}.json"


app = make_app()
