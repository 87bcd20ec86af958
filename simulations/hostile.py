"""One of four hospitals turns its updates round: what averaging and the robust strategy make of it.

python simulations/hostile.py FOLDER [key=value ...]
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from mammo_fed.client.rounds.app import app
from mammo_fed.errors import MammoFedError
from mammo_fed.federation.protocol.messages import pack_reply, read_reply, read_task
from mammo_fed.federation.protocol.replies import Update
from mammo_fed.server.run import Hooks
from mammo_fed.settings.compose import compose_settings
from mammo_fed.simulations.launch import simulate

HOSTILE = "site-2"
# (name of the run, whether a site is hostile, settings).
RUNS = (
    ("honest", False, "federation=hospitals"),
    ("hostile-average", True, "federation=hospitals"),
    ("hostile-robust", True, "federation=robust"),
)


class TurnedRound(ClientApp):
    """The installed app, but for one site: it sends its change of the model with the sign flipped."""

    def __call__(self, message: Message, context: Context) -> Message:
        honest = app(message, context)
        reply = read_reply(honest.content)
        if not isinstance(reply, Update) or reply.site != HOSTILE:
            return honest
        parameters = read_task(message)[2]
        turned = (2 * parameters - reply.parameters).astype(np.float32)
        return Message(pack_reply(replace(reply, parameters=turned)), reply_to=message)


def main(folder: Path, overrides: list[str]) -> None:
    """Run all three below `folder` and print one line for each."""
    for name, hostile, strategy in RUNS:
        settings = compose_settings([strategy, *overrides]).settings
        record = simulate(settings, folder / name, hooks=Hooks(), client_app=TurnedRound() if hostile else app)
        left_out = sum(len(site.rejected) for site in record.privacy.sites)
        scores = ", ".join(f"{key} AUROC {metrics.auroc:.3f}" for key, metrics in record.evaluation.items())
        sys.stdout.write(f"{name}: {scores}; {left_out} updates left out\n")


if __name__ == "__main__":
    if len(sys.argv) < 2 or "=" in sys.argv[1]:
        sys.exit("usage: python simulations/hostile.py FOLDER [key=value ...]")
    try:
        main(Path(sys.argv[1]), sys.argv[2:])
    except MammoFedError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
