import pytest
import torch
from torch import Tensor

from models.adapter import ModalityAdapter
from models.config import AdapterSizes
from models.lattice import Beginning, Lattice
from models.spelling import LONGEST, SHARPNESS, Speller, first_of_each, how_likely, spoken_tokens, without_echoes

VOCABULARY = {
    "Ġthe": 7,
    "The": 3,
    "▁don't": 5,
    "Ġ": 2,
    ".": 9,
    "é": 1,
    "Ġ12": 4,
    "<s>": 0,
    "NASA": 6,
    "a" * 17: 8,
    "I": 10,
}


def test_spoken_tokens_are_words_of_letters_and_points() -> None:
    ids, spellings = spoken_tokens(VOCABULARY)
    assert ids.tolist() == [2, 3, 5, 7, 9, 10]
    assert spellings.shape == (6, 2 + LONGEST)
    space, the, dont, a_the, point, capital = spellings.tolist()
    assert space == [1, 0, *[0] * LONGEST]
    assert the[:2] == [0, 1]
    assert a_the[:2] == [1, 0]
    assert the[2:] == a_the[2:] == [20, 8, 5, *[0] * (LONGEST - 3)]
    assert dont[2:8] == [4, 15, 14, 27, 20, 0]
    assert point[:4] == [0, 0, 28, 0]
    assert capital[:4] == [0, 1, 9, 0]


def test_a_vocabulary_without_such_tokens_has_none() -> None:
    ids, spellings = spoken_tokens({"<s>": 0})
    assert ids.shape == (0,)
    assert spellings.shape == (0, 2 + LONGEST)


def scores(*tokens: int, likely: float = 9.0) -> Tensor:
    """Scores (n, 4) of rows of which each says a token, or 0 for blank."""
    return torch.eye(4)[list(tokens)] * likely


@pytest.mark.parametrize(
    ("said", "places"),
    [
        ([0, 1, 0, 2, 0], [1, 3]),
        ([1, 1, 1, 2, 2, 1], [0, 3, 5]),
        ([1, 0, 1], [0, 2]),
        ([1], [0]),
        ([2, 2, 1], [0, 2]),
        ([3], [0]),
    ],
)
def test_a_token_is_heard_where_it_begins(said: list[int], places: list[int]) -> None:
    assert first_of_each(scores(*said)).tolist() == places


def test_many_unlikely_tokens_are_no_blank() -> None:
    unsure = torch.tensor([[1.0, 0.9, 0.9, 0.9], [3.0, 0.0, 0.0, 0.0]])
    assert first_of_each(unsure).tolist() == [0]


def test_silence_is_its_likeliest_row() -> None:
    silence = torch.tensor([[9.0, 0, 0, 0], [9.0, 0, 0, 2], [9.0, 0, 3, 0], [9.0, 0, 0, 0]])
    assert first_of_each(silence).tolist() == [2]


@pytest.fixture
def speller() -> Speller:
    torch.manual_seed(0)
    speller = Speller(12, 8).requires_grad_(False)
    speller.know(VOCABULARY, torch.randn(11, 12))
    return speller


def test_a_sure_row_is_the_embedding_of_its_token(speller: Speller) -> None:
    keys = speller.spelling(speller.spellings)
    for weight in (speller.query.weight, speller.query.bias, speller.blank.weight, speller.blank.bias):
        weight.zero_()
    speller.query.weight[:, :8] = torch.eye(8)
    row = torch.zeros(1, 12)
    row[0, :8] = 1e6 * torch.nn.functional.normalize(keys[3, :-1] - keys[:, :-1].mean(0), dim=0)
    best = speller.scores(row)[0, 1:].argmax()
    torch.testing.assert_close(speller(row), speller.embeddings[best][None])


def test_a_score_is_the_scaled_product_of_row_and_spelling_and_the_tokens_bias(speller: Speller) -> None:
    row = torch.randn(12)
    query, keys = speller.query(row), speller.spelling(speller.spellings)
    expected = [speller.blank(row).item()]
    expected += [(query.dot(key[:-1]) / 9**0.5 + key[-1]).item() for key in keys]  # of 8 numbers and a bias
    torch.testing.assert_close(speller.scores(row), torch.tensor(expected))


def test_space_capital_and_the_order_of_letters_are_heard_in_a_spelling(speller: Speller) -> None:
    _, spellings = spoken_tokens({token: i for i, token in enumerate(["ab", "Ġab", "Ab", "ĠAb", "ba"])})
    keys = speller.spelling(spellings)
    assert torch.cdist(keys, keys).fill_diagonal_(1.0).min() > 1e-3


def test_a_letter_and_its_place_are_of_one_size(speller: Speller) -> None:
    assert speller.spelling.place.weight.shape == (LONGEST, speller.spelling.letter.embedding_dim)


def test_what_is_known_of_the_llm_is_no_part_of_the_state(speller: Speller) -> None:
    assert speller.state_dict().keys() == dict(speller.named_parameters()).keys()


def test_a_row_is_a_mixture_of_embeddings(speller: Speller) -> None:
    rows = torch.randn(1, 12)
    speller.blank.bias.fill_(-100.0)
    shares = (SHARPNESS * speller.scores(rows)[:, 1:]).softmax(-1)  # six tokens: all are mixed
    torch.testing.assert_close(speller(rows), shares @ speller.embeddings)


@pytest.mark.parametrize(
    ("tokens", "kept"),
    [
        (["Ġimpressions", "ions"], [0]),
        (["Ġice", "iced"], [0, 1]),
        (["Ġroast", "st", "ed"], [0, 2]),
        (["Ġhad", "Ġhad"], [0, 1]),  # another word
        (["Ġso", ".", "."], [0, 1, 2]),
        (["Ġthat's", "'s"], [0, 1]),
        (["Ġpro", "duced", "Ġand", "and"], [0, 1, 2]),
    ],
)
def test_the_end_of_a_word_is_not_said_twice(tokens: list[str], kept: list[int]) -> None:
    _, spellings = spoken_tokens({token: i for i, token in enumerate(dict.fromkeys(tokens))})
    places = [list(dict.fromkeys(tokens)).index(token) for token in tokens]
    assert without_echoes(spellings[places].tolist()) == kept


def test_the_same_tokens_score_the_same_in_any_choice(speller: Speller) -> None:
    rows, chosen = torch.randn(2, 5, 12), torch.tensor([1, 4])
    every = speller.scores(rows)
    torch.testing.assert_close(speller.scores(rows, chosen), every[..., [0, 2, 5]])


def test_scores_follow_the_weights(speller: Speller) -> None:
    rows = torch.randn(3, 12)
    with torch.inference_mode():
        before = speller.scores(rows)
    speller.train()
    with torch.no_grad():
        speller.spelling.out2.bias.add_(torch.randn(9))
    speller.eval()
    with torch.inference_mode():
        after = speller.scores(rows)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, speller.scores(rows).detach())


@pytest.mark.parametrize("seed", range(20))
def test_texts_are_as_likely_in_each_phase_as_by_their_beginnings(seed: int) -> None:
    torch.manual_seed(seed)
    phases = (2 * torch.randn(3, 7, 5)).log_softmax(-1)
    texts = [torch.randint(4, (length,)) for length in (1, 3, 2, 4)]
    found = how_likely(phases, texts)
    for text, likely in zip(texts, found, strict=True):
        for phase, chance in zip(phases, likely, strict=True):
            beginning = Beginning(Lattice(torch.arange(4), phase[None, :, 0], phase[None, :, 1:]))
            for token in text.tolist():
                beginning.add(token)
            assert beginning.whole() == pytest.approx(float(chance), abs=1e-4)


@torch.no_grad()
def test_the_phase_is_spelled_whose_text_is_likeliest_in_all(speller: Speller) -> None:
    speller.query.weight *= 8
    chosen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        rows = torch.randn(6, 3, 12)
        chances = speller.scores(rows.transpose(0, 1)).log_softmax(-1)
        texts = [scores[first_of_each(scores), 1:].argmax(-1) for scores in chances]
        best = int(how_likely(chances, texts).mean(1).argmax())
        torch.testing.assert_close(speller(rows.flatten(1)), speller(rows[:, best]))
        chosen.add(best)
    assert len(chosen) == 3


@torch.no_grad()
def test_what_is_heard_most_clearly_is_spelled(speller: Speller) -> None:
    clear, other = 40 * torch.randn(2, 5, 12)
    alone = speller(clear)
    for rows in ((other / 40, clear, clear), (clear, clear, other / 40), (clear, other / 40, clear)):
        torch.testing.assert_close(speller(torch.cat(rows, 1)), alone)


@torch.no_grad()
def test_an_adapter_that_spells_hears_everything_in_all_phases() -> None:
    torch.manual_seed(0)
    adapter = ModalityAdapter(16, 12, AdapterSizes(conv_kernel_sizes=(3, 3), context_layers=1, spelling_dim=8)).eval()
    assert adapter.speller is not None
    adapter.speller.know(VOCABULARY, torch.randn(11, 12))
    states, lengths = torch.randn(3, 90, 16), torch.tensor([90, 33, 2])
    unspelled = adapter.without_speller()
    assert (unspelled.width, adapter.width) == (4 * 12, 12)
    items = unspelled(states, lengths)
    for spelled, item in zip(adapter(states, lengths), items, strict=True):
        assert torch.equal(spelled, adapter.speller(item))
    for item, alone, n in zip(items, states, lengths.tolist(), strict=True):
        for phase in range(4):
            left = torch.zeros(n, 16)
            left[: max(n - phase, 0)] = alone[phase:n]
            rows, _ = adapter.padded(left[None], torch.tensor([n]))
            torch.testing.assert_close(item[:, 12 * phase : 12 * (phase + 1)], rows[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_what_is_kept_of_the_tokens_moves_with_the_weights(speller: Speller) -> None:
    speller.scores(torch.randn(3, 12))
    speller.to("meta")
    assert speller.scores(torch.randn(3, 12, device="meta")).shape == (3, 7)
