"""Whether a reply is what OpenAI's client declares: every field known, every required field there."""

from collections.abc import Iterator
from typing import Any

from openai.types import Completion, CompletionChoice
from openai.types.audio import (
    TranscriptionSegment,
    TranscriptionTextDoneEvent,
    TranscriptionVerbose,
    TranslationVerbose,
)
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessage
from openai.types.chat.chat_completion import Choice, ChoiceLogprobs
from openai.types.chat.chat_completion_chunk import Choice as ChunkChoice
from openai.types.chat.chat_completion_chunk import ChoiceLogprobs as ChunkLogprobs
from openai.types.responses import Response
from openai.types.responses.response_usage import InputTokensDetails, OutputTokensDetails
from pydantic import BaseModel, TypeAdapter

# Fields of vLLM's that OpenAI's API does not have; null where a request did not ask for them.
EXTRAS: dict[type[BaseModel], set[str]] = {
    ChatCompletion: {
        "prompt_logprobs", "prompt_token_ids", "prompt_text", "kv_transfer_params", "ec_transfer_params", "metrics",
    },
    ChatCompletionChunk: {"prompt_token_ids", "prompt_text", "metrics"},
    Choice: {"stop_reason", "token_ids", "routed_experts"},
    ChunkChoice: {"stop_reason", "token_ids"},
    ChatCompletionMessage: {"reasoning"},
    TranscriptionVerbose: {"task", "finish_reason"},
    TranslationVerbose: {"task", "finish_reason"},
    TranscriptionSegment: {"finish_reason"},
    TranscriptionTextDoneEvent: {"finish_reason"},
    Completion: {"kv_transfer_params", "ec_transfer_params", "metrics", "service_tier"},
    CompletionChoice: {"stop_reason", "token_ids", "prompt_logprobs", "prompt_token_ids", "routed_experts"},
    Response: {
        "frequency_penalty", "presence_penalty", "kv_transfer_params", "ec_transfer_params", "input_messages", "output_messages",
    },
    InputTokensDetails: {"input_tokens_per_turn", "cached_tokens_per_turn"},
    OutputTokensDetails: {"output_tokens_per_turn", "tool_output_tokens", "tool_output_tokens_per_turn"},
}  # fmt: skip
# Fields that OpenAI documents as required though they may be null, so that the client's types have a default for them.
REQUIRED: dict[type[BaseModel], set[str]] = {
    Choice: {"logprobs"},
    ChunkChoice: {"finish_reason"},
    ChoiceLogprobs: {"content", "refusal"},
    ChunkLogprobs: {"content", "refusal"},
    ChatCompletionMessage: {"content", "refusal"},
    CompletionChoice: {"logprobs"},
    Response: {"error", "incomplete_details", "instructions", "metadata", "temperature", "top_p"},
}


def check(body: Any, kind: Any) -> None:
    """Asserts that a JSON body is of a type of the client's, with no unknown and no missing field."""
    for model in _models(TypeAdapter(kind).validate_python(body)):
        unknown = (model.model_extra or {}).keys() - EXTRAS.get(type(model), set())
        assert not unknown, f"{type(model).__name__} has no {unknown}"
        missing = REQUIRED.get(type(model), set()) - model.model_fields_set
        assert not missing, f"{type(model).__name__} lacks {missing}"


def _models(value: Any) -> Iterator[BaseModel]:
    if isinstance(value, BaseModel):
        yield value
        value = {name: getattr(value, name) for name in type(value).model_fields}
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _models(item)
