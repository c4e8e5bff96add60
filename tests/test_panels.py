"""Panels: orientation of the display, true proportions, gray values, and visible vessels."""

import tracemalloc

import numpy as np
import pytest
from PIL import Image

from tubesynth.pictures.lettering import font, wrapped
from tubesynth.pictures.panel import COLORS, MARGIN, choose_views, render_panel
from tubesynth.runtime.atomic import save_png

AIR = -1000


def volume(shape=(20, 24, 16)):
    return np.full(shape, AIR, dtype=np.int16)


def display(array, axis, point):
    """The plane that `render_panel` shows across an axis, at its own resolution."""
    views = {
        view.axis: view
        for view in reversed(choose_views(array.shape, (1, 1, 1), None, None, point))
    }
    return views[axis].image(array)


def test_right_is_left_anterior_and_superior_are_up():
    array = volume()
    array[19, 12, 8] = 1  # the patient's right
    array[10, 23, 8] = 2  # front
    array[10, 12, 15] = 3  # head
    point = (10, 12, 8)
    axial, coronal, sagittal = (display(array, axis, point) for axis in (2, 1, 0))
    assert axial.shape == (24, 20) and coronal.shape == (16, 20) and sagittal.shape == (16, 24)
    assert np.argwhere(axial == 1).tolist() == [[11, 0]]  # left edge
    assert np.argwhere(axial == 2).tolist() == [[0, 9]]  # top edge
    assert np.argwhere(coronal == 1).tolist() == [[7, 0]]
    assert np.argwhere(coronal == 3).tolist() == [[0, 9]]
    assert np.argwhere(sagittal == 2).tolist() == [[7, 0]]  # the patient looks to the left
    assert np.argwhere(sagittal == 3).tolist() == [[0, 11]]


def boxes(picture, value):
    """(height, width) of every connected block of one gray value that is a tile's size."""
    from scipy.ndimage import find_objects, label

    blocks, _ = label((picture == value).all(-1))
    sizes = [tuple(s.stop - s.start for s in box) for box in find_objects(blocks)]
    return [size for size in sizes if min(size) > 40]


def test_tiles_have_the_proportions_of_the_body_not_of_the_voxels():
    array = np.full((32, 32, 16), 5000, dtype=np.int16)
    picture = render_panel({"real": array}, (1.0, 1.0, 3.0))
    # 32 x 32 x 48 mm at 256 / 48 pixels a mm: axial and its slab 171 x 171, the others 256 x 171.
    assert sorted(boxes(picture, 255)) == [(171, 171), (171, 171), (256, 171), (256, 171)]


@pytest.mark.parametrize(
    ("hu", "gray"), [(-300, 0), (-900, 0), (200, 127), (700, 255), (3000, 255)]
)
def test_the_window_maps_its_ends_to_black_and_white(hu, gray):
    picture = render_panel({"real": np.full((16, 16, 16), hu, dtype=np.int16)}, (1, 1, 1))
    tile = picture[40:200, 150:300]
    values, counts = np.unique(tile.reshape(-1, 3), axis=0, return_counts=True)
    assert values[counts.argmax()].tolist() == [gray] * 3


def test_planes_go_through_the_labels_and_the_slab_through_the_vessels():
    label = np.zeros((40, 40, 60), dtype=np.uint8)
    label[5:16, 10:21, 20:31] = 3
    label[30, 30, 50:54] = 8
    axial, coronal, sagittal, slab = choose_views(label.shape, (1, 1, 1.25), label, 8)
    inside = np.argwhere(label)
    assert (sagittal.first, coronal.first, axial.first) == tuple(inside.mean(0).round())
    assert slab.last - slab.first + 1 == 20  # 25 mm
    assert slab.first <= 50 and slab.last >= 53


def test_the_center_of_a_whole_ct_takes_no_more_memory_than_a_few_masks():
    label = np.zeros((128, 128, 100), dtype=np.uint8)
    label[20:100, 20:100, 10:90] = 1
    tracemalloc.start()
    axial, coronal, sagittal, _ = choose_views(label.shape, (1, 1, 1), label, 8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * label.nbytes
    assert (sagittal.first, coronal.first, axial.first) == (60, 60, 50)  # of 59.5, 59.5, 49.5


def test_a_vessel_of_one_voxel_shows_in_its_color_and_in_the_legend():
    array = volume((48, 48, 48))
    label = np.zeros(array.shape, dtype=np.uint8)
    label[10:38, 10:38, 10:38] = 1
    label[24, 24, 12:36] = 8
    picture = render_panel({"real": array}, (1, 1, 1), label)
    vessel = (picture == COLORS[7]).all(-1)
    coronal = vessel[24 + 260 : 24 + 516, 116 + 260 : 116 + 516]
    length = 24 * 256 / 48
    assert coronal.any(1).sum() == pytest.approx(length, abs=6)
    assert vessel[-48:].sum() >= 100  # the legend's square


def test_names_of_the_nine_classes_are_not_given_to_another_scheme():
    array = volume()
    nine, other = (np.zeros(array.shape, dtype=np.uint8) for _ in range(2))
    nine[5:10, 5:10, 5:10], other[5:10, 5:10, 5:10] = 1, 1
    other[0, 0, 0] = 52
    legends = [render_panel({"real": array}, (1, 1, 1), x)[-48:, 130:250] for x in (nine, other)]
    assert not np.array_equal(*legends)


def test_a_single_slice_makes_one_tile_and_a_tensor_is_accepted():
    torch = pytest.importorskip("torch")
    picture = render_panel({"real": torch.zeros(32, 24, 1)}, (1, 1, 1))
    assert picture.dtype == np.uint8
    assert picture.shape[1] == 116 + 256 + 4


def test_images_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match="one grid"):
        render_panel({"real": volume(), "synthesis": volume((8, 8, 8))}, (1, 1, 1))


def test_a_saved_picture_reads_back_and_leaves_nothing_beside_it(tmp_path):
    picture = render_panel({"real": volume()}, (1, 1, 1))
    save_png(tmp_path / "panels" / "a.png", picture)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "panels" / "a.png")), picture)
    assert [p.name for p in (tmp_path / "panels").iterdir()] == ["a.png"]


LONG_NAMES = (
    "all vessel conditions",
    "tokens_bias_fields_weighted",
    "nobreakanywhereinthisname" * 9,
)


@pytest.mark.parametrize("name", LONG_NAMES)
def test_a_long_name_stays_in_the_margin(name):
    array = np.full((24, 24, 24), 200, dtype=np.int16)
    short, long = (render_panel({n: array}, (1, 1, 1), title=n) for n in ("run", name))
    title = 24
    assert np.array_equal(short[title:, MARGIN:], long[title:, MARGIN:])
    assert not np.array_equal(short[title:, :MARGIN], long[title:, :MARGIN])


def test_columns_of_a_tall_volume_are_as_wide_as_their_captions():
    array = np.full((20, 20, 120), 200, dtype=np.int16)
    picture = render_panel({"run": array}, (1, 1, 1))
    views = choose_views(array.shape, (1, 1, 1))
    assert picture.shape[1] > MARGIN + sum(font(13).getlength(view.caption) for view in views)


def test_lines_break_within_a_name_and_the_last_one_ends_with_an_ellipsis():
    assert wrapped("all vessel conditions", 100, 14, 4) == ["all vessel", "conditions"]
    lines = wrapped("tokens_bias_fields_weighted_and_on_and_on_and_on", 100, 14, 3)
    assert len(lines) == 3 and lines[0] == "tokens_bias_" and lines[2].endswith("…")
    assert max(font(14).getlength(line) for line in lines) <= 100
