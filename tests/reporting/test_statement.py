"""A statement says in both languages what is promised to one patient, every number on the safe side, or that nothing is."""

from __future__ import annotations

import hashlib
import json
import math
import re
import string
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mammo_fed.errors import InvalidSetting
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.ledger.cap import CapRaise
from mammo_fed.reporting.record.cap_words import account_sentences
from mammo_fed.reporting.record.statements import shared_noise_sentence
from mammo_fed.reporting.statement.facts import facts_of_record
from mammo_fed.reporting.statement.statement import as_page, as_text, statement_of
from mammo_fed.reporting.statement.words import LANGUAGES, WORDS, decimal, factor, one_in, percent, up

GRID = "full-batch DP gradient descent, closed form, discrete Gaussian on a grid"
SITE = "Nordklinik"
EVENT = PrivacyEvent(
    mechanism="gradient",
    noise_multiplier=5.0,
    steps=1,
    sample_rate=1.0,
    unit="patient",
    clipping_norm=1.0,
    max_images_per_patient=4,
)


def changed(record, *, site=None, **privacy):
    """The record on the grid, with fields of its privacy section and of its sites set."""
    sites = tuple(
        replace(each, mechanism=GRID, events=(EVENT,) * len(each.epsilon_after_round), **(site or {}))
        for each in record.privacy.sites
    )
    return replace(record, privacy=replace(record.privacy, sites=sites, **privacy))


def said(record, *, language="en", site=SITE) -> str:
    (facts,) = facts_of_record(record, site=site)
    return as_text(statement_of(facts, language=language))


def test_both_languages_have_every_sentence_with_the_same_places():
    assert set(WORDS) == set(LANGUAGES)
    places = {
        language: {
            key: {name for _, name, _, _ in string.Formatter().parse(text) if name is not None} for key, text in words.items()
        }
        for language, words in WORDS.items()
    }
    assert places["en"] == places["de"]
    assert all(bool(WORDS["en"][key]) == bool(WORDS["de"][key]) for key in WORDS["en"])


@given(st.floats(0, 12), st.floats(0.001, 0.999))
def test_numbers_of_a_statement_are_never_below_the_truth(epsilon, prior):
    assert float(up(epsilon)) >= epsilon
    assert float(factor(epsilon)) >= math.exp(epsilon) * (1 - 1e-12)
    odds = prior / (1 - prior) * math.exp(epsilon)
    assert float(percent(prior, epsilon)) >= min(100.0, 100 * odds / (1 + odds)) * (1 - 1e-12)


@given(st.floats(1e-12, 0.5))
def test_one_in_n_is_never_rarer_than_delta(delta):
    assert 1 / one_in(delta) >= delta * (1 - 1e-12)


def test_numbers_of_a_statement_are_written_as_the_language_does():
    assert (decimal("12345.6", "en"), decimal("12345.6", "de")) == ("12,345.6", "12.345,6")
    assert (decimal("1e-05", "de"), decimal("∞", "de")) == ("1e-05", "∞")


@pytest.mark.parametrize("delta", [1e-6, 1e-4, 1e-2])
@pytest.mark.parametrize("mu", [0.3, 1.0, 1.46, 3.0])
def test_beliefs_pass_the_examples_of_a_statement_as_rarely_as_it_says_for_gaussian_noise_under_the_relation(mu, delta):
    curve = NormalDist()
    epsilon = next(
        step / 1000
        for step in range(100_000)
        if curve.cdf(mu / 2 - step / 1000 / mu) - math.exp(step / 1000) * curve.cdf(-mu / 2 - step / 1000 / mu) <= delta
    )
    for prior in (0.5, 0.01):
        belief = float(percent(prior, epsilon)) / 100
        if belief == 1:
            continue
        # The privacy loss of a patient who took part is normal, of mean mu^2 / 2 and variance mu^2.
        loss = math.log(belief / (1 - belief) * (1 - prior) / prior)
        chance = 1 - curve.cdf((loss - mu**2 / 2) / mu)
        assert chance <= 1 / one_in(2 * delta)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_delta_of_a_statement_is_written_out_and_never_rounded_down(record, language):
    text = said(changed(record, delta=1.2345678e-05), language=language)
    assert ("0.000012345678" if language == "en" else "0,000012345678") in text
    assert ("1 in 81,000" if language == "en" else "1 zu 81.000") in text


@pytest.mark.parametrize("ledger", ["run", "site"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_statement_claims_nothing_about_what_the_cap_of_its_ledger_does_not_see(record, language, ledger):
    text = said(changed(record, site={"cap_epsilon": 8.0, "cap_delta": 1e-5}, ledger=ledger), language=language)
    assert ("adds to it" in text or "add to it" in text) if language == "en" else re.search(r"komm(t|en) hinzu", text)
    assert "on this site's patients together" not in text
    assert "Läufe mit den Patienten" not in text


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("source", ["record", "ledger"])
def test_a_statement_after_the_cap_was_raised_to_no_bound_promises_nothing_anywhere(record, language, source):
    raised = (CapRaise(at="2026-02-01T00:00:00+00:00", from_epsilon=6.0, to_epsilon=math.inf),)
    site = {"cap_epsilon": math.inf, "cap_since": raised[0].at, "cap_raised": raised, "withdrawn_at": "2026-03-01"}
    (facts,) = facts_of_record(changed(record, site=site, ledger="site"), site=SITE)
    text = as_text(statement_of(replace(facts, source=source), language=language))
    assert WORDS[language]["no_bound"] in text
    assert WORDS[language]["raised"].partition("{")[0] in text
    assert WORDS[language]["withdrawn_bound"] not in text
    assert WORDS[language]["promised_by"].partition("{")[0] not in text


def test_a_statement_has_plain_words_for_what_a_cap_and_shares_of_noise_do_not_cover(record):
    sentences = (
        *account_sentences(ledger="site", published=True),
        *account_sentences(ledger="site", published=False),
        shared_noise_sentence(other_site=7.0, all_colluding=9.0),
    )
    assert "Wortlaut des Protokolls" not in said(changed(record, not_covered=sentences), language="de")


def test_a_german_page_says_that_it_is_german_and_names_mechanisms_so(record):
    (facts,) = facts_of_record(changed(record), site=SITE)
    page = as_page([statement_of(facts, language="de")])
    assert '<html lang="de">' in page
    assert "diskretes gaußsches Rauschen auf einem Gitter" in page
    assert GRID not in page


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_statement_of_one_run_says_what_is_promised_and_by_which_hash_it_can_be_checked(record, tmp_path, language):
    record = changed(record)
    text = said(record, language=language)
    assert "404" in text
    assert ("10,000" if language == "en" else "10.000") in text
    assert ("89.1 %" if language == "en" else "89,1 %") in text
    assert hashlib.sha256(record.write(tmp_path).read_bytes()).hexdigest() in text
    assert record.run_id in text
    assert record.config_hash in text
    assert "mammo-fed privacy verify RUN" in text
    assert "{" not in text


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    ("site", "privacy", "word"),
    [
        ({}, {"noise": "injected"}, "injected"),
        ({"epsilon": math.inf}, {"noise": "none", "target_epsilon": math.inf}, "no_noise"),
        ({"mechanism": "Poisson DP-SGD (Opacus)"}, {}, "floating_point"),
        ({"cap_epsilon": math.inf}, {"ledger": "site"}, "no_bound"),
    ],
)
def test_a_statement_without_a_promise_says_so_first_and_gives_no_figure(record, language, site, privacy, word):
    (facts,) = facts_of_record(_with(changed(record, **privacy), site), site=SITE)
    statement = statement_of(facts, language=language)
    assert statement.title == WORDS[language]["title_none"].format(site=SITE)
    assert not statement.promised
    assert statement.sections[0].sentences == (WORDS[language][word],)
    text = as_text(statement)
    assert not re.search(r"(?i)epsilon (is at most|ist höchstens|\d)|exp\(|\d %", text)


def _with(record, site):
    sites = tuple(replace(each, **site) for each in record.privacy.sites)
    return replace(record, privacy=replace(record.privacy, sites=sites))


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_statement_for_a_site_that_released_nothing_says_that_and_nothing_more(record, language):
    empty = {"epsilon": 0.0, "epsilon_after_round": (), "events": (), "patient_epsilon": 0.0, "rounds": 0, "refused": True}
    (facts,) = facts_of_record(_with(changed(record), empty), site=SITE)
    statement = statement_of(facts, language=language)
    assert statement.sections[0].sentences == (WORDS[language]["nothing"],)
    assert len(statement.sections) == 2


def test_a_statement_over_all_runs_tells_the_cap_since_when_it_holds_and_every_raise(record):
    raised = (CapRaise(at="2026-02-01T00:00:00+00:00", from_epsilon=1.0, to_epsilon=8.0),)
    site = {"cap_epsilon": 8.0, "cap_delta": 1e-5, "cap_since": "2026-02-01T00:00:00+00:00", "cap_raised": raised}
    text = said(changed(record, site={**site, "withdrawn_at": "2026-03-01"}, ledger="site"))
    assert "by the cap of epsilon 8" in text
    assert "since 2026-02-01" in text
    assert "raised on 2026-02-01T00:00:00+00:00 from 1 to 8" in text
    assert "1 in 100,000" in text
    assert "withdrew their consent (last on 2026-03-01)" in text
    # exp(8), not exp of what this run cost.
    assert "2,981" in text


def test_a_statement_by_image_gives_the_figure_of_a_patient(record):
    text = said(changed(record, site={"patient_epsilon": 9.0}, unit="image"))
    assert "8,104" in text
    assert "for a patient with up to 4 images" in text
    over_all = said(changed(record, site={"cap_epsilon": 8.0, "cap_delta": 1e-5}, unit="image", ledger="site"))
    assert WORDS["en"]["image_no_bound"] in over_all
    assert "%" not in over_all


def test_a_statement_under_shared_noise_names_whom_it_does_not_hold_against(record):
    site = {"epsilon_other_site": 7.7091, "epsilon_all_colluding": 11.9866}
    text = said(changed(record, site=site, aggregation="shared_noise", min_survivors=3, colluders=1))
    assert "at most 1 of the other sites and sees sums of at least 3 sites" in text
    assert "7.71" in text
    assert "11.99" in text
    assert "all of them together, may see" not in text


def test_a_statement_over_all_runs_by_a_cap_gives_a_runs_own_cost_as_no_cost_of_all_runs(record):
    site = {"cap_epsilon": 8.0, "cap_delta": 1e-5, "epsilon_account": 7.9, "cap_since": "2026-01-01T00:00:00+00:00"}
    text = said(changed(record, site=site, ledger="site"))
    assert "Released so far" not in text
    assert "This run alone released: epsilon" in text
    assert "what other runs of the site released is not in it" in text


def test_a_statement_says_that_nothing_was_released_of_its_own_run_only_whatever_the_cap(record):
    empty = {"epsilon": 0.0, "epsilon_after_round": (), "events": (), "patient_epsilon": 0.0, "rounds": 0, "refused": True}
    text = said(_with(changed(record, site={"cap_epsilon": 8.0, "epsilon_account": 7.9}, ledger="site"), empty))
    assert "In this run nothing of this patient was released" in text


@pytest.mark.parametrize("noise", ["injected", "none"])
def test_a_statement_without_a_promise_names_nobody_who_promises_whatever_the_cap(record, noise):
    text = said(changed(record, noise=noise))
    assert f"{SITE} promises nothing here" in text
    assert "Promised by" not in text


def test_a_statement_of_a_record_without_events_names_no_recomputation_of_it(record):
    assert "privacy verify RUN" in said(changed(record))
    assert "privacy verify RUN" not in said(record)


def test_a_statement_quotes_what_it_has_no_plain_words_for(record):
    text = said(changed(record, not_covered=("Something new is not covered.",)), language="de")
    assert "Wortlaut des Protokolls: Something new is not covered." in text


def test_a_statement_refuses_a_site_that_the_run_does_not_have(record):
    with pytest.raises(InvalidSetting, match="--patient-site=Elsewhere must be a site of the run"):
        facts_of_record(record, site="Elsewhere")


def test_a_page_of_statements_escapes_names_and_loads_nothing(record):
    hostile = "<script>alert(1)</script>"
    first, *others = changed(record).privacy.sites
    record = replace(record, privacy=replace(record.privacy, sites=(replace(first, site=hostile), *others)))
    page = as_page([statement_of(facts) for facts in facts_of_record(record)])
    assert hostile not in page
    assert page.count("<article") == 4
    assert not re.search(r"(src|href)=", page.replace('href="statement.html"', ""))
    assert "\\<script\\>" in as_text(statement_of(facts_of_record(record, site=hostile)[0]), markdown=True)


def test_the_example_on_the_page_about_statements_is_what_the_code_writes(record):
    page = (Path(__file__).parents[2] / "docs" / "statement.md").read_text(encoding="utf-8")
    example = page.partition("```text\n")[2].partition("```")[0]
    assert example == re.sub(r"[0-9a-f]{64}", "(64 hex digits)", said(changed(record)))


@pytest.fixture
def run(record, tmp_path) -> Path:
    changed(record).write(tmp_path)
    return tmp_path


def test_the_command_prints_a_statement_for_one_site_as_text_json_and_page(cli, run):
    code, out, err = cli("privacy", "statement", run, "--patient-site", SITE)
    assert code == 0, err
    assert "at most 404 times" in out
    code, out, _ = cli("privacy", "statement", run / "record.json", "--patient-site", SITE, "--json")
    found = json.loads(out)
    assert (code, found["site"], found["promise"], found["epsilon"]) == (0, SITE, "bounded", 6.0)
    assert found["record_sha256"] == hashlib.sha256((run / "record.json").read_bytes()).hexdigest()
    for name, mark in {"page.html": "<article", "page.md": "# What this means"}.items():
        code, _, err = cli("privacy", "statement", run, "--output", run / name)
        assert code == 0, err
        assert mark in (run / name).read_text(encoding="utf-8")


def test_the_command_gives_a_statement_for_every_site_where_none_is_named(cli, run):
    code, out, _ = cli("privacy", "statement", run, "--language", "de", "--json")
    assert code == 0
    assert len(json.loads(out)) == 4


def test_the_command_refuses_what_it_cannot_make_a_statement_of(cli, run, tmp_path):
    assert cli("privacy", "statement", run, "--patient-site", "Elsewhere")[0] == 2
    assert cli("privacy", "statement", tmp_path / "nowhere")[0] == 2
    (tmp_path / "record.json").write_text("[" * 100_000, encoding="utf-8")
    assert cli("privacy", "statement", tmp_path)[0] == 2
