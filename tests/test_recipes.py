"""Each recipe of docs/recipes.md works from outside: the page's code becomes a distribution that only metadata makes known."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import json
import math
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from declarations import declared

from mammo_fed.audit.gate import gradient_moves
from mammo_fed.client.policy import SitePolicy, check_declaration
from mammo_fed.errors import InvalidSetting, PolicyRefused
from mammo_fed.extensions.kinds import ACCOUNTANTS, ARCHIVES, BACKBONES, MECHANISMS, STRATEGIES
from mammo_fed.extensions.registry import Extensions
from mammo_fed.federation.protocol.task import Declaration
from mammo_fed.privacy.accounting.composition import PrivacyAccountant
from mammo_fed.privacy.accounting.pricing import delta_at, epsilon
from mammo_fed.privacy.events import PrivacyEvent
from mammo_fed.privacy.mechanisms.full_batch import LogisticData, unit_gradients
from mammo_fed.privacy.mechanisms.unit_descent import UnitSum, unit_gradient
from mammo_fed.privacy.noise import GRID_STEPS, grid_sum
from mammo_fed.settings.compose import compose_settings

PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"
STEP = PrivacyEvent(
    mechanism="gradient",
    noise_multiplier=15.0,
    steps=100,
    sample_rate=1.0,
    unit="patient",
    clipping_norm=1.0,
    max_images_per_patient=4,
)
KINDS = (ARCHIVES, BACKBONES, STRATEGIES, ACCOUNTANTS, MECHANISMS)


def page_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def install(folder: Path, project: dict, sources: dict[str, str]) -> None:
    """What pip leaves of a distribution: its modules, and a folder of metadata beside them."""
    for name, text in sources.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    metadata = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [
        line
        for group, names in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in names.items()), "")
    ]
    (metadata / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """The page's distribution, installed; its modules are forgotten afterwards."""
    folder = tmp_path / "site-packages"
    sources = {block.splitlines()[0].removeprefix("# "): block for block in page_blocks("python")}
    (project,) = (tomllib.loads(block)["project"] for block in page_blocks("toml"))
    install(folder, project, {name: text for name, text in sources.items() if name.startswith("outside_example/")})
    monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] in ("outside_example", "rival")]:
        del sys.modules[name]


@pytest.fixture
def policy():
    return SitePolicy(
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


def declaration(**changes) -> Declaration:
    return declared(**changes)


def test_nothing_is_imported_until_a_setting_asks_for_it(outside):
    for kind in KINDS:
        assert len(kind.names()) == len(kind.built_in) + 1
    compose_settings(["privacy.mechanism=brier", "privacy.accountant=zcdp", "federation.strategy=GeometricMedian"])
    assert "outside_example" not in sys.modules


@pytest.mark.parametrize(
    ("setting", "known"),
    [
        ("privacy.mechanism=nobody", "dp_gd, dp_sgd, brier"),
        ("privacy.accountant=nobody", "pld, rdp, gdp, prv, zcdp"),
        ("federation.strategy=nobody", "FedAgree, GeometricMedian"),
    ],
)
def test_an_unknown_name_is_answered_with_the_known_ones(outside, setting, known):
    with pytest.raises(InvalidSetting, match=known):
        compose_settings([setting])


def test_a_name_of_ours_cannot_be_taken_over(outside, tmp_path, monkeypatch):
    rival = {
        "name": "rival",
        "version": "1",
        "entry-points": {"mammo_fed.mechanisms": {"dp_gd": "rival:boom", "brier": "rival:boom"}},
    }
    install(tmp_path / "rival", rival, {"rival.py": "raise SystemExit('rival was imported')\n"})
    monkeypatch.syspath_prepend(str(tmp_path / "rival"))
    assert unit_gradient("dp_gd", dims=3) is None
    with pytest.raises(InvalidSetting, match="own; choose another name"):
        MECHANISMS.register("dp_gd", lambda *_: None)
    with pytest.raises(InvalidSetting, match="one distribution, not from outside-example, rival"):
        unit_gradient("brier", dims=3)


def test_a_distribution_that_cannot_be_imported_is_named(tmp_path, monkeypatch):
    broken = {"name": "broken", "version": "3", "entry-points": {"mammo_fed.shapes": {"disc": "broken_module:disc"}}}
    install(tmp_path / "broken", broken, {"broken_module.py": "raise RuntimeError('no')\n"})
    monkeypatch.syspath_prepend(str(tmp_path / "broken"))
    shapes: Extensions[object] = Extensions(group="mammo_fed.shapes", setting="shape", built_in=())
    with pytest.raises(InvalidSetting, match="shape=disc cannot be imported from broken 3"):
        shapes.load("disc")


@pytest.mark.parametrize("change", [{"mechanism": "brier"}, {"accountant": "zcdp"}])
def test_a_site_runs_an_extension_only_if_its_policy_names_it_and_imports_nothing_to_find_out(outside, policy, change):
    ((kind, name),) = change.items()
    with pytest.raises(PolicyRefused, match=f"the {kind} '{name}' of another distribution is not among"):
        check_declaration(declaration(**change), policy, public=False)
    check_declaration(declaration(**change), dataclasses.replace(policy, extensions=(f"{kind}:{name}",)), public=False)
    assert "outside_example" not in sys.modules


def test_a_site_without_the_distribution_says_what_is_not_installed(policy):
    allowed = dataclasses.replace(policy, extensions=("mechanism:brier",))
    with pytest.raises(PolicyRefused, match="the mechanism 'brier' is not installed here"):
        check_declaration(declaration(mechanism="brier"), allowed, public=False)


def test_a_backbone_from_outside_needs_the_sites_permission(outside, policy):
    model = dataclasses.replace(declaration().model, backbone=("tiny_net",), taps=(), block_weights=())
    with pytest.raises(PolicyRefused, match="the backbone 'tiny_net' of another distribution"):
        check_declaration(declaration(model=model), policy, public=False)


@pytest.mark.parametrize("name", ["", "two words", "../../etc", "a" * 65, "x\ny"])
def test_a_declaration_can_only_name_names(name):
    with pytest.raises(InvalidSetting, match="must be names"):
        declaration(mechanism=name)


def test_the_archive_recipe_ingests_an_archive(outside, cli, tmp_path):
    archive, cohort = tmp_path / "archive", tmp_path / "cohort"
    code, _, error = cli("data", "phantom", archive, "--form", "csv", "--images", "20", "--size", "64")
    assert code == 0, error
    with (archive / "findings.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["top"]]
    (archive / "masses.jsonl").write_text(
        "".join(
            json.dumps(
                {
                    "file": row["file"],
                    "patient": row["patient"],
                    "malignant": row["label"] == "malignant",
                    "box": [float(row[side]) for side in ("top", "left", "bottom", "right")],
                }
            )
            + "\n"
            for row in rows
        ),
        encoding="utf-8",
    )
    code, out, error = cli("data", "ingest", archive, cohort, "--source", "jsonl", "--jobs", "1", "--json")
    assert code == 0, error
    assert json.loads(out)["images"] == len(rows) > 0
    assert "jsonl (outside-example 1.2)" in (cohort / "cohort.json").read_text(encoding="utf-8")


def test_an_unknown_archive_is_bad_input_with_the_known_names(cli, tmp_path):
    code, _, error = cli("data", "ingest", tmp_path, tmp_path.parent / "cohort", "--source", "nobody")
    assert code == 2
    assert "csv, cbis_ddsm, bcdr, inbreast, cmmd" in error


def test_the_backbone_recipe_runs_a_federation(outside, succeed):
    finished = succeed(
        "model.backbone=[tiny_net]", "model.tap=null", "model.pooling=mean", "model.weights=none", "synthesis.use=[whiten]"
    )
    assert finished.record.model.backbone == "tiny_net"
    assert finished.record.versions["outside-example"] == "1.2"


def test_the_strategy_recipe_runs_a_federation_and_single_updates_are_needed(outside, succeed, simulate):
    finished = succeed("federation.strategy=GeometricMedian", "privacy.noise_seed=3")
    other = succeed("privacy.noise_seed=3")
    assert finished.record.federation.strategy == "GeometricMedian"
    assert finished.record.versions["outside-example"] == "1.2"
    assert not finished.same_model(other)
    refused = simulate("federation.strategy=GeometricMedian", "federation.secure.use=masks")
    assert refused.code == 2
    assert "looks at single updates" in refused.err


def test_the_accountant_recipe_prices_as_it_says_and_never_below_pld(outside):
    rho = 100 / (2 * 15.0**2)
    assert epsilon([STEP], delta=1e-5, accountant="zcdp") == pytest.approx(rho + 2 * math.sqrt(rho * math.log(1e5)), rel=1e-5)
    assert delta_at([STEP], epsilon=3.0, accountant="zcdp") >= delta_at([STEP], epsilon=3.0, accountant="pld")


@pytest.mark.parametrize("price", [0.0, -1.0, math.nan])
def test_an_accountant_that_is_wrong_weakens_nothing(price):
    class Cheap(PrivacyAccountant):
        name = "cheap"

        def _epsilon(self, releases, delta):
            return price

        def _delta(self, releases, epsilon):
            return price

    ACCOUNTANTS.register("cheap", Cheap())
    try:
        assert epsilon([STEP], delta=1e-5, accountant="cheap") >= epsilon([STEP], delta=1e-5, accountant="pld")
        assert delta_at([STEP], epsilon=2.0, accountant="cheap") >= delta_at([STEP], epsilon=2.0, accountant="pld")
    finally:
        ACCOUNTANTS.unregister("cheap")


def test_the_accountant_recipe_plans_a_run(outside, succeed):
    finished = succeed("privacy.accountant=zcdp", "federation.rounds=1")
    assert all(site.epsilon <= 6.0 for site in finished.sites)
    assert finished.record.privacy.accountant == "zcdp"
    assert finished.record.versions["outside-example"] == "1.2"


@pytest.mark.parametrize("noise", ["secure", "float"])
def test_the_mechanism_recipe_trains_within_its_budget_and_the_record_names_the_distribution(outside, succeed, noise):
    finished = succeed("privacy.mechanism=brier", f"privacy.noise={noise}", "data.public=true", "federation.rounds=2")
    assert all(0 < site.epsilon <= 6.0 for site in finished.sites)
    assert "gradient brier of outside-example 1.2" in finished.sites[0].mechanism
    assert finished.record.versions["outside-example"] == "1.2"


def test_the_gate_of_the_recipe_passes(outside):
    (gate,) = [block for block in page_blocks("python") if block.startswith("# gate.py")]
    exec(compile(gate, "gate.py", "exec"), {})  # noqa: S102 - our own page


def test_the_gate_catches_a_mechanism_that_keeps_state_from_unit_to_unit():
    seen = []

    def leaky(rows, labels, weights):
        seen.append(rows.sum(0))
        return np.sum(seen, axis=0)

    assert max(gradient_moves(leaky, dims=8, unit="patient", clipping_norm=0.5).values()) > 1.0


def test_a_gradient_from_outside_that_equals_ours_gives_our_sum_on_the_grid_exactly():
    rng = np.random.default_rng(0)
    features, labels, units = rng.standard_normal((40, 5)).astype(np.float32), rng.integers(0, 2, 40), np.arange(40) // 2
    data, weights = LogisticData.build(features, labels, units, bias_scale=0.5), rng.standard_normal(6).astype(np.float32)
    ours = {row.tobytes(): row for block in unit_gradients(data, weights) for row in block}
    rows = iter(ours.values())
    total = UnitSum(gradient=lambda *_: next(rows), data=data, weights=weights).on_grid(clipping_norm=0.5)
    np.testing.assert_array_equal(total, sum(grid_sum(block, clipping_norm=0.5) for block in unit_gradients(data, weights)))


@pytest.mark.parametrize("kind", ["raises", "nan", "shape", "huge"])
def test_a_unit_at_which_a_gradient_fails_contributes_nothing_and_does_not_show(kind):
    def gradient(rows, labels, weights):
        if rows[0, 0] < 5:
            return np.ones(4)
        if kind == "raises":
            raise ValueError("patient Erika")
        return {"nan": np.full(4, np.nan), "shape": np.ones(3), "huge": np.full(4, 1e300)}[kind]

    features = np.ones((3, 3), np.float32)
    features[2] = 10.0
    data = LogisticData.build(features, np.zeros(3, np.int64), np.arange(3), bias_scale=1.0)
    total = UnitSum(gradient=gradient, data=data, weights=np.zeros(4, np.float32))
    without = UnitSum(gradient=gradient, data=dataclasses.replace(data, num_units=2), weights=np.zeros(4, np.float32))
    moved = total.on_grid(clipping_norm=1.0) - without.on_grid(clipping_norm=1.0)
    assert np.linalg.norm(moved) <= (GRID_STEPS if kind == "huge" else 0)


def test_a_mechanism_that_gives_another_shape_is_refused_before_anything_is_charged():
    MECHANISMS.register("short", lambda rows, labels, weights: np.zeros(2))
    try:
        with pytest.raises(InvalidSetting, match=r"must give a finite array of shape \(6,\)"):
            unit_gradient("short", dims=5)
    finally:
        MECHANISMS.unregister("short")


def test_a_run_with_a_mechanism_from_outside_cannot_be_audited_as_one_of_ours(outside, succeed, cli):
    finished = succeed("privacy.mechanism=brier", "federation.rounds=1")
    code, _, error = cli("audit", finished.folder)
    assert code == 2
    assert "run the gate" in error


def test_start_up_does_not_import_entry_points(outside):
    code = "import sys; from mammo_fed.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit('outside_example' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(outside)!r}); {code}"], capture_output=True, check=False
    )
    assert done.returncode == 0
