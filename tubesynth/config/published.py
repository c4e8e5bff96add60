"""Configs of the published code, the original: recognized, and named by the equivalent of this one.

They have the sections model, data, processing and callbacks; its keys are in docs/fidelity.md.
"""

from typing import Any

from tubesynth.config.packaged import packaged_configs
from tubesynth.runtime.errors import InputError

FOLDER = "as_published"


def refuse_published(content: dict[str, Any], source: str) -> None:
    """InputError for a config of the original, with the packaged configs of the same settings."""
    if "stage" in content or not isinstance(content.get("model"), dict):
        return
    names = " or ".join(equivalents(content)) or f"one of {FOLDER}/ (tubesynth configs lists them)"
    raise InputError(
        f"{source}: a config of the published code, whose keys are others: give --config {names},"
        " and what you have changed as section.key=value items (docs/fidelity.md has the keys)"
    )


def equivalents(content: dict[str, Any]) -> list[str]:
    """The packaged configs with the published settings of a config of the original.

    That of flow matching and that of diffusion have the same keys there: --latent-mode chooses.
    """
    model, data, processing = (content.get(key) or {} for key in ("model", "data", "processing"))
    network = model.get("model_config") or {}
    if "vae_config" in model:
        stage, kind = 1, "_f4" if data.get("random_crop") else "_full"
    elif "generation" in processing:
        stage, kind = 3, "_controlnet"
    else:
        stage, kind = 2, "_crossattn" if network.get("with_conditioning") else "_base"
    start = f"{FOLDER}/stage_{stage}_{model.get('spatial_dims', 3)}d_"
    names = [name for name in packaged_configs() if name.startswith(start)]
    return [name for name in names if name.endswith(kind)] or names
