"""The first lines of a run's log: versions, device, data, length, cache."""

import torch

import tubesynth
from tubesynth.build.checkpoint import Position
from tubesynth.config.length import num_steps, samples_per_step
from tubesynth.config.schema import Config
from tubesynth.runtime import dist
from tubesynth.runtime.environment import device_name, git_commit
from tubesynth.runtime.log import logger
from tubesynth.training.inputs import Volumes
from tubesynth.training.warnings import run_warnings


def log_head(
    config: Config, volumes: Volumes, device: torch.device, kernels: str, position: Position
) -> None:
    """Log versions, device, data, length and cache on rank 0; kernels: of choose_kernels.

    position: at which the run starts.
    """
    if not dist.is_main():
        return
    commit = git_commit()
    threads, processes = torch.get_num_threads(), dist.world_size()
    cases, batch = len(volumes.training), samples_per_step(config, processes)
    data = config.data
    cached = data.dataset_type == "persistent" or config.stage in (2, 3)
    lines = [
        f"tubesynth {tubesynth.__version__}{f' ({commit})' if commit else ''},"
        f" torch {torch.__version__}, stage {config.stage}, seed {config.seed}",
        f"device: {device.type}, {device_name(device)}; processes: {processes};"
        f" CPU threads of each: {threads}; precision: {config.train.precision}; kernels: {kernels}",
        f"data: {cases} training and {len(volumes.validation)} validation cases"
        f" ({data.image_train_dir or data.root}); cache: {data.cache_dir if cached else 'none'}",
        f"length: {config.train.epochs} epochs, {num_steps(config, cases, processes)} steps,"
        f" {cases / batch:.4g} steps an epoch; samples a step: {batch}"
        + (f"; {position.sample_index / cases:.4g} epochs are done" if position.step else ""),
    ]
    if not volumes.has_labels:
        lines.append("labels: none, images alone: nothing that needs vessels is scored")
    for line in lines:
        logger.info(line)
    if config.train.restart and position == Position():
        logger.warning("train.restart: has no effect without --resume")
    for message in run_warnings(config, volumes.training, volumes.validation):
        logger.warning(message)


def warn_of_cpu(config: Config, device: torch.device, device_option: str, gpus: int | None) -> None:
    """Warn that a run trains on the CPU although its options need a GPU.

    device_option, gpus: the values of --device and --gpus; --device cpu turns the warning off.
    """
    needs_gpu = gpus is not None or config.train.precision == "16-mixed"
    if device.type == "cpu" and device_option == "auto" and needs_gpu:
        option = "--gpus" if gpus is not None else "--precision 16-mixed"
        logger.warning(
            f"{option} is set, but torch finds no GPU: THIS RUN TRAINS ON THE CPU, which is far"
            " slower. Check nvidia-smi and the build of torch, or confirm with --device cpu"
        )
