"""Distribution scores of small volumes with known truth: equal sets, known damage, copies, and real
CT where present."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tubesynth.metrics import volume_features as volume_features_module
from tubesynth.metrics.bootstrap import bootstrap_mean
from tubesynth.metrics.damage import damage, erase_vessels, validity_check
from tubesynth.metrics.distribution import (
    distribution_notes,
    distribution_scores,
    diversity_scores,
    negative_control,
    sample_diversity,
)
from tubesynth.metrics.features import RADIOMIC, FeatureFunction
from tubesynth.metrics.frechet import frechet_distance, gaussian
from tubesynth.metrics.memorization import (
    memorization_scores,
    nearest_training,
    threshold,
    thresholds,
)
from tubesynth.metrics.precision_recall import covered, radii
from tubesynth.metrics.set_scores import joined
from tubesynth.metrics.volume_features import (
    planes_of,
    sampled_slices,
    slice_features,
    spread_indices,
    volume_features,
)
from tubesynth.runtime.errors import InputError
from tubesynth.volume.cases import find_cases
from tubesynth.volume.files import read_labels, read_volume

EXPECTED = Path(__file__).parent / "fixtures" / "distribution_scores.json"
SPACING = (3.0, 3.0, 3.0)
SHAPE = (40, 36, 32)
AXIAL = ["axial"]


def patient(seed, noise=15.0):
    """(HU, labels): a chest of random size with a heart of random contrast and a vessel in fat."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
    cx, cy, cz, size = rng.uniform(-0.15, 0.15, 4)
    hu = np.full(SHAPE, -1000.0)
    hu[x**2 + y**2 < 0.9 + size] = -850
    heart = ((x - cx) / 0.6) ** 2 + ((y - cy) / 0.5) ** 2 + ((z - cz) / 0.7) ** 2
    hu[heart < 1.3] = -90
    hu[heart < 1] = rng.uniform(40, 120)
    hu[heart < 0.3 + size] = rng.uniform(300, 450)
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[(heart > 1) & (heart < 1.3) & (abs(y - cy) < 0.12) & (x > cx)] = 8
    hu[labels == 8] = 350
    return np.rint(hu + rng.normal(0, noise, SHAPE)).astype(np.int16), labels


@pytest.fixture(scope="module")
def patients():
    return [patient(seed) for seed in range(20)]


def features_of(volumes, names=None, **options):
    names = names or [f"case{i}" for i in range(len(volumes))]
    pairs = zip(names, volumes, strict=True)
    return [volume_features(name, volume, SPACING, **options) for name, volume in pairs]


def assert_equal_numbers(value, expected, place=""):
    """Nested dicts and lists with equal keys and strings, and numbers equal to 1e-3.

    The stored scores hold the arrangement of the code, not the CPU: another CPU rounds features
    across the edge of a gray level differently, which changes scores by about 1e-4.
    """
    if isinstance(expected, dict):
        assert list(value) == list(expected), place
        for key in expected:
            assert_equal_numbers(value[key], expected[key], f"{place} {key}")
    elif isinstance(expected, list):
        assert len(value) == len(expected), place
        for i, pair in enumerate(zip(value, expected, strict=True)):
            assert_equal_numbers(*pair, f"{place} {i}")
    else:
        exact = expected is None or isinstance(expected, str | bool)
        assert value == (expected if exact else pytest.approx(expected, rel=1e-3, abs=1e-6)), place


def test_all_scores_of_a_fixed_set_are_those_of_version_0_1_0(patients):
    """Eight samples of four label maps, one without a real CT, and one copy of a training case."""
    volumes = [hu for hu, _ in patients]
    real = features_of(volumes[:6])
    synthetic = [
        volume_features(f"case{i}", patient(20 + 2 * i + s, 25.0)[0], SPACING, s)
        for i in range(2, 6)
        for s in range(2)
    ]
    synthetic += features_of([volumes[12], volumes[7]], ["other", "copy"])
    names = [f"train{i}" for i in range(6, 12)]
    training = features_of(volumes[6:12], names, sampled_only=True)
    diversity = {f"case{i}": sample_diversity(volumes[i : i + 2]) for i in range(3)}
    result = {
        "scores": distribution_scores(real, synthetic, training),
        "control": negative_control(real),
        "validity": validity_check((f"case{i}", *patients[i]) for i in range(2)),
        "diversity": diversity_scores(diversity)["diversity_ms_ssim"],
        "notes": distribution_notes(real, synthetic),
    }
    assert_equal_numbers(result, json.loads(EXPECTED.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def real(patients):
    """Features of eight patients in one plane, which are faster than in three."""
    return features_of([hu for hu, _ in patients[:8]], planes=AXIAL)


def test_equal_sets_score_0_and_1(patients):
    forwards = features_of([hu for hu, _ in patients[:8]])
    names = [f"case{i}" for i in range(8)]
    backwards = features_of([hu for hu, _ in patients[7::-1]], names[::-1])
    scores = distribution_scores(forwards, backwards)
    for metric, stat in scores.items():
        perfect = 1.0 if metric in ("precision", "recall") else 0.0
        assert stat["mean"] == pytest.approx(perfect, abs=1e-9), metric
        assert stat["ci95"] == pytest.approx([perfect, perfect], abs=1e-9), metric
        assert list(stat) == ["mean", "std", "ci95", "n"] and stat["n"] == 8
    planes = ("axial", "coronal", "sagittal")
    frechets = [*(f"frechet_{plane}" for plane in planes), "frechet", "frechet_excess"]
    assert list(scores) == [*frechets, "precision", "recall"]


def test_the_order_of_cases_changes_nothing(real, patients):
    others = [hu for hu, _ in patients[8:12]]
    names = [f"s{i}" for i in range(4)]
    order = [2, 0, 3, 1]
    shuffled = features_of([others[i] for i in order], [names[i] for i in order], planes=AXIAL)
    ordered = features_of(others, names, planes=AXIAL)
    assert distribution_scores(real, ordered) == distribution_scores(real, shuffled)


def test_slices_of_few_cases_are_sampled_whatever_their_order(patients, monkeypatch):
    monkeypatch.setattr(volume_features_module, "SAMPLED_CASES", 3)
    names = [f"c{i}" for i in range(6)]
    volumes = features_of([hu for hu, _ in patients[:6]], names, planes=AXIAL)
    sampled, reverse = sampled_slices(volumes)["axial"], sampled_slices(volumes[::-1])["axial"]
    assert list(sampled) == list(reverse) and len(sampled) == 3
    assert all(rows.shape == (16, 80) for rows in sampled.values())


@pytest.mark.parametrize("window", [(-1000, 1000), (-300, 500)])
def test_radiomic_features_keep_their_hu_whatever_window_images_are_clipped_to(patients, window):
    clipped = np.clip(patients[0][0], -300, 500)
    default = slice_features(clipped, "axial", RADIOMIC, (-1000.0, 1000.0), range(4))
    features = slice_features(clipped, "axial", RADIOMIC, window, range(4))
    assert np.array_equal(features, default)


def test_features_of_a_network_see_the_window_as_0_to_1():
    def ends_of(slices):
        return torch.stack([slices.amin((1, 2, 3)), slices.amax((1, 2, 3))], 1)

    ends = FeatureFunction(ends_of)
    hu = np.linspace(-900, 900, 512).reshape(8, 8, 8)
    assert slice_features(hu, "axial", ends, (-300, 500), range(8)).min() == 0
    assert slice_features(hu, "axial", ends, (-300, 500), range(8)).max() == 1
    wide = slice_features(hu, "axial", ends, (-1000, 1000), range(8))
    assert (wide.min(), wide.max()) == pytest.approx((0.05, 0.95))


def test_training_cts_of_another_size_are_refused_by_name(patients):
    synthetic = features_of([hu for hu, _ in patients[:2]], planes=AXIAL)
    thin = features_of([hu[:, :, :10] for hu, _ in patients[:2]], planes=AXIAL)
    with pytest.raises(InputError, match="different sizes"):
        nearest_training(synthetic, thin)


def test_shuffled_voxels_score_badly(real, patients):
    rng = np.random.default_rng(0)
    shuffled = features_of(
        [rng.permuted(hu.ravel()).reshape(SHAPE) for hu, _ in patients[:8]], planes=AXIAL
    )
    scores = distribution_scores(real, shuffled)
    assert scores["frechet"]["ci95"][0] > 10 * negative_control(real)["frechet"]["ci95"][1]
    assert scores["precision"]["mean"] == scores["recall"]["mean"] == 0


def test_fresh_patients_are_as_near_as_real_ones_and_damaged_ones_are_not(real, patients):
    names = [f"s{i}" for i in range(8)]
    volumes = [hu for hu, _ in patients[8:16]]
    fresh = distribution_scores(real, features_of(volumes, names, planes=AXIAL))
    low, high = fresh["frechet_excess"]["ci95"]
    assert low < 0 < high
    blurred = [damage(hu.astype(np.float32), "blur", 1.0, np.zeros(SHAPE, bool)) for hu in volumes]
    damaged = distribution_scores(real, features_of(blurred, names, planes=AXIAL))
    assert damaged["frechet_excess"]["ci95"][0] > 0
    assert damaged["precision"]["mean"] < 0.5 * fresh["precision"]["mean"]
    assert negative_control(real)["precision"]["mean"] > 0.6


def test_the_distance_is_that_of_all_slices_at_once(patients):
    """A feature function of two numbers, mean and standard deviation of a slice."""

    def moments_of(slices):
        return torch.stack([slices.mean((1, 2, 3)), slices.std((1, 2, 3))], 1)

    sets, whole = [], []
    for volumes in ([hu for hu, _ in patients[:3]], [hu for hu, _ in patients[3:6]]):
        features = FeatureFunction(moments_of)
        sets.append(features_of(volumes, feature_fn=features, planes=["coronal"]))
        unit = [np.clip((hu + 1000.0) / 2000, 0, 1) for hu in volumes]
        rows = [(u[:, j].mean(), u[:, j].std(ddof=1)) for u in unit for j in range(SHAPE[1])]
        whole.append(gaussian([np.array(rows)]))
    scores = distribution_scores(*sets, standardize=False)
    assert scores["frechet_coronal"]["mean"] == pytest.approx(frechet_distance(*whole), rel=1e-4)
    assert "frechet_excess" not in scores and "frechet_axial" not in scores


def test_slices_are_cut_across_their_axis(patients):
    hu = patients[0][0]

    def shape_and_corner(slices):
        return torch.stack([torch.tensor([*s.shape[1:], s[0, 3, 5]]) for s in slices])

    features = FeatureFunction(shape_and_corner)
    for plane, take in (
        ("axial", lambda i: hu[:, :, i]),
        ("coronal", lambda i: hu[:, i]),
        ("sagittal", lambda i: hu[i]),
    ):
        rows = slice_features(hu, plane, features, (-1000, 1000), [2, 9])
        for row, i in zip(rows, (2, 9), strict=True):
            assert tuple(row[:2]) == take(i).shape
            assert row[2] == pytest.approx(np.clip(take(i)[3, 5] / 2000 + 0.5, 0, 1), abs=1e-6)
    assert list(spread_indices(8, 4)) == [1, 3, 5, 7] and list(spread_indices(3, 4)) == [0, 1, 2]


def test_other_spacings_and_nan_are_refused_and_thin_planes_are_left_out(patients):
    hu = patients[0][0]
    near, far = (volume_features(f"case{s}", hu, (s, s, s), planes=AXIAL) for s in (3, 1))
    message = "case case1: spacing 1 x 1 x 1 mm, but 3 x 3 x 3 mm in case case3"
    with pytest.raises(InputError, match=message):
        distribution_scores([near], [far])
    sets, notes = joined([{"real": [near]}, {"real": [near], "synthesis": [near]}])
    assert {source: len(volumes) for source, volumes in sets.items()} == {"real": 2, "synthesis": 1}
    assert not notes
    sets, notes = joined([{"real": [near]}, {"real": [far], "synthesis": [near]}])
    assert list(sets) == ["synthesis"] and message in notes[0] and "of the real" in notes[0]
    assert list(volume_features("flat", hu[:, :, :1], SPACING).slices) == AXIAL
    assert planes_of((40, 7, 32)) == ["coronal"]
    with pytest.raises(InputError, match="case c: nan or infinity"):
        volume_features("c", np.full(SHAPE, np.nan), SPACING)


def test_known_damage_is_ranked_and_a_feature_function_that_cannot_is_reported(patients):
    result = validity_check(((f"{i}", *patients[i]) for i in range(3)), slice_step=2)
    assert result["ok"] and not result["messages"] and result["cases"] == 3
    assert list(result["damage"]) == ["blur", "noise", "vessels_erased"]
    for rows in result["damage"].values():
        distances = [row["frechet"] for row in rows]
        assert sorted(distances) == distances and distances[0] > 0
    constant = FeatureFunction(lambda slices: torch.full((len(slices), 3), 0.25))
    failed = validity_check([("0", *patients[0]), ("1", *patients[1])], constant, slice_step=8)
    assert failed["ok"] is False and failed["cases"] == 2
    assert any(
        message.startswith("noise: the features do not rank it") for message in failed["messages"]
    )


def test_erased_vessels_are_not_tested_without_vessels(patients):
    result = validity_check([("a", patients[0][0], None)], slice_step=8)
    assert result["ok"] and "vessels_erased" not in result["damage"]
    assert result["messages"] == ["vessels_erased: not tested, no case has it"]
    assert validity_check([])["ok"] is None


def test_erased_vessels_are_fat_and_the_rest_stays():
    hu, labels = patient(0, noise=0)
    vessels = labels == 8
    gone, half = (erase_vessels(hu, vessels, share) for share in (1.0, 0.5))
    assert (gone[vessels] == -90).all()
    z = np.argwhere(vessels)[:, 2]
    assert half[vessels][z == z.min()].max() == -90 and half[vessels][z == z.max()].min() == 350
    changed = gone != hu
    assert changed.sum() < 3 * vessels.sum() and (hu[vessels] == 350).all()


def test_a_copied_phantom_is_flagged_and_a_fresh_one_is_not(workplace):
    images = [
        [read_volume(path).array for _, path in sorted(find_cases(folder / "images").items())]
        for folder in (workplace / "data" / "training", workplace / "data" / "validation")
    ]
    (*training_cts, _), (unseen, fresh) = images
    training = features_of(training_cts, sampled_only=True)
    validation = features_of([unseen], ["unseen"])
    noise = np.random.default_rng(0).normal(0, 25, training_cts[2].shape)
    synthetic = features_of([fresh, training_cts[2] * 1.05 + noise], ["fresh", "copy"])
    limit, _ = thresholds(validation, training)
    (fresh_image, copy_image), nearest = (x[:, 0] for x in nearest_training(synthetic, training))
    assert 2 * copy_image < limit < 0.5 * fresh_image and training[nearest[1]].case == "case2"
    scores = distribution_scores(validation, synthetic, training)
    assert scores["copied"]["mean"] == 0.5 and scores["nearest_training_image"]["n"] == 2


def test_a_mirrored_copy_is_near_in_features(patients):
    training = features_of([hu for hu, _ in patients[:6]])
    validation = features_of([hu for hu, _ in patients[6:12]], [f"v{i}" for i in range(6)])
    mirrored, fresh = features_of([patients[3][0][::-1], patients[13][0]], ["mirrored", "fresh"])
    assert training[nearest_training([mirrored], training)[1][0, 1]].case == "case3"
    assert memorization_scores([mirrored], validation, training)["copied"]["mean"] == 1
    assert memorization_scores([fresh], validation, training)["copied"]["mean"] == 0


def test_a_validation_case_from_the_training_set_sets_no_threshold(patients):
    volumes = [hu for hu, _ in patients[:6]]
    training, leaking = (
        features_of(volumes[:3]),
        features_of(volumes[2:6], ["v0", "v1", "v2", "v3"]),
    )
    distances, _ = nearest_training(leaking, training)
    limits = thresholds(leaking, training)
    assert limits[0] > 0.001
    assert (distances < limits).any(1).tolist() == [True, False, False, False]
    assert thresholds(leaking[:1], training) is None and thresholds([], training) is None
    assert "copied" not in memorization_scores(leaking, [], training)


def test_the_threshold_flags_one_fresh_case_in_a_thousand():
    rng = np.random.default_rng(0)
    flagged = []
    for _ in range(2000):
        distances = np.exp(rng.normal(0, 0.3, 9))
        flagged.append(distances[0] < threshold(list(distances[1:])))
    assert np.mean(flagged) < 0.004
    assert threshold([0.3, 0.6]) == pytest.approx(0.1)


def test_the_radius_of_a_ball_reaches_the_third_slice_of_another_case():
    line = torch.tensor([0.0, 0.1, 0.5, 1.0, 2.0, 4.0, 8.0])[:, None]
    owner = np.array(["a", "a", "a", "b", "b", "b", "b"])
    reach = radii(line, owner)
    assert reach.tolist() == pytest.approx([4.0, 3.9, 3.5, 1.0, 2.0, 4.0, 8.0])
    inside = covered(torch.tensor([[-3.9], [-4.1], [16.1]]), line[:1], reach[:1])
    assert inside.tolist() == [True, False, False]


def test_bootstrap_of_a_mean_has_the_width_of_its_standard_error():
    values = np.random.default_rng(0).normal(5, 2, 400)
    stat = bootstrap_mean(values)
    assert stat["mean"] == pytest.approx(values.mean()) and stat["n"] == 400
    low, high = stat["ci95"]
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.15)
    assert bootstrap_mean([0.4, None])["ci95"] == [None, None]


def test_samples_that_ignore_their_noise_have_a_diversity_of_1(patients):
    hu, other = patients[0][0], patients[1][0]
    assert sample_diversity([hu, hu, hu]) == pytest.approx(1, abs=1e-5)
    assert sample_diversity([hu, other]) < 0.95
    assert sample_diversity([hu]) is None
    scores = diversity_scores({"a": 0.2, "b": 0.4, "c": None})
    assert scores["diversity_ms_ssim"]["mean"] == pytest.approx(0.3)
    assert diversity_scores({"c": None}) == {}


def test_damage_of_real_ct_is_ranked(real_ct):
    labels = find_cases(real_ct / "labels")
    volume = read_volume(find_cases(real_ct / "images")["heart"])
    cases = [("heart", volume.array, read_labels(labels["heart"]).array)]
    result = validity_check(cases, vessel_class=3, slice_step=2)  # the aorta for the coronaries
    assert result["ok"], result
    assert [row["frechet"] for row in result["damage"]["blur"]][-1] > 10
