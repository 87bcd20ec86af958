"""Rounds of an aggregator without sites: what each would have sent is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from mammo_fed.federation.protocol.messages import ARRAYS, METRICS, PRIVACY, WEIGHT, pack_parameters
from mammo_fed.federation.strategies.aggregator import Aggregator
from mammo_fed.simulations.in_process import InProcessGrid


@pytest.fixture
def grid() -> Iterator[InProcessGrid]:
    """A grid of four sites that nobody answers for."""
    opened = InProcessGrid(lambda message, context: message, num_sites=4, run_config={}, workers=1, wire=False)
    yield opened
    opened.close()


@pytest.fixture
def one_round(grid: InProcessGrid) -> Callable[..., NDArray[np.float32]]:
    """`one_round(aggregator, updates)`: the aggregate where site 1 sends the model + the first update, and so on."""

    def run(
        aggregator: Aggregator,
        updates: NDArray[np.floating],
        *,
        index: int = 1,
        flat: NDArray[np.float32] | None = None,
        weights: Sequence[int] | None = None,
    ) -> NDArray[np.float32]:
        flat = np.zeros(updates.shape[1], np.float32) if flat is None else flat
        nodes = sorted(grid.get_node_ids())[: len(updates)]
        asked = aggregator.configure(grid, nodes, round_index=index, parameters=flat, config=ConfigRecord({}))
        replies = [
            Message(
                RecordDict(
                    {
                        ARRAYS: pack_parameters((flat + update).astype(np.float32)),
                        METRICS: MetricRecord({WEIGHT: 10 if weights is None else weights[site]}),
                        PRIVACY: ConfigRecord({"site": f"site-{site + 1}"}),
                    }
                ),
                reply_to=message,
            )
            for site, (message, update) in enumerate(zip(asked, updates, strict=True))
        ]
        return aggregator.aggregate(index, replies)

    return run
