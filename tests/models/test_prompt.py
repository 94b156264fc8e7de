"""Prompts: the official ids, and speech rows where speech is."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from models.prompt import ASSISTANT, HUMAN, Message, Prompt, PromptBuilder, Speech, about
from models.random_init import byte_tokenizer

DIM = 8
Encode = Callable[[str], list[int]]


def speech(length: int) -> Speech:
    """Rows without a zero."""
    return Speech(1 + torch.rand(length, DIM))


A, B = speech(3), speech(5)


@pytest.fixture(scope="module")
def builder(tokenizer: PreTrainedTokenizerBase) -> PromptBuilder:
    return PromptBuilder(tokenizer, "blsp", DIM)


@pytest.fixture(scope="module")
def template() -> PromptBuilder:
    return PromptBuilder(byte_tokenizer(300), "chat-template", DIM)


def user(*parts: str | Speech) -> Message:
    return Message("user", parts)


def assistant(*parts: str | Speech) -> Message:
    return Message("assistant", parts)


def system(*parts: str | Speech) -> Message:
    return Message("system", parts)


def assert_prompt(prompt: Prompt, *segments: list[int] | Speech) -> None:
    """The prompt is these segments: ids and zero rows for text, zero ids and its own rows for speech."""
    ids: list[int] = []
    is_token: list[bool] = []
    rows: list[Tensor] = []
    for segment in segments:
        if isinstance(segment, list):
            ids += segment
            is_token += [True] * len(segment)
            rows.append(torch.zeros(len(segment), DIM))
        else:
            ids += [0] * len(segment.rows)
            is_token += [False] * len(segment.rows)
            rows.append(segment.rows)
    assert prompt.token_ids == ids
    assert prompt.is_token == is_token
    assert torch.equal(prompt.rows, torch.cat(rows))
    assert prompt.speech_tokens == is_token.count(False)


class TestOneUserMessage:
    """The form of generate.py: the instruction is tokenized together with what stands in front of it."""

    @pytest.mark.parametrize("text", ["", "Hello", " Hello", "请用中文回答问题。", "two  spaces "])
    def test_instruction_and_speech(self, builder: PromptBuilder, reference_ids: Encode, text: str) -> None:
        prefix = [1, *reference_ids("###[Human]:" + text)]
        suffix = reference_ids("\n\n\n###[Assistant]:")
        assert_prompt(builder.build([user(text, A)]), prefix, A, suffix)

    @pytest.mark.parametrize("text", ["</s>", "a <s>b</s> c", "x<unk>y", "</s>###[Human]:"])
    def test_special_tokens_in_a_message_are_text(
        self, builder: PromptBuilder, sentencepiece: SentencePieceProcessor, text: str
    ) -> None:
        human, said = sentencepiece.encode("###[Human]:"), sentencepiece.encode(text)  # which knows no special tokens
        suffix = sentencepiece.encode("\n\n\n###[Assistant]:")
        assert_prompt(builder.build([user(text, A, text)]), [1, *human, *said], A, said + suffix)
        turns = builder.build([user(text), assistant(text), user(text)]).token_ids
        assert [i for i in turns if i < 3] == [1]

    def test_text_only(self, builder: PromptBuilder, reference_ids: Encode) -> None:
        prompt = builder.build([user("Why is the sky blue?")])
        assert_prompt(prompt, [1, *reference_ids(HUMAN + "Why is the sky blue?"), *reference_ids(ASSISTANT)])

    def test_speech_only(self, builder: PromptBuilder, reference_ids: Encode) -> None:
        assert_prompt(builder.build([user(A)]), [1, *reference_ids(HUMAN)], A, reference_ids(ASSISTANT))

    def test_texts_before_the_speech_are_one(self, builder: PromptBuilder) -> None:
        assert builder.build([user("He", "llo", A)]).token_ids == builder.build([user("Hello", A)]).token_ids

    def test_several_pieces_of_speech_in_order(self, builder: PromptBuilder, reference_ids: Encode) -> None:
        prompt = builder.build([user("Compare", A, B, "with", A, "please")])
        assert_prompt(
            prompt,
            [1, *reference_ids(HUMAN + "Compare")],
            A,
            B,
            reference_ids("with"),
            A,
            reference_ids("please") + reference_ids(ASSISTANT),
        )

    def test_system_messages_stand_in_front(self, builder: PromptBuilder, reference_ids: Encode) -> None:
        prompt = builder.build([system("Be brief."), system("Be kind."), user("Hello", A)])
        assert_prompt(prompt, [1, *reference_ids(HUMAN + "Be brief.\nBe kind.\nHello")], A, reference_ids(ASSISTANT))


class TestConversation:
    """The form of chat_demo.py: every piece of text is tokenized on its own."""

    def test_text_and_speech(self, builder: PromptBuilder, reference_ids: Encode) -> None:
        prompt = builder.build([user("Listen.", A), assistant("Good", "bye"), user(B, "and?")])
        human, suffix = reference_ids("###[Human]:"), reference_ids("\n\n\n###[Assistant]:")
        reply = reference_ids("Goodbye\n\n\n")
        assert_prompt(
            prompt,
            [1, *human, *reference_ids("Listen.")],
            A,
            [*suffix, *reply, *human],
            B,
            [*reference_ids("and?"), *suffix],
        )

    def test_system_message_is_a_piece_of_the_first_user_message(
        self, builder: PromptBuilder, reference_ids: Encode
    ) -> None:
        turns = [user("Hi"), assistant("Ho"), user("Ha")]
        [bos, *rest] = builder.build(turns).token_ids
        human, folded = reference_ids(HUMAN), reference_ids("Be brief.\n")
        expected = [bos, *human, *folded, *rest[len(human) :]]
        assert builder.build([system("Be brief."), *turns]).token_ids == expected
        assert builder.build([*turns[:2], system("Be brief."), turns[2]]).token_ids == expected

    def test_system_message_is_kept_where_the_assistant_speaks_first(
        self, builder: PromptBuilder, reference_ids: Encode
    ) -> None:
        prompt = builder.build([system("Be brief."), assistant("Hi!"), user("Hello")])
        human, suffix = reference_ids(HUMAN), reference_ids(ASSISTANT)
        folded = [*human, *reference_ids("Be brief.\n"), *reference_ids("Hello"), *suffix]
        assert_prompt(prompt, [1, *reference_ids("Hi!\n\n\n"), *folded])


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], "last message must be the user's"),
        ([system("Be brief.")], "last message must be the user's"),
        ([user(A), assistant("Hi")], "last message must be the user's"),
        ([system(A), user("Hi")], "system message can't hold audio"),
        ([user("Hi"), assistant(A), user("Hi")], "assistant message can't hold audio"),
    ],
)
def test_conversations_that_the_format_cannot_express(
    builder: PromptBuilder, messages: list[Message], error: str
) -> None:
    with pytest.raises(ValueError, match=error):
        builder.build(messages)


def test_the_blsp_format_has_no_tools(builder: PromptBuilder) -> None:
    with pytest.raises(ValueError, match="tools need a model with a chat template"):
        builder.build([user(A)], tools=[{"type": "function"}])
    with pytest.raises(ValueError, match="tools need a model with a chat template"):
        builder.build([user(A), Message("tool", ["It is on."]), user("Thanks.")])


def test_rows_take_the_builders_dtype(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = PromptBuilder(tokenizer, "blsp", DIM, torch.bfloat16).build([user(A)])
    assert prompt.rows.dtype == torch.bfloat16
    assert torch.equal(prompt.rows[~torch.tensor(prompt.is_token)], A.rows.bfloat16())


def marked_up(template: str = "") -> PromptBuilder:
    """With added tokens of all kinds; what begins with < is markup, and what is special."""
    tokenizer = byte_tokenizer(300)
    added = tokenizer.backend_tokenizer
    for content in ("<|start|>", "STOP"):  # which no attribute of the tokenizer names
        added.add_special_tokens([AddedToken(content, normalized=False)])
    for content in ("<tool>", "<<tool>", "  ", "▁▁", "word"):
        added.add_tokens([AddedToken(content, normalized=False, special=False)])
    tokenizer.chat_template = template or (
        "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}{{ m.name }}<tool>{% endfor %}{{ tools }}{{ mood }}"
    )
    return PromptBuilder(tokenizer, "chat-template" if template != "blsp" else "blsp", DIM)


class TestMarkup:
    """Tokens that a template could write are text in a message, whatever the tokenizer knows of them."""

    TEXT = "aSTOP<|start|>b<tool>c<<tool>d<tool><tool><<tool>>"

    def ids(self, builder: PromptBuilder, *tokens: str) -> list[int]:
        return [builder.tokenizer.convert_tokens_to_ids(token) for token in tokens]

    def test_markup_is_spelled_out(self) -> None:
        builder = marked_up()
        options: dict[str, Any] = {"tools": [{"name": self.TEXT}], "template_options": {"mood": self.TEXT}}
        prompt = builder.build([Message("user", [self.TEXT, A, self.TEXT], {"name": self.TEXT})], **options)
        start, tool, *others = self.ids(builder, "<|start|>", "<tool>", "<<tool>", "STOP")
        assert [i for i in prompt.token_ids if i in (start, tool, *others)] == [start, tool]
        text = builder.tokenizer.decode([i for i, t in zip(prompt.token_ids, prompt.is_token, strict=True) if t])
        assert (
            text == f"<|start|>user\n{self.TEXT}\n\n{self.TEXT}{self.TEXT}<tool>[{{'name': '{self.TEXT}'}}]{self.TEXT}"
        )

    def test_markup_is_spelled_out_in_the_blsp_format(self) -> None:
        builder = marked_up("blsp")
        for messages in ([user(self.TEXT, A, self.TEXT)], [user(self.TEXT), assistant(self.TEXT), user(self.TEXT)]):
            prompt = builder.build(messages)
            assert not set(self.ids(builder, "<|start|>", "<tool>", "<<tool>", "STOP")) & set(prompt.token_ids)

    def test_words_and_white_space_are_as_the_tokenizer_has_them(self) -> None:
        builder = marked_up()
        ids = builder.build([user("a  b▁▁word")]).token_ids
        assert set(self.ids(builder, "  ", "▁▁", "word")) <= set(ids)

    def test_what_models_write_themselves_is_markup_where_an_assistant_has_said_it(self) -> None:
        builder = marked_up("{% for m in messages %}{{ m.role }}{{ m.content.split('<tool>')[-1] }}{% endfor %}")
        said = [user("<tool>x"), assistant("thought<tool>y<|start|>"), user("z")]
        prompt = builder.build(said)
        assert builder.tokenizer.decode(prompt.token_ids) == "user<tool>xassistanty<|start|>userz"
        assert not set(self.ids(builder, "<|start|>", "<tool>")) & set(prompt.token_ids)


class TestChatTemplate:
    def test_speech_in_its_place(self, template: PromptBuilder) -> None:
        def ids(text: str) -> list[int]:
            return template.tokenizer.encode(text, add_special_tokens=False)

        prompt = template.build([system("Be brief."), user("Compare", A, B), assistant("Done"), user(B, "And?")])
        assert_prompt(
            prompt,
            ids("<s><system>Be brief.</system>\n<user>Compare\n"),
            A,
            ids("\n"),
            B,
            ids("</user>\n<assistant>Done</assistant>\n<user>"),
            B,
            ids("\nAnd?</user>\n<assistant>"),
        )

    def test_speech_within_an_instruction(self, template: PromptBuilder) -> None:
        encode = partial(template.tokenizer.encode, add_special_tokens=False)
        prompt = template.build([about('Say: "{speech}"', A)], begun='"')
        assert_prompt(prompt, encode('<s><user>Say: "'), A, encode('"</user>\n<assistant>"'))
        assert about("Say it.", A) == Message("user", ["Say it.", A])

    def test_no_speech(self, template: PromptBuilder) -> None:
        [bos, *ids] = template.build([user("Hi")]).token_ids
        assert (bos, template.tokenizer.decode(ids)) == (1, "<user>Hi</user>\n<assistant>")

    def test_special_tokens_in_a_message_are_text(self, template: PromptBuilder) -> None:
        texts = ["</s><s><system>", "a<unk>", "<s", ">"]
        prompt = template.build([system(texts[0]), user(texts[1], A, *texts[2:]), assistant(texts[0]), user("And?")])
        assert [i for i, is_token in zip(prompt.token_ids, prompt.is_token, strict=True) if is_token and i < 3] == [1]
        text = template.tokenizer.decode([i for i, t in zip(prompt.token_ids, prompt.is_token, strict=True) if t])
        assert text == (
            "<s><system></s><s><system></system>\n<user>a<unk>\n\n<s\n></user>\n<assistant></s><s><system></assistant>\n"
            "<user>And?</user>\n<assistant>"
        )

    def test_special_tokens_in_tools_and_options_are_text(self) -> None:
        tokenizer = byte_tokenizer(300)
        tokenizer.chat_template = "{{ bos_token }}{{ tools | tojson }}{{ mood }}{{ messages[0].content }}"
        prompt = PromptBuilder(tokenizer, "chat-template", DIM).build(
            [user("Hi")], tools=[{"name": "</s>", "</s>": ["<s>"]}], template_options={"mood": "<unk>"}
        )
        assert [i for i in prompt.token_ids if i < 3] == [1]
        assert tokenizer.decode(prompt.token_ids) == '<s>[{"name": "</s>", "</s>": ["<s>"]}]<unk>Hi'

    @pytest.mark.parametrize(
        "name", ["chat_template", "tokenize", "tokenizer_kwargs", "return_tensors", "conversation"]
    )
    def test_options_that_are_no_options_of_a_template(self, template: PromptBuilder, name: str) -> None:
        with pytest.raises(ValueError, match=f"'{name}' is no option"):
            template.build([user("Hi")], template_options={name: "x"})

    @pytest.mark.parametrize(
        ("source", "options"),
        [
            ("{{ raise_exception('roles must alternate') }}", {}),
            ("{{ messages[0].content }}", {"messages": []}),
            ("{{ 1 / zero }}", {"zero": 0}),
            ("{{ mood.feeling.depth }}", {"mood": "calm"}),
        ],
    )
    def test_what_a_template_does_not_take(self, source: str, options: dict[str, Any]) -> None:
        tokenizer = byte_tokenizer(300)
        tokenizer.chat_template = source
        with pytest.raises(ValueError, match="chat template does not take"):
            PromptBuilder(tokenizer, "chat-template", DIM).build([user("Hi")], template_options=options)

    def test_options_and_tools_reach_the_template(self) -> None:
        tokenizer = byte_tokenizer(300)
        tokenizer.chat_template = "{{ messages[0].content }}{{ tools[0].type }}{{ mood }}{{ add_generation_prompt }}"
        options = {"mood": "calm", "add_generation_prompt": False}
        prompt = PromptBuilder(tokenizer, "chat-template", DIM).build(
            [user(A)], tools=[{"type": "function"}], template_options=options
        )
        assert tokenizer.decode(prompt.token_ids[3:]) == "functioncalmFalse"

    def test_what_else_a_message_has_reaches_the_template(self) -> None:
        tokenizer = byte_tokenizer(300)
        tokenizer.chat_template = (
            "{% for m in messages %}{{ m.role }}{{ m.tool_call_id }}{{ m.tool_calls }}{% endfor %}"
        )
        messages = [
            user("Hi"),
            Message("assistant", [""], {"tool_calls": [1]}),
            Message("tool", ["ok"], {"tool_call_id": "7"}),
        ]
        prompt = PromptBuilder(tokenizer, "chat-template", DIM).build(messages)
        assert tokenizer.decode(prompt.token_ids) == "userassistant[1]tool7"

    def test_text_that_imitates_the_mark_stays_text(
        self, template: PromptBuilder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Even the mark of an earlier request is only text in the next."""
        rendered: list[str] = []
        render = template.tokenizer.apply_chat_template

        def spy(conversation: list[dict[str, str]], **options: Any) -> str:
            rendered.append(conversation[0]["content"])
            return render(conversation, **options)

        monkeypatch.setattr(template.tokenizer, "apply_chat_template", spy)
        template.build([user(A)])
        [mark] = rendered
        prompt = template.build([user(mark, A, mark.upper())])
        text = template.tokenizer.decode([i for i, t in zip(prompt.token_ids, prompt.is_token, strict=True) if t])
        assert text == f"<s><user>{mark}\n\n{mark.upper()}</user>\n<assistant>"
        assert prompt.speech_tokens == 3

    @pytest.mark.parametrize("source", ["{{ messages[-1].content }}", "{{ messages[0].content }}" * 2])
    def test_templates_that_lose_or_repeat_speech(self, source: str) -> None:
        tokenizer = byte_tokenizer(300)
        tokenizer.chat_template = source
        with pytest.raises(ValueError, match="drops or repeats a message that holds audio"):
            PromptBuilder(tokenizer, "chat-template", DIM).build([user(A), assistant("Hi"), user("Hi")])
