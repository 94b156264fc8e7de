"""`config.json` in our layout."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from models.config import AdapterSizes, BlspConfig


@pytest.mark.parametrize(
    "config",
    [
        BlspConfig(),
        BlspConfig(
            encoder="openai/whisper-small",
            encoder_revision="abc",
            llm="org/llm",
            llm_revision="def",
            adapter=AdapterSizes(conv_kernel_sizes=(3, 7), inner_dim=17),
            prompt_format="chat-template",
            padding="exact",
        ),
    ],
)
def test_round_trip(config: BlspConfig, tmp_path: Path) -> None:
    config.write(tmp_path)
    assert BlspConfig.read(tmp_path) == config
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "blsp"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "llama"),
        ("padding", "10s"),
        ("prompt_format", "alpaca"),
        ("surprise", 1),
        ("transcribe_expecting", "Say it."),
        ("llm", None),
        ("adapter.conv_kernel_sizes", [5, 4]),
        ("adapter.conv_kernel_sizes", [-1]),
        ("adapter.conv_kernel_sizes", []),
        ("adapter.inner_dim", 0),
        ("adapter.surprise", 1),
    ],
)
def test_errors_name_the_field(field: str, value: Any, tmp_path: Path) -> None:
    section, _, name = field.rpartition(".")
    config: dict[str, Any] = {section: {name: value}} if section else {name: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValidationError, match=field):
        BlspConfig.read(tmp_path)


@pytest.mark.parametrize(
    ("spelling_dim", "begun", "is_right"), [(8, 'It is: "', True), (0, 'It is: "', False), (8, "It is:", False)]
)
def test_what_is_expected_takes_an_adapter_that_spells_and_a_quotation(
    spelling_dim: int, begun: str, is_right: bool
) -> None:
    asks = {"transcribe_expecting": "Say it.", "transcribe_begun": begun}
    with nullcontext() if is_right else pytest.raises(ValidationError, match="transcribe_expecting"):
        BlspConfig(adapter=AdapterSizes(spelling_dim=spelling_dim), **asks)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        BlspConfig.read(tmp_path)
