"""The glossary defines each word once and leads to code that is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
# Each entry by its word, with its lines joined.
ENTRIES = [
    (word, re.sub(r"\s+", " ", text))
    for word, text in re.findall(r"^- \*\*([^*]+)\*\*: (.*?)(?=^- \*\*|^## |\Z)", TEXT, flags=re.MULTILINE | re.DOTALL)
]
WORDS = """
privacy unit, neighbouring relation, epsilon, delta, accountant, filter, odometer, ledger, ledger manifest, ledger head,
reservation, settle, declaration, round, site, update, update bound, direction filter, noise multiplier, clipping norm,
sampling rate, masked sum, noise share, key share, partition, parameters, feature_mean, head, privacy event, schedule,
public_images, onboarding bundle, node authorizer, persistent ledgers, synthetic set export, generator training,
generator evaluation, finished run
"""


def test_every_word_of_the_project_is_defined_once():
    words = [word for word, _ in ENTRIES]
    assert len(words) == len(set(words))
    assert sorted(set(re.split(r",\s+", WORDS.strip())) - set(words)) == []


@pytest.mark.parametrize(("word", "text"), ENTRIES, ids=[word for word, _ in ENTRIES])
def test_an_entry_defines_its_word_and_names_code_that_is_there(word, text):
    definition, _, where = text.partition(" Where: ")
    # A definition of one to four sentences.
    assert 1 <= len(re.findall(r"[.](?= |$)", definition)) <= 4
    named = re.findall(r"`(mammo_fed/[^`]*)`", where)
    assert named
    assert [path for path in named if not (ROOT / path).is_file()] == []


def test_every_path_in_the_glossary_is_there():
    paths = set(re.findall(r"mammo_fed/[\w/.]*\w", TEXT))
    assert len(paths) > 30
    assert sorted(path for path in paths if not (ROOT / path).exists()) == []
