"""A server whose models are the folders of a folder, with encoders of their own, for none of which there is room when it isn't used."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import torch
from transformers import LlamaForCausalLM

from models.checkpoint import open_checkpoint
from tests.checkpoints import init
from tests.service.test_several_models import INSTRUCTION, TOKENS, ask
from tests.service.test_speech_api import expected_ids
from tests.serving import Server, serve
from tests.sounds import voice, wav


@dataclass
class Shop:
    """The server, the folder that it watches, and one in which what comes there is made."""

    server: Server
    folder: Path
    workshop: Path

    def make(self, name: str, seed: int) -> Path:
        """A checkpoint with an encoder and an adapter of its own."""
        init(self.workshop / "made" / name, seed, llm_of=self.workshop / "first")
        return self.workshop / "made" / name

    def listed(self) -> list[str]:
        with self.server.client() as client:
            return [card["id"] for card in client.get("/v1/models").json()["data"]]

    def expected(self, path: Path, seconds: float, seed: int = 0) -> list[int]:
        """What the checkpoint there says without vLLM."""
        checkpoint = open_checkpoint(str(path), self.server.cache)
        llm = LlamaForCausalLM.from_pretrained(checkpoint.llm, dtype=torch.float32).eval()
        reference = llm, checkpoint.load_embedder(), checkpoint.prompt_builder(torch.float32)
        return expected_ids(reference, seconds, INSTRUCTION, TOKENS, seed)

    def told(self, client: httpx.Client, name: str, seconds: float, seed: int = 0) -> list[int]:
        """What it says through HTTP."""
        token_ids: list[int] = ask(client, name, wav(voice(seconds, seed))).json()["token_ids"]
        return token_ids


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    workshop = tmp_path_factory.mktemp("workshop")
    folder = workshop / "shop"
    folder.mkdir()
    init(workshop / "first")
    for seed, name in enumerate(("one", "two", "broken"), 1):
        init(folder / name, seed, llm_of=workshop / "first")
    (folder / "broken" / "encoder" / "model.safetensors").unlink()
    options = ["--adapter-folder", str(folder), "--watch-adapters", "--encoder-memory-mib", "0"]
    with serve(workshop / "first", tmp_path_factory.mktemp("cache"), *options) as server:
        yield Shop(server, folder, workshop)


def test_what_is_there_is_served_and_the_log_says_what_is_not(shop: Shop) -> None:
    assert shop.listed() == ["first", "one", "two"]
    assert len([line for line in shop.server.log if "The adapter 'broken' can't be served" in line]) == 1


def test_encoders_come_and_go_while_all_are_answered(shop: Shop) -> None:
    assert shop.server.metric("blsp_encoders") == 0
    cases = [(name, seconds, seed) for seed in range(3) for name in ("one", "two") for seconds in (0.9, 31.0)]
    before = shop.server.metric("blsp_encoder_loads_total")
    with shop.server.client() as client, ThreadPoolExecutor(len(cases)) as threads:
        told = list(threads.map(lambda case: shop.told(client, *case), cases))
        assert shop.told(client, "one", 1.7) == shop.expected(shop.folder / "one", 1.7)
        assert shop.told(client, "two", 1.7) == shop.expected(shop.folder / "two", 1.7)
    for (name, seconds, seed), token_ids in zip(cases, told, strict=True):
        assert token_ids == shop.expected(shop.folder / name, seconds, seed), (name, seconds)
    assert shop.server.metric("blsp_encoders") == 0
    assert shop.server.metric("blsp_encoder_loads_total") >= before + 4


def test_an_encoder_that_is_gone_is_told_and_others_are_served(shop: Shop) -> None:
    weights = shop.folder / "one" / "encoder" / "model.safetensors"
    with shop.server.client() as client:
        shop.folder.rename(shop.workshop / "away")  # nothing is unloaded then
        try:
            refused = ask(client, "one", wav(voice(1.1)))
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
            assert "encoder can't be loaded" in refused.json()["error"]["message"]
            assert ask(client, "first", wav(voice(1.1))).status_code == 200
        finally:
            (shop.workshop / "away").rename(shop.folder)
        assert weights.exists()
        assert shop.told(client, "one", 1.1) == shop.expected(shop.folder / "one", 1.1)


def test_what_comes_changes_and_goes_while_others_are_answered(shop: Shop) -> None:
    ended = False
    statuses: list[int] = []

    def keep_asking(name: str) -> None:
        with shop.server.client() as client:
            for seed in range(10_000):
                if ended:
                    break
                statuses.append(ask(client, name, wav(voice(0.8, seed))).status_code)

    with shop.server.client() as client, ThreadPoolExecutor(2) as threads:
        shutil.copytree(shop.make("new", 11), shop.folder / "new")
        shop.server.wait_for(lambda: "new" in shop.listed())
        assert shop.told(client, "new", 1.3) == shop.expected(shop.workshop / "made" / "new", 1.3)
        asking = [threads.submit(keep_asking, name) for name in ("first", "new")]
        try:
            shutil.copy(shop.make("newer", 12) / "adapter.safetensors", shop.folder / "new")
            expected = shop.expected(shop.folder / "new", 1.3)
            shop.server.wait_for(lambda: shop.told(client, "new", 1.3) == expected)
        finally:
            ended = True
        for thread in asking:
            thread.result()
        shutil.rmtree(shop.folder / "new")
        shop.server.wait_for(lambda: "new" not in shop.listed())
        assert ask(client, "new", wav(voice(1.3))).status_code == 404
    assert len(statuses) > 4
    assert set(statuses) == {200}
