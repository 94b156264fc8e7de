"""What the service takes for granted of vLLM's internals. When vLLM moves, this says where."""

import inspect
from typing import Any

import pytest
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
from vllm.entrypoints.serve.tokenize.serving import ServingTokenization
from vllm.inputs.engine import embeds_input
from vllm.renderers.online_renderer import OnlineRenderer
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.sample.logits_processor.interface import BatchUpdate

from service.engine import VLLM_VERSION


def test_the_version_is_the_pinned_one() -> None:
    assert VLLM_VERSION == "0.32.0"


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (embeds_input, {"prompt_embeds", "prompt_token_ids", "is_token_ids"}),
        (AsyncEngineArgs.create_engine_config, {"usage_context"}),
        (AsyncLLM.from_vllm_config, {"vllm_config", "disable_log_stats"}),
        (AsyncLLM.generate, {"prompt", "sampling_params", "request_id"}),
        (OnlineRenderer.preprocess_chat, {"request", "messages", "tool_dicts", "parser"}),
        (
            OpenAIServingChat.__init__,
            {"engine_client", "models", "response_role", "online_renderer", "enable_prompt_tokens_details"},
        ),
        (OpenAIServingChat.create_chat_completion, {"request", "raw_request"}),
        (OpenAIServingChat.__init__, {"tool_parser", "enable_auto_tools", "reasoning_parser"}),
        (OpenAIServingCompletion.__init__, {"engine_client", "models", "online_renderer"}),
        (OpenAIServingCompletion.create_completion, {"request", "raw_request"}),
        (OpenAIServingResponses.__init__, {"engine_client", "models", "online_renderer", "tool_parser"}),
        (OpenAIServingResponses.create_responses, {"request", "raw_request"}),
        (ServingTokenization.__init__, {"models", "online_renderer", "chat_template"}),
        (ServingTokenization.create_tokenize, {"request", "raw_request"}),
        (ServingTokenization.create_detokenize, {"request", "raw_request"}),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_functions_take_what_we_give(function: Any, parameters: set[str]) -> None:
    assert parameters <= inspect.signature(function).parameters.keys()


def test_the_chat_service_asks_the_renderer() -> None:
    """Of chat, the whole seam: serving calls render_chat, which calls the preprocess_chat that SpeechRenderer overrides."""
    assert "self.online_renderer.render_chat(" in inspect.getsource(OpenAIServingChat.render_chat_request)
    assert "self.preprocess_chat(" in inspect.getsource(OnlineRenderer.render_chat)


def test_the_other_services_ask_it_too() -> None:
    assert "self.online_renderer.render_responses(" in inspect.getsource(OpenAIServingResponses)
    assert "self.preprocess_chat(" in inspect.getsource(OnlineRenderer.render_responses)
    assert "self.online_renderer.preprocess_chat(" in inspect.getsource(ServingTokenization.create_tokenize)


def test_a_logits_processor_is_told_of_its_batch() -> None:
    assert {"batch_size", "removed", "added", "moved"} <= set(inspect.signature(BatchUpdate).parameters)
    assert {"req_entries", "batch_update", "new_state"} <= inspect.signature(process_dict_updates).parameters.keys()


def test_prompt_embeddings_are_an_engine_option() -> None:
    assert AsyncEngineArgs(enable_prompt_embeds=True).enable_prompt_embeds
