"""Chat completions, completions, responses and tokenization: vLLM's own serving classes, with a renderer that understands audio.

What vLLM offers for text (streaming, logprobs, n, stop, JSON schemas, tools) our users have for speech, because all that changes is how
messages become a prompt. With `service/engine.py` this is all that imports vLLM.
"""

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from itertools import chain
from typing import Any, TypeVar

from pydantic import BaseModel, Field, model_validator
from vllm.entrypoints.openai.chat_completion import protocol as chat_protocol
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponse
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.completion import protocol as completion_protocol
from vllm.entrypoints.openai.completion.protocol import CompletionResponse
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.openai.responses import protocol as responses_protocol
from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
from vllm.entrypoints.serve.engine.protocol import ErrorInfo, ErrorResponse
from vllm.entrypoints.serve.tokenize import protocol as tokenize_protocol
from vllm.entrypoints.serve.tokenize.protocol import DetokenizeRequest, DetokenizeResponse, TokenizeResponse
from vllm.entrypoints.serve.tokenize.serving import ServingTokenization
from vllm.exceptions import VLLMError
from vllm.inputs.engine import EngineInput
from vllm.renderers.chat_utils import ConversationMessage
from vllm.renderers.online_renderer import OnlineRenderer
from vllm.v1.engine.exceptions import EngineDeadError

from service.answers.conversation import Conversations, parse_messages
from service.answers.fields import check_json
from service.answers.operator_fields import refuse_operator_fields
from service.answers.prompting import Prompts
from service.engine import Engine, as_api_error
from service.errors import ApiError, InvalidRequest, OptionError
from service.request import running
from service.telemetry import metrics

GRAMMARS = {
    "response_format",
    "structured_outputs",
    "text",
    "tools",
}  # fields that say which form a reply has; text: of responses
ALLOW_TRUNCATED = "allow_truncated"  # a field of ours
BEFORE_THE_ENGINE = {"response.created", "response.in_progress"}  # events of a response
MAX_CHOICES = 128  # of one request, as at OpenAI: it counts as one at the door

Event = TypeVar("Event")

log = logging.getLogger(__name__)

__all__ = [
    "ChatCompletionRequest",
    "ChatCompletionResponse",
    "ChatService",
    "CompletionRequest",
    "CompletionResponse",
    "DetokenizeRequest",
    "DetokenizeResponse",
    "ResponsesRequest",
    "TokenizeRequest",
    "TokenizeResponse",
]


class _Checked(BaseModel):
    """Some of vLLM's validators look into values before they have checked that these are objects.

    And what lies in fields of any type is checked nowhere.
    """

    @model_validator(mode="wrap")
    @classmethod
    def _refuse_what_vllm_stumbles_over(cls, data: Any, read: Callable[[Any], Any]) -> Any:
        check_json(data)
        try:
            return read(_with_parts(data, "messages", _called_wav))
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"a value has the wrong type: {error}") from error


def _with_parts(data: Any, field: str, change: Callable[[dict[str, Any]], Any]) -> Any:
    """A request, in which audio parts of the messages in a field are changed."""
    if not isinstance(data, dict) or not isinstance(data.get(field), list):
        return data

    def changed(part: Any) -> Any:
        audio = part.get("input_audio") if isinstance(part, dict) and part.get("type") == "input_audio" else None
        return change(audio) if isinstance(audio, dict) and isinstance(audio.get("data"), str) else part

    def with_changes(message: Any) -> Any:
        if not isinstance(message, dict) or not isinstance(message.get("content"), list):
            return message
        return message | {"content": [changed(part) for part in message["content"]]}

    return data | {field: [with_changes(message) for message in data[field]]}


def _called_wav(audio: dict[str, Any]) -> dict[str, Any]:
    """vLLM knows of wav and mp3 only; what it is turns out when it is decoded."""
    return {"type": "input_audio", "input_audio": audio | {"format": "wav"}}


def _as_file(audio: dict[str, Any]) -> dict[str, Any]:
    return {"type": "input_file", "filename": "audio", "file_data": audio["data"]}


class ChatCompletionRequest(_Checked, chat_protocol.ChatCompletionRequest):
    """OpenAI's request, as vLLM reads it."""

    n: int | None = Field(1, ge=1, le=MAX_CHOICES)

    @model_validator(mode="before")
    @classmethod
    def _no_tools(cls, data: Any) -> Any:
        """Frameworks send an empty list where there are none, which vLLM refuses."""
        if not isinstance(data, dict) or data.get("tools") != []:
            return data
        without = {"tools", "tool_choice"} if data.get("tool_choice") == "auto" else {"tools"}
        return {name: value for name, value in data.items() if name not in without}


class CompletionRequest(_Checked, completion_protocol.CompletionRequest):
    """OpenAI's request, as vLLM reads it."""

    n: int = Field(1, ge=1, le=MAX_CHOICES)


class ResponsesRequest(_Checked, responses_protocol.ResponsesRequest):
    """OpenAI's request, as vLLM reads it: audio is a file to it."""

    @model_validator(mode="before")
    @classmethod
    def _audio_as_files(cls, data: Any) -> Any:
        return _with_parts(data, "input", _as_file)


class TokenizeTextRequest(_Checked, tokenize_protocol.TokenizeCompletionRequest):
    """A text to tokenize."""


class TokenizeMessagesRequest(_Checked, tokenize_protocol.TokenizeChatRequest):
    """Messages to tokenize."""


TokenizeRequest = TokenizeTextRequest | TokenizeMessagesRequest


class SpeechRenderer(OnlineRenderer):
    """Renders chat requests with the checkpoint's own prompt builder; audio parts become speech embeddings."""

    def __init__(self, engine: Engine, conversations: Conversations, prompts: Prompts, **options: Any) -> None:
        super().__init__(engine.llm.model_config, engine.llm.renderer, request_logger=None, **options)
        self.engine = engine
        self.conversations = conversations
        self.prompts = prompts

    async def preprocess_chat(
        self, request: Any, messages: list[Any], *args: Any, tool_dicts: Any = None, parser: Any = None, **kwargs: Any
    ) -> tuple[list[ConversationMessage], list[EngineInput]]:
        """Messages to one engine input; called by OnlineRenderer once it has checked the tools."""
        refuse_operator_fields(request)
        _refuse_other_prompts(request)
        self.prompts.check_pieces(len(messages), "messages")
        drafts = parse_messages(messages)
        heard = await self.conversations.hear(drafts, allow_truncated=_allows_truncated(request))
        options = request.chat_template_kwargs
        if not getattr(request, "add_generation_prompt", True):
            options = {"add_generation_prompt": False} | (options or {})
        prompt = await self.prompts.build(heard, "messages", tools=tool_dicts, template_options=options)
        running().audio_tokens = prompt.speech_tokens
        if prompt.speech_tokens and getattr(request, "use_beam_search", False):
            raise InvalidRequest(
                "vLLM searches with beams behind texts alone, not behind speech.", param="use_beam_search"
            )
        if parser is not None:  # has its say in how tool calls and thoughts are generated
            parser(self.renderer.tokenizer, request.tools, chat_template_kwargs=options or {}).adjust_request(request)
        conversation: list[ConversationMessage] = [{"role": draft.role} for draft in drafts]
        return conversation, [self.engine.input(prompt, getattr(request, "cache_salt", None))]


def _refuse_other_prompts(request: Any) -> None:
    """Raises InvalidRequest for ways of vLLM's to make a prompt of messages that are not ours."""
    for name in ("continue_final_message", "truncate_prompt_tokens"):
        if getattr(request, name, None) not in (None, False):
            raise InvalidRequest(
                f"{name!r} is for completions of texts; messages are read whole, and replied to.", param=name
            )


def _refuse_to_speak(request: ChatCompletionRequest) -> None:
    asked = request.model_extra or {}
    modalities = asked.get("modalities")
    if asked.get("audio") is not None or (isinstance(modalities, list) and "audio" in modalities):
        raise InvalidRequest(
            "The model answers in text: leave out 'audio', and 'audio' in 'modalities'.", param="modalities"
        )


def _allows_truncated(request: BaseModel) -> bool:
    allowed = (request.model_extra or {}).get(ALLOW_TRUNCATED, False)
    if not isinstance(allowed, bool):
        raise InvalidRequest(f"{ALLOW_TRUNCATED!r} is true or false.", param=ALLOW_TRUNCATED)
    return allowed


class ChatService:
    """The endpoints whose requests and replies are vLLM's own, for a model with these names; replies carry the first.

    Every method raises ApiError for whatever is wrong with the request before the reply has begun.
    """

    def __init__(
        self,
        engine: Engine,
        conversations: Conversations,
        prompts: Prompts,
        names: Sequence[str],
        tool_parser: str | None,
        max_grammar_bytes: int,
    ) -> None:
        self._engine = engine
        self._max_grammar_bytes = max_grammar_bytes
        self._prompts = prompts
        template: Any = {"chat_template": None, "chat_template_content_format": "auto"}
        parsers: Any = {
            "tool_parser": tool_parser,
            "enable_auto_tools": tool_parser is not None,
            "reasoning_parser": engine.llm.vllm_config.structured_outputs_config.reasoning_parser,
        }
        try:
            renderer = SpeechRenderer(engine, conversations, prompts, **template, **parsers)
        except TypeError as error:
            raise OptionError(str(error)) from error
        self._has_tool_parser = renderer.parser is not None and renderer.parser.tool_parser_cls is not None
        models = OpenAIServingModels(engine.llm, [BaseModelPath(name, engine.llm.model_config.model) for name in names])
        shared: Any = {"online_renderer": renderer, "request_logger": None, "enable_prompt_tokens_details": True}
        self._chat = OpenAIServingChat(engine.llm, models, "assistant", **shared, **template, **parsers)
        self._completion = OpenAIServingCompletion(engine.llm, models, **shared)
        self._responses = OpenAIServingResponses(engine.llm, models, **shared, **template, **parsers)
        self._tokenization = ServingTokenization(models, renderer, **template)

    async def complete(self, request: ChatCompletionRequest) -> AsyncIterator[str] | dict[str, Any]:
        """A chat completion; with `stream` the lines of its server-sent events."""
        _refuse_to_speak(request)
        self._check_tools(request)
        self._check_grammar(request)
        reply = await self._ask(self._chat.create_chat_completion(request))
        if isinstance(reply, AsyncIterator):
            return await self._begun(reply)
        return _filled(reply.model_dump())

    async def complete_text(self, request: CompletionRequest) -> AsyncIterator[str] | dict[str, Any]:
        """A completion of plain text; with `stream` the lines of its server-sent events."""
        if request.prompt_embeds is not None:
            raise InvalidRequest(
                "Prompts are texts or token ids; for speech use chat completions.", param="prompt_embeds"
            )
        self._check_prompts(request)
        self._check_grammar(request)
        refuse_operator_fields(request)
        reply = await self._ask(self._completion.create_completion(request))
        if isinstance(reply, AsyncIterator):
            return await self._begun(reply)
        return _filled(reply.model_dump())

    async def respond(self, request: ResponsesRequest) -> AsyncIterator[str] | dict[str, Any]:
        """A response; with `stream` the lines of its server-sent events. Nothing is stored."""
        if request.background:
            raise InvalidRequest("Nothing is stored, so that no response can be fetched later.", param="background")
        self._check_tools(request)
        self._check_grammar(request)
        try:
            reply = await self._ask(self._responses.create_responses(request))
            begun = await self._ask(_up_to_text(reply)) if isinstance(reply, AsyncIterator) else []
        except (AttributeError, LookupError, TypeError) as error:  # vLLM reads `input` without having checked it
            log.warning("vLLM could not read a response's input: %s", type(error).__name__)  # the error may quote it
            raise InvalidRequest(f"The input can't be read: {error!r}.", param="input") from error
        if isinstance(reply, AsyncIterator):
            return _events(_chained(begun, reply))
        return _whole_response(reply.model_dump(mode="json", by_alias=True))

    async def tokenize(self, request: TokenizeRequest) -> dict[str, Any]:
        """The token ids of a text or of messages; 0 where speech stands."""
        refuse_operator_fields(request)
        if isinstance(request, TokenizeTextRequest):
            self._prompts.check_length(len(request.prompt), "prompt")
        reply: dict[str, Any] = (await self._ask(self._tokenization.create_tokenize(request, None))).model_dump()
        return reply

    async def detokenize(self, request: DetokenizeRequest) -> dict[str, Any]:
        """The text of token ids."""
        self._check_tokens(request.tokens, "tokens")
        reply: dict[str, Any] = (await self._ask(self._tokenization.create_detokenize(request, None))).model_dump()
        return reply

    def _check_prompts(self, request: CompletionRequest) -> None:
        prompts: list[Any] = request.prompt if isinstance(request.prompt, list) else [request.prompt]
        if prompts and isinstance(prompts[0], int):  # one prompt of token ids
            prompts = [prompts]
        if len(prompts) * request.n > MAX_CHOICES:
            raise InvalidRequest(
                f"{len(prompts)} prompts with {request.n} choices each are more than the {MAX_CHOICES} choices that a request may have.",
                param="prompt",
            )
        of_tokens = (prompt for prompt in prompts if isinstance(prompt, list))
        self._check_tokens(list(chain.from_iterable(of_tokens)), "prompt")

    def _check_tokens(self, ids: Sequence[int], param: str) -> None:
        """Tokenizers stumble over ids that don't fit into 32 bits."""
        vocabulary = self._engine.llm.model_config.get_vocab_size()
        if (largest := max(ids, default=0)) >= vocabulary:
            raise InvalidRequest(f"{largest} is no token: the model's vocabulary has {vocabulary}.", param=param)

    async def _ask(self, reply: Awaitable[Any]) -> Any:
        try:
            answer = await reply
        except (VLLMError, ValueError, EngineDeadError) as error:
            raise as_api_error(error) from error
        if isinstance(answer, ErrorResponse):
            raise self._refusal(answer.error)
        return answer

    def _refusal(self, error: ErrorInfo) -> ApiError:
        if error.code >= ApiError.status:
            return as_api_error(EngineDeadError()) if self._engine.llm.errored else ApiError(error.message)
        return InvalidRequest(error.message, param=error.param)

    def _check_tools(self, request: ChatCompletionRequest | ResponsesRequest) -> None:
        if not request.tools:
            return
        if self._prompts.format == "blsp":
            raise InvalidRequest(
                "Tools need a model with a chat template; this one has the 'blsp' prompt format.", param="tools"
            )
        if not self._has_tool_parser and request.tool_choice != "none":
            raise InvalidRequest(
                "This server has no parser for the LLM's tool calls; start it with --tool-call-parser, or set tool_choice to 'none'.",
                param="tools",
            )

    def _check_grammar(self, request: BaseModel) -> None:
        """What a reply is held to is compiled in the engine's process, for which nothing sets an end, not even the client's going."""
        for name, value in request.model_dump(include=GRAMMARS, exclude_none=True).items():
            size = len(json.dumps(value, ensure_ascii=False, default=str).encode())
            if size > self._max_grammar_bytes:
                raise InvalidRequest(
                    f"{name!r} has {size:,} bytes; the server takes {self._max_grammar_bytes:,} (--max-grammar-bytes).",
                    param=name,
                )

    async def _begun(self, lines: AsyncIterator[str]) -> AsyncIterator[str]:
        """The events of a stream of vLLM's, once the first is there: before that, it has not checked all of the request."""
        first = await anext(lines)
        if (error := _error_in(first)) is not None:
            raise self._refusal(error)
        return self._lines(_chained([first], lines))

    async def _lines(self, lines: AsyncIterator[str]) -> AsyncIterator[str]:
        """The events of a stream of vLLM's, with what OpenAI has and vLLM has not, and errors in our form."""
        async for line in lines:
            if (error := _error_in(line)) is not None:
                line = _line(_counted(self._refusal(error)).body())
            elif '"prompt_tokens_details":{' in line or '"logprobs":{' in line:
                line = _line(_filled(json.loads(line.removeprefix("data: "))))
            yield line


def _filled(body: dict[str, Any]) -> dict[str, Any]:
    """A reply or chunk, with what OpenAI has and vLLM has not: which of the prompt's tokens are audio, and `refusal`."""
    usage = body.get("usage")
    if usage and "prompt_tokens_details" in usage:
        audio = running().audio_tokens
        usage["prompt_tokens_details"] = {
            "audio_tokens": audio,
            "text_tokens": usage["prompt_tokens"] - audio,
            "cached_tokens": (usage["prompt_tokens_details"] or {}).get("cached_tokens") or 0,
        }
    for choice in body["choices"]:
        if "content" in (choice.get("logprobs") or {}):
            choice["logprobs"]["refusal"] = None
    return body


def _error_in(line: str) -> ErrorInfo | None:
    """The error that an event of vLLM's holds, where it holds one."""
    if not line.startswith('data: {"error": '):
        return None
    return ErrorInfo.model_validate(json.loads(line.removeprefix("data: "))["error"])


async def _up_to_text(events: AsyncIterator[Any]) -> list[Any]:
    """A response's first events, up to the first for which the engine was asked."""
    begun = []
    async for event in events:
        begun.append(event)
        if event.type not in BEFORE_THE_ENGINE:
            break
    return begun


async def _chained(begun: Sequence[Event], others: AsyncIterator[Event]) -> AsyncIterator[Event]:
    for event in begun:
        yield event
    async for event in others:
        yield event


def _whole_response(response: dict[str, Any]) -> dict[str, Any]:
    """OpenAI requires `error`, which vLLM leaves out."""
    return response | {"error": None}


async def _events(events: AsyncIterator[Any]) -> AsyncIterator[str]:
    """The named events of a streamed response; what goes wrong on the way is the last of them."""
    number = 0
    try:
        async for event in events:
            body = event.model_dump(mode="json", by_alias=True)
            number = body["sequence_number"]
            if "response" in body:
                body["response"] = _whole_response(body["response"])
            yield f"event: {body['type']}\n{_line(body)}"
    except (ApiError, VLLMError, EngineDeadError) as error:
        refusal = error if isinstance(error, ApiError) else as_api_error(error)
        body = _counted(refusal).body()["error"] | {"type": "error", "sequence_number": number + 1}
        yield f"event: error\n{_line(body)}"


def _counted(refusal: ApiError) -> ApiError:
    """An error within a stream; those before it are counted where they become a status."""
    metrics.REFUSALS.labels(refusal.code or refusal.type).inc()
    return refusal


def _line(event: dict[str, Any]) -> str:
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n"
