"""Approximate lengths of all rows of a table, from file headers read once by all processes together."""

from dataclasses import replace

from .dataset import estimate_lengths
from .manifest import Manifest
from .processor import ClipProcessor


def shared_lengths(manifest: Manifest, processor: ClipProcessor) -> list[int]:
    """`estimate_lengths` of every row; each process of a distributed run reads its share of the files.

    Every process must call it with the same manifest.
    """
    from accelerate import PartialState
    from accelerate.utils import gather_object

    state = PartialState()
    if state.num_processes == 1:
        return estimate_lengths(manifest, processor)
    own = range(state.process_index, len(manifest), state.num_processes)
    lengths = estimate_lengths(replace(manifest, rows=[manifest[i] for i in own]), processor)
    result = dict(gather_object(list(zip(own, lengths, strict=True))))
    return [result[i] for i in range(len(manifest))]
