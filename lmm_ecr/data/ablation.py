"""Destroying one kind of input, to measure how much a model uses it."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..errors import ConfigError
from .decode import Clip
from .manifest import ManifestRow

ABLATIONS = ("blank-text", "shuffle-frames", "mute")


def check_ablations(names: Sequence[str]) -> None:
    """Raise ConfigError for a name that is not in ABLATIONS."""
    for name in names:
        if name not in ABLATIONS:
            raise ConfigError(f"ablation {name!r} is unknown; choose from {', '.join(ABLATIONS)}")


def ablate(ablations: Sequence[str], clip: Clip, row: ManifestRow) -> tuple[Clip, str | None, str | None]:
    """One clip and its texts without what the ablations name; returns (clip, title, description).

    "blank-text" removes title and description, "shuffle-frames" puts the frames in an order drawn from the Id (their
    times stay), "mute" removes the sound.
    """
    title, description = row.title, row.description
    if "blank-text" in ablations:
        title = description = None
    if "shuffle-frames" in ablations:
        seed = int.from_bytes(hashlib.sha256(row.id.encode()).digest()[:8], "big")
        order = np.random.default_rng(seed).permutation(len(clip.frames))
        clip = replace(clip, frames=clip.frames[order])
    if "mute" in ablations:
        clip = replace(clip, audio=None)
    return clip, title, description
