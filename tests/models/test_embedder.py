"""From samples to speech embeddings: the official code's numbers, alone and in a batch."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from models.checkpoint import Checkpoint
from models.config import PaddingPolicy
from models.embedder import Embedder, embed_together

EDGES = [1, 160, 161, 320, 321, 2559, 2560, 2561, 479_999, 480_000]


def noise(length: int) -> Tensor:
    return 0.1 * torch.randn(length, generator=torch.Generator().manual_seed(length))


@pytest.fixture(scope="module")
def embedders(embedder: Embedder) -> dict[PaddingPolicy, Embedder]:
    """One set of weights under both policies."""
    return {policy: Embedder(embedder.encoder, embedder.adapter, policy) for policy in ("30s", "exact")}


@torch.no_grad()
def official_rows(folder: Path, samples: Tensor) -> Tensor:
    """The official pipeline for one clip, step by step, from transformers' parts and the official file."""
    config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    prefix = "whisper_model."
    encoder = WhisperEncoder(WhisperConfig(**config["whisper_config"])).eval()
    encoder.load_state_dict({k.removeprefix(prefix): w for k, w in weights.items() if k.startswith(prefix)})
    features = WhisperFeatureExtractor()(samples.numpy(), sampling_rate=16_000, return_tensors="pt").input_features
    states = encoder(features).last_hidden_state[0]  # (1500, encoder_dim)
    frames = len(samples[::160])
    x = states[: (frames - 1) // 2 + 1].T
    for i, kernel in enumerate(config["conv_kernel_sizes"].split(",")):
        conv = f"subsampler.conv_layers.{i}"
        x = F.conv1d(x, weights[f"{conv}.weight"], weights[f"{conv}.bias"], stride=2, padding=int(kernel) // 2)
        x = x[: len(x) // 2] * x[len(x) // 2 :].sigmoid()
    x = x.T
    x = x + F.gelu(x @ weights["adapter.fc1.weight"].T) @ weights["adapter.fc2.weight"].T
    return F.layer_norm(x, x.shape[1:], weights["speech_ln.weight"], weights["speech_ln.bias"], eps=1e-5)


@pytest.mark.parametrize("length", [1, 6433, 29_439, 479_840, 480_000])
def test_equal_to_the_official_pipeline(embedder: Embedder, official: Path, length: int) -> None:
    [rows] = embedder.embed([noise(length)])
    torch.testing.assert_close(rows, official_rows(official, noise(length)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("policy", ["30s", "exact"])
@given(lengths=st.lists(st.integers(1, 40_000) | st.sampled_from(EDGES), min_size=2, max_size=4))
@example(lengths=[1, 480_000, 2561])
@settings(max_examples=8, deadline=None, derandomize=True)
def test_a_clip_in_a_batch_is_as_alone(
    embedders: dict[PaddingPolicy, Embedder], policy: PaddingPolicy, lengths: list[int]
) -> None:
    embedder = embedders[policy]
    together = embedder.embed([noise(n) for n in lengths])
    for rows, n in zip(together, lengths, strict=True):
        [alone] = embedder.embed([noise(n)])
        torch.testing.assert_close(rows, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("policy", ["30s", "exact"])
@pytest.mark.parametrize("length", [*EDGES, 30_000])
def test_speech_length_is_the_number_of_rows(
    embedders: dict[PaddingPolicy, Embedder], policy: PaddingPolicy, length: int
) -> None:
    [rows] = embedders[policy].embed([noise(length)])
    assert rows.shape == (embedders[policy].speech_length(length), 64)


def test_padding_policies(embedders: dict[PaddingPolicy, Embedder]) -> None:
    """They agree where there is nothing to pad, and there only."""
    full, short = ([embedders[policy].embed([noise(n)])[0] for policy in ("30s", "exact")] for n in (480_000, 30_000))
    assert torch.equal(*full)
    assert not torch.allclose(short[0], short[1], atol=1e-2)
    assert embedders["30s"].features(noise(30_000)).shape == (80, 3000)
    assert embedders["exact"].features(noise(30_000)).shape == (80, 188)


def test_rows_have_the_dtype_of_the_weights(checkpoint: Checkpoint, embedder: Embedder) -> None:
    half = checkpoint.load_embedder(torch.bfloat16)
    [rows] = half.embed([noise(16_000)])
    assert half.dtype == rows.dtype == torch.bfloat16
    [expected] = embedder.embed([noise(16_000)])
    assert F.cosine_similarity(rows.float(), expected).min() > 0.99


def test_adapters_of_one_encoder_share_its_batch(embedder: Embedder, checkpoint: Checkpoint) -> None:
    """Whatever their padding; each window gets the rows that its adapter alone gives it."""
    encoder, other = embedder.encoder, checkpoint.load_embedder(encoder=embedder.encoder).adapter
    with torch.no_grad():
        other.adapter.fc1.weight *= 2
    one, two, full = Embedder(encoder, embedder.adapter, "exact"), Embedder(encoder, other, "exact"), embedder
    assert full.padding == "30s"
    batch = [(one, 20_000), (two, 30_000), (full, 25_000), (one, 16_000), (two, 20_000)]
    batches: list[int] = []
    hook = encoder.register_forward_hook(lambda _, arguments, __: batches.append(len(arguments[0])))
    rows = embed_together([e for e, _ in batch], [e.features(noise(n)) for e, n in batch], [n for _, n in batch])
    hook.remove()
    assert batches == [5]
    for (by, n), found in zip(batch, rows, strict=True):
        torch.testing.assert_close(found, by.embed([noise(n)])[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(rows[0], rows[4], atol=1e-2)


def test_a_batch_of_one_adapter_is_its_own_to_the_bit(embedder: Embedder) -> None:
    samples = [20_000, 30_000]
    prepared = [embedder.prepare(noise(n)) for n in samples]
    together = embed_together([embedder] * 2, prepared, samples)
    assert all(map(torch.equal, together, embedder.embed_prepared(prepared, samples)))
