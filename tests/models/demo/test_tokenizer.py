import random

from transformers import AutoTokenizer, LlamaForCausalLM

from models.demo import tasks
from models.demo.export import write_llm
from models.demo.prompts import ids, prompt
from models.demo.train_llm import config
from models.demo.world import sentences
from models.prompt import ASSISTANT, HUMAN


def test_all_that_is_written_comes_back_as_it_was(tokenizer):
    rng = random.Random(0)
    for sentence in sentences(2, 300, test=True):
        for text in (
            sentence.text,
            sentence.german,
            sentence.spanish,
            tasks.restate(sentence, rng),
            tasks.associate(sentence, rng),
        ):
            tokens = ids(tokenizer, text)
            assert tokenizer.unk_token_id not in tokens, text
            assert tokenizer.decode(tokens) == text


def test_instructions_have_no_unknown_word(tokenizer):
    wordings = [w for texts in tasks.INSTRUCTIONS.values() for w in texts] + [
        w for _, texts in tasks.QUESTIONS.values() for w in texts
    ]
    assert not [text for text in wordings if tokenizer.unk_token_id in ids(tokenizer, text)]


def test_case_punctuation_and_digits_do_not_matter(tokenizer):
    assert ids(tokenizer, "Wake me up at 7 o\u2019clock, PLEASE!") == ids(
        tokenizer, "wake me up at seven o'clock please"
    )


def test_a_transcript_gives_the_same_ids_in_the_slot_and_joined_to_the_instruction(tokenizer):
    before, after = prompt(tokenizer, "Transcribe the audio.")
    joined = ids(tokenizer, f"{HUMAN}Transcribe the audio. Is the oven broken?{ASSISTANT}")
    assert [*before, *ids(tokenizer, "is the oven broken"), *after] == [tokenizer.bos_token_id, *joined]
    assert len(after) == 1


def test_it_loads_as_any_tokenizer_does(tokenizer, tmp_path):
    write_llm(tmp_path, LlamaForCausalLM(config(tokenizer)), tokenizer)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = f"{HUMAN}repeat{ASSISTANT} the oven"
    assert ids(loaded, text) == ids(tokenizer, text)
    assert [loaded.bos_token, loaded.eos_token, loaded.unk_token, loaded.pad_token] == ["<s>", "</s>", "<unk>", "<pad>"]
