"""The jobs of a synthesis: one for each sample of each case, what they read, compute and write.

A case is a label map of a folder, with the user's centreline if there is one, or a new patient of
the phantom generator, whose centrelines and picture are written too.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import torch

from tubesynth.conditioning.request import SampleRequest
from tubesynth.inference.arguments import arguments_as_flags
from tubesynth.inference.job import Job, centreline_path, label_path, process_folder
from tubesynth.inference.label_maps import TRANSLATE_REMEDY
from tubesynth.inference.run_jobs import Result
from tubesynth.inference.synthesis import PlacedBatch, Sample, SampleOptions, Synthesizer
from tubesynth.metrics.case import EvaluationCase
from tubesynth.phantom.anatomy import make_phantom
from tubesynth.pictures.case_pictures import case_panel, panel_path
from tubesynth.runtime.atomic import save_png
from tubesynth.runtime.seeding import derive, generator
from tubesynth.volume.centreline_file import (
    Branch,
    read_centreline,
    tokens_of_branches,
    user_centreline_tokens,
    write_centreline,
)
from tubesynth.volume.classes import LabelScheme
from tubesynth.volume.digest import file_digest
from tubesynth.volume.files import check_dimensions, check_labels, read_labels, write_volume
from tubesynth.volume.grid import Volume
from tubesynth.volume.vessels import VesselTokens

Files = tuple[SampleRequest, list[Branch] | None]
# Of each job of a batch its centrelines, if it is of a new patient, and the batch on the grid.
Inputs = tuple[list[list[Branch] | None], PlacedBatch]


def sample_jobs(
    args: argparse.Namespace,
    cases: Mapping[str, Path | None],
    centrelines: Mapping[str, Path],
    settings: dict,
    written: tuple[str, str],
) -> list[Job]:
    """One job per case and sample; written: the format of the images."""
    jobs = []
    for case, path in cases.items():
        case_settings = {**settings, "case": case}
        if case in centrelines:
            case_settings["centreline_sha256"] = file_digest(centrelines[case])
        for index in range(args.num_samples):
            name, outputs = f"{case}_s{index}", []
            if not args.unconditional:
                outputs.append(label_path(args.output_dir, name, written[0]))
            if path is None and not args.unconditional:
                outputs.append(centreline_path(args.output_dir, name))
                outputs.append(panel_path(args.output_dir, name))
            if args.save_process:
                outputs.append(process_folder(args.output_dir, name))
            job_settings = {**case_settings, "sample": index}
            jobs.append(Job(args.output_dir, name, path, job_settings, tuple(outputs), written))
    return jobs


@dataclass(frozen=True)
class SampleSteps:
    """The steps of run_jobs for a synthesis. args: of its command.

    unusual: {case: in which points it is unlike the training}, for the sidecars.
    """

    args: argparse.Namespace
    synthesizer: Synthesizer
    options: SampleOptions
    centrelines: Mapping[str, Path]
    unusual: Mapping[str, list[str]]

    def read(self, job: Job) -> Files:
        """What a job synthesizes; for a new patient its centrelines too."""
        case, index = job.settings["case"], job.settings["sample"]
        labels, vessels, branches = self._read_case(case, job.source)
        random = generator(torch.device("cpu"), self.args.seed, "sample", case, index)
        return SampleRequest(labels, random, vessels), branches

    @cached_property
    def _read_case(self):
        """`_case`, which keeps the last cases: each is compared, and has one or more samples."""
        return lru_cache(maxsize=2)(self._case)

    def _case(
        self, case: str, source: Path | None
    ) -> tuple[Volume | None, VesselTokens | None, list[Branch] | None]:
        """(label map, the user's vessels, the centrelines of a new patient)."""
        config, labels, vessels, branches = self.synthesizer.config, None, None, None
        if source is not None:
            labels = read_labels(source, config.data.label_map)
            check_dimensions(labels, config.dim, source)
            check_labels(labels.array, config.labels.num_classes, source, TRANSLATE_REMEDY)
            if case in self.centrelines:
                step_mm = config.data.token_step_mm or 1.0
                vessels = user_centreline_tokens(self.centrelines[case], labels, step_mm)
        elif not self.args.unconditional:
            grid = self.synthesizer.codec.grid.blank_labels(self.args.spacing, self.args.resolution)
            # tubesynth phantom has other keys: these patients are in no training data of phantoms.
            seed = derive(self.args.seed, "synthesize", case)
            phantom = make_phantom(seed, 1, grid.shape, grid.spacing, config.labels)
            labels, branches = phantom.labels, phantom.branches
        return labels, vessels, branches

    def place(self, batch: list[Job], files: list[Files]) -> Inputs:
        requests, branches = zip(*files, strict=True)
        with arguments_as_flags():
            return list(branches), self.synthesizer.place(requests, self.options)

    def compute(self, batch: list[Job], inputs: Inputs) -> list[Result]:
        written: set[Path] = set()

        def write_step(index: int, t: float, volume: Volume) -> None:
            folder = process_folder(self.args.output_dir, batch[index].name)
            suffix, dtype = batch[index].format
            digits = 3
            while (path := folder / f"t{t:.{digits}f}.img{suffix}") in written:
                digits += 3  # steps that are closer together
            written.add(path)
            write_volume(path, volume, dtype)

        branches, placed = inputs
        with arguments_as_flags():
            callback = write_step if self.args.save_process else None
            samples = self.synthesizer.sample(placed, callback)
        results = []
        for job, sample, centrelines in zip(batch, samples, branches, strict=True):
            values = {
                "model": str(self.args.model),
                "batch": len(batch),
                "evaluations": sample.evaluations,
                "unlike_training": self.unusual.get(job.settings["case"], []),
            }
            results.append(self._result(job, sample, values, centrelines))
        return results

    def _result(self, job: Job, sample: Sample, values: dict, branches) -> Result:
        """branches: the centrelines of a new patient; None for another case."""
        output_dir, volume = self.args.output_dir, sample.volume

        def finish() -> Volume:
            if not self.args.unconditional:
                path = label_path(output_dir, job.name, job.format[0])
                write_volume(path, sample.labels, "uint8")
            if branches is not None:
                write_centreline(centreline_path(output_dir, job.name), branches)
                save_panel(job, output_dir, sample, self.synthesizer.config.labels)
            return volume

        is_new = branches is not None
        lines = (f"picture   {panel_path(output_dir, job.name)}",) if is_new else ()
        return Result(finish, values, lines)


def save_panel(job: Job, output_dir: Path, sample: Sample, scheme: LabelScheme) -> None:
    """The panel of a sample of a new patient, with the names of its coronaries."""
    path, centreline = panel_path(output_dir, job.name), centreline_path(output_dir, job.name)
    images = [("synthesis", 0, job.image_path)]
    case = EvaluationCase(job.name, None, images, centreline=centreline)
    tokens = tokens_of_branches(read_centreline(centreline), sample.labels)
    save_png(path, case_panel(case, [sample.volume], sample.labels, tokens, scheme))
