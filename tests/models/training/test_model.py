from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from models.checkpoint import Checkpoint
from models.manifest import Example
from models.prompt import Message, PromptBuilder, Speech
from models.training.batches import IGNORED, Collator, reply_ids, transcript_message
from models.training.model import AdapterModel, divergence, predictions, splice, without_spare_rows
from models.training.states import EncoderStates, Heard, keep_states
from tests.models.training.conftest import read


def make(checkpoint: Checkpoint, states: EncoderStates | None = None) -> AdapterModel:
    llm = LlamaForCausalLM.from_pretrained(checkpoint.llm)
    return AdapterModel(checkpoint.load_embedder(), llm, states).train()


@pytest.fixture
def model(checkpoint: Checkpoint) -> AdapterModel:
    return make(checkpoint)


def gradients(model: AdapterModel) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same_gradients(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Within 1e-4 of each parameter's gradient norm."""
    assert actual.keys() == expected.keys()
    for name, grad in expected.items():
        assert (actual[name] - grad).norm() <= 1e-4 * grad.norm(), name


def test_only_the_adapter_gets_gradients(model: AdapterModel, collator: Collator, examples: list[Example]) -> None:
    model(**collator(examples))["loss"].backward()
    assert {name.removeprefix("embedder.adapter.") for name in gradients(model)} == set(
        model.embedder.adapter.state_dict()
    )
    assert all(grad.abs().sum() > 0 for grad in gradients(model).values())


def test_training_and_serving_build_identical_tensors(
    checkpoint: Checkpoint, model: AdapterModel, comparing: Collator, prompts: PromptBuilder, examples: list[Example]
) -> None:
    collator, batch = comparing, comparing(examples)
    with torch.no_grad():
        rows = model.speech_rows(batch["features"], batch["frames"], batch["lengths"])
        embeddings = splice(model.llm, batch["input_ids"], batch["is_speech"], torch.cat(rows))
    served = checkpoint.load_embedder().embed([read(example.audio) for example in examples])
    for i, example in enumerate(examples):
        prompt = prompts.build([Message("user", ["Continue:", Speech(served[i])])])
        n = len(prompt.token_ids)
        assert batch["input_ids"][i, :n].tolist() == prompt.token_ids
        assert (~batch["is_speech"][i, :n]).tolist() == prompt.is_token
        torch.testing.assert_close(embeddings[i, :n][batch["is_speech"][i, :n]], served[i], atol=1e-5, rtol=1e-5)
        reply = batch["labels"][i, n:][batch["labels"][i, n:] != IGNORED].tolist()
        assert reply == reply_ids(collator.prompts.tokenizer, example.continuation)
        assert reply[-1] == prompts.tokenizer.eos_token_id
        assert (batch["labels"][i, :n] == IGNORED).all()
        assert batch["attention_mask"][i].tolist() == [True] * (n + len(reply)) + [False] * (
            batch["labels"].shape[1] - n - len(reply)
        )
        text = prompts.build([transcript_message("Continue:", example.text)])
        assert batch["text_ids"][i, : len(text.token_ids)].tolist() == text.token_ids


def test_chat_template_prompts_are_served_and_trained_alike(
    checkpoint: Checkpoint, collator: Collator, examples: list[Example]
) -> None:
    tokenizer = checkpoint.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}[reply]"
    prompts = PromptBuilder(tokenizer, "chat-template", checkpoint.llm_dim())
    chat = Collator(read, prompts, collator.speech_length, 80, "exact", "Continue:")
    batch = chat(examples[:1])
    rows = torch.ones(chat.speech_length(len(read(examples[0].audio))), checkpoint.llm_dim())
    prompt = prompts.build([Message("user", ["Continue:", Speech(rows)])])
    n = len(prompt.token_ids)
    assert batch["input_ids"][0, :n].tolist() == prompt.token_ids
    assert (~batch["is_speech"][0, :n]).tolist() == prompt.is_token


def test_a_batch_has_the_loss_and_gradients_of_its_items_alone(
    checkpoint: Checkpoint, collator: Collator, examples: list[Example]
) -> None:
    together, apart = make(checkpoint), make(checkpoint)
    loss = together(**collator(examples))["loss"]
    loss.backward()
    tokens = torch.tensor(sum(len(reply_ids(collator.prompts.tokenizer, example.continuation)) for example in examples))
    alone = [apart(**collator([example]), num_items_in_batch=tokens)["loss"] for example in examples]
    sum(alone).backward()
    torch.testing.assert_close(sum(alone), loss, rtol=1e-5, atol=1e-5)
    same_gradients(gradients(together), gradients(apart))


def test_the_loss_is_the_published_formula(model: AdapterModel, collator: Collator, examples: list[Example]) -> None:
    """One item, written out: convolutions, GLU, bottleneck, layer norm, splice, the LLM's own shifted cross-entropy."""
    batch, adapter = collator(examples[3:4]), model.embedder.adapter
    model(**batch)["loss"].backward()
    actual = gradients(model)
    model.zero_grad()

    x = model.embedder.encoder(batch["features"], batch["frames"])[:, : batch["lengths"][0]].detach().transpose(1, 2)
    for conv in adapter.subsampler.conv_layers:
        assert isinstance(conv, nn.Conv1d)
        x = F.glu(F.conv1d(x, conv.weight, conv.bias, stride=2, padding=conv.kernel_size[0] // 2), dim=1)
    x = x.transpose(1, 2)
    x = x + F.linear(F.gelu(F.linear(x, adapter.adapter.fc1.weight)), adapter.adapter.fc2.weight)
    rows = F.layer_norm(x, x.shape[-1:], adapter.speech_ln.weight, adapter.speech_ln.bias, 1e-5)
    before = int(batch["is_speech"][0].int().argmax())
    text = model.llm.get_input_embeddings()(batch["input_ids"])
    embeddings = torch.cat([text[:, :before], rows, text[:, before + rows.shape[1] :]], dim=1)
    expected = model.llm(inputs_embeds=embeddings, labels=batch["labels"]).loss
    expected.backward()

    torch.testing.assert_close(model(**batch)["loss"], expected, rtol=1e-5, atol=1e-5)
    same_gradients(actual, gradients(model))


def test_kl_is_zero_where_the_speech_reads_like_the_transcript(
    checkpoint: Checkpoint, comparing: Collator, examples: list[Example]
) -> None:
    model = make(checkpoint)
    batch = comparing(examples)
    assert model(**batch)["loss"] > 0.01
    as_text = {"input_ids": batch["text_ids"], "attention_mask": batch["text_mask"], "labels": batch["text_labels"]}
    model.speech_rows = lambda *_: [torch.zeros(0, checkpoint.llm_dim())] * len(examples)  # type: ignore[method-assign]
    nothing = {"is_speech": torch.zeros_like(batch["text_ids"], dtype=torch.bool)}
    assert model(**(batch | as_text | nothing))["loss"].abs() < 1e-6


def test_the_student_is_who_hears(checkpoint: Checkpoint, comparing: Collator, examples: list[Example]) -> None:
    """KL(given the transcript || given the speech), not the other way round."""
    model, batch = make(checkpoint), comparing(examples)
    teacher = model.from_transcript(batch["text_ids"], batch["text_mask"], batch["text_labels"])
    rows = torch.cat(model.speech_rows(batch["features"], batch["frames"], batch["lengths"]))
    embeddings = splice(model.llm, batch["input_ids"], batch["is_speech"], rows)
    student = predictions(model.llm, embeddings, batch["attention_mask"], batch["labels"])
    torch.testing.assert_close(model(**batch)["loss"], divergence(teacher, student).mean())


def test_each_reply_is_learnt_by_its_own_loss(
    checkpoint: Checkpoint, collator: Collator, comparing: Collator, examples: list[Example]
) -> None:
    model, n = make(checkpoint), torch.tensor(1)
    read_out, compared = examples[:2], examples[2:]
    both = comparing([example._replace(loss="ce") for example in read_out] + compared)
    apart = [model(**collator(read_out), num_items_in_batch=n), model(**comparing(compared), num_items_in_batch=n)]
    expected = apart[0]["loss"] + apart[1]["loss"]
    torch.testing.assert_close(model(**both, num_items_in_batch=n)["loss"], expected, rtol=1e-5, atol=1e-5)


def test_kept_states_train_as_encoding_in_every_step_does(
    checkpoint: Checkpoint, collator: Collator, examples: list[Example], tmp_path: Path
) -> None:
    heard = [Heard(example.audio, example.samples) for example in examples]
    states = keep_states(heard, read, checkpoint.load_embedder(), tmp_path)
    kept, encoding = make(checkpoint, states), make(checkpoint)
    a = kept(**replace(collator, places=states.places)(examples[::-1]))["loss"]
    b = encoding(**collator(examples[::-1]))["loss"]
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)  # states are kept in float16
    a.backward()
    b.backward()
    for name, grad in gradients(encoding).items():
        assert (gradients(kept)[name] - grad).norm() <= 0.02 * grad.norm(), name


def test_kl_is_the_divergence_of_the_student_from_the_teacher() -> None:
    teacher, student = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[1.0, 0.5, 0.0]])
    p, q = teacher.softmax(-1), student.softmax(-1)
    torch.testing.assert_close(divergence(teacher, student), (p * (p / q).log()).sum(-1))


def test_gradient_checkpointing_changes_nothing(
    checkpoint: Checkpoint, collator: Collator, examples: list[Example]
) -> None:
    plain, checkpointed = make(checkpoint), make(checkpoint)
    checkpointed.gradient_checkpointing_enable()
    checkpointed.train()
    assert checkpointed.llm.training
    assert not plain.llm.training
    assert not checkpointed.embedder.encoder.training
    for model in (plain, checkpointed):
        model(**collator(examples))["loss"].backward()
    same_gradients(gradients(checkpointed), gradients(plain))


def test_the_state_is_what_is_trained(model: AdapterModel) -> None:
    state = {name: torch.zeros_like(weight) for name, weight in model.state_dict().items()}
    assert state.keys() == {f"embedder.adapter.{name}" for name in model.embedder.adapter.state_dict()}
    model.load_state_dict(state)
    assert not any(weight.any() for weight in model.embedder.adapter.parameters())
    assert all(weight.any() for weight in model.llm.parameters())
    name = next(iter(state))
    with pytest.raises(RuntimeError, match="Missing"):
        model.load_state_dict({other: weight for other, weight in state.items() if other != name})
    with pytest.raises(RuntimeError, match="Unexpected"):
        model.load_state_dict(state | {"embedder.adapter.other": state[name]})


def test_all_of_it_in_bfloat16_as_deepspeed_has_it(
    checkpoint: Checkpoint, collator: Collator, examples: list[Example]
) -> None:
    model = make(checkpoint).bfloat16()
    loss = model(**collator(examples))["loss"]
    loss.backward()
    assert all(grad.dtype == torch.bfloat16 for grad in gradients(model).values())
    torch.testing.assert_close(loss, make(checkpoint)(**collator(examples))["loss"], rtol=0.05, atol=0)
    assert model.config.hidden_size == checkpoint.llm_dim()  # from which DeepSpeed takes sizes that are "auto"


def test_bfloat16_frozen_parts(checkpoint: Checkpoint, collator: Collator, examples: list[Example]) -> None:
    llm = LlamaForCausalLM.from_pretrained(checkpoint.llm, dtype=torch.bfloat16)
    model = AdapterModel(checkpoint.load_embedder(torch.bfloat16), llm)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**collator(examples))["loss"]
    loss.backward()
    assert all(grad.dtype == torch.float32 for grad in gradients(model).values())
    torch.testing.assert_close(loss, make(checkpoint)(**collator(examples))["loss"], rtol=0.05, atol=0)


def test_a_prompt_has_room_for_the_rows_that_are_there() -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]])
    ids = torch.tensor([[1, 0, 0, 0, 2, 3, 4], [1, 0, 0, 2, 3, 0, 0]])
    is_speech = torch.tensor([[0, 1, 1, 1, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0]]).bool()
    labels = torch.where(ids > 2, ids, IGNORED)
    found = without_spare_rows(torch.tensor([1, 2]), ids, is_speech, mask, labels)
    assert [t.tolist() for t in found] == [
        [[1, 0, 2, 3, 4], [1, 0, 0, 2, 3]],
        [[False, True, False, False, False], [False, True, True, False, False]],
        [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]],
        [[IGNORED, IGNORED, IGNORED, 3, 4], [IGNORED, IGNORED, IGNORED, IGNORED, 3]],
    ]
    for whole, same in zip(
        (ids, is_speech, mask, labels),
        without_spare_rows(torch.tensor([3, 2]), ids, is_speech, mask, labels),
        strict=True,
    ):
        assert torch.equal(whole, same)


def test_replies_teach_an_adapter_that_spells(speller: Checkpoint, collator: Collator, examples: list[Example]) -> None:
    model = make(speller)
    embedder = speller.load_embedder()
    comparing = replace(collator, speech_length=embedder.speech_length, objective="kl")
    rows = embedder.embed([read(example.audio) for example in examples])
    assert [len(item) for item in rows] != [embedder.speech_length(example.samples) for example in examples]
    prompts = [collator.prompts.build([Message("user", ["Continue:", Speech(item)])]) for item in rows]
    batch = replace(comparing, padding=speller.config.padding)(examples)
    read_tokens: list[int] = []
    assert model.embedder.adapter.speller is not None
    model.embedder.adapter.speller.spelling.register_forward_hook(lambda _, args, __: read_tokens.append(len(args[0])))
    for _ in range(2):
        model(**batch)["loss"].backward()
    assert sum(read_tokens) == len(model.embedder.adapter.speller.ids), "once, not for each recording"
    silent = {name for name, p in model.embedder.adapter.named_parameters() if p.grad is None or not p.grad.abs().sum()}
    frozen = ("speller.blank.", "speller.spelling.")
    assert silent == {name for name, _ in model.embedder.adapter.named_parameters() if name.startswith(frozen)}
    ids, is_speech, mask, _ = without_spare_rows(
        torch.tensor([len(item) for item in rows]),
        *(batch[n] for n in ("input_ids", "is_speech", "attention_mask", "labels")),
    )
    for i, prompt in enumerate(prompts):
        n = len(prompt.token_ids)
        assert ids[i, :n].tolist() == prompt.token_ids
        assert (~is_speech[i, :n]).tolist() == prompt.is_token
        assert mask[i, :n].all()
