"""What schemathesis can't know of the API: what audio is, and that replies are to be short so that many requests fit a run."""

from typing import Any

import schemathesis
from hypothesis import strategies as st

from tests.sounds import voice, wav

MAX_TOKENS = 4
SPEECH, CHAT = "/v1/speech", "/v1/chat/completions"
AUDIO = st.sampled_from([wav(voice(0.3)), wav(voice(1.2))]) | st.binary(max_size=2000)

schemathesis.openapi.media_type("audio/*", AUDIO)
schemathesis.openapi.format("binary", AUDIO)


def _short(fields: dict[str, Any]) -> None:
    if not isinstance(fields.get("max_tokens"), str | list | dict):  # those are to be refused
        fields["max_tokens"] = MAX_TOKENS


def _path(context: schemathesis.HookContext) -> str:
    assert context.operation is not None
    return context.operation.path


@schemathesis.hook
def map_body(context: schemathesis.HookContext, body: Any) -> Any:
    """A body that most often gets as far as the engine: it asks for the server's own model, and in a chat for few tokens."""
    if isinstance(body, dict):
        body.pop("model", None)
        if _path(context) == CHAT:
            _short(body)
        else:
            body.pop("max_tokens", None)
    return body


@schemathesis.hook
def map_query(context: schemathesis.HookContext, query: Any) -> Any:
    """For speech, the query is where few tokens are asked for: it goes with a form and with a raw body."""
    if isinstance(query, dict) and _path(context) == SPEECH:
        query.pop("model", None)
        _short(query)
    return query
