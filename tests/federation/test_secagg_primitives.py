"""Flower's primitives of secure aggregation as this project uses them: these tests fail first when Flower changes them."""

import inspect

import numpy as np
import pytest
from flwr.common.secure_aggregation import secaggplus_utils

from mammo_fed.errors import DataError
from mammo_fed.federation.flwr_internals.secagg import (
    KEY_BYTES,
    agreed_key,
    check_public_key,
    derived_key,
    expand,
    key_pair,
    open_sealed,
    public_of,
    rebuild_secret,
    seal,
    share_secret,
)

# RFC 8439, appendix A.1, test vector 1: the key stream of an all-zero key and nonce.
ZERO_STREAM = bytes.fromhex(
    "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
    "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
)


def test_two_holders_of_keys_agree_on_one_key_for_each_purpose():
    one, other = key_pair(), key_pair()
    there = agreed_key(one.private, other.public, purpose="masks")
    back = agreed_key(other.private, one.public, purpose="masks")
    assert there == back
    assert len(there) == KEY_BYTES
    assert agreed_key(one.private, other.public, purpose="parcels") != there


def test_keys_are_fresh_and_a_private_key_gives_its_public_one():
    one, other = key_pair(), key_pair()
    assert one.private != other.private
    assert public_of(one.private) == one.public


@pytest.mark.parametrize("bad", ["", "not a key", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_what_is_no_public_key_is_refused(bad):
    with pytest.raises(DataError, match="public key"):
        check_public_key(bad)


def test_a_key_written_in_another_way_is_refused_so_that_one_key_cannot_pass_for_two():
    with pytest.raises(DataError, match="another way"):
        check_public_key(key_pair().public + "\n")


def test_a_sealed_text_opens_with_its_key_only():
    key = derived_key(b"secret", purpose="a")
    assert open_sealed(key, seal(key, b"share")) == b"share"
    with pytest.raises(DataError, match="another key"):
        open_sealed(derived_key(b"secret", purpose="b"), seal(key, b"share"))


def test_any_threshold_of_shares_gives_a_secret_back_and_fewer_do_not():
    secret = bytes(range(48))
    shares = share_secret(secret, threshold=3, count=5)
    assert rebuild_secret(shares[:3]) == rebuild_secret(shares[2:]) == secret
    try:
        fewer = rebuild_secret(shares[:2])
    except DataError:
        return
    assert fewer != secret


def test_a_mask_is_the_stream_of_chacha20():
    np.testing.assert_array_equal(expand(bytes(KEY_BYTES), 8), np.frombuffer(ZERO_STREAM, "<u8"))


def test_masks_of_different_keys_have_nothing_in_common():
    one, other = (expand(derived_key(b"secret", purpose=name), 4096) for name in "ab")
    assert not np.any(one == other)
    bits = np.unpackbits((one ^ other).view(np.uint8))
    assert abs(bits.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(bits))


def test_flowers_own_generator_still_folds_its_seed_to_32_bits_which_is_why_it_is_not_used():
    source = inspect.getsource(secaggplus_utils.pseudo_rand_gen)
    assert "seed32 ^=" in source
    one, other = bytes(32), bytes([1, 0, 0, 0, 1, 0, 0, 0]) + bytes(24)
    np.testing.assert_array_equal(
        secaggplus_utils.pseudo_rand_gen(one, 1 << 20, [(4,)]), secaggplus_utils.pseudo_rand_gen(other, 1 << 20, [(4,)])
    )
