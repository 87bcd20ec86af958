"""Declarations and tasks: what they refuse to be, and that a hash sees everything that decides a round."""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mammo_fed.errors import InvalidSetting
from mammo_fed.federation.protocol.task import Declaration, RoundTask, task_hash
from mammo_fed.settings.compose import compose_settings

TASK = RoundTask(
    run_id="run1",
    round_index=2,
    kind="train",
    learning_rate=20.0,
    weight_decay=0.0,
    optimizer="sgd",
    label_smoothing=0.0,
    proximal=0.0,
)
OTHER = {
    "run_id": "run2",
    "round_index": 3,
    "learning_rate": 21.0,
    "weight_decay": 0.1,
    "optimizer": "adamw",
    "label_smoothing": 0.1,
    "proximal": 0.1,
}
floats = hnp.arrays(np.float32, st.integers(0, 6), elements=st.floats(-1e3, 1e3, width=32))


@pytest.fixture(scope="module")
def declaration() -> Declaration:
    settings = compose_settings([])
    privacy = settings.settings.privacy
    values = {
        "run_id": "run1",
        "model": settings.settings.model,
        "weights_sha256": "a" * 64,
        "whitening_sha256": "b" * 64,
        "synthesis_provenance": "no_dp",
        "dims": 30,
        "clipping_norm": 0.5,
        "mean_clipping_norm": 2.0,
        "rounds": 4,
        "local_steps": 1,
    }
    shared = {field.name for field in fields(Declaration) if field.default is MISSING} - set(values)
    return Declaration(**values, **{name: getattr(privacy, name) for name in shared})


def test_a_declaration_is_rebuilt_from_its_text(declaration):
    assert Declaration.from_json(declaration.to_json()) == declaration


def test_a_declaration_without_noise_is_rebuilt_from_strict_json(declaration):
    silent = replace(declaration, target_epsilon=math.inf, noise_seed=3)
    text = silent.to_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert Declaration.from_json(text) == silent


def test_a_declarations_head_has_the_declared_shape(declaration):
    assert declaration.head.num_parameters == 31
    mlp = replace(declaration, model=replace(declaration.model, head="mlp", hidden=8))
    assert mlp.head.num_parameters == 30 * 8 + 8 + 8 * 2 + 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[]", "must be a JSON object"),
        ("7", "must be a JSON object"),
        ("{}", "run_id is missing"),
        ('{"extra": 1}', "extra is not a field of protocol version"),
    ],
)
@pytest.mark.parametrize("kind", [Declaration, RoundTask])
def test_text_that_is_no_task_is_refused(kind, text, said):
    with pytest.raises(InvalidSetting, match=said):
        kind.from_json(text)


@pytest.mark.parametrize(
    ("key", "value"),
    [("rounds", "3"), ("rounds", 2.5), ("delta", None), ("unit", "breast"), ("model", []), ("noise_seed", 1.5), ("dims", True)],
)
def test_a_declaration_with_a_value_of_the_wrong_type_is_refused(declaration, key, value):
    values = json.loads(declaration.to_json())
    with pytest.raises(InvalidSetting, match=key):
        Declaration.from_json(json.dumps({**values, key: value}))


def test_a_task_is_rebuilt_from_its_text():
    assert RoundTask.from_json(TASK.to_json()) == TASK


@pytest.mark.parametrize(
    "changed",
    [
        {"round_index": 0},
        {"round_index": -1, "kind": "mean"},
        {"round_index": 1, "kind": "mean"},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"learning_rate": math.inf},
    ],
    ids=str,
)
def test_a_task_that_makes_no_sense_cannot_exist(changed):
    with pytest.raises(InvalidSetting, match="must be"):
        replace(TASK, **changed)


def test_the_hash_sees_every_field_of_a_task():
    arrays = {"feature_mean": np.zeros(3, np.float32), "parameters": np.ones(4, np.float32)}
    assert set(OTHER) == {field.name for field in fields(RoundTask)} - {"kind"}
    hashes = [task_hash(replace(TASK, **{name: value}), **arrays) for name, value in OTHER.items()]
    hashes += [task_hash(TASK, **arrays), task_hash(replace(TASK, kind="mean", round_index=0), **arrays)]
    assert len(set(hashes)) == len(OTHER) + 2
    assert all(len(one) == 64 for one in hashes)


@given(floats, floats, floats, floats)
def test_the_hash_is_equal_for_equal_arrays_and_for_no_others(feature_mean, arrays, other_mean, other_arrays):
    first = task_hash(TASK, feature_mean=feature_mean, parameters=arrays)
    assert first == task_hash(TASK, feature_mean=feature_mean.copy(), parameters=arrays.copy())
    alike = all(
        one.shape == other.shape and one.tobytes() == other.tobytes()
        for one, other in ((feature_mean, other_mean), (arrays, other_arrays))
    )
    assert (first == task_hash(TASK, feature_mean=other_mean, parameters=other_arrays)) == alike


def test_the_hash_does_not_depend_on_how_an_array_lies_in_memory():
    wide = np.arange(8, dtype=np.float32)
    feature_mean = np.zeros(0, np.float32)
    assert task_hash(TASK, feature_mean=feature_mean, parameters=wide[::2]) == task_hash(
        TASK, feature_mean=feature_mean, parameters=wide[::2].copy()
    )
    assert task_hash(TASK, feature_mean=wide[:3], parameters=wide[3:]) != task_hash(
        TASK, feature_mean=wide[:4], parameters=wide[4:]
    )


@pytest.mark.parametrize(
    "changes", [{"mechanism": "dp_gd", "mean_fraction": 0.0}, {"mechanism": "dp_sgd", "mean_fraction": 0.1}]
)
def test_a_declaration_of_drawn_flips_is_refused_where_nothing_draws_them(declaration, changes):
    with pytest.raises(InvalidSetting, match=r"model\.flips=random belongs to privacy=dp_sgd"):
        replace(declaration, model=replace(declaration.model, flips="random"), **changes)
