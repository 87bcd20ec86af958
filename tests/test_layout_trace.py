"""How many of our files a reader has to open to follow one plain training round; see benchmarks/trace_round.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Final

MOST_FILES: Final = 30
BENCHMARK: Final = Path(__file__).parents[1] / "benchmarks" / "trace_round.py"


def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("trace_round", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_plain_round_stays_inside_few_files(cache):
    trace = benchmark().RoundTrace()
    trace.run(f"engine.cache={cache}")
    functions = trace.functions
    # The trace has seen both sides of the round, and nothing but the round.
    assert "PlainRound.run" in functions["server/rounds/plain_round.py"]
    assert "Site.round" in functions["client/rounds/site.py"]
    assert "charged_once" in functions["client/charging.py"]
    assert not any(file.startswith(("reporting/", "cli/", "data/")) for file in functions)
    assert len(functions) <= MOST_FILES, "\n".join(functions)
