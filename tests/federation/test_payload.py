"""What travels with a declaration comes back as it was, and nothing that was changed on the way is taken."""

from __future__ import annotations

from dataclasses import MISSING, fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mammo_fed.errors import DataError
from mammo_fed.federation.protocol.payload import PublicPayload, synthetic_sha256
from mammo_fed.federation.protocol.task import Declaration
from mammo_fed.models.whitening import Whitening
from mammo_fed.settings.compose import compose_settings

WIDTH, DIMS = 5, 3


def payload_of(*, images=4, network=6, seed=0) -> PublicPayload:
    draws = np.random.default_rng(seed)

    def numbers(*shape):
        return draws.standard_normal(shape).astype(np.float32)

    return PublicPayload(
        whitening=Whitening(mean=numbers(WIDTH), scale=np.abs(numbers(WIDTH)) + 1, components=numbers(WIDTH, DIMS)),
        features=numbers(images, DIMS),
        labels=np.arange(images) % 2,
        network=numbers(network),
    )


def declared(payload: PublicPayload) -> Declaration:
    settings = compose_settings([]).settings
    values = {
        "run_id": "run1",
        "model": settings.model,
        "weights_sha256": "a" * 64,
        "whitening_sha256": payload.whitening.sha256(),
        "synthesis_provenance": "no_dp",
        "dims": payload.whitening.dims,
        "clipping_norm": 0.5,
        "mean_clipping_norm": 2.0,
        "rounds": 4,
        "local_steps": 1,
    }
    shared = {field.name for field in fields(Declaration) if field.default is MISSING} - set(values)
    return Declaration(
        **values,
        **{name: getattr(settings.privacy, name) for name in shared},
        synthetic_images=len(payload.labels),
        synthetic_sha256=synthetic_sha256(payload.features, payload.labels),
        network_size=len(payload.network),
    )


def same(one: PublicPayload, other: PublicPayload) -> bool:
    arrays = [
        (part.whitening.mean, part.whitening.scale, part.whitening.components, part.features, part.labels, part.network)
        for part in (one, other)
    ]
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(*arrays, strict=True))


@pytest.fixture(scope="module")
def full() -> tuple[PublicPayload, Declaration]:
    payload = payload_of()
    return payload, declared(payload)


@pytest.mark.parametrize("images", [0, 1, 4])
@pytest.mark.parametrize("network", [0, 6])
def test_a_payload_comes_back_as_it_was(images, network):
    payload = payload_of(images=images, network=network)
    flat = payload.flatten()
    assert flat.dtype == np.float32
    assert flat.shape == (WIDTH * (2 + DIMS) + images * (DIMS + 1) + network,)
    assert same(PublicPayload.read(flat, declared(payload)), payload)


def test_public_statistics_alone_carry_nothing_else():
    payload = PublicPayload.of(payload_of().whitening)
    assert len(payload.flatten()) == WIDTH * (2 + DIMS)
    assert same(PublicPayload.read(payload.flatten(), declared(payload)), payload)


@given(st.data())
def test_a_changed_byte_of_statistics_features_or_labels_is_refused(full, data):
    payload, declaration = full
    checked = len(payload.flatten()) - len(payload.network)
    raw = bytearray(payload.flatten().tobytes())
    place = data.draw(st.integers(0, 4 * checked - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DataError, match=r"do(es)? not have the declared hash"):
        PublicPayload.read(np.frombuffer(bytes(raw), np.float32), declaration)


def test_a_changed_network_is_left_to_the_hash_of_the_weights(full):
    payload, declaration = full
    flat = payload.flatten()
    flat[-1] += 1
    # The declaration names the hash of the loaded network; tests of a site show that it refuses another.
    assert not same(PublicPayload.read(flat, declaration), payload)


@pytest.mark.parametrize("length", [0, 1, 10, -1, 5, 15])
def test_an_array_of_another_length_is_refused(full, length):
    payload, declaration = full
    flat = payload.flatten()
    wrong = flat[:length] if length >= 0 else np.append(flat, np.float32(0))
    with pytest.raises(DataError, match=r"declared (shape|hash)"):
        PublicPayload.read(wrong, declaration)


def test_images_in_another_order_are_refused(full):
    payload, declaration = full
    swapped = PublicPayload(
        whitening=payload.whitening, features=payload.features[::-1], labels=payload.labels[::-1], network=payload.network
    )
    with pytest.raises(DataError, match="synthetic set does not have the declared hash"):
        PublicPayload.read(swapped.flatten(), declaration)


def test_the_hash_of_a_synthetic_set_sees_features_labels_and_shape():
    payload = payload_of()
    features, labels = payload.features, payload.labels
    others = {
        synthetic_sha256(features, labels),
        synthetic_sha256(features + 1, labels),
        synthetic_sha256(features, 1 - labels),
        synthetic_sha256(features.reshape(2, -1), labels),
        synthetic_sha256(features[:2], labels[:2]),
    }
    assert len(others) == 5
    assert synthetic_sha256(features[:0], labels[:0]) == ""
