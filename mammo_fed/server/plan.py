"""A dry run: every connected site says whether it would take a run. Nothing is declared, and nothing is charged."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from flwr.app import Message
from flwr.serverapp import Grid

from mammo_fed.data.cache import ArrayCache, default_cache_root
from mammo_fed.errors import DataError, PrivacyRefused, RunFailed, VersionMismatch
from mammo_fed.federation.flwr_internals.link.post import LinkPost
from mammo_fed.federation.flwr_internals.messages import answer_bytes
from mammo_fed.federation.protocol.plan_messages import PLAN_QUERY, PlanAnswer, pack_plan, read_plan_answer
from mammo_fed.federation.public_start import make_extractor, make_public_start
from mammo_fed.server.prepare import FeatureProgress
from mammo_fed.server.rounds.budget import reason_text
from mammo_fed.server.rounds.delivery import Delivery, Waiting
from mammo_fed.server.run import declare_run
from mammo_fed.settings import Settings

__all__ = ["Plan", "PlannedSite", "ask_sites"]

logger = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.5
# In place of a site's word, where it gave none.
NOT_CONNECTED: Final = "not connected"
NO_ANSWER: Final = "no answer"
CANNOT_SAY: Final = "its release of mammo-fed knows no plans, or it failed"


@dataclass(frozen=True, kw_only=True)
class PlannedSite:
    """One site: whether it answered, whether it would take the run, the word why not, and what would fit (None: not told)."""

    site: str
    connected: bool
    accepts: bool | None
    reason: str = ""
    fits: float | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the sites said.

    Attributes:
      sites: in the order of their names.
      needed: sites without which the run is not declared.
    """

    sites: tuple[PlannedSite, ...]
    needed: int

    @property
    def exit_code(self) -> int:
        """0 where enough sites would take the run, 3 where sites refuse and too few are left, 1 where too few answered."""
        if sum(site.accepts is True for site in self.sites) >= self.needed:
            return 0
        return PrivacyRefused.exit_code if any(site.accepts is False for site in self.sites) else RunFailed.exit_code

    def as_dict(self) -> dict[str, Any]:
        """Values that strict JSON knows."""
        return {"needed": self.needed, "sites": [asdict(site) for site in self.sites]}


def ask_sites(
    grid: Grid,
    settings: Settings,
    *,
    roster: Callable[[], Mapping[int, str]],
    wait: float,
    progress: FeatureProgress,
    database: Path | None = None,
) -> Plan:
    """Make the declaration of a run as `run_federation` would, and ask every site whether it would take it.

    Args:
      grid: carries the messages.
      settings: of the run.
      roster: the registered sites' names by node; empty where sites come without keys.
      wait: seconds for sites to connect, and again for their answers.
      progress: called while networks run.
      database: the SuperLink's; with it an answer that is announced and never comes keeps nobody waiting beyond `wait`.
    """
    cache = ArrayCache(Path(settings.engine.cache).expanduser() if settings.engine.cache else default_cache_root())
    extractor = make_extractor(settings, cache=cache, progress=lambda done, total: progress("pretraining", done, total))
    start = make_public_start(settings, extractor, cache=cache, progress=lambda done, total: progress("synthetic", done, total))
    # No site keeps anything of it: another declaration has another name.
    declaration = declare_run(settings, extractor, start, run_id=secrets.token_hex(8))
    post = LinkPost(grid, database, most_bytes=answer_bytes(0))
    delivery, federation = Delivery(grid, post=post), settings.federation
    nodes = _connected(delivery, roster, expected=federation.num_sites, wait=wait)
    content = pack_plan(declaration)
    answers = delivery.exchange(
        {node: Message(content, dst_node_id=node, message_type=PLAN_QUERY) for node in nodes},
        waiting=Waiting(enough=len(nodes), at_least=0.0, at_most=max(wait, POLL_SECONDS)),
    )
    names = roster()
    found = [_site(names.get(node, f"node-{node}"), answers.get(node), known=node in names) for node in nodes]
    here = {site.site for site in found}
    found += [PlannedSite(site=name, connected=False, accepts=None, reason=NOT_CONNECTED) for name in {*names.values()} - here]
    needed = federation.num_sites if federation.min_nodes == "auto" else federation.min_nodes
    return Plan(sites=tuple(sorted(found, key=lambda site: site.site)), needed=needed)


def _connected(delivery: Delivery, roster: Callable[[], Mapping[int, str]], *, expected: int, wait: float) -> tuple[int, ...]:
    """The nodes that are there once all that can be expected are, or `wait` seconds are over."""
    deadline = time.monotonic() + wait
    while True:
        nodes = delivery.nodes()
        if len(nodes) >= max(expected, len(roster())) or time.monotonic() >= deadline:
            return tuple(nodes)
        time.sleep(POLL_SECONDS)


def _site(name: str, message: Message | None, *, known: bool) -> PlannedSite:
    """A node's answer; in the name of the key that it came with, where keys are known."""
    if message is None:
        return PlannedSite(site=name, connected=True, accepts=None, reason=NO_ANSWER)
    if message.has_error():
        return PlannedSite(site=name, connected=True, accepts=None, reason=CANNOT_SAY)
    try:
        answer: PlanAnswer = read_plan_answer(message.content)
    except VersionMismatch as error:
        return PlannedSite(site=name, connected=True, accepts=False, reason=reason_text("version", error.theirs))
    except (DataError, ValueError) as error:
        logger.warning("%s sends an answer that cannot be read: %s", name, error)
        return PlannedSite(site=name, connected=True, accepts=None, reason="an answer that cannot be read")
    if known and answer.site != name:
        logger.warning("the key of %s answers in the name of %s; it is left out", name, answer.site)
        return PlannedSite(site=name, connected=True, accepts=None, reason="an answer in another site's name")
    accepts = answer.reason is None
    return PlannedSite(
        site=name if known else answer.site, connected=True, accepts=accepts, reason=answer.reason or "", fits=answer.fits
    )
