"""What schemathesis can't know of the API: what audio is, and that replies are to be short so that many requests fit a run."""

from typing import Any

import schemathesis
from hypothesis import strategies as st

from tests.sounds import voice, wav

MAX_TOKENS = 4
AUDIO = st.sampled_from([wav(voice(0.3)), wav(voice(1.2))]) | st.binary(max_size=2000)

schemathesis.openapi.media_type("audio/*", AUDIO)
schemathesis.openapi.format("binary", AUDIO)


def _short(fields: Any) -> Any:
    """The fields of a request, so that most requests get as far as the engine: the server's own model, and few tokens."""
    if isinstance(fields, dict):
        fields.pop("model", None)
        if not isinstance(fields.get("max_tokens"), str | list | dict):  # those are to be refused
            fields["max_tokens"] = MAX_TOKENS
    return fields


@schemathesis.hook
def map_body(context: schemathesis.HookContext, body: Any) -> Any:
    return _short(body)


@schemathesis.hook
def map_query(context: schemathesis.HookContext, query: Any) -> Any:
    return _short(query) if context.operation.path == "/v1/speech" else query
