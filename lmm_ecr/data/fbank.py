"""Kaldi-compatible log mel filter bank, and which part of a sound track the VideoLLaMA2 reference listens to.

The filter bank is `torchaudio.compliance.kaldi.fbank` with the reference's parameters, written out so that torchaudio
is not needed: 16 kHz, frames of 25 ms every 10 ms without partial frames, 128 mel bins from 20 Hz to the Nyquist
frequency, Povey window, pre-emphasis 0.97, no dither. It is evaluated in float32 in torchaudio's order of operations.
"""

import math
from fractions import Fraction
from functools import lru_cache

import numpy as np
import torch

from lmm_ecr.errors import DataError

SAMPLE_RATE = 16000  # Hz
FRAME_LENGTH = 400  # samples, 25 ms
FRAME_SHIFT = 160  # samples, 10 ms
NUM_MEL_BINS = 128
REFERENCE_PADDED_SAMPLES = 30 * SAMPLE_RATE

_FFT_SIZE = 512  # the next power of two above FRAME_LENGTH, as Kaldi pads
_LOWEST_HZ = 20.0
_PREEMPHASIS = 0.97
_POVEY_EXPONENT = 0.85
_ENERGY_FLOOR = torch.finfo(torch.float32).eps  # 1.1920929e-07, Kaldi's floor before the logarithm
_INT16_SCALE = 2.0**15  # Kaldi works on the integer scale of 16-bit samples


def num_fbank_frames(num_samples: int) -> int:
    """Filter bank frames of `num_samples` samples: only whole 25 ms frames count. 480000 samples give 2998."""
    return 0 if num_samples < FRAME_LENGTH else 1 + (num_samples - FRAME_LENGTH) // FRAME_SHIFT


def kaldi_fbank(waveform: torch.Tensor | np.ndarray) -> torch.Tensor:
    """Log mel energies of mono sound at 16 kHz.

    Args:
        waveform: float32 [S] or [B, S], nominally in [-1, 1] (16-bit samples divided by 32768); at least 400 samples.

    Returns:
        float32 [frames, 128] or [B, frames, 128] with `frames = 1 + (S - 400) // 160`. Natural logarithm of the energy
        on the 16-bit scale; digital silence is -15.942385 everywhere. Mel bin 3 lies between two FFT frequencies and is
        always -15.942385.

    Raises:
        DataError: not float32, not one or two axes, fewer than 400 samples, or values that are not finite.
    """
    waveform = torch.as_tensor(waveform)
    if waveform.dtype != torch.float32:
        raise DataError(
            f"the filter bank takes float32 samples in [-1, 1], not {waveform.dtype}; divide 16-bit samples by 32768"
        )
    if waveform.dim() not in (1, 2):
        raise DataError(f"a waveform has the axes [samples] or [batch, samples], not {tuple(waveform.shape)}")
    if waveform.shape[-1] < FRAME_LENGTH:
        raise DataError(
            f"{waveform.shape[-1]} samples are less than one filter bank frame ({FRAME_LENGTH} samples, 25 ms); "
            "pad the waveform with zeros first"
        )
    if not torch.isfinite(waveform).all():
        raise DataError("the waveform holds NaN or infinite samples; decode the sound track again")
    frames = (waveform * _INT16_SCALE).unfold(-1, FRAME_LENGTH, FRAME_SHIFT)
    frames = frames - frames.mean(dim=-1, keepdim=True)
    previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)  # the sample before a frame is its first one
    frames = (frames - _PREEMPHASIS * previous) * _povey_window().to(frames.device)
    spectrum = torch.fft.rfft(frames, n=_FFT_SIZE).abs().pow(2.0)
    energies = spectrum @ _mel_weights().to(frames.device)
    return energies.clamp_min(_ENERGY_FLOOR).log()


def reference_audio_windows(
    num_samples: int, sample_rate: int = SAMPLE_RATE, window_seconds: int = 2, num_windows: int = 8
) -> list[tuple[int, int]]:
    """Sample ranges (start, end) that the VideoLLaMA2 reference concatenates, for a track of `num_samples` samples.

    Window k starts at `k * m / 8` seconds, where m is the track's length less one window (at least 0), and is cut at
    the track's end. The reference evaluates m in float64 and everything after it in exact rational arithmetic
    (pytorchvideo 0.1.5), and so does this function. The windows of a track under 18 s overlap, a track shorter than
    one window is repeated whole, and the last eighth of m is never heard.

    >>> reference_audio_windows(80000)[-1]
    (42000, 74000)
    """
    if num_samples < 0:
        raise DataError(f"a track cannot have {num_samples} samples")
    span = Fraction(max(num_samples / sample_rate - window_seconds, 0.0))
    windows = []
    for index in range(num_windows):
        start = span * index / num_windows
        first = math.floor(sample_rate * start)
        last = math.floor(sample_rate * (start + window_seconds))
        windows.append((min(first, num_samples), min(last, num_samples)))
    return windows


def reference_audio(waveform: np.ndarray) -> np.ndarray:
    """The windows of `reference_audio_windows` joined in order: [S] -> [256000] for tracks of 2 s or more."""
    return np.concatenate([waveform[start:end] for start, end in reference_audio_windows(len(waveform))])


def pad_audio(waveform: np.ndarray, num_samples: int = REFERENCE_PADDED_SAMPLES) -> np.ndarray:
    """Zeros appended up to `num_samples`; a longer waveform is returned as it is."""
    missing = num_samples - len(waveform)
    return waveform if missing <= 0 else np.concatenate([waveform, np.zeros(missing, dtype=waveform.dtype)])


@lru_cache(maxsize=1)
def _povey_window() -> torch.Tensor:
    return torch.hann_window(FRAME_LENGTH, periodic=False, dtype=torch.float32).pow(_POVEY_EXPONENT)


@lru_cache(maxsize=1)
def _mel_weights() -> torch.Tensor:
    """Triangles [257, 128] float32, evaluated in the mel domain (corners and slopes in float32, as torchaudio does)."""
    lowest, highest = (1127.0 * math.log(1.0 + hertz / 700.0) for hertz in (_LOWEST_HZ, SAMPLE_RATE / 2))
    spacing = (highest - lowest) / (NUM_MEL_BINS + 1)
    index = torch.arange(NUM_MEL_BINS).unsqueeze(1)
    left, centre, right = lowest + index * spacing, lowest + (index + 1.0) * spacing, lowest + (index + 2.0) * spacing
    mel = 1127.0 * (1.0 + torch.arange(_FFT_SIZE // 2) * (SAMPLE_RATE / _FFT_SIZE) / 700.0).log()
    triangles = torch.minimum((mel - left) / (centre - left), (right - mel) / (right - centre)).clamp_min(0.0)
    return torch.nn.functional.pad(triangles, (0, 1)).T.contiguous()  # the Nyquist frequency has weight 0
