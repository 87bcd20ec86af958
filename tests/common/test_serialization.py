"""Dataclasses as JSON: the forms of settings and records as they have always been, and one set of rules for both."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mammo_fed.common.serialization import RECORD, SETTINGS, build, canonical_json, dumps, plain
from mammo_fed.errors import DataError, InvalidSetting
from mammo_fed.reporting.record.record import read_record
from mammo_fed.settings import Settings
from mammo_fed.settings.compose import compose_gan, compose_settings

STORED = Path(__file__).parents[1] / "stored"
PAPER = ("data=mammo_dp", "data.root=/data", "privacy=dp_sgd", "privacy.noise=float", "privacy.target_epsilon=inf")
MASKS = ("federation.secure.use=masks", "federation.num_sites=7", "model=swin_tiny")
# Written down with the code that had two serializers: ledgers, checkpoints and caches hold these hashes.
PINNED = {
    (): (
        "fccea50c78118417efa339b29737000217aa676149f26af8f448ade08359424d",
        "bd2e909c4a0d41d9295261e53dd4aaf0606e3bf0ef37b6301ed74b5239ce3d66",
    ),
    PAPER: (
        "716ec1de6def6dce3f249f4cb731dfd4e25a71985934108297610bc91fca1891",
        "24430fd783fb260a159b210c92021f5e2b969f228f079088728aada9da3e12c7",
    ),
    MASKS: (
        "c815c699cc0ec0650ca300fad9f7ee57f08523d1a052bb2880910ebbf0bf6d60",
        "81ff480d5f01d1870bc7e9a457c98882583fbca51f1f47d54a6c1726b957652c",
    ),
}
PINNED_GAN = {
    (): "57497c4184d692e15dd0f080fa264fd4bc79ad025046884c219b8a0e4f15b4b1",
    ("privacy.target_epsilon=6",): "fdc94d86cdf9efb4a275a137e4097c4e987e056bbe93e95f09369a018fae7638",
}
FORMS = [pytest.param(SETTINGS, InvalidSetting, id="settings"), pytest.param(RECORD, DataError, id="record")]


@dataclass(frozen=True, kw_only=True)
class Inner:
    number: float
    pair: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Outer:
    text: str
    count: int | Literal["auto"]
    flag: bool
    inner: Inner
    many: tuple[Inner, ...]
    named: Mapping[str, float]
    maybe: float | None


def outer(number: float = 1.5, maybe: float | None = None) -> Outer:
    inner = Inner(number=number, pair=(0.0, number))
    return Outer(text="é", count="auto", flag=True, inner=inner, many=(inner, inner), named={"a": number}, maybe=maybe)


@pytest.mark.parametrize(("overrides", "hashes"), PINNED.items())
def test_settings_keep_their_text_and_hash(overrides, hashes):
    settings = compose_settings(overrides).settings
    assert (settings.sha256(), sha256(settings.to_json().encode()).hexdigest()) == hashes
    assert Settings.from_json(settings.to_json()) == settings


@pytest.mark.parametrize(("overrides", "digest"), PINNED_GAN.items())
def test_settings_of_a_generator_keep_their_hash(overrides, digest):
    assert compose_gan(overrides).settings.sha256() == digest


@pytest.mark.parametrize("path", sorted(STORED.rglob("record.json")), ids=lambda path: path.parent.name)
def test_a_stored_record_is_written_again_byte_for_byte(path):
    kept = path.read_text(encoding="utf-8")
    again = read_record(path.parent).as_dict()
    assert dumps(at_keys_of(again, json.loads(kept))) == kept


def at_keys_of(values: Any, kept: Any) -> Any:
    """`values` without the keys that later versions added with a default."""
    if isinstance(kept, dict):
        return {key: at_keys_of(values[key], kept[key]) for key in kept}
    return [at_keys_of(*both) for both in zip(values, kept, strict=True)] if isinstance(kept, list) else values


@pytest.mark.parametrize(("form", "infinity"), [(SETTINGS, '"inf"'), (RECORD, "null")])
def test_infinity_is_written_as_each_form_has_always_had_it_and_read_again(form, infinity):
    value = Inner(number=math.inf)
    text = json.dumps(plain(value, form=form), allow_nan=False)
    assert text == f'{{"number": {infinity}, "pair": null}}'
    assert build(Inner, json.loads(text), path="", form=form) == value


@pytest.mark.parametrize(("form", "error"), FORMS)
@pytest.mark.parametrize("number", [math.nan, -math.inf])
def test_what_json_cannot_say_is_not_written(form, error, number):
    with pytest.raises(error, match="cannot be written as JSON"):
        plain(Inner(number=number), form=form)


@pytest.mark.parametrize(("form", "error"), FORMS)
@given(number=st.floats(allow_nan=False).filter(lambda number: number != -math.inf))
def test_any_value_survives_either_form(form, error, number):
    value = outer(number)
    assert build(Outer, json.loads(json.dumps(plain(value, form=form), allow_nan=False)), path="", form=form) == value


@pytest.mark.parametrize(("form", "error"), FORMS)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("text", 1),
        ("text", None),
        ("count", True),
        ("count", 1.5),
        ("count", "some"),
        ("flag", 0),
        ("flag", "true"),
        ("inner", 3),
        ("many", "text"),
        ("named", [1.0]),
        ("named", {"a": "b"}),
        ("maybe", "infinity"),
        ("maybe", True),
        pytest.param("maybe", 10**400, id="maybe-huge"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(form, error, key, value):
    values = {**plain(outer(), form=form), key: value}
    with pytest.raises(error, match=f"top.{key}"):
        build(Outer, values, path="top", form=form)


@pytest.mark.parametrize(("form", "error"), FORMS)
def test_a_key_that_is_unknown_or_absent_is_named(form, error):
    values = plain(outer(), form=form)
    with pytest.raises(error, match=r"inner\.surprise is not"):
        build(Outer, {**values, "inner": {**values["inner"], "surprise": 1}}, path="", form=form)
    with pytest.raises(error, match=r"many.*number is missing"):
        build(Outer, {**values, "many": [{"pair": None}]}, path="", form=form)


@pytest.mark.parametrize(("form", "error"), FORMS)
def test_a_pair_has_two_values(form, error):
    with pytest.raises(error, match="pair must have 2 values, not 1"):
        build(Inner, {"number": 1.0, "pair": [0.5]}, path="", form=form)


def test_a_record_may_lack_a_key_with_a_default_and_settings_may_not():
    assert build(Inner, {"number": 1}, path="", form=RECORD) == Inner(number=1.0)
    with pytest.raises(InvalidSetting, match="pair is missing; give pair=VALUE"):
        build(Inner, {"number": 1}, path="")


def test_a_single_value_is_a_tuple_of_one_in_settings_and_in_no_record():
    @dataclass(frozen=True, kw_only=True)
    class Many:
        names: tuple[str, ...]

    Many.__annotations__["names"] = tuple[str, ...]
    assert build(Many, {"names": "one"}, path="") == Many(names=("one",))
    with pytest.raises(DataError, match="names='one' must be a list"):
        build(Many, {"names": "one"}, path="", form=RECORD)


def test_canonical_json_has_sorted_keys_and_no_spaces():
    assert canonical_json({"b": (1, math.inf), "a": Inner(number=2.0)}) == '{"a":{"number":2.0,"pair":null},"b":[1,"inf"]}'
