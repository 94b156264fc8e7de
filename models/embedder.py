"""From a batch of audio windows to a list of speech embeddings."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.adapter import ModalityAdapter
from models.config import PaddingPolicy
from models.encoder import WhisperEncoder, encoder_length
from models.features import log_mel, n_frames
from models.graphs import Ladder, climb
from models.packed import Packed


class Embedder(nn.Module):
    """Whisper encoder and modality adapter: windows of samples in, rows of the LLM's embedding space out.

    A window gets the same rows in any batch (within 1e-5 in float32). `prepare` and `embed_prepared` are the two halves of `embed`; on a
    GPU they are quicker after `accelerate`. With an outline for its encoder it can `prepare`, and tell lengths and widths.
    """

    def __init__(self, encoder: WhisperEncoder, adapter: ModalityAdapter, padding: PaddingPolicy) -> None:
        super().__init__()
        self.encoder = encoder
        self.adapter = adapter
        self.padding = padding
        self.ladder: Ladder | None = None

    @property
    def batched_by(self) -> object:
        """What works on a batch: windows of embedders that have the same may be in one, see `embed_together`."""
        return self.encoder if self.ladder is None else self.ladder

    def accelerate(self, windows: int, seconds: float | None, launch_seconds: float) -> float:
        """Takes the GPU's memory and records the work there; the weights are to stay where they are, in their dtype.

        Batches have at most `windows` windows and `seconds` of audio, by default as many as the GPU encodes in `launch_seconds`; how many
        they are is returned.
        """
        self.ladder = climb(Packed(self.encoder, self.adapter, self.padding), windows, seconds, launch_seconds)
        return self.ladder.seconds

    def with_encoder(self, encoder: WhisperEncoder) -> "Embedder":
        """One with the same adapter, and this encoder."""
        return Embedder(encoder, self.adapter, self.padding)

    def without_speller(self) -> "Embedder":
        """One whose rows are those that the adapter's speller would get; it works by the same weights and records."""
        other = Embedder(self.encoder, self.adapter.without_speller(), self.padding).eval()
        other.ladder = self.ladder and self.ladder.with_adapter(other.adapter)
        return other

    @property
    def device(self) -> torch.device:
        """Where the weights are and the work is done."""
        return self.adapter.speech_ln.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the encoder computes in, and the dtype of the rows."""
        return self.encoder.conv1.weight.dtype

    @property
    def width(self) -> int:
        """That of the rows: llm_dim, or as much for each phase."""
        return self.adapter.width if self.ladder is None else self.ladder.packed.llm_dim

    def speech_length(self, n_samples: int) -> int:
        """How many speech embeddings a window of `n_samples` becomes; of an adapter that spells, at most."""
        return self.adapter.subsampler.output_length(encoder_length(n_frames(n_samples)))

    def least_rows(self, n_samples: int) -> int:
        """How many speech embeddings a window of `n_samples` becomes at least, whatever is said in it."""
        return self.speech_length(n_samples) if self.adapter.speller is None else 1

    def features(self, window: Tensor) -> Tensor:
        """Samples (n,), n <= 480,000, to log-mel features (n_mels, frames) on the embedder's device, as the padding policy has them."""
        samples = window.to(self.device, torch.float32)
        return log_mel(samples, self.encoder.config.num_mel_bins, pad_to_window=self.padding == "30s")

    def prepare(self, window: Tensor) -> Tensor:
        """What can be done of a window (n,) before its batch is there: (…, frames), a few more where it is not features but samples."""
        return self.features(window) if self.ladder is None else self.ladder.packed.prepare(window)

    def encode(self, features: Sequence[Tensor]) -> Tensor:
        """Features of a batch to encoder states (batch, length, d_model), real up to each window's `encoder_length`."""
        frames = torch.tensor([f.shape[1] for f in features])
        batch = nn.utils.rnn.pad_sequence([f.T for f in features], batch_first=True).transpose(1, 2)
        states: Tensor = self.encoder(batch.to(self.dtype), frames)
        return states

    @torch.inference_mode()
    def embed(self, windows: Sequence[Tensor]) -> list[Tensor]:
        """Windows of float32 samples (n_i,) at 16 kHz, 0 < n_i <= 480,000, to speech embeddings (speech_length(n_i), width)."""
        return self.embed_features([self.features(w) for w in windows], [len(w) for w in windows])

    @torch.inference_mode()
    def embed_features(self, features: Sequence[Tensor], n_samples: Sequence[int]) -> list[Tensor]:
        """As `embed`, for features that are ready."""
        states = self.encode(features)
        lengths = torch.tensor([encoder_length(n_frames(n)) for n in n_samples])
        rows: list[Tensor] = self.adapter(states, lengths)
        return rows

    def embed_prepared(self, prepared: Sequence[Tensor], n_samples: Sequence[int]) -> list[Tensor]:
        """As `embed`, for windows that `prepare` has prepared; rows of an accelerated one are on the host."""
        if self.ladder is None:
            return self.embed_features(prepared, n_samples)
        return self.ladder.embed(prepared, n_samples)


@torch.inference_mode()
def embed_together(embedders: Sequence[Embedder], prepared: Sequence[Tensor], n_samples: Sequence[int]) -> list[Tensor]:
    """Rows (n_i, llm_dim) of windows, each prepared by its embedder's `prepare`; all embedders are `batched_by` the same.

    Up to the encoder's last layer they are one batch, from there on one for each adapter. Where there is one adapter only, this is
    `embed_prepared` of an embedder that has it.
    """
    windows_of: dict[ModalityAdapter, list[int]] = {}
    for i, embedder in enumerate(embedders):
        windows_of.setdefault(embedder.adapter, []).append(i)
    if len(windows_of) == 1:
        return embedders[0].embed_prepared(prepared, n_samples)
    states = embedders[0].encode(prepared)  # (windows, length, encoder_dim)
    lengths = torch.tensor([encoder_length(n_frames(n)) for n in n_samples])
    rows: dict[int, Tensor] = {}
    for adapter, windows in windows_of.items():
        rows |= zip(windows, adapter(states[windows], lengths[windows]), strict=True)
    return [rows[i] for i in range(len(rows))]
