"""LiteLLM's Python SDK: URL, MODEL and a wav file of two seconds are its arguments."""

import base64
import sys
from pathlib import Path
from typing import Any

import litellm

url, model, file = sys.argv[1:]
audio = base64.b64encode(Path(file).read_bytes()).decode()
server: Any = {"model": f"openai/{model}", "api_base": f"{url}/v1", "api_key": "none"}
question: Any = {
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is said?"},
                {"type": "input_audio", "input_audio": {"data": audio, "format": "wav"}},
            ],
        }
    ],
    "max_tokens": 8,
    "temperature": 0,
}

reply = litellm.completion(**server, **question)
text = reply.choices[0].message.content
assert text
assert reply.usage.completion_tokens == 8
assert reply.usage.prompt_tokens_details.audio_tokens == 13

chunks = litellm.completion(**server, **question, stream=True, stream_options={"include_usage": True})
assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text

with open(file, "rb") as recording:
    transcript = litellm.transcription(**server, file=recording, language="en", temperature=0)
assert transcript.text
with open(file, "rb") as recording:
    assert litellm.transcription(**server, file=recording, response_format="srt").text.startswith(
        "1\n00:00:00,000 --> "
    )

azure: Any = {"model": f"azure/{model}", "api_base": url, "api_key": "none", "api_version": "2024-10-21"}
assert litellm.completion(**azure, **question).choices[0].message.content == text
with open(file, "rb") as recording:
    assert litellm.transcription(**azure, file=recording).text == transcript.text

nope: Any = server | {"model": "openai/nope"}
refusal = ""
try:
    litellm.completion(**nope, **question)
except litellm.NotFoundError as error:
    refusal = str(error)
assert model in refusal
