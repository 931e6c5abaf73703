"""Frame sampling: the baseline's indices on constant rates, true instants on variable rates, and the edges."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmm_ecr.data.sampling import FrameSampling, frame_interval, mean_frame_interval, sample_indices
from lmm_ecr.errors import ConfigError, DataError

GOLDENS = Path(__file__).resolve().parents[2] / "../shared/goldens/videollama2_av/sampling.json"

RANDOM_RATES = np.random.default_rng(0).uniform(5, 120, 50).round(4).tolist()


def constant_rate(num_frames: int, fps: float) -> tuple[np.ndarray, float]:
    return np.arange(num_frames) / fps, num_frames / fps


def indices(sampling: FrameSampling, timestamps, duration=None) -> list[int]:
    return sample_indices(sampling, np.asarray(timestamps, dtype=np.float64), duration).tolist()


@pytest.mark.parametrize(
    ("num_frames", "fps", "expected"),
    [
        (1, 30, [0] * 8),
        (10, 30, [0, 1, 2, 3, 5, 6, 7, 9]),
        (239, 30, [0, 34, 68, 102, 136, 170, 204, 238]),
        (240, 30, [0, 30, 60, 90, 120, 150, 180, 210]),
        (900, 30000 / 1001, [0, 29, 59, 89, 119, 149, 179, 209]),
        (100, 12.5, [0, 12, 25, 37, 50, 62, 75, 87]),
    ],
)
def test_first_eight_seconds_at_a_constant_rate(num_frames, fps, expected):
    assert indices(FrameSampling(), *constant_rate(num_frames, fps)) == expected


@pytest.mark.parametrize(
    ("available", "expected"),
    [
        (1, [0] * 8),
        (2, [0, 0, 0, 0, 1, 1, 1, 1]),
        (9, [1, 2, 3, 4, 5, 6, 7, 8]),
        (240, [15, 45, 75, 105, 134, 164, 194, 224]),
    ],
)
def test_uniform(available, expected):
    assert indices(FrameSampling(mode="uniform"), *constant_rate(available, 30)) == expected


@pytest.mark.skipif(not GOLDENS.is_file(), reason="the reference's sampling.json is not on this machine")
@pytest.mark.parametrize("duration_known", [True, False])
def test_equals_the_reference(duration_known):
    cases = [case for case in json.loads(GOLDENS.read_text())["frame_sample"] if case["mode"] != "fps"]
    assert len(cases) > 20
    for case in cases:
        timestamps, duration = constant_rate(case["total_frames"], case["fps"] or 30)
        sampling = FrameSampling(mode=case["mode"], num_frames=case["num_frames"])
        found = indices(sampling, timestamps, duration if duration_known else None)
        assert found == case["frame_indices"], case


COMMON_RATES = (24000 / 1001, 24, 25, 30000 / 1001, 30, 50, 60000 / 1001, 60)


def published_indices(num_frames: int, rate: float, wanted: int) -> list[int]:
    """Frame trunc(i * rate), or spread where the clip has fewer than wanted * rate frames."""
    if num_frames < wanted * rate - 1e-9:
        return np.trunc(np.linspace(0, num_frames - 1, wanted)).astype(int).tolist()
    return np.trunc(np.arange(wanted) * rate + 1e-9).astype(int).tolist()


@pytest.mark.parametrize("rate", [*COMMON_RATES, 29.99, 30.0003, 59.98, 119.88, *RANDOM_RATES])
def test_any_constant_rate_gives_the_published_frames(rate):
    for num_frames in (1, 7, int(8 * rate), int(8 * rate) + 1, 900, 1920):
        for wanted in (2, 5, 8, 16):
            found = indices(FrameSampling(num_frames=wanted), *constant_rate(num_frames, rate))
            assert found == published_indices(num_frames, rate, wanted), (num_frames, wanted)


@pytest.mark.parametrize("clock", [1000, 15_360, 90_000])
@pytest.mark.parametrize("rate", COMMON_RATES)
def test_times_rounded_to_the_clock_of_a_container_give_the_same_frames(rate, clock):
    for num_frames in (1, 7, int(8 * rate), int(8 * rate) + 1, 900, 1920):
        times = np.round(np.arange(num_frames) / rate * clock) / clock
        duration = round(num_frames / rate * clock) / clock
        for wanted in (2, 5, 8, 16):
            found = indices(FrameSampling(num_frames=wanted), times, duration)
            assert found == published_indices(num_frames, rate, wanted), (num_frames, wanted)


def test_frame_at_t_is_the_one_on_the_screen():
    # 0.9996 + 0.0005 reaches 1.0; the frame of 2.0006 s is not yet shown at 2 s; nothing new between 2.1 and 5.5 s
    timestamps = [0.0, 0.5, 1.0004, 2.0006, 2.1, 5.5, 7.9]
    sampling = FrameSampling(num_frames=7)
    assert indices(sampling, timestamps, 8.0) == [0, 2, 2, 4, 4, 4, 5]


def test_short_clip_fewer():
    sampling = FrameSampling(short_clips="fewer")
    assert indices(sampling, *constant_rate(75, 30)) == [0, 30, 60]  # 2.5 s: 0, 1 and 2 s exist
    assert indices(sampling, *constant_rate(60, 30)) == [0, 30]  # exactly 2.0 s: nothing is shown at 2 s
    assert indices(sampling, [0.0]) == [0]


def test_fps_mode():
    assert indices(FrameSampling(mode="fps", fps=2), *constant_rate(75, 30)) == [0, 15, 30, 45, 60]
    assert indices(FrameSampling(mode="fps", fps=1), *constant_rate(1, 30)) == [0]
    # 10 s at 1 fps would be ten frames; four are spread over the clip: 0, 2.5, 5 and 7.5 s
    assert indices(FrameSampling(mode="fps", max_frames=4), *constant_rate(300, 30)) == [0, 75, 150, 225]
    # more frames per second than the clip has: frames repeat
    assert indices(FrameSampling(mode="fps", fps=4), *constant_rate(2, 2)) == [0, 0, 1, 1]


@given(
    steps=st.lists(st.floats(0, 10), min_size=0, max_size=50),
    sampling=st.builds(
        FrameSampling,
        mode=st.sampled_from(["first_n_seconds", "uniform", "fps"]),
        num_frames=st.integers(1, 40),
        fps=st.floats(0.01, 100),
        max_frames=st.integers(1, 40),
        short_clips=st.sampled_from(["spread", "fewer"]),
    ),
    duration=st.none() | st.floats(-1, 600) | st.just(float("nan")),
)
def test_never_out_of_range_and_never_backwards(steps, sampling, duration):
    timestamps = np.concatenate([[0.0], np.cumsum(steps)])
    found = sample_indices(sampling, timestamps, duration)
    assert found.dtype == np.int64
    assert 1 <= len(found) <= (sampling.max_frames if sampling.mode == "fps" else sampling.num_frames)
    assert found.min() >= 0
    assert found.max() < len(timestamps)
    assert (np.diff(found) >= 0).all()
    if sampling.mode == "uniform" or (sampling.mode == "first_n_seconds" and sampling.short_clips == "spread"):
        assert len(found) == sampling.num_frames


@pytest.mark.parametrize("timestamps", [[], [0.0, 2.0, 1.0], [0.0, float("nan")]])
def test_bad_timestamps_are_refused(timestamps):
    with pytest.raises(DataError):
        indices(FrameSampling(), timestamps)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mode", "first"),
        ("num_frames", 0),
        ("num_frames", 2.0),
        ("num_frames", True),
        ("fps", 0),
        ("fps", float("inf")),
        ("fps", "1"),
        ("max_frames", -1),
        ("short_clips", "repeat"),
    ],
)
def test_bad_settings_name_the_field(field, value):
    with pytest.raises(ConfigError, match=field):
        FrameSampling(**{field: value})


def test_settings_round_trip():
    sampling = FrameSampling(mode="fps", fps=2.5, max_frames=7)
    assert FrameSampling.from_dict(json.loads(json.dumps(sampling.to_dict()))) == sampling
    assert FrameSampling.from_dict({}) == FrameSampling()
    with pytest.raises(ConfigError, match="did you mean 'num_frames'"):
        FrameSampling.from_dict({"num_frame": 8})


@pytest.mark.parametrize(
    ("sampling", "rate", "num_frames", "expected"),
    [
        (FrameSampling(), 29.97, 300, 1.0),  # frames of 0, 0.967, 1.968 ... are what is seen at 0, 1, 2 ... s
        (FrameSampling(fps=4.0), 30, 300, 0.25),
        (FrameSampling(num_frames=4, short_clips="fewer"), 30, 75, 1.0),
        (FrameSampling(mode="fps", fps=2.0), 29.97, 120, 0.5),
        (FrameSampling(), 30, 120, 119 / 30 / 7),  # 4 s spread over 8 frames
        (FrameSampling(), 30.0003, 240, 239 / 30.0003 / 7),
        (FrameSampling(mode="uniform"), 30, 300, 261 / 30 / 7),
        (FrameSampling(mode="fps", fps=10.0, max_frames=4), 30, 120, 1.0),
    ],
)
def test_frame_interval(sampling, rate, num_frames, expected):
    times, duration = constant_rate(num_frames, rate)
    taken = times[sample_indices(sampling, times, duration)]
    assert frame_interval(sampling, taken, duration) == pytest.approx(expected, abs=1e-12)


def test_mean_frame_interval():
    assert mean_frame_interval(np.array([0.0, 1.0, 2.0, 3.0])) == 1.0
    assert mean_frame_interval(np.array([0.5, 0.6, 2.5])) == 1.0
    assert mean_frame_interval(np.array([3.0])) == 1.0
    assert mean_frame_interval(np.zeros(8)) == 1e-3
    with pytest.raises(DataError):
        mean_frame_interval(np.array([]))
