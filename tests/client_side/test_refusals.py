"""What a site refuses, and that a refusal says one word of a fixed list."""

import dataclasses
import json

import numpy as np
import pytest
from declarations import declared
from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from mammo_fed.client.policy import SitePolicy, check_declaration
from mammo_fed.client.rounds.app import app
from mammo_fed.data.cohort import Cohort
from mammo_fed.errors import DataError, InvalidSetting, PolicyRefused
from mammo_fed.federation.protocol.messages import pack_parameters
from mammo_fed.federation.protocol.task import Declaration
from mammo_fed.simulations.in_process import InProcessGrid

POLICY = SitePolicy(
    max_epsilon=6.0,
    delta=1e-4,
    min_patients=10,
    max_images_per_patient=4,
    public_patients=20,
    public_images=40,
    public_class_balance=False,
    units=("patient",),
    scopes=("head",),
    provenance=("procedural",),
)


@pytest.fixture(scope="module")
def declaration():
    return declared()


def test_a_run_within_the_policy_is_accepted(declaration):
    check_declaration(declaration, POLICY, public=False)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"unit": "image"}, "unit"),
        ({"synthesis_provenance": "no_dp"}, "provenance"),
        ({"delta": 1e-3}, "delta"),
        ({"noise_seed": 1}, "noise_seed"),
        ({"noise": "float"}, "noise=float"),
        ({"target_epsilon": float("inf")}, "no noise"),
    ],
)
def test_the_policy_of_a_private_site_refuses(declaration, changes, word):
    with pytest.raises(PolicyRefused, match=word):
        check_declaration(dataclasses.replace(declaration, **changes), POLICY, public=False)


def test_the_policy_refuses_with_too_few_patients(declaration):
    with pytest.raises(PolicyRefused, match="public_patients=9 is below min_patients=10"):
        check_declaration(declaration, dataclasses.replace(POLICY, public_patients=9), public=False)


@pytest.mark.parametrize("file", ["/archive/DOE_JANE.dcm", "weights.safetensors"])
def test_the_policy_refuses_a_file_of_weights_before_it_is_looked_for(declaration, file):
    model = dataclasses.replace(declaration.model, weights="file", weights_file=file)
    asked = dataclasses.replace(declaration, model=model)
    with pytest.raises(PolicyRefused, match="network weights from"):
        check_declaration(asked, POLICY, public=False)
    check_declaration(asked, dataclasses.replace(POLICY, weights=("wheel", file)), public=False)


def test_the_policy_lets_no_server_make_a_site_fetch_from_the_internet(declaration):
    model = dataclasses.replace(declaration.model, weights="timm", weights_file=None)
    with pytest.raises(PolicyRefused, match="network weights from timm"):
        check_declaration(dataclasses.replace(declaration, model=model), POLICY, public=False)


def test_the_policy_allows_an_infinite_epsilon_for_public_cohorts_only(declaration):
    endless = dataclasses.replace(POLICY, max_epsilon=float("inf"))
    check_declaration(declaration, endless, public=True)
    with pytest.raises(PolicyRefused, match="max_epsilon is inf"):
        check_declaration(declaration, endless, public=False)


@pytest.mark.parametrize("clip", [0.0, 1e-46, 1e-4, 5e37, float("nan"), float("inf")])
def test_a_declaration_with_a_clip_that_floating_point_cannot_hold_is_refused(declaration, clip):
    with pytest.raises(InvalidSetting, match=r"privacy\.clipping_norm=.* must be in"):
        dataclasses.replace(declaration, clipping_norm=clip)


def test_a_declaration_with_a_bias_that_drowns_the_features_is_refused(declaration):
    values = json.loads(declaration.to_json())
    values["model"]["bias_scale"] = 1e8
    with pytest.raises(InvalidSetting, match=r"model\.bias_scale=.* must be in \[0, 10\]"):
        Declaration.from_json(json.dumps(values))


@pytest.mark.parametrize("kind", [MessageType.TRAIN, MessageType.QUERY])
def test_a_site_that_cannot_be_opened_answers_one_word_and_no_name(tmp_path, kind):
    (tmp_path / "site-1.json").write_text('{"site": "JANE_DOE_1950"}')
    grid = InProcessGrid(app, num_sites=1, run_config={"sites-folder": str(tmp_path)}, workers=1, wire=True)
    content = RecordDict({"arrays": pack_parameters(np.zeros(3, np.float32)), "config": ConfigRecord({"task": "x"})})
    (reply,) = grid.send_and_receive([Message(content, 2, kind)], timeout=20)
    grid.close()
    assert reply.has_error()
    assert reply.error.reason == "internal"


def test_a_patient_written_in_two_ways_is_refused():
    with pytest.raises(DataError, match="differ only in case, spaces or Unicode form"):
        Cohort(
            name="x",
            pixels=np.zeros((2, 4, 4), np.float32),
            labels=np.array([0, 1]),
            patients=np.array(["p1", "P1 "]),
            images=np.array(["a", "b"]),
            views=np.array(["", ""]),
            splits=np.array(["train", "train"]),
            public=True,
        )


@pytest.mark.parametrize("name", ["public_patients", "public_images", "min_patients", "max_images_per_patient"])
@pytest.mark.parametrize("count", [0, -1, 10**9 + 1, 10**400])
def test_a_policy_with_a_count_that_no_server_could_read_is_refused_at_home(name, count):
    with pytest.raises(InvalidSetting, match=f"{name}=.* must be from 1 to 1000000000; check the site's policy"):
        dataclasses.replace(POLICY, **{name: count})
