"""Pydantic AI's agents over OpenAI's provider: URL, MODEL and a wav file of two seconds are its arguments."""

import asyncio
import sys
from pathlib import Path
from typing import Any

from pydantic_ai import Agent, BinaryContent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

url, model, file = sys.argv[1:]
question = ["What is said?", BinaryContent(Path(file).read_bytes(), media_type="audio/wav")]
settings: Any = {"temperature": 0, "max_tokens": 8}
provider = OpenAIProvider(base_url=f"{url}/v1", api_key="none")
agent = Agent(OpenAIChatModel(model, provider=provider), instructions="Be brief.", model_settings=settings)


async def main() -> None:
    reply = await agent.run(question)
    assert reply.output
    async with agent.run_stream(question) as stream:
        assert await stream.get_output() == reply.output
    again = await agent.run("Really?", message_history=reply.all_messages())
    assert again.output


asyncio.run(main())
