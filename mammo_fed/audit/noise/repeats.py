"""What repeats in the noise: between rounds, runs, sites and entries, the same, turned round or scaled.

Two vectors of sound noise are independent. Given one of them, the product with the other over its length is exactly standard
normal, and the cosine between them follows a beta distribution: both are tested, over all that could be related.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr
from scipy.stats import beta

from mammo_fed.audit.noise.probe import Message, messages_by_run
from mammo_fed.audit.noise.suspicion import Suspicion, worst

__all__ = ["between_entries", "between_rounds", "between_runs", "between_sites", "copies"]

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]

# Vectors that are compared each with each.
MOST_VECTORS: Final = 4096
LAGS: Final = (1, 2, 3)
# float32 and its sums may make a cosine this much too large.
ROUNDING: Final = 1e-5


def copies(messages: Sequence[Message]) -> Suspicion:
    """Whether two messages of any runs, rounds and sites carry noise in nearly the same or the opposite direction."""
    rows = np.moveaxis(messages_by_run(messages), 0, 1)
    rows = rows.reshape(-1, rows.shape[-1])[:MOST_VECTORS].astype(np.float64)
    count, entries = rows.shape
    if count < 2 or entries < 2:
        return Suspicion(log_chance=0.0, found="")
    norms = np.linalg.norm(rows, axis=1)
    # Two messages without noise are no copies: their size is another test's.
    rows = (rows / np.where(norms > 0, norms, 1.0)[:, None]).astype(np.float32)
    cosines = np.abs(rows @ rows.T)
    np.fill_diagonal(cosines, 0.0)
    largest = float(cosines.max())
    pairs = count * (count - 1) / 2
    # cos^2 of two independent directions is Beta(1/2, (d - 1)/2).
    rare = float(beta.logsf(min(1.0, max(0.0, largest - ROUNDING)) ** 2, 0.5, (entries - 1) / 2))
    return Suspicion(
        log_chance=min(0.0, rare + math.log(pairs)),
        found=f"two of {count:,} messages carry noise with a cosine of {largest:.4f}",
    )


def between_rounds(messages: Sequence[Message]) -> Suspicion:
    """Whether the noise of two rounds of a run goes together."""
    rows = messages_by_run(messages).reshape(len(messages), -1).astype(np.float64)
    return _related(rows @ rows.T, np.einsum("ij,ij->i", rows, rows), "the noise of two rounds of one run")


def between_sites(messages: Sequence[Message]) -> Suspicion:
    """Whether two sites' noise in one round goes together."""
    found = []
    for message in messages:
        here, there = (message.standard[:, site].ravel().astype(np.float64) for site in (0, 1))
        found.append(_normal(float(here @ there), float(here @ here), f"the noise of two sites in {message.name}"))
    return worst(found)


def between_runs(messages: Sequence[Message]) -> Suspicion:
    """Whether the noise of a run goes with that of the next ones."""
    found = [Suspicion(log_chance=0.0, found="")]
    for message in messages:
        rows = message.standard.astype(np.float64)
        for lag in LAGS:
            # Pairs that share no run: the product's distribution is exact for those alone.
            starts = np.arange(0, len(rows) - lag, 2 * lag)
            firsts = (starts[:, None] + np.arange(lag)).ravel()
            firsts = firsts[firsts + lag < len(rows)]
            here, there = rows[firsts].ravel(), rows[firsts + lag].ravel()
            if here.size:
                what = f"the noise of two runs in {message.name}"
                found.append(_normal(here @ there, here @ here, what))
    return worst(found)


def between_entries(messages: Sequence[Message]) -> Suspicion:
    """Whether two entries of a message, or all of them, go together."""
    rows = messages_by_run(messages)
    rows = rows.reshape(-1, rows.shape[-1]).astype(np.float64)
    entries = _related(rows.T @ rows, np.einsum("ij,ij->j", rows, rows), "the noise on two entries of the messages")
    half = rows.shape[1] // 2
    # All of the first half with all of the second: a little in common shows in the sum.
    here, there = rows[:, :half].sum(axis=1), rows[:, half:].sum(axis=1) / math.sqrt(rows.shape[1] - half)
    halves = _normal(here @ there, here @ here, "the noise on the first and the second half of the entries")
    return worst([entries, halves])


def _related(products: NDArray[Any], squares: NDArray[Any], what: str) -> Suspicion:
    """The strongest relation among several vectors: their products with each other, and their squared lengths."""
    count = len(squares)
    if count < 2:
        return Suspicion(log_chance=0.0, found="")
    scores = np.abs(products) / np.sqrt(np.maximum(np.maximum.outer(squares, squares), 1e-300))
    first, second = np.unravel_index(np.argmax(np.triu(scores, 1)), scores.shape)
    found = _normal(products[first, second], max(squares[first], squares[second]), what)
    correlation = products[first, second] / math.sqrt(max(squares[first] * squares[second], 1e-300))
    return Suspicion(
        log_chance=min(0.0, found.log_chance + math.log(count * (count - 1) / 2)),
        found=f"{what} goes together with a correlation of {correlation:.4f}",
    )


def _normal(product: float, squared: float, what: str) -> Suspicion:
    """Two-sided chance of a product, given the squared length of the vector that it is with; the other is standard normal."""
    score = abs(product) / math.sqrt(squared) if squared > 0 else 0.0
    return Suspicion(
        log_chance=min(0.0, math.log(2) + float(log_ndtr(-score))),
        found=f"{what} goes together with a correlation of {product / max(squared, 1e-300):.4f}",
    )
