"""A statement: facts as headed sentences of one language, as text, Markdown or a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from mammo_fed.reporting.formatting import readable
from mammo_fed.reporting.pages.rendering import render
from mammo_fed.reporting.statement.facts import Facts
from mammo_fed.reporting.statement.words import MECHANISMS, WORDS, Language, NotCovered, decimal, factor, one_in, percent, up

__all__ = ["STATEMENT_NAME", "Section", "Statement", "as_page", "as_text", "statement_of"]

STATEMENT_NAME = "statement.html"
PRIORS = (0.5, 0.01)


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and its sentences."""

    heading: str
    sentences: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One page for one patient of one site; `promised` is whether a figure is promised, or nothing was released."""

    language: Language
    title: str
    promised: bool
    sections: tuple[Section, ...]


def statement_of(facts: Facts, *, language: Language = "en") -> Statement:
    """The statement that the facts make; every number in it is rounded to the patient's disadvantage."""
    writer = _Writer(facts, language)
    nothing = facts.promise == "nothing released"
    sections = {
        "h_short": writer.short(),
        "h_done": () if nothing else writer.done(),
        "h_whom": () if nothing else writer.whom(),
        "h_more": writer.more(),
        "h_time": () if nothing else writer.time(),
        "h_not": () if not writer.bounded else writer.not_covered(),
        "h_check" if writer.bounded or nothing else "h_check_none": writer.check(),
    }
    return Statement(
        language=language,
        title=writer.say("title" if writer.bounded or nothing else "title_none", site=facts.site),
        promised=writer.bounded or nothing,
        sections=tuple(
            Section(heading=writer.say(heading), sentences=tuple(filter(None, sentences)))
            for heading, sentences in sections.items()
            if any(sentences)
        ),
    )


class _Writer:
    def __init__(self, facts: Facts, language: Language) -> None:
        self._facts, self._language, self._words = facts, language, WORDS[language]
        # A promise for one image alone is none for a patient.
        self.bounded = facts.promise == "bounded" and math.isfinite(facts.patient_epsilon)

    def say(self, key: str, **values: str) -> str:
        return self._words[key].format(**values)

    def short(self) -> tuple[str, ...]:
        facts = self._facts
        if facts.promise == "nothing released":
            return (self.say("nothing_run" if facts.all_runs and facts.source == "record" else "nothing"),)
        if facts.promise != "bounded":
            noted = facts.source == "record" or facts.promise != "no bound" or facts.cap_since
            return (self.say(facts.promise.replace(" ", "_") if noted else "no_cap_noted"),)
        if not self.bounded:
            return (self.say("image_no_bound"),)
        times = factor(facts.patient_epsilon)
        if not times:
            return (self.say("short_large", epsilon=self._up(facts.patient_epsilon)),)
        condition = self.say("ledger_if") if facts.source == "ledger" else ""
        return (self.say("short", factor=self._number(times), one_in=self._one_in(facts.delta)), condition)

    def done(self) -> tuple[str, ...]:
        facts = self._facts
        rounds = self._number(str(facts.rounds))
        if facts.source == "ledger":
            return (self.say("done_ledger", run=facts.run_id, rounds=rounds),)
        unit = self._words[facts.unit]
        return (
            self.say("done", run=facts.run_id, model=facts.model),
            self.say("mechanism", rounds=rounds, mechanism=self._mechanism(), unit=unit) if self.bounded else "",
        )

    def whom(self) -> tuple[str, ...]:
        facts = self._facts
        shared = ""
        if facts.aggregation == "shared_noise" and facts.source == "record" and facts.promise == "bounded":
            shared = self.say(
                "whom_shared",
                colluders=str(facts.colluders),
                survivors=str(facts.min_survivors),
                other=self._up(facts.other_site),
                all=self._up(facts.all_colluding),
            )
        seen = "whom_seen" if facts.aggregation == "shared_noise" else "whom"
        return (self.say(seen), shared or self.say("whom_noise_shared") if seen == "whom_seen" else "")

    def more(self) -> tuple[str, ...]:
        facts = self._facts
        if not self.bounded:
            return ()
        epsilon = facts.patient_epsilon
        delta = self._number(f"{Decimal(repr(facts.delta)):f}")
        figure = self.say("figure", epsilon=self._up(epsilon), delta=delta, one_in=self._one_in(facts.delta))
        # A belief passes the bound of `percent` with twice delta at most.
        rarely = self._one_in(2 * facts.delta)
        examples = (
            self.say("example", prior=f"{100 * prior:g}", posterior=self._number(percent(prior, epsilon)), one_in=rarely)
            for prior in PRIORS
        )
        by_image = ""
        if facts.unit == "image":
            by_image = self.say("per_image", epsilon=self._up(facts.epsilon), images=str(facts.max_images))
        return (figure, *examples, by_image)

    def time(self) -> tuple[str, ...]:
        facts = self._facts
        span = {"started": facts.started[:10], "finished": facts.finished[:10]}
        withdrawn = self._withdrawn()
        if not facts.all_runs:
            return (self.say("this_run", **span), *withdrawn)
        cap = ()
        if self.bounded:
            since = self.say("cap_since", since=facts.cap_since) if facts.cap_since else self.say("cap_unknown")
            cap = (self.say("all_runs", cap=self._up(facts.cap)), since)  # type: ignore[assignment]
        raised = (self.say("raised", at=at, before=self._up(before), now=self._up(now)) for at, before, now in facts.raises)
        # A record knows what its own run released; of the others it knows at most what the site publishes.
        key = "spent" if facts.source == "ledger" else "spent_run"
        spent = self.say(key, spent=self._up(facts.spent)) if self.bounded else ""
        return (*cap, *raised, spent, *withdrawn)

    def _withdrawn(self) -> tuple[str, ...]:
        if not self._facts.withdrawn_at:
            return ()
        return (self.say("withdrawn", at=self._facts.withdrawn_at), self.say("withdrawn_bound") if self.bounded else "")

    def not_covered(self) -> tuple[str, ...]:
        if self._facts.source == "ledger":
            return (self.say("not_listed"), self.say("two_sites"))
        found = []
        for sentence in self._facts.not_covered:
            key = next((key for begin, key in NotCovered.items() if sentence.startswith(begin)), None)
            found.append(self.say(key) if key else self.say("quoted", sentence=sentence))
        return (*found, self.say("two_sites"))

    def check(self) -> tuple[str, ...]:
        facts = self._facts
        by = "promised_by" if self.bounded or facts.promise == "nothing released" else "nobody_promises"
        by += "" if facts.source == "record" else "_ledger"
        values = {"record": facts.record_sha256, "config": facts.config_sha256, "ledger": facts.ledger_head}
        ledger = f"mammo-fed privacy verify LEDGER --reported {facts.ledger_head}" if facts.ledger_head else ""
        # A record of an earlier version holds no events to recompute its figures from.
        recomputable = facts.max_images or facts.promise == "nothing released"
        run = "mammo-fed privacy verify RUN" if facts.source == "record" and recomputable else ""
        commands = "; ".join(filter(None, (run, ledger)))
        return (
            self.say(by, site=facts.site, software=facts.software or self.say("unknown"), run=facts.run_id),
            *(self.say(f"hash_{name}", value=value) for name, value in values.items() if value),
            self.say("commands", commands=commands) if commands else "",
        )

    def _number(self, text: str) -> str:
        return decimal(text, self._language)

    def _up(self, value: float) -> str:
        return self._number(up(value))

    def _one_in(self, chance: float) -> str:
        return self._number(str(one_in(chance)))

    def _mechanism(self) -> str:
        words = self._facts.mechanism
        for name, said in MECHANISMS[self._language].items():
            words = words.replace(name, said)
        return words


def as_text(statement: Statement, *, markdown: bool = False) -> str:
    """A statement as plain text for a terminal, or as Markdown."""
    lines = [f"# {statement.title}" if markdown else statement.title]
    for section in statement.sections:
        lines += ["", f"## {section.heading}" if markdown else section.heading]
        lines += [f"- {_plain(sentence, markdown=markdown)}" for sentence in section.sentences]
    lines[0] = _plain(lines[0], markdown=False)
    return "\n".join(lines) + "\n"


def as_page(statements: Sequence[Statement]) -> str:
    """Statements as one HTML page that loads nothing; each begins on a sheet of its own when it is printed."""
    return render("statement.html", statements=statements, language=statements[0].language if statements else "en")


def _plain(text: str, *, markdown: bool) -> str:
    shown = text if text.isprintable() else readable(text)
    if not markdown:
        return shown
    for mark in "\\`*_[]<>|":
        shown = shown.replace(mark, f"\\{mark}")
    return shown
