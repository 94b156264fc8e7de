"""Loss and gradients of the official code (cwang621/blsp f7bf52f) on its own training batch."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from models.checkpoint import Checkpoint, open_checkpoint
from models.embedder import Embedder
from models.encoder import encoder_length
from models.features import n_frames
from models.manifest import AudioSpan, Example
from models.prompt import CONTINUE
from models.training.batches import IGNORED, Collator
from models.training.model import AdapterModel, predictions
from tests.models.test_reference import CASES, REFERENCE, samples, stored

BATCH: dict[str, Any] = CASES["train_batch"]


def read(span: AudioSpan) -> Tensor:
    return samples(span.path.stem)


@pytest.fixture(scope="module")
def official_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(str(REFERENCE / "checkpoint_safetensors"), tmp_path_factory.mktemp("cache"))


@pytest.fixture
def model(official_checkpoint: Checkpoint) -> AdapterModel:
    return AdapterModel(
        official_checkpoint.load_embedder(), LlamaForCausalLM.from_pretrained(official_checkpoint.llm)
    ).train()


@pytest.fixture(scope="module")
def batch(official_checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The batch as we make it."""
    prompts, embedder = official_checkpoint.prompt_builder(torch.float32), official_checkpoint.load_embedder()
    collator = Collator(read, prompts, embedder.speech_length, 80, official_checkpoint.config.padding, CONTINUE)
    pairs = zip(BATCH["audios"], BATCH["texts"], strict=True)
    return collator([Example(AudioSpan(REFERENCE / "audio" / f"{a}.wav"), 0, "", text) for a, text in pairs])


def test_ids_and_labels(batch: dict[str, Tensor]) -> None:
    assert BATCH["instruction"] == CONTINUE
    for i, n_speech in enumerate(BATCH["speech_lengths"]):
        suffix = sum(BATCH["suffix_attention_mask"][i])
        prefix, reply = BATCH["input_ids"][i], BATCH["suffix_labels"][i][:suffix]
        n = len(prefix) + n_speech + suffix
        assert batch["input_ids"][i, :n].tolist() == prefix + [0] * n_speech + BATCH["suffix_input_ids"][i][:suffix]
        assert batch["labels"][i, :n].tolist() == BATCH["labels"][i] + [IGNORED] * n_speech + reply
        assert batch["is_speech"][i].nonzero().flatten().tolist() == [*range(len(prefix), len(prefix) + n_speech)]
        assert batch["attention_mask"][i].sum() == n
        assert (batch["labels"][i, n:] == IGNORED).all()


def padded_rows(embedder: Embedder) -> Tensor:
    """The official rows (3, 43, 64): the subsampler runs over the padded batch, cut to the longest item."""
    audio = [samples(name) for name in BATCH["audios"]]
    longest = max(encoder_length(n_frames(len(a))) for a in audio)
    # With 30 s features every item is 3,000 frames, all of them encoded: the encoder sees what the official one sees.
    x = embedder.encode([embedder.features(a) for a in audio])[:, :longest].detach().transpose(1, 2)
    for conv in embedder.adapter.subsampler.conv_layers:
        assert isinstance(conv, nn.Conv1d)
        x = F.glu(F.conv1d(x, conv.weight, conv.bias, stride=2, padding=conv.kernel_size[0] // 2), dim=1)
    return embedder.adapter.speech_ln(embedder.adapter.adapter(x.transpose(1, 2)))


def test_loss_and_gradients_of_the_padded_batch(model: AdapterModel) -> None:
    """The official layout by hand: prefix, speech and suffix, each padded; from the adapter's rows on it is our code."""
    rows, expected = padded_rows(model.embedder), stored("train_batch")
    torch.testing.assert_close(rows.detach(), expected["speech_embeds"], atol=1e-4, rtol=0)

    def tokens(name: str) -> Tensor:
        return torch.tensor(BATCH[name])

    embed = model.llm.get_input_embeddings()
    embeddings = torch.cat([embed(tokens("input_ids")), rows, embed(tokens("suffix_input_ids"))], dim=1)
    speech_mask = expected["speech_attention_mask"].long()
    mask = torch.cat([tokens("attention_mask"), speech_mask, tokens("suffix_attention_mask")], dim=1)
    labels = torch.cat([tokens("labels"), torch.full_like(speech_mask, IGNORED), tokens("suffix_labels")], dim=1)
    loss = F.cross_entropy(predictions(model.llm, embeddings, mask, labels), labels[labels != IGNORED])
    loss.backward()
    assert loss.item() == pytest.approx(BATCH["loss"], rel=1e-4)
    assert gradient_norms(model) == pytest.approx(BATCH["grad_norms"], rel=1e-4)


def test_the_longest_item_is_the_same_alone(model: AdapterModel, batch: dict[str, Tensor]) -> None:
    """No padding reaches the longest item, so that our whole forward pass gives its part of the official loss."""
    with torch.no_grad():
        rows = model.speech_rows(batch["features"], batch["frames"], batch["lengths"])
    assert [len(item) for item in rows] == BATCH["speech_lengths"]
    torch.testing.assert_close(rows[1], stored("train_batch")["speech_embeds"][1], atol=1e-4, rtol=0)


def gradient_norms(model: AdapterModel) -> dict[str, float]:
    parts = {name: getattr(model.embedder.adapter, name) for name in BATCH["grad_norms"]}
    return {
        name: torch.stack([p.grad.norm() for p in part.parameters() if p.grad is not None]).norm().item()
        for name, part in parts.items()
    }
