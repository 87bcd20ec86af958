"""The sentences of a statement in each language, and how its numbers are written there; every number on the safe side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Final, Literal, TypeAlias

__all__ = ["LANGUAGES", "MECHANISMS", "WORDS", "Language", "NotCovered", "decimal", "factor", "one_in", "percent", "up"]

Language: TypeAlias = Literal["en", "de"]
LANGUAGES: Final[tuple[Language, ...]] = ("en", "de")
LARGEST_FACTOR: Final = 1e6


def up(value: float, *, decimals: int = 2) -> str:
    """A number rounded up to so many decimals, never below it, without needless zeros.

    >>> [up(6.0), up(6.0000001), up(5.991), up(float("inf"))]
    ['6', '6.01', '6', '∞']
    """
    if math.isinf(value):
        return "∞"
    shown = Decimal(value).quantize(Decimal(1).scaleb(-decimals), rounding=ROUND_CEILING)
    text = f"{shown:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def factor(epsilon: float) -> str:
    """exp(epsilon), rounded up: what a conclusion is at most times as likely by; "" beyond a million.

    >>> [factor(0.0), factor(1.0), factor(6.0), factor(20.0)]
    ['1', '2.72', '404', '']
    """
    if epsilon > math.log(LARGEST_FACTOR):
        return ""
    # The next float up covers the rounding of exp itself.
    value = math.nextafter(math.exp(epsilon), math.inf) if epsilon else 1.0
    return up(value, decimals=2 if value < 10 else 1 if value < 100 else 0)


def percent(prior: float, epsilon: float) -> str:
    """What an observer of `prior` (in (0, 1)) believes afterwards at most, in percent, rounded up to a tenth.

    Delta does not bound how often a belief moves by more than exp(epsilon), only what that adds up to: with Gaussian noise it
    is more often. By more than twice exp(epsilon) it moves with a chance of at most 2 delta, whatever the mechanism: a
    likelihood ratio above that gives at least half of its own chance to delta. So twice the factor is what is said.

    >>> [percent(0.5, 1.0), percent(0.01, 1.0), percent(0.5, 20.0)]
    ['84.5', '5.3', '100']
    """
    odds = prior / (1 - prior) * 2 * math.exp(min(epsilon, 700.0))
    return up(min(100.0, math.nextafter(100 * odds / (1 + odds), math.inf)), decimals=1)


def one_in(delta: float) -> int:
    """The largest whole N with delta <= 1 / N.

    >>> [one_in(1e-4), one_in(3e-5)]
    [10000, 33333]
    """
    return int((1 / Decimal(repr(delta))).to_integral_value(rounding=ROUND_FLOOR))


def decimal(text: str, language: Language) -> str:
    """A number as the language writes it.

    >>> decimal("1234.5", "en"), decimal("1234.5", "de")
    ('1,234.5', '1.234,5')
    """
    whole, _, rest = text.partition(".")
    if not whole.isdigit():
        return text
    grouped = f"{int(whole):,}"
    if language == "de":
        return grouped.replace(",", ".") + ("," + rest if rest else "")
    return grouped + ("." + rest if rest else "")


# What records call the mechanisms, for readers of other languages than English; others are quoted as they are.
MECHANISMS: Final[Mapping[Language, Mapping[str, str]]] = {
    "en": {},
    "de": {
        "full-batch DP gradient descent, closed form": "Gradientenabstieg über alle Daten, geschlossene Form",
        "Poisson DP-SGD": "Gradientenabstieg über zufällig gezogene Teile der Daten, Poisson-DP-SGD",
        "discrete Gaussian on a grid": "diskretes gaußsches Rauschen auf einem Gitter",
        "noise in shares of": "Rauschen in Anteilen von",
        " sites": " Standorten",
    },
}

# Sentences of a record that say what epsilon does not cover, by how they begin; others are quoted as they are.
NotCovered: Final[Mapping[str, str]] = {
    "Evaluation metrics": "metrics",
    "Counts of patients": "counts",
    "Hyper-parameters": "choices",
    "The noise is made up of shares": "noise_shares",
    "The released model is that of round": "chosen",
    "The sites' policies publish what all runs": "account_published",
    "What all runs in a site's ledger cost": "account_kept",
    "No synthetic images": "no_synthetic",
    "The synthetic images are procedural": "procedural",
}

WORDS: Final[Mapping[Language, Mapping[str, str]]] = {
    "en": {
        "title": "What this means for one patient of {site}",
        "title_none": "No privacy promise for the patients of {site}",
        "h_short": "In short",
        "h_done": "What was done",
        "h_whom": "Who could learn something",
        "h_more": "How much more likely, at most",
        "h_time": "Over which time",
        "h_not": "What this promise does not cover",
        "h_check": "Who promises it, and how to check it",
        "h_check_none": "How to check it",
        "short": (
            "Whatever anybody concludes about one patient from what this site released is at most {factor} times as likely "
            "as if that patient had contributed nothing, apart from a chance of at most 1 in {one_in}."
        ),
        "short_large": (
            "The bound that was promised is so large (epsilon {epsilon}: a factor above one million) that in practice it "
            "protects nobody."
        ),
        "nothing": "Nothing of this patient was released: no message of this site was computed from a patient.",
        "nothing_run": (
            "In this run nothing of this patient was released: no message of this site was computed from a patient."
        ),
        "injected": (
            "There is no promise: the noise was drawn from a number that is known, so anybody can draw it again and "
            "subtract it."
        ),
        "no_noise": "There is no promise: no noise was added to what the site released.",
        "floating_point": (
            "There is no promise that could be proved: the noise was computed in floating point, whose last digits can "
            "give away what was added to. The figures that the record shows are for ideal noise."
        ),
        "no_bound": (
            "There is no promise over all runs: the site set no bound on what all of them together may cost a patient."
        ),
        "image_no_bound": (
            "The promise is for one image. For a patient with several images no bound over all runs was promised."
        ),
        "done": (
            "The site took part in training a computer model that tells malignant from benign breast masses (run {run}; "
            "{model}). The pixels of mammogram patches and their labels of this site were used; images and names did not "
            "leave the site."
        ),
        "done_ledger": "The site's ledger, account {run}, was charged for {rounds} releases.",
        "mechanism": (
            "In {rounds} rounds the site released sums over its patients ({mechanism}): what one {unit} may contribute is "
            "limited, and random noise is added before anything is sent."
        ),
        "whom": (
            "The server, the other sites and everybody who has the model, also all of them together, may see what was "
            "released. The site itself has the data; nothing here protects against it."
        ),
        "whom_seen": (
            "The server, the other sites and everybody who has the model may see what was released, the server as sums "
            "over several sites. The site itself has the data; nothing here protects against it."
        ),
        "whom_noise_shared": (
            "Sites shared the noise: whoever knows the parts of other sites sees less of it, and the record of the run says "
            "how much epsilon is then."
        ),
        "whom_shared": (
            "The promise holds against a server that works with at most {colluders} of the other sites and sees sums of at "
            "least {survivors} sites only. Against another site, epsilon of this run is {other}; against all other sites and "
            "the server together, {all}."
        ),
        "example": (
            "Example: somebody who thought it {prior} % likely that the patient took part thinks it at most {posterior} % "
            "likely afterwards, apart from a chance of at most 1 in {one_in}."
        ),
        "figure": (
            "Epsilon is at most {epsilon}: a factor of exp({epsilon}). Delta is {delta}: on top of that factor, "
            "a conclusion may be more likely by at most 1 in {one_in}."
        ),
        "per_image": (
            "The promise of the site is for each image (epsilon {epsilon}); what stands here is for a patient with up to "
            "{images} images."
        ),
        "this_run": "This run alone, from {started} to {finished}. Other runs on the same patients add to it.",
        "all_runs": (
            "All runs that are charged to the site's ledger, earlier and later ones together, by the cap of epsilon "
            "{cap} that the ledger enforces. What another ledger is charged for adds to it."
        ),
        "cap_since": "The cap has held since {since}.",
        "cap_unknown": "Since when the cap has held is not recorded.",
        "raised": "The cap was raised on {at} from {before} to {now}.",
        "spent": "Released so far: epsilon {spent}, rounded up; this is a cost, not a promise.",
        "spent_run": (
            "This run alone released: epsilon {spent}, rounded up; what other runs of the site released is not in it. This is "
            "a cost, not a promise."
        ),
        "withdrawn": (
            "Patients who withdrew their consent (last on {at}) take no part from then on. What was released before, and a "
            "trained model, is not undone."
        ),
        "withdrawn_bound": "What holds for what was released while they took part is the bound above.",
        "metrics": "Results on validation and test patients are computed without noise.",
        "counts": (
            "Numbers of patients and images, the weights made from them, where shown the share of malignant images, and the "
            "date of the last withdrawal of consent are public."
        ),
        "choices": "The settings of the training were chosen by trying, without noise.",
        "noise_shares": (
            "Against another site, or all of them, only the larger figures above hold: they know parts of the noise."
        ),
        "chosen": "Which round's model was released was chosen by its results on validation patients, without noise.",
        "account_published": (
            "The sites publish what all their runs together cost and what is left: figures that can depend on who takes part "
            "in other studies there. So can a site's refusal of a run and the time that it takes to answer."
        ),
        "account_kept": (
            "That a site refuses a run, and the time that it takes to answer, can depend on who takes part in other studies "
            "there."
        ),
        "no_synthetic": "",
        "procedural": "",
        "quoted": "{sentence}",
        "no_cap_noted": (
            "There is no promise over all runs that could be read here: the ledger notes no bound on what all of them may cost."
        ),
        "ledger_if": (
            "This holds if every run drew its noise from the operating system and on a grid; the ledger does not note that, "
            "each run's record does."
        ),
        "not_listed": "The ledger does not list what is not covered; each run's record does.",
        "two_sites": "A patient who is at several sites has the bounds of all of them added up.",
        "promised_by": "Promised by {site}; written by mammo-fed {software} from the record of run {run}.",
        "promised_by_ledger": "Promised by {site}; written from its ledger.",
        "nobody_promises": "{site} promises nothing here; written by mammo-fed {software} from the record of run {run}.",
        "nobody_promises_ledger": "{site} promises nothing here; written from its ledger.",
        "hash_record": "SHA-256 of record.json: {value}",
        "hash_config": "SHA-256 of the settings: {value}",
        "hash_ledger": "The site's ledger stood at: {value}",
        "commands": "To check: {commands}",
        "patient": "patient",
        "image": "image",
        "unknown": "unknown",
    },
    "de": {
        "title": "Was das für eine Patientin oder einen Patienten von {site} bedeutet",
        "title_none": "Kein Datenschutzversprechen für Patientinnen und Patienten von {site}",
        "h_short": "Kurz gesagt",
        "h_done": "Was getan wurde",
        "h_whom": "Wer etwas erfahren könnte",
        "h_more": "Wie viel wahrscheinlicher, höchstens",
        "h_time": "Über welche Zeit",
        "h_not": "Was dieses Versprechen nicht umfasst",
        "h_check": "Wer es verspricht, und wie man es prüft",
        "h_check_none": "Wie man es prüft",
        "short": (
            "Was auch immer jemand aus dem, was dieser Standort herausgegeben hat, über eine Person schließt, ist "
            "höchstens {factor}-mal so wahrscheinlich, wie wenn diese Person nichts beigetragen hätte, außer mit einer "
            "Wahrscheinlichkeit von höchstens 1 zu {one_in}."
        ),
        "short_large": (
            "Die versprochene Schranke ist so groß (Epsilon {epsilon}: ein Faktor über einer Million), dass sie praktisch "
            "niemanden schützt."
        ),
        "nothing": (
            "Von dieser Person wurde nichts herausgegeben: keine Nachricht dieses Standorts wurde aus Daten von Patienten "
            "berechnet."
        ),
        "nothing_run": (
            "In diesem Lauf wurde von dieser Person nichts herausgegeben: keine Nachricht dieses Standorts wurde aus Daten von "
            "Patienten berechnet."
        ),
        "injected": (
            "Es gibt kein Versprechen: Das Rauschen stammt aus einer bekannten Zahl; jeder kann es noch einmal ziehen und "
            "abziehen."
        ),
        "no_noise": "Es gibt kein Versprechen: Dem, was der Standort herausgegeben hat, wurde kein Rauschen zugesetzt.",
        "floating_point": (
            "Es gibt kein Versprechen, das sich beweisen ließe: Das Rauschen wurde in Gleitkommazahlen berechnet, deren "
            "letzte Stellen verraten können, wozu es addiert wurde. Die Zahlen des Protokolls gelten für ideales Rauschen."
        ),
        "no_bound": (
            "Es gibt kein Versprechen über alle Läufe: Der Standort hat nicht begrenzt, was alle zusammen eine Person "
            "kosten dürfen."
        ),
        "image_no_bound": (
            "Das Versprechen gilt für ein Bild. Für eine Person mit mehreren Bildern wurde über alle Läufe keine Schranke "
            "versprochen."
        ),
        "done": (
            "Der Standort hat mitgewirkt, ein Computermodell zu trainieren, das bösartige von gutartigen Herden der Brust "
            "unterscheidet (Lauf {run}; {model}). Verwendet wurden Bildausschnitte von Mammographien dieses Standorts und "
            "ihre Befunde; Bilder und Namen haben den Standort nicht verlassen."
        ),
        "done_ledger": "Dem Konto {run} im Kassenbuch des Standorts wurden {rounds} Herausgaben angerechnet.",
        "mechanism": (
            "In {rounds} Runden hat der Standort Summen über seine Patienten herausgegeben ({mechanism}): Was eine Einheit "
            "({unit}) beitragen kann, ist begrenzt, und vor dem Senden wird zufälliges Rauschen addiert."
        ),
        "whom": (
            "Der Server, die anderen Standorte und alle, die das Modell haben, auch alle gemeinsam, können sehen, was "
            "herausgegeben wurde. Der Standort selbst hat die Daten; vor ihm schützt hier nichts."
        ),
        "whom_seen": (
            "Der Server, die anderen Standorte und alle, die das Modell haben, können sehen, was herausgegeben wurde, der "
            "Server nur als Summe über mehrere Standorte. Der Standort selbst hat die Daten; vor ihm schützt hier nichts."
        ),
        "whom_noise_shared": (
            "Standorte haben sich das Rauschen geteilt: Wer die Teile anderer Standorte kennt, sieht weniger davon; das "
            "Protokoll des Laufs sagt, wie groß Epsilon dann ist."
        ),
        "whom_shared": (
            "Das Versprechen gilt gegenüber einem Server, der mit höchstens {colluders} der anderen Standorte "
            "zusammenarbeitet und nur Summen von mindestens {survivors} Standorten sieht. Gegenüber einem anderen Standort "
            "beträgt Epsilon dieses Laufs {other}, gegenüber allen anderen Standorten und dem Server gemeinsam {all}."
        ),
        "example": (
            "Beispiel: Wer es für zu {prior} % wahrscheinlich hielt, dass die Person mitgewirkt hat, hält es danach für "
            "höchstens zu {posterior} % wahrscheinlich, außer mit einer Wahrscheinlichkeit von höchstens 1 zu {one_in}."
        ),
        "figure": (
            "Epsilon ist höchstens {epsilon}: ein Faktor exp({epsilon}). Delta ist {delta}: Zu diesem Faktor kommt hinzu, dass "
            "ein Schluss um höchstens 1 zu {one_in} wahrscheinlicher sein kann."
        ),
        "per_image": (
            "Das Versprechen des Standorts gilt für jedes Bild (Epsilon {epsilon}); was hier steht, gilt für eine Person "
            "mit bis zu {images} Bildern."
        ),
        "this_run": "Dieser Lauf allein, von {started} bis {finished}. Andere Läufe mit denselben Personen kommen hinzu.",
        "all_runs": (
            "Alle Läufe zusammen, frühere und spätere, die dem Kassenbuch des Standorts angerechnet werden, durch die "
            "Obergrenze von Epsilon {cap}, die das Kassenbuch durchsetzt. Was einem anderen Kassenbuch angerechnet wird, kommt "
            "hinzu."
        ),
        "cap_since": "Die Obergrenze gilt seit {since}.",
        "cap_unknown": "Seit wann die Obergrenze gilt, ist nicht vermerkt.",
        "raised": "Die Obergrenze wurde am {at} von {before} auf {now} erhöht.",
        "spent": "Bisher herausgegeben: Epsilon {spent}, aufgerundet; das sind Kosten, kein Versprechen.",
        "spent_run": (
            "Dieser Lauf allein hat herausgegeben: Epsilon {spent}, aufgerundet; was andere Läufe des Standorts herausgegeben "
            "haben, ist nicht darin. Das sind Kosten, kein Versprechen."
        ),
        "withdrawn": (
            "Personen, die ihre Einwilligung widerrufen haben (zuletzt am {at}), wirken von da an nicht mehr mit. Was "
            "vorher herausgegeben wurde, und ein trainiertes Modell, wird nicht rückgängig gemacht."
        ),
        "withdrawn_bound": "Für das, was herausgegeben wurde, solange sie mitwirkten, gilt die Schranke oben.",
        "metrics": "Ergebnisse an Validierungs- und Testpatienten werden ohne Rauschen berechnet.",
        "counts": (
            "Öffentlich sind die Zahlen der Patienten und Bilder, die daraus gebildeten Gewichte, der Anteil bösartiger "
            "Bilder, wo er genannt ist, und das Datum des letzten Widerrufs einer Einwilligung."
        ),
        "choices": "Die Einstellungen des Trainings wurden durch Ausprobieren gewählt, ohne Rauschen.",
        "noise_shares": (
            "Gegenüber einem anderen Standort, oder allen, gelten nur die größeren Zahlen oben: Sie kennen Teile des Rauschens."
        ),
        "chosen": (
            "Welche Runde das herausgegebene Modell liefert, wurde nach Ergebnissen an Validierungspatienten gewählt, ohne "
            "Rauschen."
        ),
        "account_published": (
            "Die Standorte veröffentlichen, was alle ihre Läufe zusammen kosten und was übrig ist: Zahlen, die davon abhängen "
            "können, wer dort an anderen Studien teilnimmt. Davon kann auch abhängen, ob ein Standort einen Lauf ablehnt und "
            "wie lange er für eine Antwort braucht."
        ),
        "account_kept": (
            "Ob ein Standort einen Lauf ablehnt, und wie lange er für eine Antwort braucht, kann davon abhängen, wer dort an "
            "anderen Studien teilnimmt."
        ),
        "no_synthetic": "",
        "procedural": "",
        "quoted": "Wortlaut des Protokolls: {sentence}",
        "no_cap_noted": (
            "Es gibt kein Versprechen über alle Läufe, das sich hier ablesen ließe: Das Kassenbuch vermerkt keine Obergrenze."
        ),
        "ledger_if": (
            "Das gilt, wenn jeder Lauf sein Rauschen vom Betriebssystem und auf einem Gitter gezogen hat; das vermerkt nicht "
            "das Kassenbuch, sondern das Protokoll jedes Laufs."
        ),
        "not_listed": "Das Kassenbuch zählt nicht auf, was nicht umfasst ist; das Protokoll jedes Laufs tut es.",
        "two_sites": "Für eine Person an mehreren Standorten addieren sich deren Schranken.",
        "promised_by": "Versprochen von {site}; geschrieben von mammo-fed {software} aus dem Protokoll des Laufs {run}.",
        "promised_by_ledger": "Versprochen von {site}; geschrieben aus dessen Kassenbuch.",
        "nobody_promises": (
            "{site} verspricht hier nichts; geschrieben von mammo-fed {software} aus dem Protokoll des Laufs {run}."
        ),
        "nobody_promises_ledger": "{site} verspricht hier nichts; geschrieben aus dem Kassenbuch des Standorts.",
        "hash_record": "SHA-256 von record.json: {value}",
        "hash_config": "SHA-256 der Einstellungen: {value}",
        "hash_ledger": "Stand des Kassenbuchs des Standorts: {value}",
        "commands": "Prüfen mit: {commands}",
        "patient": "Person",
        "image": "Bild",
        "unknown": "unbekannt",
    },
}
