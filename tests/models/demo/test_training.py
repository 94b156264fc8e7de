import random
import shutil
from itertools import islice

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, WhisperConfig

from models.adapter import ModalityAdapter
from models.config import AdapterSizes
from models.demo import corpus, evaluate, padded, state, train_encoder
from models.demo.mel_augment import N_MELS, augment
from models.demo.speech import Utterance
from models.demo.train_adapter import Lesson, continuation_loss, new_adapter
from models.demo.train_llm import IGNORED, config, damage, draw_batches, embed, loss
from models.demo.utterances import Batch, batches
from models.encoder import WhisperEncoder


def test_batches_have_few_shapes_and_go_on_where_they_were_cut_off():
    lengths = np.random.default_rng(0).integers(90, 400, 500)
    order = list(islice(batches(lengths, 4000, 32, seed=1), 40))
    shapes = {(len(indices), width) for indices, width in order}
    assert len(shapes) == len({width for _, width in shapes})
    assert all(lengths[indices].max() <= width for indices, width in order)
    resumed = list(islice(batches(lengths, 4000, 32, seed=1, first=25), 15))
    assert all((a[0] == b[0]).all() for a, b in zip(order[25:], resumed, strict=True))


@torch.no_grad()
def test_padded_batches_give_what_serving_computes():
    torch.manual_seed(0)
    encoder = WhisperEncoder(WhisperConfig(d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=64))
    torch.nn.init.normal_(encoder.embed_positions.weight)
    adapter = ModalityAdapter(32, 24, AdapterSizes(inner_dim=8))
    features, frames = torch.randn(2, 80, 64), torch.tensor([61, 30])
    features[0, :, 61:], features[1, :, 30:] = 0, 0
    states, lengths = encoder(features, frames), torch.tensor([31, 15])
    _, states_padded = padded.encode(encoder, features, frames, 1)
    for i, n in enumerate(lengths):
        torch.testing.assert_close(states_padded[i, :n], states[i, :n], atol=1e-5, rtol=1e-4)
    for mine, theirs in zip(padded.adapt(adapter, states_padded, lengths), adapter(states, lengths), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_augmented_features_are_zero_behind_the_real_frames_and_the_same_for_the_same_seed():
    features, frames = torch.randn(3, N_MELS, 50), torch.tensor([50, 30, 10])
    first, second = (augment(features, frames, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, second)
    assert not first[1, :, 30:].any()
    assert first[1, :, :30].any()


def test_augmentation_changes_every_moment_of_an_utterance_alike_but_no_two_utterances():
    """Features that are the same in every frame stay so: what is drawn is a voice and a channel, which last."""
    features, frames = torch.randn(1, N_MELS, 1).expand(4, -1, 20), torch.full((4,), 20)
    changed = augment(features, frames, torch.Generator().manual_seed(4), masks=False)
    torch.testing.assert_close(changed, changed[:, :, :1].expand(-1, -1, 20))
    response = changed[:, :, 0] - features[:, :, 0]
    assert response.std(1).min() > 0.05
    assert (response[0] - response[1:]).abs().amax(1).min() > 0.1


@pytest.mark.skipif(shutil.which("flite") is None, reason="flite, which names the phones, is not installed")
def test_speech_without_word_times_teaches_the_words_in_order_and_no_times():
    silent = Utterance(np.zeros(16000, np.float32), 16000, [])
    words, phones = corpus._labels(silent, 50)
    assert (words == corpus.IGNORED).all()
    assert (phones == corpus.IGNORED).all()
    model = train_encoder.SpeechRecogniser()
    features, untold = torch.randn(1, N_MELS, 100), torch.full((1, 50), corpus.IGNORED)
    batch = Batch(features, torch.tensor([100]), untold, untold, ["one two"])
    value, _ = train_encoder.loss(model, batch, features)
    value.backward()
    assert value.isfinite()
    assert model.ctc_head.weight.grad.abs().max() > 0
    assert model.word_head.weight.grad.abs().max() == model.phone_head[1].weight.grad.abs().max() == 0


def test_a_run_goes_on_as_if_it_had_not_been_cut_off(tmp_path):
    def run(file, steps):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 1)
        optimiser = state.optimizer(model, 1e-2)
        for step in range(state.resume(file, model, optimiser), steps):
            model(torch.full((2, 4), step / 10)).square().mean().backward()
            state.take_step(model, optimiser, state.learning_rate(step, 10, 1e-2, 2))
            state.save(file, step + 1, model, optimiser)
        return model.weight.detach()

    run(tmp_path / "cut", 4)
    assert torch.equal(run(tmp_path / "cut", 10), run(tmp_path / "whole", 10))


def test_the_llm_loss_counts_replies_only(tokenizer):
    torch.manual_seed(0)
    model = LlamaForCausalLM._from_config(config(tokenizer), attn_implementation="eager")
    batch = next(draw_batches(tokenizer, 1, 0))
    x = embed(model.model.embed_tokens.weight, batch, torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(inputs_embeds=x, attention_mask=batch.mask).logits[:, :-1].flatten(0, 1)
        right = torch.nn.functional.cross_entropy(logits, batch.labels[:, 1:].flatten(), ignore_index=IGNORED)
        assert loss(model, x, batch.labels, batch.mask).item() == pytest.approx(right.item(), rel=0.01)


def test_a_word_said_twice_does_not_look_like_a_long_one(tokenizer):
    rng = random.Random(0)
    for _ in range(50):
        tokens = [row.token for row in damage(["six", "six"], tokenizer, rng)]
        (first, *_), (*_, last) = ([i for i, token in enumerate(tokens) if token >= 0],) * 2
        assert -1 in tokens[first:last]


@pytest.mark.parametrize("objective", ["cross-entropy", "divergence"])
def test_the_adapter_learns_from_its_loss_and_the_llm_does_not(tokenizer, objective):
    torch.manual_seed(0)
    model = LlamaForCausalLM._from_config(config(tokenizer), attn_implementation="eager").requires_grad_(False)
    adapter = new_adapter(16, model, AdapterSizes(inner_dim=8))
    assert isinstance(adapter, ModalityAdapter)
    assert adapter.speech_ln.weight.norm().item() == pytest.approx(
        model.model.embed_tokens.weight.norm(dim=1).mean().item(), rel=0.1
    )
    lesson = Lesson(
        torch.randn(2, 48, 16), torch.tensor([48, 20]), ["seven", "the oven"], ["so that is seven", "i think of bread"]
    )
    value = continuation_loss(adapter, model, tokenizer, lesson, objective)
    assert value > 0
    value.backward()
    assert all(parameter.grad is not None for parameter in adapter.parameters() if parameter.requires_grad)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("said", "right", "errors"),
    [("a b c", "a b c", 0), ("a c", "a b c", 1), ("a x c d", "a b c", 2), ("", "a b", 2), ("a b", "", 2)],
)
def test_word_errors(said, right, errors):
    assert evaluate.word_errors(said, right) == errors
