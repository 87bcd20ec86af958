"""Terms without which an epsilon says nothing: events of whole numbers, a small delta, an honest majority of sites."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from mammo_fed.errors import InvalidSetting
from mammo_fed.privacy.events import PrivacyEvent, events_from_json
from mammo_fed.settings.checks import delta_warning
from mammo_fed.settings.compose import compose_gan, compose_settings

EVENT = PrivacyEvent(
    mechanism="gradient",
    noise_multiplier=15.0,
    steps=1,
    sample_rate=1.0,
    unit="patient",
    clipping_norm=1.0,
    max_images_per_patient=4,
)
NUMBERS = ("noise_multiplier", "sample_rate", "clipping_norm")
COUNTS = ("steps", "max_images_per_patient", "noise_shares")


@pytest.mark.parametrize("name", [*NUMBERS, *COUNTS])
@pytest.mark.parametrize("value", [True, False, math.nan, math.inf, -math.inf, "1", None, [1], -1])
def test_relation_of_an_event_is_priced_from_numbers_alone(name, value):
    with pytest.raises(InvalidSetting, match=name):
        replace(EVENT, **{name: value})


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [1.0, 1.5, 0])
def test_relation_of_an_event_counts_in_whole_numbers(name, value):
    with pytest.raises(InvalidSetting, match=name):
        replace(EVENT, **{name: value})


@pytest.mark.parametrize("name", [*NUMBERS, *COUNTS])
@pytest.mark.parametrize("value", [True, "1", None, math.nan])
def test_relation_of_an_event_from_elsewhere_is_priced_from_numbers_alone(name, value):
    text = json.dumps([{**EVENT.as_dict(), name: value}])
    with pytest.raises(InvalidSetting):
        events_from_json(text)


@pytest.mark.parametrize("delta", ["0.99", "0.1", "1", "0", "-1e-4", "nan"])
def test_relation_with_a_delta_that_publishes_patients_is_refused(delta):
    for compose in (compose_settings, compose_gan):
        with pytest.raises(InvalidSetting, match=r"privacy\.delta"):
            compose([f"privacy.delta={delta}"])


def test_relation_with_a_delta_above_one_in_the_patients_is_warned_of():
    assert "is not below 1 / 100 patients" in (delta_warning(delta=0.01, patients=100) or "")
    assert delta_warning(delta=0.0099, patients=100) is None


@pytest.mark.parametrize(
    ("strategy", "sites", "hostile", "taken"),
    [
        ("Krum", 4, 1, False),
        ("Krum", 5, 1, True),
        ("Krum", 6, 2, False),
        ("Krum", 7, 2, True),
        ("Krum", 2, 0, False),
        ("FedMedian", 4, 2, False),
        ("FedMedian", 5, 2, True),
        ("FedAgree", 2, 1, False),
        ("FedAgree", 3, 1, True),
        ("FedTrimmedAvg", 4, 2, False),
        ("FedTrimmedAvg", 5, 1, True),
        ("FedAvg", 4, 3, True),
    ],
)
def test_relation_of_hostile_sites_to_all_is_what_the_strategy_bears(strategy, sites, hostile, taken):
    chosen = [f"federation.strategy={strategy}", f"federation.num_sites={sites}", f"federation.num_malicious={hostile}"]
    if taken:
        assert compose_settings(chosen).settings.federation.num_malicious == hostile
    else:
        with pytest.raises(InvalidSetting, match="num_malicious"):
            compose_settings(chosen)


def test_relation_of_hostile_sites_to_all_is_kept_where_sites_take_turns_or_are_cut():
    krum = ["federation.strategy=Krum", "federation.num_malicious=1"]
    with pytest.raises(InvalidSetting, match="at least 5 sites a round"):
        compose_settings([*krum, "federation.num_sites=8", "federation.fraction=0.5"])
    assert compose_settings([*krum, "federation.num_sites=6"]).settings.federation.fewest_replies == 5
    with pytest.raises(InvalidSetting, match="trim"):
        compose_settings(
            ["federation.strategy=FedTrimmedAvg", "federation.num_sites=5", "federation.num_malicious=1", "federation.trim=0.1"]
        )
