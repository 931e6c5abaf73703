"""Whether an MP4 or QuickTime file asks for a mirrored picture: the display matrices in its headers.

FFmpeg's angle, which is all that PyAV's frames tell at a fair price, reads a mirrored picture as a turned one. (A frame's
`side_data` has the matrix, but keeps the frame alive in a reference cycle, until the garbage collector comes round.)
"""

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

# ISO/IEC 14496-12: bytes before the matrix in a box's content (movie header 8.2.2, track header 8.3.2), by version, and
# before the track's number.
MOVIE_MATRIX = {0: 36, 1: 48}
TRACK_MATRIX = {0: 40, 1: 52}
TRACK_ID = {0: 12, 1: 20}


def is_mirrored(path: str | os.PathLike, track_id: int) -> bool:
    """True where the matrices of movie and track together have a negative determinant; False if there are none."""
    with open(path, "rb") as stream:
        end = os.fstat(stream.fileno()).st_size
        for movie in _boxes(stream, (0, end), b"moov"):
            whole = [_determinant(stream, header, MOVIE_MATRIX) for header in _boxes(stream, movie, b"mvhd")]
            for track in _boxes(stream, movie, b"trak"):
                for header in _boxes(stream, track, b"tkhd"):
                    if _number(stream, header) == track_id:
                        return _determinant(stream, header, TRACK_MATRIX) * (whole or [1])[0] < 0
    return False


def _boxes(stream: BinaryIO, span: tuple[int, int], kind: bytes) -> Iterator[tuple[int, int]]:
    """Start and end of the contents of the boxes of one kind directly within a span; stops at a damaged box."""
    position, end = span
    while position + 8 <= end:
        stream.seek(position)
        size, found = struct.unpack(">I4s", stream.read(8))
        start = position + 8
        if size == 1 and start + 8 <= end:
            (size,) = struct.unpack(">Q", stream.read(8))
            start += 8
        elif size == 0:
            size = end - position
        if size < start - position or position + size > end:
            return
        if found == kind:
            yield start, position + size
        position += size


def _field(stream: BinaryIO, box: tuple[int, int], places: dict[int, int], form: str) -> tuple[int, ...] | None:
    stream.seek(box[0])
    place = places.get((stream.read(1) or b"\xff")[0])
    length = struct.calcsize(form)
    if place is None or box[0] + place + length > box[1]:
        return None
    stream.seek(box[0] + place)
    return struct.unpack(form, stream.read(length))


def _number(stream: BinaryIO, header: tuple[int, int]) -> int | None:
    return (_field(stream, header, TRACK_ID, ">I") or (None,))[0]


def _determinant(stream: BinaryIO, header: tuple[int, int], places: dict[int, int]) -> int:
    """Sign-carrying determinant of the turning part of a matrix; 1 if the box holds none."""
    matrix = _field(stream, header, places, ">9i")
    return 1 if matrix is None else matrix[0] * matrix[4] - matrix[1] * matrix[3]
