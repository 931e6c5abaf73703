"""The filter bank and the audio windows against the reference's numbers."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from lmm_ecr.data.fbank import kaldi_fbank, num_fbank_frames, pad_audio, reference_audio, reference_audio_windows
from lmm_ecr.errors import DataError

GOLDENS = Path(__file__).resolve().parents[1] / "goldens" / "videollama2_av"
SILENCE = math.log(torch.finfo(torch.float32).eps)


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDENS / "fbank.safetensors")


def test_filter_bank_equals_torchaudio(golden):
    fbank = kaldi_fbank(golden["waveform_int16"].float() / 32768)
    assert fbank.dtype == torch.float32
    assert fbank.shape == golden["fbank"].shape
    assert torch.allclose(fbank, golden["fbank"], rtol=0, atol=1e-3)
    # The steps of bfloat16 hide differences of 1e-4, apart from values on the border of two steps.
    assert (fbank.bfloat16() == golden["fbank_bfloat16"]).float().mean() > 0.999


def test_batch_equals_single_waveforms(golden):
    waveform = golden["waveform_int16"].float() / 32768
    batch = torch.stack([waveform, waveform.flip(0)])
    assert torch.allclose(kaldi_fbank(batch)[1], kaldi_fbank(batch[1]), rtol=0, atol=1e-5)
    assert torch.equal(kaldi_fbank(waveform.numpy()), kaldi_fbank(waveform))


def test_silence_and_the_empty_mel_bin(golden):
    assert torch.allclose(kaldi_fbank(torch.zeros(480000)), torch.full((2998, 128), SILENCE))
    assert torch.allclose(kaldi_fbank(golden["waveform_int16"].float() / 32768)[:, 3], torch.tensor(SILENCE))


def test_a_pure_tone_peaks_in_its_mel_bin():
    tone = torch.sin(2 * math.pi * 1000 * torch.arange(16000) / 16000)
    mel = [1127 * math.log(1 + f / 700) for f in (20, 8000, 1000)]
    expected = round((mel[2] - mel[0]) / ((mel[1] - mel[0]) / 129)) - 1
    assert set(kaldi_fbank(tone).argmax(-1).tolist()) == {expected}


@pytest.mark.parametrize("samples", [400, 401, 559, 560, 16000])
def test_frame_count(samples):
    assert len(kaldi_fbank(torch.zeros(samples))) == num_fbank_frames(samples) == 1 + (samples - 400) // 160


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (torch.zeros(399), "399 samples"),
        (torch.zeros(1000, dtype=torch.int16), "int16"),
        (torch.zeros(1000, dtype=torch.float64), "float64"),
        (torch.zeros(1, 1, 1000), "axes"),
        (torch.full((1000,), float("nan")), "NaN"),
    ],
)
def test_bad_waveforms_are_refused(waveform, message):
    with pytest.raises(DataError, match=message):
        kaldi_fbank(waveform)


def test_windows_equal_the_reference():
    cases = json.loads((GOLDENS / "sampling.json").read_text())["audio_windows"]["cases"]
    assert len(cases) == 17
    for case in cases:
        windows = reference_audio_windows(case["audio_samples"])
        assert [list(window) for window in windows] == case["windows"], case["audio_samples"]


def test_windows_of_a_five_second_track():
    # m = 3 s: starts every 0.375 s = 6000 samples; the last window ends at 42000 + 32000.
    assert reference_audio_windows(80000) == [(6000 * k, 6000 * k + 32000) for k in range(8)]


@given(st.integers(0, 40_000_000))
def test_windows_stay_inside_the_track_and_are_two_seconds_long(samples):
    windows = reference_audio_windows(samples)
    assert len(windows) == 8
    assert all(0 <= start <= end <= samples for start, end in windows)
    if samples >= 32000:
        assert all(end - start == 32000 for start, end in windows)
    else:
        assert windows == [(0, samples)] * 8


def test_joined_windows_and_padding():
    ramp = np.arange(8000, dtype=np.float32)
    joined = reference_audio(ramp)
    assert np.array_equal(joined, np.tile(ramp, 8))
    padded = pad_audio(joined)
    assert len(padded) == 480000
    assert padded.dtype == np.float32
    assert np.array_equal(padded[:64000], joined)
    assert not padded[64000:].any()
    assert pad_audio(padded, 100) is padded
    assert len(reference_audio(np.zeros(0, np.float32))) == 0
