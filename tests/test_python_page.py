"""The code on docs/python.md runs as it stands, in its order, and does what the page says."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "python.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_each_block_of_the_page_runs_and_writes_only_where_the_page_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names: dict[str, object] = {}
    for number, block in enumerate(blocks()):
        exec(compile(block, f"{PAGE.name}, block {number + 1}", "exec"), names)  # noqa: S102 - our own page
    said = capsys.readouterr().out
    assert "2 of 2 sites take part" in said
    assert "round 2/2" in said
    assert {path.name for path in tmp_path.iterdir()} <= {"my-run", "my-ledger", "cache"}
    assert {"config.yaml", "record.json", "report.html", "model.safetensors", "sites"} <= {
        path.name for path in (tmp_path / "my-run").iterdir()
    }
