"""Audio samples to log-mel features, and recordings to 30-second windows.

Equal to Whisper's features (openai/whisper audio.py, transformers' WhisperFeatureExtractor) within 1e-4, but computed for the real frames
only: what Whisper sees of the padding is a constant, added where a checkpoint asks for it.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.audio_utils import mel_filter_bank

SAMPLE_RATE = 16_000  # samples per second
N_FFT = 400  # samples, 25 ms
HOP_LENGTH = 160  # samples, 10 ms: one frame
WINDOW_SECONDS = 30
N_SAMPLES = WINDOW_SECONDS * SAMPLE_RATE  # 480,000 in a window
N_FRAMES = N_SAMPLES // HOP_LENGTH  # 3,000 in a window
# An analysis window reaches half its width past the last sample, so that many frames after it still hear the end of the audio.
TAIL_FRAMES = -(-(N_FFT // 2) // HOP_LENGTH)


def split_windows(samples: Tensor) -> list[Tensor]:
    """Cuts a recording (samples,) into consecutive windows of at most 30 s; the last one is shorter."""
    return list(torch.split(samples, N_SAMPLES))


def n_frames(n_samples: int) -> int:
    """The number of 10 ms frames that `n_samples` fill, the last one perhaps in part."""
    return -(-n_samples // HOP_LENGTH)


def counted_frames(real: int) -> int:
    """How many frames of a window with `real` ones can be its loudest: those too that only hear its end."""
    return min(real + TAIL_FRAMES, N_FRAMES)


def check_length(samples: Tensor) -> None:
    """Raises ValueError where a window (n,) is empty or longer than 30 s."""
    if not 0 < len(samples) <= N_SAMPLES:
        raise ValueError(f"a window has 1 to {N_SAMPLES} samples, not {len(samples)}")


def log_mels(windows: Sequence[Tensor], n_mels: int = 80) -> list[Tensor]:
    """`log_mel` of several windows at once: one framed Fourier transform and one mel product, whatever their lengths.

    Takes and returns a list of what `log_mel` takes and returns, without padding.
    """
    real = [n_frames(len(samples)) for samples in windows]
    signals = [framed(samples, counted_frames(n)) for samples, n in zip(windows, real, strict=True)]
    power = _power(nn.utils.rnn.pad_sequence(signals, batch_first=True))  # (windows, 201, frames)
    mel = (_mel_filters(n_mels, power.device) @ power).clamp(min=1e-10).log10()  # silence after a window is its minimum
    mel = (torch.maximum(mel, mel.amax((1, 2), keepdim=True) - 8.0) + 4.0) / 4.0
    return [item[:, :n] for item, n in zip(mel, real, strict=True)]


def log_mel(samples: Tensor, n_mels: int = 80, *, pad_to_window: bool = False) -> Tensor:
    """Whisper's log-mel features of one window.

    Takes float32 samples (n,) at 16 kHz with 0 < n <= 480,000 and returns float32 (n_mels, frames): the ceil(n / 160) real frames,
    or with `pad_to_window` all 3,000 that Whisper makes of the window filled up with silence.
    Raises ValueError where the window is empty or longer than 30 s.
    """
    check_length(samples)
    real = n_frames(len(samples))
    frames = counted_frames(real)
    power = _power(framed(samples, frames))  # (201, frames)
    mel = (_mel_filters(n_mels, samples.device) @ power).clamp(min=1e-10).log10()  # (n_mels, frames)
    floor = mel.max() - 8.0
    mel = (torch.maximum(mel, floor) + 4.0) / 4.0
    if not pad_to_window:
        return mel[:, :real]
    silence = (max(-10.0, floor.item()) + 4.0) / 4.0
    return F.pad(mel, (0, N_FRAMES - frames), value=silence)


def log_mels_of_strip(signal: Tensor, owner: Tensor, windows: int, n_mels: int) -> Tensor:
    """Log-mel features of several windows that stand behind each other in one signal.

    signal (frames * 160 + 240,) float32 has what each window's frames are cut from (`framed`), each from some hop on; owner (frames,) says
    of which window a frame is, from 0 on, or `windows` of none. Returns float32 (frames, n_mels), within 1e-4 of `log_mel`'s where a
    window owns its `counted_frames`. Shapes depend on nothing but the signal's length, and the transform is a matrix product, so that a
    GPU can record it: cuFFT would plan anew for every number of frames.
    """
    frames = signal.unfold(0, N_FFT, HOP_LENGTH).contiguous()  # (frames, 400)
    power = (frames @ _fourier(signal.device)).square()  # (frames, 402)
    mel = (power @ _mel_filters(n_mels, signal.device).T.repeat(2, 1)).clamp(min=1e-10).log10()  # (frames, n_mels)
    is_of = owner == torch.arange(windows + 1, device=signal.device)[:, None]  # (windows + 1, frames)
    loudest = torch.where(is_of, mel.amax(1), -torch.inf).amax(1)  # (windows + 1,)
    return (torch.maximum(mel, loudest.index_select(0, owner)[:, None] - 8.0) + 4.0) / 4.0


def framed(samples: Tensor, frames: int) -> Tensor:
    """(n,) -> what `frames` frames are cut from, which are centred on multiples of the hop.

    It is mirrored at the window's start and, where the window is full, at its end.
    """
    length = frames * HOP_LENGTH
    signal = F.pad(samples, (0, length - len(samples)))
    right = signal[-N_FFT // 2 - 1 : -1].flip(0) if length == N_SAMPLES else signal.new_zeros(N_FFT // 2)
    return torch.cat([signal[1 : N_FFT // 2 + 1].flip(0), signal, right])


def _power(signal: Tensor) -> Tensor:
    """(..., frames * 160 + 400) -> (..., 201, frames)."""
    spectrum = torch.stft(
        signal, N_FFT, HOP_LENGTH, window=_hann(signal.device), center=False, return_complex=True
    )  # (..., 201, frames + 1)
    return spectrum[..., :-1].abs().square()


@lru_cache
def _hann(device: torch.device) -> Tensor:
    return torch.hann_window(N_FFT, device=device)


@lru_cache
def _fourier(device: torch.device) -> Tensor:
    """(400, 402): what makes of a frame the cosine parts of its spectrum under the Hann window, and the sine parts."""
    turns = torch.outer(torch.arange(N_FFT), torch.arange(N_FFT // 2 + 1)) % N_FFT  # of 400th
    angles = turns.double() * (2 * torch.pi / N_FFT)
    hann = torch.hann_window(N_FFT, dtype=torch.float64)[:, None]
    return (hann * torch.cat([angles.cos(), angles.sin()], 1)).float().to(device)


@lru_cache
def _mel_filters(n_mels: int, device: torch.device) -> Tensor:
    """(n_mels, 201) triangular filters on Slaney's mel scale, 0 to 8 kHz."""
    filters = mel_filter_bank(
        num_frequency_bins=N_FFT // 2 + 1,
        num_mel_filters=n_mels,
        min_frequency=0.0,
        max_frequency=SAMPLE_RATE / 2,
        sampling_rate=SAMPLE_RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(filters).float().T.contiguous().to(device)
