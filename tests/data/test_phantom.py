"""The phantom is reproducible, looks as its style says, and lets no classifier pass the ceiling."""

import itertools

import numpy as np
import pytest
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mammo_fed.data.cohort import BENIGN, MALIGNANT, fingerprint
from mammo_fed.data.phantom.hospitals import phantom_cohort, phantom_hospitals, phantom_synthetic
from mammo_fed.data.phantom.masses import (
    EXTERNAL_STYLE,
    PhantomStyle,
    any_style,
    auroc_ceiling,
    develop,
    draw_mass,
    draw_suspicion,
    draw_texture,
    site_style,
)
from mammo_fed.data.phantom.shapes import draw_outline, profile, spicules
from mammo_fed.errors import InvalidSetting

SEEDS = range(200)
ANGLES = np.linspace(0, 2 * np.pi, 720, endpoint=False)


def cohort(**changes):
    settings = {
        "name": "toy", "num_images": 40, "style": PhantomStyle(), "d_prime": 2.4, "image_size": 64, "seed": 0, "split": "train",
    }  # fmt: skip
    return phantom_cohort(**{**settings, **changes})


@pytest.fixture(scope="module")
def federation():
    return phantom_hospitals(images_train=800, images_test=100, images_external=200, image_size=64)


@pytest.fixture(scope="module")
def varied():
    return phantom_synthetic(count=800, image_size=64)


def spectral_slope(images):
    """Exponent b of the mean radial power spectrum 1/f^b between 4 and 32 cycles per patch, through a Hann window."""
    size = images.shape[-1]
    window = np.outer(np.hanning(size), np.hanning(size))
    centred = images - images.mean(axis=(1, 2), keepdims=True)
    power = np.log(np.abs(np.fft.fft2(centred * window)) ** 2).mean(axis=0)
    frequency = np.fft.fftfreq(size) * size
    ring = np.hypot(frequency[:, None], frequency).round().astype(int)
    radial = ndimage.mean(np.exp(power), ring, np.arange(4, 33))
    return -np.polyfit(np.log(np.arange(4, 33)), np.log(radial), 1)[0]


def textures(style, count=100):
    return np.stack([draw_texture(style=style, image_size=128, rng=np.random.default_rng(seed)) for seed in range(count)])


def outlines(suspicion):
    return [draw_outline(suspicion=suspicion, image_size=128, rng=np.random.default_rng(seed)) for seed in SEEDS]


def hand_made_features(images):
    """Brightness, edge and texture statistics in rings around the centre: what a person would measure by hand."""
    size = images.shape[-1]
    offset = np.arange(size) - (size - 1) / 2
    distance = np.hypot(offset[:, None], offset) / size
    ring = np.digitize(distance, [0.08, 0.14, 0.2, 0.26, 0.32, 0.4])
    rows = []
    for image in images:
        smooth = ndimage.gaussian_filter(image, size / 85)
        down, right = np.gradient(smooth)
        radial = (down * offset[:, None] + right * offset) / (distance * size)
        tangential = (right * offset[:, None] - down * offset) / (distance * size)
        maps = (image - image.mean(), (image - smooth) ** 2, radial, np.abs(radial), np.abs(tangential))
        rows.append([image.mean(), image.std(), *itertools.chain(*(ndimage.mean(m, ring, range(7)) for m in maps))])
    return np.array(rows)


def hand_made_model():
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))


def cross_validated_auroc(drawn):
    scores = cross_val_predict(
        hand_made_model(), hand_made_features(drawn.pixels), drawn.labels, cv=5, method="decision_function"
    )
    return roc_auc_score(drawn.labels, scores)


def test_a_mass_is_a_float32_patch_between_zero_and_one():
    image = draw_mass(MALIGNANT, suspicion=1.0, style=PhantomStyle(), image_size=96, rng=np.random.default_rng(0))
    assert image.shape == (96, 96)
    assert image.dtype == np.float32
    assert 0 <= image.min() < image.max() <= 1


def test_pixels_stay_in_range_in_the_most_extreme_style():
    harsh = PhantomStyle(gain=5.0, gamma=5.0, noise=1.0, beta_mean=0.0)
    image = draw_mass(BENIGN, suspicion=0.0, style=harsh, image_size=64, rng=np.random.default_rng(0))
    assert 0 <= image.min() < image.max() <= 1


def test_a_mass_depends_on_its_label_through_the_suspicion_alone():
    benign, malignant = (
        draw_mass(label, suspicion=0.7, style=PhantomStyle(), rng=np.random.default_rng(5)) for label in (BENIGN, MALIGNANT)
    )
    np.testing.assert_array_equal(benign, malignant)


def test_the_same_generator_draws_the_same_mass_and_another_one_a_different_mass():
    first, again, other = (
        draw_mass(BENIGN, suspicion=0.0, style=PhantomStyle(), rng=np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.05


def test_a_mass_is_brighter_than_its_surroundings():
    images = cohort(num_images=60).pixels
    assert images[:, 28:36, 28:36].mean() > images[:, :6].mean() + 0.1


def test_the_background_has_the_power_spectrum_that_real_patches_have():
    style = PhantomStyle()
    scenes = textures(style, 200)
    drawn = [develop(s, brightness=0.0, style=style, rng=np.random.default_rng(k)) for k, s in enumerate(scenes)]
    assert 2.8 < spectral_slope(np.stack(drawn)) < 3.4


@pytest.mark.parametrize("beta", [2.0, 2.6, 3.2])
def test_the_texture_follows_the_exponent_it_is_given(beta):
    assert spectral_slope(textures(PhantomStyle(beta_mean=beta, beta_sd=0.0))) == pytest.approx(beta, abs=0.15)


def test_opposite_edges_of_the_texture_do_not_match_as_in_a_periodic_one():
    scenes = textures(PhantomStyle())
    across_the_seam = np.abs(scenes[:, 0] - scenes[:, -1]).mean()
    between_neighbours = np.abs(scenes[:, 0] - scenes[:, 1]).mean()
    assert across_the_seam > 3 * between_neighbours


def test_malignant_contours_are_rougher_than_benign_ones():
    def roughness(suspicion):
        radii = np.stack([outline.radius_at(ANGLES) / outline.radius_px for outline in outlines(suspicion)])
        return np.abs(np.diff(radii, axis=1)).sum(axis=1).mean()

    assert roughness(1.2) > 2 * roughness(-1.2)


def test_contours_keep_within_their_bounds():
    for outline in outlines(6.0):
        radii = outline.radius_at(ANGLES) / outline.radius_px
        assert 0.6 - 1e-9 <= radii.min() <= radii.max() <= 1.6 + 1e-9
        assert 0.12 * 128 <= outline.radius_px <= 0.38 * 128


def test_the_polar_map_agrees_with_the_contour_and_keeps_the_area_of_a_circle():
    outline = outlines(1.0)[0]
    distance, angle, contour = outline.polar(128)
    assert np.abs(contour - outline.radius_at(angle)).max() < 0.5
    assert (distance < outline.radius_px).sum() == pytest.approx(np.pi * outline.radius_px**2, rel=0.03)


def test_an_ill_defined_edge_fades_more_slowly_than_a_circumscribed_one():
    distance = np.linspace(0, 60, 601, dtype=np.float32)
    contour = np.full_like(distance, 30)
    sharp, soft = profile(distance, contour, 0.6), profile(distance, contour, 6.0)

    def steps_from_two_fifths_to_a_tenth(falling):
        return np.sum((falling < 0.4) & (falling > 0.1))

    assert steps_from_two_fifths_to_a_tenth(soft) > 3 * steps_from_two_fifths_to_a_tenth(sharp)
    assert sharp[0] == pytest.approx(1.0)
    assert sharp[-1] == soft[-1] == 0


def test_spicules_grow_with_their_trait_and_lie_outside_the_core():
    outline = outlines(0.0)[0]
    distance, angle, contour = outline.polar(128)
    few, many = (
        np.mean([spicules(distance, angle, outline=outline, trait=q, rng=np.random.default_rng(k)) for k in range(30)], axis=0)
        for q in (0.1, 0.9)
    )
    assert many.sum() > 5 * few.sum()
    assert many[distance < 0.5 * contour].max() == 0


@pytest.mark.parametrize("d_prime", [0.0, 2.0, 2.4])
def test_the_suspicion_reaches_the_ceiling_that_d_prime_promises(d_prime):
    labels = np.arange(40_000) % 2
    suspicion = draw_suspicion(labels, d_prime=d_prime, rng=np.random.default_rng(0))
    assert roc_auc_score(labels, suspicion) == pytest.approx(auroc_ceiling(d_prime), abs=0.01)


def test_the_ceiling_has_its_closed_form():
    # Phi(2.4 / sqrt 2) and Phi(2 / sqrt 2) from tables of the normal distribution; the design quotes .955 for the first.
    assert auroc_ceiling(2.4) == pytest.approx(0.95516, abs=1e-5)
    assert auroc_ceiling(2.0) == pytest.approx(0.92135, abs=1e-5)
    assert auroc_ceiling(0.0) == 0.5


def test_hand_made_features_learn_from_the_phantom_but_stay_below_the_ceiling(varied):
    assert 0.7 < cross_validated_auroc(varied) < auroc_ceiling(2.4)


def test_nothing_but_the_suspicion_gives_the_label_away():
    # A leak of any size would show where the classes have the same suspicion; 800 images leave chance a deviation of .02.
    drawn = phantom_synthetic(count=800, image_size=64, d_prime=0.0)
    assert cross_validated_auroc(drawn) == pytest.approx(0.5, abs=0.07)


def test_a_cohort_is_the_same_whenever_it_is_drawn_and_changes_with_every_argument():
    first = fingerprint(cohort(num_images=12), key=None)
    assert fingerprint(cohort(num_images=12), key=None) == first
    changes = ({"seed": 1}, {"name": "other"}, {"d_prime": 2.0}, {"style": PhantomStyle(beta_mean=3.0)}, {"image_size": 48})
    others = {fingerprint(cohort(num_images=12, **change), key=None) for change in changes}
    assert len(others - {first}) == len(changes)


@pytest.mark.parametrize("num_images", [1, 2, 7, 8, 9, 41])
def test_a_cohort_has_exactly_the_images_asked_for(num_images):
    assert len(cohort(num_images=num_images, image_size=32)) == num_images


@pytest.mark.parametrize("prevalence", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("seed", range(10))
def test_eight_images_always_hold_both_classes(prevalence, seed):
    drawn = cohort(num_images=8, style=PhantomStyle(prevalence=prevalence), seed=seed, image_size=32)
    assert set(drawn.labels.tolist()) == {BENIGN, MALIGNANT}


def test_a_patient_has_one_label_one_to_four_patches_and_alternating_views():
    drawn = cohort(num_images=200, image_size=32)
    for patient in np.unique(drawn.patients):
        rows = np.flatnonzero(drawn.patients == patient)
        assert len(set(drawn.labels[rows].tolist())) == 1
        assert 1 <= len(rows) <= 4
        assert drawn.views[rows].tolist() == ["CC", "MLO", "CC", "MLO"][: len(rows)]


def test_images_are_named_after_their_patient_and_view():
    drawn = cohort(num_images=8, image_size=32)
    assert drawn.images[0] == "toy-0001-cc-0"
    assert all(image.startswith(f"{patient}-") for image, patient in zip(drawn.images, drawn.patients, strict=True))


def test_the_number_of_malignant_patients_follows_the_prevalence():
    drawn = cohort(num_images=200, style=PhantomStyle(prevalence=0.3), image_size=32)
    malignant = len(np.unique(drawn.patients[drawn.labels == MALIGNANT]))
    assert malignant == round(0.3 * drawn.num_patients)


def test_views_of_one_patient_look_alike_in_what_tells_malignant_from_benign(varied):
    model = hand_made_model().fit(hand_made_features(varied.pixels), varied.labels)
    # Without a distance between the classes the label says nothing: only a shared suspicion can make views agree.
    drawn = cohort(num_images=500, d_prime=0.0)
    scores = model.decision_function(hand_made_features(drawn.pixels))
    first = np.flatnonzero(drawn.patients[:-1] == drawn.patients[1:])
    strangers = np.flatnonzero(drawn.patients[:-1] != drawn.patients[1:])
    assert np.corrcoef(scores[first], scores[first + 1])[0, 1] > 0.2
    assert abs(np.corrcoef(scores[strangers], scores[strangers + 1])[0, 1]) < 0.2


def test_a_cohort_declares_what_it_is_told_to():
    assert cohort(num_images=1, image_size=32).public
    assert not cohort(num_images=1, image_size=32, public=False).public


def test_hospitals_share_out_the_images_and_no_patient_is_in_two_sets(federation):
    assert [len(site) for site in federation.sites] == [320, 240, 160, 80]
    assert [site.name for site in federation.sites] == ["site-1", "site-2", "site-3", "site-4"]
    assert (len(federation.test), len(federation.external)) == (100, 200)
    sets = [set(c.patients.tolist()) for c in (*federation.sites, federation.test, federation.external)]
    assert len(set.union(*sets)) == sum(map(len, sets))


def test_every_set_says_which_split_it_is_and_holds_both_classes(federation):
    for drawn, split in (
        *((site, "train") for site in federation.sites),
        (federation.test, "test"),
        (federation.external, "external"),
    ):
        assert set(drawn.splits.tolist()) == {split}
        assert set(drawn.labels.tolist()) == {BENIGN, MALIGNANT}
        assert drawn.public


def test_hospitals_differ_in_brightness_texture_and_prevalence(federation):
    cohorts = (*federation.sites, federation.external)
    brightness = [float(c.pixels.mean()) for c in cohorts]
    texture = [float(np.abs(np.diff(c.pixels, axis=2)).mean()) for c in cohorts]
    prevalence = [float(c.labels.mean()) for c in cohorts]
    assert min(np.diff(sorted(brightness))) > 0.01
    assert max(texture) > 1.5 * min(texture)
    assert max(prevalence) > min(prevalence) + 0.1
    assert brightness[-1] == min(brightness)


def test_the_pooled_test_set_has_the_proportions_of_the_hospitals(federation):
    owners = [patient.rsplit("-", 1)[0] for patient in federation.test.patients]
    assert [owners.count(f"site-{k}-test") for k in (1, 2, 3, 4)] == [40, 30, 20, 10]


@pytest.mark.parametrize("num_sites", [1, 2, 3, 7])
def test_any_number_of_hospitals_shares_out_every_image(num_sites):
    drawn = phantom_hospitals(images_train=150, images_test=60, images_external=8, image_size=32, num_sites=num_sites)
    assert len(drawn.sites) == num_sites
    assert sum(map(len, drawn.sites)) == 150
    assert len(drawn.test) == 60


def test_later_hospitals_vary_the_style_of_earlier_ones_a_little():
    styles = [site_style(number) for number in range(40)]
    assert len(set(styles)) == 40
    for number, style in enumerate(styles):
        assert abs(style.beta_mean - styles[number % 4].beta_mean) <= 0.15
        assert abs(style.gain / styles[number % 4].gain - 1) <= 0.1 + 1e-9


def test_the_synthetic_set_is_public_balanced_and_has_one_image_a_patient():
    drawn = phantom_synthetic(count=31, image_size=32)
    assert (drawn.name, drawn.public, drawn.num_patients) == ("phantom-synthetic", True, 31)
    assert drawn.labels.sum() == 15
    assert set(drawn.splits.tolist()) == {"train"}


def test_the_styles_of_the_synthetic_set_cover_every_hospital():
    styles = [any_style(np.random.default_rng(seed)) for seed in SEEDS]
    hospitals = [site_style(number) for number in range(4)] + [EXTERNAL_STYLE]
    for field in ("beta_mean", "blur_px", "gain", "gamma", "noise"):
        values = [getattr(style, field) for style in styles]
        wanted = [getattr(style, field) for style in hospitals]
        margin = 0.05 * (max(values) - min(values))
        assert min(values) - margin <= min(wanted)
        assert max(wanted) <= max(values) + margin


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("beta_mean", -1.0), ("beta_mean", float("nan")), ("beta_sd", -0.1), ("blur_px", -1.0), ("gain", 0.0),
        ("gamma", 0.0), ("prevalence", 0.0), ("prevalence", 1.0), ("noise", float("inf")),
    ],
)  # fmt: skip
def test_a_bad_style_names_the_field_its_value_and_its_rule(field, value):
    with pytest.raises(InvalidSetting, match=rf"{field}={value} must be in .*; check the phantom style"):
        PhantomStyle(**{field: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_images": 0}, r"num_images=0 must be .*; check data\.images_train"),
        ({"image_size": 8}, r"image_size=8 must be .*; check data\.image_size"),
        ({"d_prime": -1.0}, r"d_prime=-1\.0 must be .*; check data\.d_prime"),
        ({"d_prime": float("nan")}, r"d_prime=nan must be"),
        ({"seed": -1}, r"seed=-1 must be"),
        ({"split": "holdout"}, r"split='holdout' must be one of"),
    ],
)
def test_a_bad_cohort_setting_is_named_with_its_remedy(change, message):
    with pytest.raises(InvalidSetting, match=message):
        cohort(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_sites": 0}, r"num_sites=0 must be .*; check federation\.num_sites"),
        (
            {"images_train": 74},
            r"images_train=74 over num_sites=4 must .* 8 .* 7; check data\.images_train and federation\.num_sites",
        ),
        ({"num_sites": 60}, r"images_train=800 over num_sites=60 must .*; check data\.images_train and federation\.num_sites"),
        ({"images_test": 12}, r"images_test=12 over num_sites=4 must"),
        ({"images_external": 7}, r"images_external=7 must be at least 8; check data\.images_external"),
    ],
)
def test_too_few_images_for_the_hospitals_are_refused_with_the_remedy(change, message):
    with pytest.raises(InvalidSetting, match=message):
        phantom_hospitals(**{"image_size": 32, **change})


def test_a_synthetic_set_of_one_image_is_refused():
    with pytest.raises(InvalidSetting, match=r"count=1 must be at least 2; check synthesis\.count"):
        phantom_synthetic(count=1)


@pytest.mark.parametrize(("label", "suspicion", "name"), [(2, 0.0, "label=2"), (1, float("nan"), "suspicion=nan")])
def test_a_mass_refuses_unknown_labels_and_broken_suspicion(label, suspicion, name):
    with pytest.raises(InvalidSetting, match=f"{name} must be"):
        draw_mass(label, suspicion=suspicion, style=PhantomStyle(), rng=np.random.default_rng(0))
