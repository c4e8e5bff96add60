"""The scores and the picture of one case, from its files, in a process of their own.

They are computed on the CPU: every process would hold a context of the GPU, and a score would
depend on whether there is one.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch

from tubesynth.inference.segmenter import VesselSegmenter
from tubesynth.metrics.case import CaseScores, EvaluationCase, ScoreSettings, read_case, score_case
from tubesynth.metrics.condition import tokens_of
from tubesynth.metrics.distribution import sample_diversity
from tubesynth.metrics.pairing import sidecar_of
from tubesynth.metrics.published import load_lpips
from tubesynth.metrics.set_scores import case_features
from tubesynth.pictures.case_pictures import case_panel, panel_path
from tubesynth.pictures.tiles import display_window
from tubesynth.runtime.atomic import save_png
from tubesynth.runtime.errors import InputError, SettingError
from tubesynth.volume.centreline_file import user_centreline_tokens
from tubesynth.volume.files import check_labels, read_labels
from tubesynth.volume.hounsfield import check_hu
from tubesynth.volume.rasterize import rasterize_vessels
from tubesynth.volume.resample import right_angled

LABEL_REMEDY = "translate them by data.label_map in the file of --config"


@lru_cache(maxsize=1)
def trained_segmenter(path: Path) -> VesselSegmenter:
    """The segmenter, loaded once per process."""
    return VesselSegmenter.load(path, torch.device("cpu"))


def scores_or_fault(case: EvaluationCase, *options) -> CaseScores | str:
    """The scores of a case, or why its files cannot be scored."""
    try:
        return evaluate_case(case, *options)
    except SettingError:
        raise
    except InputError as error:
        return str(error)


def evaluate_case(
    case: EvaluationCase,
    settings: ScoreSettings,
    output_dir: Path,
    with_diversity: bool,
    with_features: bool,
    segmenter: Path | None = None,
    lpips: Sequence[str] = (),
) -> CaseScores:
    """Score and render one case, in one thread, so that --workers does not change a score.

    with_diversity, with_features: also compute the diversity of the samples, and the slice
    features of the distribution scores; segmenter: the checkpoint of a vessel segmenter; lpips:
    the files of LPIPS.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        volumes = read_case(case)
        for (source, _, path), volume in zip(case.images, volumes, strict=True):
            # What this package has made has HU; a constant image is scored as what it is.
            is_foreign = "settings" not in sidecar_of(path)
            if source == "real" or is_foreign and volume.array.min() < volume.array.max():
                check_hu(volume, path, settings.hu_window)
        label = None if case.label is None else read_labels(case.label, case.label_map)
        if label is not None:
            check_labels(label.array, settings.classes.num_classes, case.label, LABEL_REMEDY)
        stored_label = label
        if label is not None:
            label = right_angled(label)  # for lengths in mm
        tokens = None
        if label is not None and not settings.are_pictures:
            tokens = tokens_of(label, settings.classes)
        original = None  # tokens that user centrelines have replaced
        if case.centreline is not None and label is not None and tokens is not None:
            original, tokens = tokens, user_centreline_tokens(case.centreline, label)
            label = rasterize_vessels(label, tokens, settings.classes.vessel)
            stored_label = label
        segment = None if segmenter is None else trained_segmenter(segmenter)
        distance = load_lpips(*lpips) if lpips else None
        options = (settings, segment, distance, stored_label)
        scores = score_case(case, volumes, label, tokens, *options)
        panel = case_panel(
            *(case, volumes, label, tokens, settings.classes, original),
            window=display_window(settings.hu_window, settings.are_pictures),
        )
        save_png(panel_path(output_dir, case.id), panel)
        window = settings.hu_window
        if with_diversity:
            first = next((s for s, *_ in case.images if s.startswith("synthesis")), "")
            images = zip(case.images, volumes, strict=True)
            samples = [volume.array for (source, *_), volume in images if source == first]
            scores.diversity = sample_diversity(samples, window)
        if with_features and case.images[-1][0] != "real":
            scores.sets = case_features(case, volumes, window=window)
    finally:
        torch.set_num_threads(threads)
    return scores
