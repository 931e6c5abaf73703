"""Small pictures of a clip for the report: three JPEG images from its first seconds, or the reason why there are none."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from .errors import ClipError

INSTANTS = (0, 2, 4)  # seconds; ECR is decided in the first five
HEIGHT = 150  # pixels
QUALITY = 72  # JPEG


@dataclass(frozen=True)
class Thumbnails:
    """images: `data:` addresses, one per instant; empty if the clip cannot be read, and then `reason` says why."""

    images: list[str]
    reason: str


def clip_path(video_dir: Path, clip_id: str, video: str = "") -> Path:
    """`<video_dir>/<Id>.mp4`, or the path in the table's Video column (relative to `video_dir`).

    Raises ClipError for an id that would lead out of the directory: ids are untrusted text.
    """
    if video.strip():
        return video_dir / video
    parts = PurePosixPath(clip_id.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or "\0" in clip_id or ":" in clip_id[:3]:
        raise ClipError(clip_id, "unsafe_id", "the Id would leave the video directory")
    return video_dir / f"{clip_id}.mp4"


def read_thumbnails(video_dir: Path, clip_id: str, video: str = "") -> Thumbnails:
    """Frames of the first seconds as small JPEG images. A clip that cannot be read is a reason, not an error."""
    from .data.decode import read_clip
    from .data.sampling import FrameSampling

    sampling = FrameSampling("first_n_seconds", num_frames=len(INSTANTS), fps=0.5)
    try:
        path = clip_path(video_dir, clip_id, video)
        if not path.is_file():
            return Thumbnails([], f"no file {video.strip() or clip_id + '.mp4'} in the video directory")
        clip = read_clip(path, sampling, max_pixels=HEIGHT * HEIGHT * 4)
    except ClipError as error:
        return Thumbnails([], error.reason + (f" ({error.detail})" if error.detail else ""))
    return Thumbnails([_data_address(frame) for frame in clip.frames], "")


def _data_address(frame: np.ndarray) -> str:
    """A `data:` address of a uint8 [height, width, 3] picture, scaled to HEIGHT."""
    from PIL import Image

    image = Image.fromarray(frame)
    image = image.resize((max(1, round(image.width * HEIGHT / image.height)), HEIGHT), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
