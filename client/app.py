"""The ClientApp that stock Flower starts (`flwr run .`): a hospital's side, from the installed package."""

from __future__ import annotations

from mammo_fed.client.rounds import app as installed

app = installed.app
