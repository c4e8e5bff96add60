"""Rules on one case: readable files, geometry, HU, label values, sizes and vessels.

Each rule takes the measured facts of the case and what the config expects of it (facts.py).
"""

from tubesynth.doctor.facts import AIR_HU, Expected, Facts
from tubesynth.doctor.findings import Results, error, info, warning
from tubesynth.volume.files import LABEL_REMEDY, outside_classes
from tubesynth.volume.hounsfield import low_contrast

SPACING_MM = 0.1, 10.0
MAX_PADDING = 0.5  # share of the model's field of view
MAX_LOST = 0.02  # share of the labeled voxels
MAX_VESSEL_PIECES = 4  # a left and a right tree, and two breaks
MAX_PIECES_RATIO = 4  # pieces on the model's grid for one in the file
SPECK_ML = 0.01


def readable(facts: Facts, expected: Expected) -> Results:
    """A file cannot be read: replace it, or remove the case."""
    for problem in (facts.image_error, facts.label_error):
        if problem:
            yield error(problem)


def read_warnings(facts: Facts, expected: Expected) -> Results:
    """Axes that point nowhere, in two ways, or obliquely: set the header right, or resample."""
    for text in facts.read_warnings:
        yield warning(text)


def same_grid(facts: Facts, expected: Expected) -> Results:
    """Image and label map have different grids: resample the label map onto the image."""
    if facts.grid_error:
        yield error(facts.grid_error)


def spacing(facts: Facts, expected: Expected) -> Results:
    """Voxels of an impossible size, for example micrometers as mm: correct the header."""
    low, high = SPACING_MM
    axes = 3 if facts.shape[2] > 1 else 2
    if not all(low <= s <= high * 1.001 for s in facts.spacing[:axes]):
        sizes = " x ".join(f"{s:.4g}" for s in facts.spacing)
        yield error(
            f"{facts.image}: voxels of {sizes} mm are outside {low:g} to {high:g} mm; correct the"
            " spacing in the header"
        )


def anatomy(facts: Facts, expected: Expected) -> Results:
    """The chambers lie mirrored or upside down: correct the header or the class values."""
    names = ("heart_ventricle_left", "heart_atrium_right", "pulmonary_artery")
    classes = [expected.labels.class_of(name) for name in names]
    centers = [facts.centers_mm[value] for value in classes if value in facts.centers_mm]
    if len(set(classes)) < 3 or len(centers) < 3 or not expected.includes(facts.voxels):
        return
    ventricle, atrium, artery = centers
    if ventricle[0] > atrium[0]:  # x grows to the patient's right
        yield warning(
            f"{facts.label}: the left ventricle lies right of the right atrium, as in a"
            " mirrored file or with exchanged classes; correct the header or the label map"
        )
    if artery[2] < ventricle[2]:
        yield warning(
            f"{facts.label}: the pulmonary artery lies below the left ventricle, as in a file"
            " that is upside down or with exchanged classes; correct the header or the label map"
        )


def hu_range(facts: Facts, expected: Expected) -> Results:
    """The image does not hold HU (volume/hounsfield.py): store HU, or set the window."""
    if facts.not_hu is not None:
        report = error if facts.not_hu.is_certain else warning
        yield report(f"{facts.image}: {facts.not_hu.text}")


def hu_padding(facts: Facts, expected: Expected) -> Results:
    """Voxels below air, as scanners pad their field of view: harmless, the window clips them."""
    certainly_not_hu = facts.not_hu is not None and facts.not_hu.is_certain
    if facts.below_air > 0.001 and not certainly_not_hu:
        yield info(
            f"{100 * facts.below_air:.1f} % of voxels below {AIR_HU} HU (padding, down to"
            f" {facts.hu['min']:.0f}); they are clipped to the window"
        )


def field_of_view(facts: Facts, expected: Expected) -> Results:
    """The model's grid cuts off labels, or is mostly padding: crop the data or change the grid."""
    if facts.padded > MAX_PADDING and expected.for_training:
        yield warning(
            f"{facts.image}: {100 * facts.padded:.0f} % of the model's field of view lies outside"
            " the image; choose a smaller data.resolution x data.spacing"
        )
    lost = max(facts.lost, facts.lost_vessel)
    if lost > MAX_LOST:
        voxels = "vessels" if facts.lost_vessel >= facts.lost else "labeled voxels"
        yield warning(
            f"{facts.image}: {expected.owner} field of view cuts off {100 * lost:.0f} % of the"
            f" {voxels}; prepare with --crop-to-heart, or raise data.resolution"
        )


def label_values(facts: Facts, expected: Expected) -> Results:
    """Values that are no class: set data.label_map; background alone: replace the file."""
    num_classes = expected.labels.num_classes
    invalid = [value for value in facts.voxels if value >= num_classes]
    if invalid:
        yield error(f"{facts.label}: {outside_classes(invalid, num_classes)}; {LABEL_REMEDY}")
    elif facts.voxels and not facts.volumes_ml:
        yield warning(f"{facts.label}: all background; check that it is the right file")


def class_volume(facts: Facts, expected: Expected) -> Results:
    """A class of an implausible volume, where the scheme has a range for it: check the labels."""
    if not expected.includes(facts.voxels):
        return
    for value, volume_ml in facts.volumes_ml.items():
        limits = expected.labels.plausible_range_ml(value)
        if limits is not None and not limits[0] <= volume_ml <= limits[1]:
            yield warning(
                f"{facts.label}: {expected.labels.describe(value)} has {volume_ml:.3g} ml,"
                f" plausible are {limits[0]:g} to {limits[1]:g}"
            )


def vessels_present(facts: Facts, expected: Expected) -> Results:
    """A label map without vessels, which is legal: the model learns no vessels from this case."""
    if facts.volumes_ml and not facts.pieces_ml and expected.includes(facts.voxels):
        name = expected.labels.describe(expected.labels.vessel)
        yield warning(
            f"no vessels: {facts.label} has no {name}; this is legal, but the model learns no"
            " vessels from it"
        )


def vessel_pieces(facts: Facts, expected: Expected) -> Results:
    """Vessels in many pieces, so that centrelines end early: remove specks and close the gaps."""
    count = len(facts.pieces_ml)
    if count > MAX_VESSEL_PIECES and expected.includes(facts.voxels):
        specks = sum(size < SPECK_ML for size in facts.pieces_ml)
        share = facts.pieces_ml[0] / sum(facts.pieces_ml)
        yield warning(
            f"{facts.label}: vessels in {count} pieces ({specks} under {1000 * SPECK_ML:g} mm3, the"
            f" largest holds {100 * share:.0f} %); a whole tree has 1 or 2"
        )


def vessels_on_the_grid(facts: Facts, expected: Expected) -> Results:
    """Vessels thinner than the model's voxels fall apart: use smaller voxels, or vessel tokens."""
    count = max(len(facts.pieces_ml), 1)
    if facts.grid_pieces > MAX_PIECES_RATIO * count and expected.includes(facts.voxels):
        sizes = expected.preprocessing.spacing_text
        yield warning(
            f"{facts.label}: vessels in {count} pieces become {facts.grid_pieces} pieces in"
            f" {expected.owner} voxels of {sizes}; choose a smaller data.spacing, or a stage 2 with"
            " unet.vessel_fields or unet.vessel_attention, whose vessels are traced in the file"
        )


def vessel_contrast(facts: Facts, expected: Expected) -> Results:
    """Vessels as dark as their surroundings: remove the case, or give it its own label map."""
    text = low_contrast(facts.contrast)
    if text and expected.includes(facts.voxels):
        yield warning(f"{facts.label}: {text}; remove the case, or replace its label map")


CASE_RULES = [
    readable,
    read_warnings,
    same_grid,
    spacing,
    anatomy,
    hu_range,
    hu_padding,
    field_of_view,
    label_values,
    class_volume,
    vessels_present,
    vessel_pieces,
    vessels_on_the_grid,
    vessel_contrast,
]
