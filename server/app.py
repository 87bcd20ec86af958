"""The ServerApp that stock Flower starts (`flwr run .`): it simulates a federation with the installed package."""

from __future__ import annotations

from mammo_fed.simulations.flower_app import make_app

app = make_app()
