"""The digests of a run's data, by which a run that resumes sees that files have changed."""

import json
from pathlib import Path

from tubesynth.data.layout import SPLITS
from tubesynth.runtime.atomic import write_text
from tubesynth.runtime.log import logger
from tubesynth.runtime.reading import fits, stored_json
from tubesynth.training.inputs import Volumes

SOURCES_FILE = "sources.json"  # {split: {case: digest of its files}}
MOST_NAMES = 5


def note_sources(run_dir: Path, volumes: Volumes) -> None:
    """Write the digests to a new run's folder; in that of an earlier one warn of other cases.

    The disk cache has read the files: their digests are remembered.
    """
    path = run_dir / SOURCES_FILE
    digests = {
        split: {
            case.id: " ".join(volumes.store.digest(f)[:16] for f in (case.image, case.label) if f)
            for case in cases
        }
        for split, cases in zip(SPLITS, (volumes.training, volumes.validation), strict=True)
    }
    before = stored_json(path)
    if not fits(before, {split: dict for split in SPLITS}):
        write_text(path, json.dumps(digests, indent=1) + "\n")
        return
    changed = [
        case
        for split in SPLITS
        for case in {**before[split], **digests[split]}
        if before[split].get(case) != digests[split].get(case)
    ]
    if changed:
        more = f" and {len(changed) - MOST_NAMES} more" if len(changed) > MOST_NAMES else ""
        logger.warning(
            f"files of case {', '.join(changed[:MOST_NAMES])}{more} are others than when this run"
            " began, of which its weights and scores so far are: for a training on the new ones"
            " alone give another --run-dir"
        )
