"""Panels: orientation, proportions, gray values, scale bars, outlines, hatching, projections."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import find_objects, grey_dilation
from scipy.ndimage import label as connected

from tubesynth.metrics.case import EvaluationCase
from tubesynth.pictures.case_pictures import named_branches, path_names
from tubesynth.pictures.panel import (
    CENTRELINE,
    MAX_COLUMNS,
    ORIGINAL,
    class_legend,
    render_panel,
    shifted_first,
    shifted_lines,
    without_padding,
)
from tubesynth.pictures.sheet import (
    COLUMN,
    EDGE,
    GAP,
    INK,
    LINE,
    Row,
    fitted,
    font,
    render_sheet,
    scale_bar,
    sheet_width,
)
from tubesynth.pictures.tiles import (
    COLORS,
    CTA_WINDOW,
    HATCH,
    HATCH_PAPER,
    Line,
    class_tile,
    ct_tile,
    display_window,
    render_outlines,
)
from tubesynth.pictures.views import ORGAN_HU, View, choose_views, other_organs
from tubesynth.runtime.atomic import save_png
from tubesynth.volume.centreline_file import Branch, write_centreline
from tubesynth.volume.classes import NINE_CLASSES
from tubesynth.volume.grid import Volume, centered_affine
from tubesynth.volume.straighten import VesselPath, main_paths
from tubesynth.volume.vessels import extract_tokens

UNIT = np.ones(3)
TOP = EDGE + 3 * LINE  # of the first row's tiles


def volume(shape=(20, 24, 16), hu=-900.0):
    return np.full(shape, hu, dtype=np.float32)


def vessel_map(shape=(48, 48, 48)):
    """A chamber of class 3, a vessel of class 8 along x above it in the plane z = 36."""
    label = np.zeros(shape, dtype=np.uint8)
    label[10:38, 10:38, 10:30] = 3
    label[8:40, 23:26, 35:38] = 8
    return label


def test_right_is_left_anterior_and_superior_are_up():
    array = volume()
    array[19, 12, 8] = 1  # the patient's right
    array[10, 23, 8] = 2  # front
    array[10, 12, 15] = 3  # head
    point = (10, 12, 8)
    views = (View(axis, point[axis], point[axis]) for axis in (2, 1, 0))
    axial, coronal, sagittal = (view.project(view.slab(array)) for view in views)
    assert axial.shape == (24, 20) and coronal.shape == (16, 20) and sagittal.shape == (16, 24)
    assert np.argwhere(axial == 1).tolist() == [[11, 0]]  # left edge
    assert np.argwhere(axial == 2).tolist() == [[0, 9]]  # top edge
    assert np.argwhere(coronal == 1).tolist() == [[7, 0]]
    assert np.argwhere(coronal == 3).tolist() == [[0, 9]]
    assert np.argwhere(sagittal == 2).tolist() == [[7, 0]]  # the patient looks to the left
    assert np.argwhere(sagittal == 3).tolist() == [[0, 11]]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_position_has_the_pixel_of_its_voxel(axis):
    array, voxel, scale = volume(hu=-200.0), np.array([3, 17, 12]), 5.0
    array[tuple(voxel)] = 600
    spacing = np.array([1.0, 1.5, 2.0])
    view = View(axis, int(voxel[axis]), int(voxel[axis]))
    size = view.size(array.shape, spacing, scale)
    tile = ct_tile(view.project(view.slab(array)), size)[..., 0].astype(float)
    brightest = [
        np.average(np.arange(n), weights=tile.sum(a)) for a, n in ((0, size[0]), (1, size[1]))
    ]
    position = (voxel - (np.array(array.shape) - 1) / 2) * spacing
    assert view.pixels(position[None], size, scale)[0] - 0.5 == pytest.approx(brightest, abs=0.6)


def tile_sizes(picture, value):
    """(height, width) of every connected block of one gray value that is a tile's size."""
    blocks, _ = connected((picture == value).all(-1))
    sizes = [(s[0].stop - s[0].start, s[1].stop - s[1].start) for s in find_objects(blocks)]
    return [size for size in sizes if min(size) > 40]


def test_tiles_have_the_proportions_of_the_body_not_of_the_voxels():
    picture = render_panel({"real": volume((32, 32, 16), 5000)}, (1.0, 1.0, 3.0))
    # 32 x 32 x 48 mm at COLUMN / 48 pixels a mm: axial and its slab are square
    side = round(32 * COLUMN / 48)
    expected = [(side, side), (side, side), (COLUMN, side), (COLUMN, side)]
    assert sorted(tile_sizes(picture, 255)) == expected


@pytest.mark.parametrize(
    ("hu", "gray"), [(-200, 0), (-900, 0), (200, 127), (600, 255), (3000, 255)]
)
def test_the_window_maps_its_ends_to_black_and_white(hu, gray):
    picture = render_panel({"real": volume((16, 16, 16), hu)}, UNIT)
    tile = picture[TOP + 10 : TOP + 200, EDGE + 60 : EDGE + 200]
    assert (tile == gray).all()


@pytest.mark.parametrize(("value", "gray"), [(0, 0), (127.5, 127), (255, 255)])
def test_pictures_of_gray_values_have_their_whole_window(value, gray):
    window = display_window((0.0, 255.0), True)
    picture = render_panel({"real": volume((16, 16, 1), value)}, UNIT, window=window)
    assert (picture[TOP + 10 : TOP + 200, EDGE + 60 : EDGE + 200] == gray).all()
    assert display_window((-1000.0, 1000.0), True) == CTA_WINDOW
    assert display_window((0.0, 1000.0), False) == CTA_WINDOW  # a CT


@pytest.mark.parametrize("scale", [0.8, 2.5, 4.0, 5.0])
def test_the_scale_bar_is_as_long_as_its_millimeters(scale):
    length_mm, length = scale_bar(scale)
    assert length == pytest.approx(length_mm * scale, abs=0.5) and 30 <= length <= 90
    tile = np.zeros((50, COLUMN, 3), dtype=np.uint8)
    sheet = render_sheet(["real"], [Row("axial", [tile], scale)], "", "", [])
    line = sheet[EDGE + 2 * LINE + LINE // 2]
    assert (line[-EDGE - length : -EDGE] == INK).all() and not (
        line[-EDGE - length - 1] == INK
    ).all()


def test_the_widest_vessel_is_in_all_three_planes():
    label = vessel_map()
    label[28:33, 22:27, 34:39] = 8
    views = choose_views(label.shape, UNIT, label, 8)
    assert [view.first for view in views[:3]] == [36, 24, 30]


def test_the_planes_pass_through_the_labels_without_vessels_and_through_the_middle_without_labels():
    label = np.zeros((40, 40, 60), dtype=np.uint8)
    label[5:16, 10:21, 20:31] = 3
    assert [v.first for v in choose_views(label.shape, UNIT, label, 8)][:3] == [25, 15, 10]
    assert [v.first for v in choose_views(label.shape, UNIT, None, 8)][:3] == [29, 19, 19]


def test_the_slab_lies_where_most_of_the_vessels_is_seen():
    label = np.zeros((60, 60, 60), dtype=np.uint8)
    label[30, 30, 4:50] = 8  # one pixel from above, 46 from the side
    label[10:50, 45, 20] = 8
    slab = choose_views(label.shape, UNIT, label, 8)[-1]
    assert slab.axis == 0 and slab.last - slab.first + 1 == 12
    assert slab.first <= 30 <= slab.last  # 46 of the first and 1 of the second
    label[10:50, 30, 52] = 8  # in the coronal plane of the first
    slab = choose_views(label.shape, UNIT, label, 8)[-1]
    assert slab.axis == 1 and slab.first <= 30 <= slab.last


def test_a_projection_shows_a_tube_in_its_place_and_dims_the_chamber_below():
    label = vessel_map()
    hu = np.where(label > 0, 400.0, -100.0).astype(np.float32)
    view = View(2, 26, 37)
    slab, dimmed = view.slab(hu), other_organs(view.slab(label), 8, UNIT)
    plane = view.project(np.where(dimmed, np.minimum(slab, ORGAN_HU), slab))
    bright = np.argwhere(plane == 400)
    assert bright.min(0).tolist() == [48 - 26, 48 - 40] and len(bright) == 3 * 32
    assert plane[48 - 15, 24] == ORGAN_HU  # the chamber, 400 HU without dimming
    assert view.project(slab)[48 - 15, 24] == 400


def test_outlines_lie_on_the_borders_of_classes_only_and_close_them():
    labels = np.zeros((40, 40), dtype=np.uint8)
    labels[5:35, 5:35], labels[12:28, 12:28] = 1, 3
    classes = class_tile(labels, (200, 200), 8)
    tile = np.zeros((200, 200, 3), dtype=np.uint8)
    render_outlines(tile, classes)
    colored = tile.any(-1)
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], dtype=bool)
    lowest = -grey_dilation(-classes, footprint=cross)  # of each pixel and its neighbors
    assert np.array_equal(colored, classes > lowest)
    for k in (1, 3):
        assert (classes[(tile == COLORS[k - 1]).all(-1)] == k).all()
    # across the middle: one pixel for each of the two borders on each side
    assert np.flatnonzero(colored[100]) == pytest.approx([25, 60, 139, 174], abs=1)


def test_a_vessel_of_one_voxel_is_outlined_and_named():
    label = vessel_map()
    label[label == 8] = 0
    label[8:40, 24, 36] = 8
    picture = render_panel({"real": volume(label.shape)}, UNIT, label)
    vessel = (picture == COLORS[7]).all(-1)
    axial = vessel[TOP : TOP + COLUMN, -EDGE - COLUMN : -EDGE]
    assert axial.any(0).sum() == pytest.approx(32 * COLUMN / 48, abs=8)
    assert not vessel[TOP : TOP + COLUMN, : EDGE + COLUMN].any()  # none on the CT
    assert vessel[-EDGE - LINE :].sum() >= 40  # the legend's square


def test_what_lies_outside_the_ct_is_hatched_and_air_is_black():
    array = volume((40, 40, 40), -900)
    array[20:] = np.nan
    picture = render_panel({"real": array}, UNIT)
    left, right = (
        picture[TOP + 5 : TOP + COLUMN - 5, EDGE + x : EDGE + x + 100] for x in (30, 180)
    )
    hatched = (left == HATCH).all(-1)
    assert hatched.mean() == pytest.approx(1 / 8, abs=0.01)
    assert (left[~hatched] == HATCH_PAPER).all() and (right == 0).all()


def test_padding_is_what_no_voxel_of_the_ct_has_on_its_outside():
    hu = np.full((20, 20, 20), -1000.0)
    hu[3:, :, :18] = -990
    hu[10, 10, 10] = -1000  # air inside of the CT
    hu[5, 5, 5] = -3024  # a scanner's mark
    padding = np.isnan(without_padding(hu))
    assert padding[:3].all() and padding[:, :, 18:].all() and padding[5, 5, 5]
    assert padding.sum() == 20**3 - 17 * 20 * 18 + 1


def tube_tokens(label):
    return extract_tokens(label == 8, np.eye(4))


def test_both_centrelines_are_on_every_image_where_they_differ():
    label = vessel_map()
    tokens = tube_tokens(label)
    images = {name: volume(label.shape) for name in ("real", "synthesis")}
    for shift, expected in ((6.0, True), (1.0, False)):
        original = replace(tokens, position_mm=tokens.position_mm + np.float32([0, shift, 0]))
        assert bool(shifted_lines(tokens, original)) == expected
        picture = render_panel(images, UNIT, label, tokens=tokens, original=original)
        for column in range(2):
            left = EDGE + column * (COLUMN + GAP)
            tile = picture[TOP : TOP + COLUMN, left : left + COLUMN]
            solid, dotted = (np.equal(tile, color).all(-1) for color in (CENTRELINE, ORIGINAL))
            assert solid.any() == dotted.any() == expected
            if expected:
                rows = [np.flatnonzero(line.any(1)).mean() for line in (solid, dotted)]
                assert rows[0] - rows[1] == pytest.approx(6.0 * COLUMN / 48, abs=1.5)
                assert 0.4 < dotted.any(0).sum() / solid.any(0).sum() < 0.8


def test_names_of_the_nine_classes_are_not_given_to_another_scheme():
    nine, other = np.array([[[0, 1]]]), np.array([[[1, 52]]])
    assert [entry.name for entry in class_legend(nine, NINE_CLASSES)] == ["myocardium"]
    assert [entry.name for entry in class_legend(other, NINE_CLASSES)] == ["class 1", "class 52"]


def test_a_path_has_the_names_of_the_branches_that_it_follows():
    label = np.zeros((60, 40, 40), dtype=np.uint8)
    label[5:55, 19:22, 19:22] = 8
    grid = Volume(label, centered_affine(label.shape, UNIT))
    (path,) = main_paths(extract_tokens(label == 8, grid.affine))
    x = np.arange(-25.0, 25.0)
    points = np.column_stack([x, 0.5 + 0 * x, 0.5 + 0 * x, 1 + 0 * x])
    if path.position_mm[0, 0] > 0:
        points = points[::-1]
    pieces = [Branch("LM", None, points[:12]), Branch("LAD", 0, points[11:30])]
    pieces += [Branch("LAD", 1, points[29:]), Branch("D1", 1, points[20:] + 30)]
    assert path_names(pieces, grid)(path) == "LM-LAD"
    assert path_names([Branch("4", None, points)], grid)(path) == f"branch {path.branch}"
    assert path_names([], grid)(path) == f"branch {path.branch}"


def test_a_single_slice_makes_one_tile_and_a_tensor_is_accepted():
    torch = pytest.importorskip("torch")
    picture = render_panel({"real": torch.zeros(32, 32, 1)}, (1, 1, 1))
    assert picture.dtype == np.uint8
    assert picture.shape == (TOP + COLUMN + GAP + EDGE, sheet_width(1), 3)


def test_many_columns_continue_below():
    images = {f"run {k}": volume((16, 16, 1), 5000) for k in range(7)}
    picture = render_panel(images, (1, 1, 1))
    assert MAX_COLUMNS < 7 and picture.shape[1] == sheet_width(4)  # 4 and 3
    assert len(tile_sizes(picture, 255)) == 7


def test_images_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match="one grid"):
        render_panel({"real": volume(), "synthesis": volume((8, 8, 8))}, (1, 1, 1))


def test_a_saved_picture_reads_back_and_leaves_nothing_beside_it(tmp_path):
    picture = render_panel({"real": volume()}, (1, 1, 1))
    save_png(tmp_path / "panels" / "a.png", picture)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "panels" / "a.png")), picture)
    assert [p.name for p in (tmp_path / "panels").iterdir()] == ["a.png"]


@pytest.mark.parametrize("name", ["tokens_bias_fields_weighted", "nobreakanywhereinthisname" * 9])
def test_a_long_name_stays_in_its_column(name):
    array = volume((24, 24, 24), 200)
    short, long = (render_panel({n: array, "b": array}, UNIT, title=n) for n in ("run", name))
    names = slice(EDGE + LINE, EDGE + 2 * LINE)
    assert np.array_equal(short[names.stop :], long[names.stop :])
    assert np.array_equal(short[names, EDGE + COLUMN :], long[names, EDGE + COLUMN :])


def test_a_text_is_cut_with_an_ellipsis_at_its_width():
    assert fitted("all vessel conditions", 300) == "all vessel conditions"
    cut = fitted("all vessel conditions", 100)
    assert cut.endswith("…") and font(13).getlength(cut) <= 100


def test_a_shifted_vessel_is_straightened_before_longer_ones():
    label = np.zeros((70, 48, 48), dtype=np.uint8)
    label[4:66, 10:12, 10:12], label[20:50, 30:32, 30:32] = 8, 8
    original = tube_tokens(label)
    tokens = replace(original, position_mm=original.position_mm.copy())
    short = tokens.position_mm[:, 2] > 0
    tokens.position_mm[short, 2] += 5
    paths = main_paths(tokens)
    lengths = [path.along_mm[-1] for path in shifted_first(paths, shifted_lines(tokens, original))]
    assert lengths == sorted(lengths) and len(lengths) == 2
    assert shifted_first(paths, shifted_lines(original, original)) == paths


def test_of_paths_along_one_shifted_vessel_the_first_is_before_the_others():
    """Two paths share a shifted trunk; a third is shifted by less: it comes second."""
    x = np.arange(0.0, 60)
    zero = np.zeros_like(x)

    def path(y: np.ndarray) -> VesselPath:
        position = np.column_stack([x, y, zero])
        return VesselPath(position, zero, position, position, x, 0)

    trunk, fork, other = path(zero), path(np.maximum(0, x - 50)), path(zero + 30)
    position = np.concatenate([trunk.position_mm, other.position_mm[:20]])
    line = Line(position, np.zeros(len(position)), CENTRELINE)
    ordered = shifted_first([fork, trunk, other], [line])
    assert [id(path) for path in ordered] == [id(path) for path in (trunk, other, fork)]


def test_vessels_that_a_user_adds_or_erases_are_rendered():
    label = vessel_map()
    hu, tokens = volume(label.shape), tube_tokens(label)
    none = tube_tokens(0 * label)
    for pair, color in (((tokens, none), CENTRELINE), ((none, tokens), ORIGINAL)):
        picture = render_panel({"real": hu}, UNIT, label, tokens=pair[0], original=pair[1])
        assert (picture[TOP : TOP + COLUMN, : EDGE + COLUMN] == color).all(-1).sum() > 50


def test_names_of_branches_come_from_the_user_centreline_or_from_beside_the_label_maps(tmp_path):
    label, user = tmp_path / "labels" / "2.label.nii.gz", tmp_path / "user.centreline.json"
    case = EvaluationCase("2", label, [("real", 0, Path())])
    assert named_branches(case) == []
    points = np.array([[0.0, 0, 0, 1], [9, 0, 0, 1]])
    write_centreline(tmp_path / "centrelines" / "2.centreline.json", [Branch("RCA", None, points)])
    write_centreline(user, [Branch("LAD", None, points)])
    assert [branch.name for branch in named_branches(case)] == ["RCA"]
    assert [branch.name for branch in named_branches(replace(case, centreline=user))] == ["LAD"]
