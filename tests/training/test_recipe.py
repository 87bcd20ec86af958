"""Hyper-parameters left at auto."""

import pytest

from mammo_fed.settings.compose import compose_settings
from mammo_fed.training.recipe import resolve


def components(*overrides):
    return resolve(compose_settings(list(overrides)).settings).components


def test_more_noise_leaves_fewer_components():
    found = [
        components(f"privacy.target_epsilon={epsilon}", "federation.num_sites=1") for epsilon in ("0.5", "1", "2", "6", "inf")
    ]
    assert found == sorted(found)
    assert found[0] < found[-1]


def test_several_sites_with_much_noise_take_fewer_components_than_one():
    assert components("privacy.target_epsilon=0.5") < components("privacy.target_epsilon=0.5", "federation.num_sites=1")


@pytest.mark.parametrize("epsilon", ["0.5", "6"])
def test_a_number_of_components_that_was_given_is_kept(epsilon):
    assert components("model.components=77", f"privacy.target_epsilon={epsilon}") == 77


def test_learning_rates_and_rounds_never_fall_as_noise_fades():
    found = [
        resolve(compose_settings([f"privacy.target_epsilon={epsilon}"]).settings) for epsilon in ("0.5", "1", "2", "6", "60")
    ]
    assert [one.rounds for one in found] == sorted(one.rounds for one in found)
    assert [one.learning_rate for one in found] == sorted(one.learning_rate for one in found)
