"""Chat completions: vLLM's own serving classes, with a renderer that understands audio.

What vLLM offers for text (streaming, logprobs, n, stop, JSON schemas, tools) our users have for speech, because all that changes is how
messages become a prompt. With `service/engine.py` this is all that imports vLLM.
"""

import json
from collections.abc import AsyncIterator
from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.exceptions import VLLMError
from vllm.inputs.engine import EngineInput
from vllm.renderers.chat_utils import ConversationMessage
from vllm.renderers.online_renderer import OnlineRenderer
from vllm.v1.engine.exceptions import EngineDeadError

from models.prompt import PromptBuilder
from service import timeline
from service.conversation import hear_messages, parse_messages
from service.engine import Engine, as_api_error
from service.errors import ApiError, InvalidRequest, ModelNotFound
from service.listener import Listener

__all__ = ["ChatCompletionRequest", "ChatService"]


class SpeechRenderer(OnlineRenderer):
    """Renders chat requests with the checkpoint's own prompt builder; audio parts become speech embeddings."""

    def __init__(self, engine: Engine, listener: Listener, prompts: PromptBuilder) -> None:
        super().__init__(
            engine.llm.model_config,
            engine.llm.renderer,
            request_logger=None,
            chat_template=None,
            chat_template_content_format="auto",
        )
        self.engine = engine
        self.listener = listener
        self.prompts = prompts

    async def preprocess_chat(
        self, request: ChatCompletionRequest, messages: list[Any], *args: Any, **kwargs: Any
    ) -> tuple[list[ConversationMessage], list[EngineInput]]:
        """Messages to one engine input; called by OnlineRenderer.render_chat after it has checked the tools."""
        drafts = parse_messages(messages)
        heard, _ = await hear_messages(drafts, self.listener)
        try:
            prompt = self.prompts.build(
                heard, tools=kwargs.get("tool_dicts"), template_options=request.chat_template_kwargs
            )
        except ValueError as error:
            raise InvalidRequest(str(error), param="messages") from error
        timeline.get().audio_tokens = prompt.speech_tokens
        conversation: list[ConversationMessage] = [{"role": draft.role} for draft in drafts]
        return conversation, [self.engine.input(prompt)]


class ChatService:
    """`POST /v1/chat/completions`."""

    def __init__(self, engine: Engine, listener: Listener, prompts: PromptBuilder, model_name: str) -> None:
        self._model_name = model_name
        self._chat = OpenAIServingChat(
            engine.llm,
            OpenAIServingModels(engine.llm, [BaseModelPath(model_name, engine.llm.model_config.model)]),
            "assistant",
            online_renderer=SpeechRenderer(engine, listener, prompts),
            request_logger=None,
            chat_template=None,
            chat_template_content_format="auto",
            enable_prompt_tokens_details=True,
        )

    async def complete(self, request: ChatCompletionRequest) -> AsyncIterator[str] | dict[str, Any]:
        """A whole reply, or with `stream` the lines of its server-sent events.

        Raises ApiError for whatever is wrong with the request before the reply has begun.
        """
        try:
            reply = await self._chat.create_chat_completion(request)
        except (VLLMError, ValueError, EngineDeadError) as error:
            raise as_api_error(error) from error
        if isinstance(reply, ErrorResponse):
            raise self._refusal(reply)
        if isinstance(reply, AsyncIterator):
            return _with_usage(reply)
        body: dict[str, Any] = reply.model_dump()
        _count_audio(body["usage"])
        return body

    def _refusal(self, reply: ErrorResponse) -> ApiError:
        error = reply.error
        if error.code == ModelNotFound.status:
            return ModelNotFound(f"{error.message} This server has {self._model_name!r}.", param="model")
        return InvalidRequest(error.message, param=error.param)


def _count_audio(usage: dict[str, Any]) -> None:
    """Fills in OpenAI's details of the prompt's tokens; vLLM doesn't know which of its embeddings are speech."""
    audio = timeline.get().audio_tokens
    cached = (usage["prompt_tokens_details"] or {}).get("cached_tokens") or 0
    usage["prompt_tokens_details"] = {
        "audio_tokens": audio,
        "text_tokens": usage["prompt_tokens"] - audio,
        "cached_tokens": cached,
    }


async def _with_usage(lines: AsyncIterator[str]) -> AsyncIterator[str]:
    """The events of a stream, with audio counted in the one that brings the details of the usage."""
    async for line in lines:
        if '"prompt_tokens_details":{' in line:
            chunk = json.loads(line.removeprefix("data: "))
            _count_audio(chunk["usage"])
            line = f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
        yield line
