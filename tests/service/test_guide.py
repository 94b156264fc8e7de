"""Which tokens may follow where a reply is held to what was heard."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor.interface import BatchUpdate, MoveDirectionality

from models.lattice import Lattice
from service.guide import EVENNESS, EXPECTED, LONGER, Choice, Guide, JointDecoding

VOCABULARY = 40
CAT, CAP, SAT, QUOTE, STOP_QUOTE = 3, 8, 21, 5, 6


def heard(*moments: dict[int, float]) -> Lattice:
    """At each moment so much of each token, the rest a blank."""
    tokens = sorted({token for moment in moments for token in moment})
    blank = torch.tensor([1 - sum(moment.values()) for moment in moments]).log()
    scores = torch.tensor([[moment.get(token, 0.0) for token in tokens] for moment in moments]).log()
    return Lattice(torch.tensor(tokens), blank[None], scores[None])


CAT_SAT = heard({CAT: 0.6, CAP: 0.3}, {CAT: 0.1}, {SAT: 0.9})


def guide(lattice: Lattice = CAT_SAT, code: float = 0.0) -> Guide:
    return Guide(lattice.pack(), code, (QUOTE, STOP_QUOTE))


def a_reply(logits: Tensor, lattice: Lattice = CAT_SAT, code: float = 0.0) -> list[int]:
    """Up to its end, by an LLM whose logits are always the same."""
    processor = JointDecoding(None, torch.device("cpu"), False)
    said: list[int] = []
    parameters = SamplingParams(extra_args=guide(lattice, code).told())
    processor.update_state(BatchUpdate(1, removed=[], added=[(0, parameters, None, said)], moved=[]))
    while not said or said[-1] != QUOTE:
        found = processor.apply(logits[None].clone())[0]
        assert found.isfinite().sum() == 1
        said.append(int(found.argmax()))
        processor.update_state(None)
    return said[:-1]


def liking(**logits: float) -> Tensor:
    found = torch.zeros(VOCABULARY)
    for name, value in logits.items():
        found[globals()[name]] = value
    return found


def test_what_was_heard_is_said() -> None:
    assert a_reply(liking()) == [CAT, SAT]


def test_what_the_llm_expects_counts_as_much_as_it_is_weighed() -> None:
    more = math.log(0.61 / 0.3) / EXPECTED  # CAT may also begin at the second moment, behind a blank
    assert a_reply(liking(CAP=more - 0.2)) == [CAT, SAT]
    assert a_reply(liking(CAP=more + 0.2)) == [CAP, SAT]


def test_nothing_is_said_that_was_not_heard() -> None:
    logits = liking()
    logits[33] = 10.0
    assert a_reply(logits) == [CAT, SAT]


def test_a_text_may_be_longer_as_far_as_that_is_liked() -> None:
    likely = EXPECTED * math.log(1 / VOCABULARY)
    end = EXPECTED * math.log(2 / VOCABULARY)  # of two that there are
    chance = 1 / (1 + math.exp(LONGER + likely - end))  # at which SAT is as good as an end
    assert a_reply(liking(), heard({CAT: 0.99}, {SAT: chance - 0.05})) == [CAT]
    assert a_reply(liking(), heard({CAT: 0.99}, {SAT: chance + 0.05})) == [CAT, SAT]


def test_all_that_the_llm_may_end_with_counts_as_an_end() -> None:
    doubtful = heard({CAT: 0.9}, {SAT: 0.5})
    assert a_reply(liking(), doubtful) == [CAT, SAT]
    assert a_reply(liking(STOP_QUOTE=4.0), doubtful) == [CAT]


def test_scores_are_those_of_both() -> None:
    choice = Choice(guide(), [CAT], torch.device("cpu"))
    assert choice.tokens.tolist() == [CAT, CAP, SAT, QUOTE]
    expected = choice.expected(torch.zeros(VOCABULARY))
    likely = math.log(1 / VOCABULARY)
    assert expected.tolist() == pytest.approx([likely, likely, likely, likely + math.log(2)])
    # SAT behind CAT: that was heard at the first moment or the second, and at the third there is 0.9 of SAT.
    follows = choice.scores(expected)[2]
    heard_so = 0.6 * 0.1 + 0.6 * 0.9 + 0.1 * 0.1
    assert follows == pytest.approx(math.log(heard_so * 0.9) + LONGER + EXPECTED * likely, abs=1e-5)


def test_codes_share_the_texts_by_how_likely_they_are() -> None:
    doubtful = heard({CAT: 0.5, CAP: 0.4}, {SAT: 0.3})
    said = [text for i in range(400) if (text := a_reply(liking(), doubtful, (i + 0.5) / 400)) and text[0] != SAT]
    begin = [text[0] for text in said]
    assert begin == sorted(begin, key=[CAT, CAP].index)  # codes near each other begin alike, the likeliest first
    assert begin.count(CAT) / begin.count(CAP) == pytest.approx((0.5 / 0.4) ** (1 / EVENNESS), rel=0.03)
    more = math.log(0.3 / 0.7) + LONGER - EXPECTED * math.log(2)  # of SAT than of one of two ends
    for first in (CAT, CAP):
        behind = [text[1:] for text in said if text[0] == first]
        assert behind == sorted(behind, key=[[SAT], []].index)
        assert behind.count([SAT]) / behind.count([]) == pytest.approx(math.exp(more / EVENNESS), rel=0.05)


@pytest.mark.parametrize("code", [0.0, 0.5, 1.0])
def test_what_is_sure_is_said_by_every_code(code: float) -> None:
    assert a_reply(liking(), heard({CAT: 1.0}, {SAT: 1.0}), code) == [CAT, SAT]


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 99))
def test_every_code_says_something_that_was_heard(code: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    chances = torch.rand(4, 3, generator=generator) / 3
    lattice = heard(*({CAT: a, CAP: b, SAT: c} for a, b, c in chances.tolist()))
    assert set(a_reply(liking(), lattice, code)) <= {CAT, CAP, SAT}


def test_it_begins_anew_behind_what_was_said() -> None:
    """A request that vLLM has put aside comes back with its text."""
    fresh, back = Choice(guide(), [], torch.device("cpu")), Choice(guide(), [CAT], torch.device("cpu"))
    expected = torch.zeros(4)
    fresh.scores(expected)
    fresh._said.append(CAT)
    assert fresh.scores(expected).tolist() == back.scores(expected).tolist()


def test_others_in_the_batch_are_left_alone_wherever_they_move() -> None:
    processor = JointDecoding(None, torch.device("cpu"), False)
    assert not processor.is_argmax_invariant()
    plain, guided = SamplingParams(), SamplingParams(extra_args=guide().told())
    logits = torch.zeros(2, VOCABULARY)
    assert processor.apply(logits) is logits
    processor.update_state(BatchUpdate(2, removed=[], added=[(0, plain, None, []), (1, guided, None, [])], moved=[]))
    found = processor.apply(logits.clone())
    assert found[0].equal(logits[0])
    assert found[1].isfinite().nonzero()[:, 0].tolist() == [CAT]
    processor.update_state(BatchUpdate(2, removed=[], added=[], moved=[(0, 1, MoveDirectionality.SWAP)]))
    found = processor.apply(logits.clone())
    assert found[0].isfinite().sum() == 1
    assert found[1].equal(logits[1])
    processor.update_state(BatchUpdate(1, removed=[0], added=[], moved=[]))
    assert processor.apply(logits.clone()).equal(logits)


@pytest.mark.parametrize("told", [None, {}, {"blsp_heard": "text"}, {"blsp_heard": [1, 2], "blsp_code": 3}, {"x": b""}])
def test_what_clients_may_say_is_no_guide(told: dict[str, object] | None) -> None:
    """JSON has no bytes, and `vllm_xargs` are JSON."""
    assert Guide.of(told) is None


def test_a_guide_goes_to_the_engine_and_back() -> None:
    assert Guide.of(guide(code=0.25).told()) == guide(code=0.25)
