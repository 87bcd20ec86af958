"""Hostile hospitals against the aggregation: what the model loses by every attack, as a table.

python simulations/hostile.py FOLDER [--data phantom|mammo_dp] [--seeds N] [--attacks a,b] [key=value ...]

Every cell is run once and kept below FOLDER: the same command, given again, resumes.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from flwr.app import Context, Message, MessageType
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from mammo_fed.client.rounds.app import app
from mammo_fed.client.rounds.site import open_site
from mammo_fed.errors import MammoFedError
from mammo_fed.federation.protocol.messages import pack_reply, read_declaration, read_reply, read_task
from mammo_fed.federation.protocol.replies import Accepted, Update
from mammo_fed.federation.protocol.task import Declaration
from mammo_fed.reporting.record.record import RECORD_NAME, Record, read_record
from mammo_fed.server.rounds.reply_checks import update_bound
from mammo_fed.server.run import Hooks
from mammo_fed.settings.compose import compose_settings
from mammo_fed.simulations.launch import simulate

# An attacker that knows the bound stays just below it.
INSIDE: Final = 0.999
FALSE_IMAGES: Final = 1_000_000
PHANTOM: Final = (
    "model=efficientnet_lite0",
    "model.input_size=64",
    "model.flips=none",
    "model.components=120",
    "data.image_size=64",
    "data.images_train=600",
    "data.images_test=600",
    "data.images_external=8",
    "synthesis.count=160",
    "privacy.target_epsilon=30",
)
PATCHES: Final = ("data=mammo_dp", "privacy.unit=patient", "privacy.target_epsilon=6")
# (name of the column, sites, of which the last are hostile, settings).
Column = tuple[str, int, int, str]
COLUMNS: Final[tuple[Column, ...]] = (
    ("robust, 1 of 4", 4, 1, "federation=robust"),
    ("default, 1 of 4", 4, 1, "federation=hospitals"),
    ("robust, 2 of 5", 5, 2, "federation=robust"),
    ("default, 2 of 5", 5, 2, "federation=hospitals"),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """What a hostile site has at hand: its honest update, the model that it was sent, and the length that is let through."""

    update: NDArray[np.float64]
    round: int
    bound: float
    site: str


Attack = Callable[[Seen], NDArray[np.float64]]


def _along(direction: NDArray[np.float64], length: float) -> NDArray[np.float64]:
    return direction * (INSIDE * length / max(float(np.linalg.norm(direction)), 1e-12))


def _fixed(seen: Seen) -> NDArray[np.float64]:
    """One direction for all rounds and all who collude."""
    return np.random.default_rng(12345).standard_normal(len(seen.update))


def _random(seen: Seen) -> NDArray[np.float64]:
    """Another direction in each round and at each site."""
    return np.random.default_rng([seen.round, *seen.site.encode()]).standard_normal(len(seen.update))


def _shortened(seen: Seen, times: float) -> NDArray[np.float64]:
    """The honest update, `times` as long, or as far as the bound lets it."""
    turned = times * seen.update
    norm = float(np.linalg.norm(turned))
    return turned if norm <= INSIDE * seen.bound else _along(turned, seen.bound)


ATTACKS: Final[dict[str, Attack | None]] = {
    # It trains on labels that are the wrong way round, and does all else as it should.
    "label flip": None,
    "sign flip": lambda seen: _shortened(seen, -1.0),
    "sign flip at the bound": lambda seen: _along(-seen.update, seen.bound),
    "constant": lambda seen: _along(_fixed(seen), seen.bound),
    "random at the bound": lambda seen: _along(_random(seen), seen.bound),
    "alternating": lambda seen: _along((-1.0) ** seen.round * _fixed(seen), seen.bound),
    "false weight": lambda seen: _along(_random(seen), seen.bound),
}


class HostileApp(ClientApp):
    """The installed app; what some sites send is changed on its way out, or what they train on.

    Args:
      attack: on updates; None turns the labels round.
      hostile: sites by name.
      images: what they declare in place of their own numbers.
    """

    def __init__(self, attack: Attack | None, hostile: Sequence[str], *, images: int | None = None) -> None:
        super().__init__()
        self._attack, self._hostile, self._images = attack, frozenset(hostile), images
        self._declaration: Declaration | None = None

    def __call__(self, message: Message, context: Context) -> Message:
        site = f"site-{int(context.node_config['partition-id']) + 1}"
        if site not in self._hostile:
            return app(message, context)
        if message.metadata.message_type == MessageType.QUERY:
            if self._attack is None:
                opened = open_site(Path(str(context.run_config["sites-folder"])) / f"{site}.json")
                opened.cohort = replace(opened.cohort, labels=1 - opened.cohort.labels)
            self._declaration = read_declaration(message)[0]
        reply = app(message, context)
        found = read_reply(reply.content)
        if self._attack is None or not isinstance(found, Accepted | Update):
            return reply
        if self._images is not None:
            found = replace(found, public_images=self._images, public_patients=self._images)
        if isinstance(found, Update):
            found = self._changed(found, message)
        return Message(pack_reply(found), reply_to=message)

    def _changed(self, reply: Update, message: Message) -> Update:
        """The attack's update in place of the honest one."""
        task, _, sent = read_task(message)
        if self._attack is None or self._declaration is None:
            return reply
        bound = update_bound(
            self._declaration,
            task,
            reply.events,
            public_images=reply.public_images,
            public_patients=reply.public_patients,
            parameters=sent,
        )
        seen = Seen(update=reply.parameters.astype(np.float64) - sent, round=task.round_index, bound=bound, site=reply.site)
        return replace(reply, parameters=(sent + self._attack(seen)).astype(np.float32))


@dataclass(frozen=True, kw_only=True)
class Table:
    """Federations of one kind of data; each is run once and kept.

    Attributes:
      folder: where runs are kept.
      overrides: settings of all of them.
      evaluated: the set that counts.
      seeds: of the noise, which is injected: a run with an attack differs from one without it by the attack alone.
    """

    folder: Path
    overrides: tuple[str, ...]
    evaluated: str
    seeds: tuple[int, ...]

    def auroc(self, column: Column, attack: str) -> float:
        """Mean AUROC over the seeds; without an attack where it is empty."""
        records = [self.record(column, attack, seed) for seed in self.seeds]
        return float(np.mean([record.evaluation[self.evaluated].auroc for record in records]))

    def record(self, column: Column, attack: str, seed: int) -> Record:
        """A federation's record, from the disk where it is there."""
        name, sites, hostile, strategy = column
        folder = self.folder / "-".join([*name.replace(",", "").split(), *(attack or "nobody").split(), str(seed)])
        if (folder / RECORD_NAME).exists():
            return read_record(folder)
        # What was interrupted begins again: it is a simulation's folder, and holds nobody's ledger.
        shutil.rmtree(folder, ignore_errors=True)
        overrides = [strategy, f"federation.num_sites={sites}", f"privacy.noise_seed={seed}", *self.overrides]
        bad = [f"site-{number}" for number in range(sites - hostile + 1, sites + 1)]
        images = FALSE_IMAGES if attack == "false weight" else None
        client = HostileApp(ATTACKS[attack], bad, images=images) if attack else app
        return simulate(compose_settings(overrides).settings, folder, hooks=Hooks(), client_app=client)

    def row(self, attack: str) -> str:
        """What each column loses by an attack, as a line of Markdown."""
        losses = [self.auroc(column, "") - self.auroc(column, attack) for column in COLUMNS]
        return " | ".join(["", attack, *(f"{loss:+.4f}" for loss in losses), ""]).strip()


def main(arguments: Sequence[str]) -> None:
    """Print the table, a row as soon as it is there."""
    parser = argparse.ArgumentParser(description="What a federation loses by hostile sites.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", choices=["phantom", "mammo_dp"], default="phantom")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--attacks", default=",".join(ATTACKS), help="separated by commas")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args(arguments)
    table = Table(
        folder=options.folder / options.data,
        overrides=((*PHANTOM,) if options.data == "phantom" else PATCHES) + tuple(options.overrides),
        evaluated="test" if options.data == "phantom" else "val",
        seeds=tuple(range(1, options.seeds + 1)),
    )
    say(" | ".join(["", f"AUROC lost, {options.data}, {options.seeds} seeds", *(name for name, *_ in COLUMNS), ""]).strip())
    say("|---" * (len(COLUMNS) + 1) + "|")
    averaged = [
        table.auroc((f"FedAvg, {sites}", sites, 0, "federation.strategy=FedAvg"), "") - table.auroc(column, "")
        for column in COLUMNS
        for sites in [column[1]]
    ]
    say(" | ".join(["", "nobody hostile, against FedAvg", *(f"{loss:+.4f}" for loss in averaged), ""]).strip())
    for attack in options.attacks.split(","):
        say(table.row(attack))


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except MammoFedError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
