"""LangChain's chat models of OpenAI and Azure: URL, MODEL and a wav file of two seconds are its arguments."""

import base64
import sys
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import AzureChatOpenAI, ChatOpenAI

url, model, file = sys.argv[1:]
audio = base64.b64encode(Path(file).read_bytes()).decode()
options: Any = {"api_key": "none", "temperature": 0, "max_tokens": 8}
chat = ChatOpenAI(base_url=f"{url}/v1", model=model, **options)


def asked(part: dict[str, Any]) -> list[Any]:
    question = HumanMessage([{"type": "text", "text": "What is said?"}, part])
    return [SystemMessage("Be brief."), HumanMessage("Hello."), AIMessage("Hello."), question]


question = asked({"type": "audio", "base64": audio, "mime_type": "audio/wav"})
reply = chat.invoke(question)
assert reply.content
assert reply.usage_metadata["input_token_details"]["audio"] == 13

plain = asked({"type": "input_audio", "input_audio": {"data": audio, "format": "wav"}})
assert chat.invoke(plain).content == reply.content
assert "".join(chunk.content for chunk in chat.stream(question)) == reply.content

azure = AzureChatOpenAI(azure_endpoint=url, api_version="2024-10-21", azure_deployment=model, **options)
assert azure.invoke(question).content == reply.content
