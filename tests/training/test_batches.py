"""Global batches: the same rows at the same step, however many processes and micro-batches share them."""

import math

from hypothesis import given
from hypothesis import strategies as st

from lmm_ecr.training.batches import GlobalBatchSampler, PaddedDataset, grouped_by_length, shuffled


def batches(size, micro, processes, epoch=0, order=None, **options):
    """Per process: its micro-batches of an epoch."""
    result = []
    for rank in range(processes):
        sampler = GlobalBatchSampler(order or shuffled(size, 3), size, micro, rank, processes, **options)
        sampler.set_epoch(epoch)
        result.append(list(sampler))
        assert len(result[-1]) == len(sampler)
    return result


@given(size=st.integers(1, 60), micro=st.integers(1, 7), processes=st.integers(1, 6), epoch=st.integers(0, 3))
def test_every_row_counts_exactly_once_per_epoch(size, micro, processes, epoch):
    shares = batches(size, micro, processes, epoch)
    assert {len(share) for share in shares} == {math.ceil(size / (micro * processes))}
    rows = [row for share in shares for batch in share for row in batch if row >= 0]
    assert sorted(rows) == list(range(size))
    for share in shares:
        for batch in share:
            assert 1 <= len(batch) <= micro
            assert all(row >= 0 for row in batch) or len(batch) == 1


@given(size=st.integers(1, 60), micro=st.integers(1, 4), processes=st.integers(1, 4))
def test_a_step_has_the_rows_that_one_process_would_take(size, micro, processes):
    shares = batches(size, micro, processes)
    (alone,) = batches(size, micro * processes, 1)
    for step, expected in enumerate(alone):
        together = [row for share in shares for row in share[step] if row >= 0]
        assert together == expected


def test_epochs_differ_and_a_restarted_process_sees_the_same():
    assert batches(20, 4, 1, 0) != batches(20, 4, 1, 1)
    assert batches(20, 4, 1, 1) == batches(20, 4, 1, 1)


def test_drop_last_leaves_out_the_incomplete_batch():
    shares = batches(11, 2, 2, drop_last=True)
    assert sum(len(b) for share in shares for b in share) == 8


def test_batches_of_similar_length_cover_every_row_once():
    lengths = [(i * 37) % 100 for i in range(500)]
    order = grouped_by_length(lengths, 5, 0)
    assert sorted(order(0)) == list(range(500))
    assert order(0) != order(1)
    spread = [max(lengths[r] for r in b) - min(lengths[r] for r in b) for b in batches(500, 5, 1, order=order)[0]]
    assert sum(spread) / len(spread) < 15  # random batches of 5 of these lengths: about 66


def test_padding_rows_have_no_label():
    class Rows:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return {"row_index": index, "labels": (0.5, 0.25)}

    padded = PaddedDataset(Rows())
    assert padded[2] == {"row_index": 2, "labels": (0.5, 0.25)}
    assert padded[~2]["row_index"] == 2
    assert all(math.isnan(v) for v in padded[~2]["labels"])
    assert len(padded) == 3
