"""Distribution scores of small volumes with known truth: equal sets, known damage, copies, and real
CT where present."""

import numpy as np
import pytest
import torch

from tubesynth.metrics import distribution_set, set_scores
from tubesynth.metrics.damage import ValidityCheck, damage, erase_vessels
from tubesynth.metrics.distribution import (
    DistributionSet,
    distribution_floor,
    distribution_notes,
    distribution_scores,
    diversity_statistics,
    sample_diversity,
)
from tubesynth.metrics.distribution_set import slice_features, spread_indices
from tubesynth.metrics.features import radiomic_features
from tubesynth.metrics.frechet import Moments, frechet, merge
from tubesynth.metrics.manifold import bootstrap_mean, covered, radii
from tubesynth.metrics.memorisation import memorisation, threshold
from tubesynth.runtime.errors import InputError
from tubesynth.volume.cases import find_cases
from tubesynth.volume.files import read_labels, read_volume

SPACING = (3.0, 3.0, 3.0)
SHAPE = (40, 36, 32)


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


def gathered(volumes, names=None, **options):
    result = DistributionSet(**options)
    for i, volume in enumerate(volumes):
        result.add(names[i] if names else f"case{i}", volume, SPACING)
    return result


@pytest.fixture(scope="module")
def real(patients):
    """Of one plane: what is resampled over three is tested once."""
    return gathered([hu for hu, _ in patients[:8]], planes=("axial",))


def test_equal_sets_score_0_and_1(patients):
    forwards = gathered([hu for hu, _ in patients[:8]])
    names = [f"case{i}" for i in range(8)]
    backwards = gathered([hu for hu, _ in patients[7::-1]], names[::-1])
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
    order, planes = [2, 0, 3, 1], ("axial",)
    shuffled = gathered([others[i] for i in order], [names[i] for i in order], planes=planes)
    ordered = gathered(others, names, planes=planes)
    assert distribution_scores(real, ordered) == distribution_scores(real, shuffled)


def test_sets_of_single_cases_joined_are_the_set_of_all(patients, monkeypatch):
    for module in (distribution_set, set_scores):
        monkeypatch.setattr(module, "SAMPLED_CASES", 3)
        monkeypatch.setattr(module, "MOMENTS_MIB", 0.5)  # so that cases share moments
    volumes, names = [hu for hu, _ in patients[:12]], [f"c{i}" for i in range(12)]
    whole = gathered(volumes, names, planes=("axial",))
    single = [gathered([v], [n], planes=("axial",)) for v, n in zip(volumes, names, strict=True)]
    joined = set_scores.combined(single)
    assert set(joined.slices["axial"]) == set(whole.slices["axial"])
    assert len(whole.slices["axial"]) == 3 and joined.groups == whole.groups == 10
    assert distribution_scores(joined, joined) == distribution_scores(whole, whole)


@pytest.mark.parametrize("window", [(-1000, 1000), (-300, 500)])
def test_radiomic_features_keep_their_hu_whatever_window_images_are_clipped_to(patients, window):
    clipped = np.clip(patients[0][0], -300, 500)
    default = slice_features(clipped, "axial", radiomic_features, (-1000.0, 1000.0), range(4))
    given = slice_features(clipped, "axial", radiomic_features, window, range(4))
    assert np.array_equal(given, default)


def test_features_of_a_network_see_the_window_as_0_to_1():
    def ends(slices):
        return torch.stack([slices.amin((1, 2, 3)), slices.amax((1, 2, 3))], 1)

    hu = np.linspace(-900, 900, 512).reshape(8, 8, 8)
    assert slice_features(hu, "axial", ends, (-300, 500), range(8)).min() == 0
    assert slice_features(hu, "axial", ends, (-300, 500), range(8)).max() == 1
    wide = slice_features(hu, "axial", ends, (-1000, 1000), range(8))
    assert (wide.min(), wide.max()) == pytest.approx((0.05, 0.95))


def test_training_cts_of_another_size_are_refused_by_name(patients):
    synthetic = gathered([hu for hu, _ in patients[:2]], planes=("axial",))
    thin = gathered([hu[:, :, :10] for hu, _ in patients[:2]], planes=("axial",))
    with pytest.raises(InputError, match="different sizes"):
        memorisation(synthetic, None, thin)


def test_shuffled_voxels_score_badly(real, patients):
    rng = np.random.default_rng(0)
    shuffled = gathered(
        [rng.permuted(hu.ravel()).reshape(SHAPE) for hu, _ in patients[:8]], planes=real.planes
    )
    scores = distribution_scores(real, shuffled)
    assert scores["frechet"]["ci95"][0] > 10 * distribution_floor(real)["frechet"]["ci95"][1]
    assert scores["precision"]["mean"] == scores["recall"]["mean"] == 0


def test_fresh_patients_are_no_further_than_the_floor_and_damaged_ones_are(real, patients):
    names = [f"s{i}" for i in range(8)]
    fresh = distribution_scores(
        real, gathered([hu for hu, _ in patients[8:16]], names, planes=real.planes)
    )
    low, high = fresh["frechet_excess"]["ci95"]
    assert low < 0 < high
    blurred = [damage(hu.astype(np.float32), "blur", 1.0) for hu, _ in patients[8:16]]
    damaged = distribution_scores(real, gathered(blurred, names, planes=real.planes))
    assert damaged["frechet_excess"]["ci95"][0] > 0
    assert damaged["precision"]["mean"] < 0.5 * fresh["precision"]["mean"]
    assert distribution_floor(real)["precision"]["mean"] > 0.6


def test_the_distance_is_that_of_all_slices_at_once(patients):
    """A feature function of two numbers, whose matrix can be held."""

    def features(slices):
        return torch.stack([slices.mean((1, 2, 3)), slices.std((1, 2, 3))], 1)

    sets, whole = [], []
    for volumes in ([hu for hu, _ in patients[:3]], [hu for hu, _ in patients[3:6]]):
        sets.append(gathered(volumes, feature_fn=features, planes=("coronal",)))
        unit = [np.clip((hu + 1000.0) / 2000, 0, 1) for hu in volumes]
        rows = [(u[:, j].mean(), u[:, j].std(ddof=1)) for u in unit for j in range(SHAPE[1])]
        whole.append(np.array(rows))
    expected = frechet(*(Moments.of(x) for x in whole))
    scores = distribution_scores(*sets)
    assert scores["frechet_coronal"]["mean"] == pytest.approx(expected, rel=1e-4)
    assert "frechet_excess" not in scores and "frechet_axial" not in scores


def test_many_cases_share_moments_without_changing_the_distance(monkeypatch, real, patients):
    monkeypatch.setattr(distribution_set, "MOMENTS_MIB", 0)
    monkeypatch.setattr(distribution_set, "MIN_GROUPS", 4)
    grouped = gathered([hu for hu, _ in patients[:8]], planes=real.planes)
    assert len(grouped.moments["axial"]) <= 4
    whole, parts = (
        merge([s.moments["axial"][k] for k in s.moments["axial"]]) for s in (real, grouped)
    )
    assert frechet(whole, parts) == pytest.approx(0, abs=1e-6)
    assert distribution_scores(real, grouped)["frechet"]["mean"] == pytest.approx(0, abs=1e-6)
    assert "groups of cases" in distribution_notes(grouped)[-1]


def test_slices_are_cut_across_their_axis(patients):
    hu = patients[0][0]

    def shape_and_corner(slices):
        return torch.stack([torch.tensor([*s.shape[1:], s[0, 3, 5]]) for s in slices])

    for plane, take in (
        ("axial", lambda i: hu[:, :, i]),
        ("coronal", lambda i: hu[:, i]),
        ("sagittal", lambda i: hu[i]),
    ):
        rows = slice_features(hu, plane, shape_and_corner, (-1000, 1000), [2, 9])
        for row, i in zip(rows, (2, 9), strict=True):
            assert tuple(row[:2]) == take(i).shape
            assert row[2] == pytest.approx(np.clip(take(i)[3, 5] / 2000 + 0.5, 0, 1), abs=1e-6)
    assert list(spread_indices(8, 4)) == [1, 3, 5, 7] and list(spread_indices(3, 4)) == [0, 1, 2]


def test_other_spacings_thin_planes_and_nan_are_refused(patients):
    hu = patients[0][0]
    one = gathered([hu])
    with pytest.raises(InputError, match="case b: spacing 1 x 1 x 1 mm, not 3 x 3 x 3 mm"):
        one.add("b", hu, (1, 1, 1))
    with pytest.raises(InputError, match="coronal slices of 40 x 1 pixels"):
        DistributionSet().add("flat", hu[:, :, :1], SPACING)
    DistributionSet(planes=("axial",)).add("flat", hu[:, :, :1], SPACING)
    with pytest.raises(InputError, match="case c: not a number"):
        one.add("c", np.full(SHAPE, np.nan), SPACING)


def test_known_damage_is_ranked_and_an_extractor_that_cannot_is_reported(patients):
    check, blind = ValidityCheck(slice_step=2), ValidityCheck(mean_only, slice_step=8, max_cases=2)
    for i, (hu, labels) in enumerate(patients[:3]):
        check.add(f"{i}", hu, labels)
        blind.add(f"{i}", hu, labels)
    result = check.result()
    assert result["ok"] and not result["messages"] and result["cases"] == 3
    assert list(result["damage"]) == ["blur", "noise", "vessels_erased"]
    for rows in result["damage"].values():
        distances = [row["frechet"] for row in rows]
        assert sorted(distances) == distances and distances[0] > 0
    failed = blind.result()
    assert failed["ok"] is False and failed["cases"] == 2
    assert any(
        message.startswith("noise: the features do not rank it") for message in failed["messages"]
    )


def mean_only(slices):
    """An extractor that sees no texture: a constant, by intent."""
    return torch.ones(len(slices), 3) * 0.25


def test_without_vessels_their_damage_is_said_to_be_untested(patients):
    check = ValidityCheck(slice_step=8)
    check.add("a", patients[0][0])
    result = check.result()
    assert result["ok"] and "vessels_erased" not in result["damage"]
    assert result["messages"] == ["vessels_erased: not tested, no case has it"]
    assert ValidityCheck().result()["ok"] is None


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
    (*known, _), (unseen, fresh) = images
    training = gathered(known, sampled_only=True)
    validation = gathered([unseen], ["unseen"])
    noise = np.random.default_rng(0).normal(0, 25, known[2].shape)
    synthetic = gathered([fresh, known[2] * 1.05 + noise], ["fresh", "copy"])
    result = memorisation(synthetic, validation, training)
    by_case = {row["case"]: row for row in result.rows}
    assert by_case["fresh"]["copied"] == 0 and by_case["copy"]["copied"] == 1
    assert by_case["copy"]["nearest_training_image_case"] == "case2"
    limit = result.thresholds["nearest_training_image"]
    assert 2 * by_case["copy"]["nearest_training_image"] < limit
    assert limit < 0.5 * by_case["fresh"]["nearest_training_image"]
    scores = distribution_scores(validation, synthetic, training)
    assert scores["copied"]["mean"] == 0.5 and scores["nearest_training_image"]["n"] == 2


def test_a_mirrored_copy_is_near_in_features(patients):
    training = gathered([hu for hu, _ in patients[:6]])
    validation = gathered([hu for hu, _ in patients[6:12]], [f"v{i}" for i in range(6)])
    synthetic = gathered([patients[3][0][::-1], patients[13][0]], ["mirrored", "fresh"])
    rows = {row["case"]: row for row in memorisation(synthetic, validation, training).rows}
    assert rows["mirrored"]["nearest_training_features_case"] == "case3"
    assert rows["mirrored"]["copied"] == 1 and rows["fresh"]["copied"] == 0


def test_a_validation_case_from_the_training_set_sets_no_threshold(patients):
    volumes = [hu for hu, _ in patients[:6]]
    training, leaking = gathered(volumes[:3]), gathered(volumes[2:6], ["v0", "v1", "v2", "v3"])
    result = memorisation(leaking, leaking, training)
    assert result.leaked == ["v0"]
    assert result.thresholds["nearest_training_image"] > 0.001
    assert [row["copied"] for row in result.rows] == [1.0, 0.0, 0.0, 0.0]
    assert memorisation(leaking, None, training).rows[0]["copied"] is None


def test_the_threshold_flags_one_fresh_case_in_a_thousand():
    rng = np.random.default_rng(0)
    flagged = []
    for _ in range(2000):
        distances = np.exp(rng.normal(0, 0.3, 9))
        flagged.append(distances[0] < threshold(list(distances[1:])))
    assert np.mean(flagged) < 0.004
    assert threshold([0.3, 0.6]) == pytest.approx(0.1) and threshold([]) is None


def test_balls_reach_the_third_slice_of_another_case():
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
    assert diversity_statistics({"a": 0.2, "b": 0.4, "c": None})["mean"] == pytest.approx(0.3)


def test_damage_of_real_ct_is_ranked(real_ct):
    labels = find_cases(real_ct / "labels")
    check = ValidityCheck(vessel_class=3, slice_step=2)  # the aorta stands in for the coronaries
    case = "heart"
    volume = read_volume(find_cases(real_ct / "images")[case])
    check.add(case, volume.array, read_labels(labels[case]).array)
    result = check.result()
    assert result["ok"], result
    assert [row["frechet"] for row in result["damage"]["blur"]][-1] > 10
