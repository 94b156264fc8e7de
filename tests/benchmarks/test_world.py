import io
import shutil

import pytest

from benchmarks import world
from service.audio.decode import decode

pytestmark = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg command")


def test_whole_recordings_are_heard() -> None:
    """Of every format; what is not gets no reply, and would be taken for the server's fault."""
    for options in world.FORMATS.values():
        file = world._written(options, seconds=2, seed=0)
        samples = sum(map(len, decode(io.BytesIO(file), max_seconds=10)))
        assert 1.4 < samples / 16_000 < 2.2, options


def test_the_others_differ_from_whole_ones() -> None:
    files = world._files()
    assert all(any(file.startswith(cut) and file != cut for file in files) for cut in world.cut_short(10))
    assert not set(world.damaged(10)) & set(files)
    assert len(set(world.noise(10))) == 10
