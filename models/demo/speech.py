"""What a synthesiser hands back."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class WordSpan(NamedTuple):
    """A word and when it is said, in seconds."""

    word: str
    begin: float
    end: float


class Utterance(NamedTuple):
    """Float32 samples (n,) at `sample_rate`, and the words in them where the engine tells their times."""

    samples: NDArray[np.float32]
    sample_rate: int
    words: list[WordSpan]
