import pytest

from models.demo.tokenizer import build


@pytest.fixture(scope="session")
def tokenizer():
    return build()
