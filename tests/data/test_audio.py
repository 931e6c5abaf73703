"""Sound: pitch and level survive, time 0 is the first picture, and the whole equals what its beginning was."""

import json

import av
import numpy as np
import pytest

from lmm_ecr.data.audio import SAMPLE_RATE, AudioSpec, read_audio
from lmm_ecr.data.decode import read_clip
from lmm_ecr.data.sampling import FrameSampling
from lmm_ecr.errors import ClipError, ConfigError
from tests.data.media import remux, tone, write_clip

WHOLE = AudioSpec(mode="whole")
RESAMPLERS = ["swresample", "soxr_hq"]


def pitch(samples: np.ndarray) -> float:
    """Frequency in Hz of the strongest component."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum)) * SAMPLE_RATE / len(samples)


def level(samples: np.ndarray) -> float:
    """Amplitude of a sine of the same power."""
    return float(np.sqrt(2 * np.mean(samples.astype(np.float64) ** 2)))


def onset(samples: np.ndarray) -> float:
    """Seconds until the sound reaches a tenth of its peak."""
    return float(np.argmax(np.abs(samples) > 0.1 * np.abs(samples).max())) / SAMPLE_RATE


@pytest.mark.parametrize("resampler", RESAMPLERS)
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
def test_pitch_level_and_length(tmp_path, rate, resampler):
    path = write_clip(tmp_path / "a.mp4", audio=tone(440, 3, rate), audio_rate=rate)
    samples = read_audio(path, AudioSpec(mode="whole", resampler=resampler))
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert len(samples) == pytest.approx(3 * SAMPLE_RATE, abs=2200)  # AAC pads to a full packet of 1024
    middle = samples[SAMPLE_RATE : 2 * SAMPLE_RATE]
    assert pitch(middle) == pytest.approx(440, abs=1)
    assert level(middle) == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("resampler", RESAMPLERS)
def test_stereo_is_the_mean_of_the_channels(tmp_path, resampler):
    spec = AudioSpec(mode="whole", resampler=resampler)
    both = np.stack([tone(440, 2), tone(440, 2)])
    samples = read_audio(write_clip(tmp_path / "a.mov", audio=both, audio_codec="pcm_s16le"), spec)
    assert level(samples[8000:24000]) == pytest.approx(0.5, rel=0.01)
    left = np.stack([tone(440, 2), np.zeros_like(tone(440, 2))])
    samples = read_audio(write_clip(tmp_path / "b.mov", audio=left, audio_codec="pcm_s16le"), spec)
    assert level(samples[8000:24000]) == pytest.approx(0.25, rel=0.01)


@pytest.mark.parametrize("resampler", RESAMPLERS)
def test_loud_sound_stays_in_range(tmp_path, resampler):
    square = np.sign(tone(440, 2)) * 0.999
    loud = np.stack([square] * 6)
    path = write_clip(tmp_path / "a.mov", audio=loud.astype(np.float32), audio_codec="pcm_s16le")
    samples = read_audio(path, AudioSpec(mode="whole", resampler=resampler))
    assert np.abs(samples).max() <= 1.0
    assert np.abs(samples).max() > 0.9


def test_uncompressed_16_khz_comes_back_to_the_bit(tmp_path):
    values = np.random.default_rng(0).integers(-32768, 32768, 40_000).astype(np.int16)
    path = write_clip(
        tmp_path / "a.mov",
        audio=values.astype(np.float32) / 32768,
        audio_rate=SAMPLE_RATE,
        audio_codec="pcm_s16le",
    )
    np.testing.assert_array_equal(read_audio(path, WHOLE), values.astype(np.float32) / 32768)


@pytest.mark.parametrize("resampler", RESAMPLERS)
def test_first_seconds_are_the_beginning_of_the_whole(tmp_path, resampler):
    rng = np.random.default_rng(0)
    noise = np.clip(0.1 * rng.standard_normal(44_100 * 6), -1, 1).astype(np.float32)
    path = write_clip(tmp_path / "a.mp4", num_frames=180, audio=noise)
    whole = read_audio(path, AudioSpec(mode="whole", resampler=resampler))
    for seconds in (0.5, 2.0, 3.21):
        part = read_audio(path, AudioSpec(seconds=seconds, resampler=resampler))
        assert len(part) == round(seconds * SAMPLE_RATE)
        np.testing.assert_allclose(part, whole[: len(part)], atol=1e-4 if resampler == "soxr_hq" else 0)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "flv"])
@pytest.mark.parametrize(("video_start", "audio_start"), [(0.0, 0.0), (0.0, 0.6), (0.5, 0.0), (0.3, 0.7)])
def test_time_zero_is_the_first_picture(tmp_path, suffix, video_start, audio_start):
    # silence with a click at 1.5 s on the common clock
    clock = np.zeros(44_100 * 3, dtype=np.float32)
    clock[round(1.5 * 44_100) : round(1.6 * 44_100)] = tone(1000, 0.1)
    sound = clock[round(audio_start * 44_100) :]
    path = write_clip(tmp_path / f"a.{suffix}", num_frames=90, start=video_start, audio=sound, audio_start=audio_start)
    samples = read_audio(path, WHOLE)
    # without an edit list the 1024 samples of the AAC encoder's delay stay in
    assert onset(samples) == pytest.approx(1.5 - video_start, abs=0.003 if suffix in ("mp4", "mkv") else 0.03)
    clip = read_clip(path, FrameSampling(), audio=WHOLE)
    np.testing.assert_array_equal(clip.audio, samples)
    assert clip.damaged is None


def test_trimmed_file_stays_in_time(tmp_path):
    clock = np.zeros(44_100 * 6, dtype=np.float32)
    clock[4 * 44_100 : round(4.1 * 44_100)] = tone(1000, 0.1)
    whole = write_clip(tmp_path / "whole.mp4", num_frames=180, audio=clock)
    path = remux(whole, tmp_path / "trimmed.mp4", shift=-2.5)
    assert onset(read_audio(path, WHOLE)) == pytest.approx(1.5, abs=0.04)  # packets are cut off as a whole


def test_lost_packets_become_silence(tmp_path):
    clock = np.zeros(44_100 * 6, dtype=np.float32)
    clock[5 * 44_100 : round(5.1 * 44_100)] = tone(1000, 0.1)
    whole = write_clip(tmp_path / "whole.mkv", num_frames=180, audio=clock)
    path = remux(
        whole,
        tmp_path / "gap.mkv",
        keep=lambda packet: packet.stream.type == "video" or not 1 < packet.pts * packet.time_base < 3,
    )
    samples, expected = read_audio(path, WHOLE), read_audio(remux(whole, tmp_path / "copy.mkv"), WHOLE)
    assert onset(samples) == pytest.approx(onset(expected), abs=0.003)
    clip = read_clip(path, FrameSampling(), audio=AudioSpec())
    assert "filled with silence" in clip.damaged


def test_no_sound(tmp_path):
    silent = write_clip(tmp_path / "silent.mp4")
    assert read_audio(silent, AudioSpec()) is None
    clip = read_clip(silent, FrameSampling(), audio=AudioSpec())
    assert clip.audio is None
    assert clip.damaged is None
    assert read_clip(write_clip(tmp_path / "a.mp4", audio=tone(440, 2)), FrameSampling()).audio is None


def test_sound_without_pictures(tmp_path):
    path = write_clip(tmp_path / "a.wav", num_frames=0, audio=tone(440, 2), audio_codec="pcm_s16le")
    assert read_audio(path, AudioSpec(seconds=1)).shape == (SAMPLE_RATE,)


def test_short_sound_stays_short_and_late_sound_is_silence(tmp_path):
    path = write_clip(tmp_path / "a.mp4", num_frames=240, audio=tone(440, 1))
    assert len(read_audio(path, AudioSpec())) == pytest.approx(SAMPLE_RATE, abs=1100)
    path = write_clip(tmp_path / "b.mkv", num_frames=240, audio=tone(440, 1), audio_start=5.0)
    samples = read_audio(path, AudioSpec(seconds=2))
    np.testing.assert_array_equal(samples, np.zeros(2 * SAMPLE_RATE, dtype=np.float32))


def test_default_track_is_heard(tmp_path):
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        tracks = []
        for frequency in (300, 700):
            track = container.add_stream("pcm_s16le", rate=SAMPLE_RATE, layout="mono")
            tracks.append((track, tone(frequency, 2, SAMPLE_RATE)))
        tracks[0][0].disposition = 0
        tracks[1][0].disposition = av.stream.Disposition.default
        for track, samples in tracks:
            frame = av.AudioFrame.from_ndarray((samples * 32767).astype(np.int16)[None], format="s16", layout="mono")
            frame.sample_rate = SAMPLE_RATE
            container.mux(track.encode(frame))
        for track, _ in tracks:
            container.mux(track.encode(None))
    assert pitch(read_audio(path, WHOLE)) == pytest.approx(700, abs=1)


def test_unreadable_sound_is_not_silence(tmp_path):
    path = write_clip(tmp_path / "a.mp4", num_frames=60, audio=tone(440, 2))
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(audio=0) if packet.size]
    data = bytearray(path.read_bytes())
    for position, size in places:
        data[position : position + size] = b"\xff" * size
    path.write_bytes(data)
    with pytest.raises(ClipError) as caught:
        read_audio(path, AudioSpec())
    assert caught.value.reason == "damaged"
    clip = read_clip(path, FrameSampling(), audio=AudioSpec())
    assert clip.audio is None
    assert "sound: nothing can be decoded" in clip.damaged
    with pytest.raises(ClipError, match="sound"):
        read_clip(path, FrameSampling(), audio=AudioSpec(), allow_damaged=False)


@pytest.mark.parametrize("content", [None, b"", b"text" * 100])
def test_files_that_are_none(tmp_path, content):
    path = tmp_path / "a.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ClipError):
        read_audio(path, AudioSpec())


@pytest.mark.parametrize(
    ("field", "value"),
    [("mode", "all"), ("seconds", 0), ("seconds", float("nan")), ("seconds", None), ("resampler", "linear")],
)
def test_bad_settings_name_the_field(field, value):
    with pytest.raises(ConfigError, match=field):
        AudioSpec(**{field: value})


def test_settings_round_trip():
    spec = AudioSpec(mode="whole", seconds=3.5, resampler="soxr_hq")
    assert AudioSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    with pytest.raises(ConfigError, match="did you mean 'seconds'"):
        AudioSpec.from_dict({"second": 8})
