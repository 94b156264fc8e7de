"""docs/clients.md names the versions that the tests run, or whose requests they send."""

import json
import re

from tests.clients import FOLDER, ROOT, test_home_assistant, test_open_webui

PAGE = (ROOT / "docs" / "clients.md").read_text()


def pins() -> dict[str, str]:
    """Every version that is tried, by its package."""
    packages = json.loads((ROOT / "tests" / "javascript" / "package-lock.json").read_text())["packages"]
    npm = ("openai", "ai", "@ai-sdk/openai", "@ai-sdk/openai-compatible")
    pinned = re.findall(r"^([\w-]+)(?:\[.*\])?==(\S+)", (FOLDER / "requirements.txt").read_text(), re.M)
    locked = re.findall(r"^(openai)==(\S+)", (ROOT / "deploy" / "serving.lock").read_text(), re.M)
    return {
        **{f"npm {name}": packages[f"node_modules/{name}"]["version"] for name in npm},
        **dict(pinned + locked),
        "wyoming-openai": test_home_assistant.WYOMING_OPENAI,
        "homeassistant": test_home_assistant.VERSION,
        "openai_stt_ha": test_home_assistant.OPENAI_STT,
        "ha-openai-whisper-stt-api": test_home_assistant.WHISPER_CLOUD,
        "open-webui": test_open_webui.VERSION,
    }


def test_the_versions_are_those_that_are_tried() -> None:
    rows = [line.split(" | ") for line in PAGE.splitlines() if line.startswith("| ")][2:]
    told = [version.rsplit(" ", 1) for row in rows for version in row[1].split(", ")]
    assert dict(told) == pins()
