"""Trains the speech encoder: phones after its second layer and words at its top, for every 20 ms, and the words in order (CTC)."""

import logging
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import WhisperConfig

from models.demo import padded, state
from models.demo.corpus import IGNORED, phone_set
from models.demo.mel_augment import N_MELS, augment
from models.demo.utterances import Batch, Utterances, batches
from models.demo.world import spoken_words
from models.encoder import WhisperEncoder

SIZES = {
    "d_model": 256,
    "encoder_layers": 5,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 768,
    "num_mel_bins": N_MELS,
}
PHONE_LAYER = 2
PHONE_WEIGHT, CTC_WEIGHT = 0.5, 0.3
PEAK_RATE, WARMUP = 1.1e-3, 300
BATCH_FRAMES, WIDTHS = 6000, 32  # frames in a batch, and what its width is a multiple of
SAVE_EVERY, LOG_EVERY = 250, 50

logger = logging.getLogger(__name__)


class SpeechRecogniser(nn.Module):
    """The encoder with the heads that teach it; only the encoder is kept."""

    def __init__(self) -> None:
        super().__init__()
        config = WhisperConfig(**SIZES)
        dim, words = config.d_model, len(spoken_words()) + 1
        self.encoder = WhisperEncoder(config)
        with torch.no_grad():
            self.encoder.embed_positions.weight.copy_(_sinusoids(config.max_source_positions, dim))
        self.encoder.embed_positions.requires_grad_(False)
        self.phone_head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, len(phone_set()) + 1))
        self.word_head = nn.Linear(dim, words)
        self.ctc_head = nn.Linear(dim, words)

    def forward(self, features: Tensor, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(batch, n_mels, T) -> float32 logits (batch, states, classes) of the phones, the words, and the words of CTC."""
        middle, states = padded.encode(self.encoder, features, frames, PHONE_LAYER)
        return self.phone_head(middle).float(), self.word_head(states).float(), self.ctc_head(states).float()


def _sinusoids(length: int, dim: int) -> Tensor:
    """Whisper's positions (length, dim)."""
    rates = torch.exp(-torch.arange(dim // 2) * torch.log(torch.tensor(10000.0)) / (dim // 2 - 1))
    angles = torch.arange(length)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def loss(model: SpeechRecogniser, batch: Batch, features: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted sum of the three losses, and the share of states whose word is right."""
    with torch.autocast("cpu", torch.bfloat16):
        phones, words, ctc = model(features, batch.frames)
    phone_loss = _state_loss(phones, batch.phones)
    word_loss = _state_loss(words, batch.words, smoothing=0.05)
    targets = [torch.tensor([spoken_words().index(word) + 1 for word in text.split()]) for text in batch.texts]
    ctc_loss = F.ctc_loss(
        ctc.log_softmax(-1).transpose(0, 1),
        torch.cat(targets),
        (batch.frames - 1) // 2 + 1,
        torch.tensor([len(target) for target in targets]),
        reduction="sum",
        zero_infinity=True,
    ) / sum(map(len, targets))
    real = batch.words != IGNORED
    right = (words.argmax(-1) == batch.words)[real].float().mean()
    return word_loss + PHONE_WEIGHT * phone_loss + CTC_WEIGHT * ctc_loss, right


def _state_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of the states (batch, states, classes) that have a label; 0 where none has."""
    each = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, label_smoothing=smoothing, reduction="sum"
    )
    return each / (labels != IGNORED).sum().clamp(min=1)


def train(shards: Path, run: Path, steps: int, seed: int) -> SpeechRecogniser:
    """Trains for `steps` steps on the shards, or goes on where the run in the file `run` was cut off."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = SpeechRecogniser()
    optimiser = state.optimizer(model, PEAK_RATE)
    first = state.resume(run, model, optimiser)
    utterances = Utterances.load(shards)
    order = batches(utterances.frames, BATCH_FRAMES, WIDTHS, seed, first)
    began = time.monotonic()
    for step in range(first, steps):
        batch = utterances.batch(*next(order))
        features = augment(batch.features, batch.frames, torch.Generator().manual_seed(seed * 1_000_003 + step))
        value, right = loss(model, batch, features)
        torch.autograd.backward(value)
        state.take_step(model, optimiser, state.learning_rate(step, steps, PEAK_RATE, WARMUP))
        if (step + 1) % LOG_EVERY == 0:
            pace = (time.monotonic() - began) / (step + 1 - first)
            logger.info("step %d loss %.3f words right %.3f, %.3f s a step", step + 1, value.item(), right.item(), pace)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            state.save(run, step + 1, model, optimiser)
    return model
