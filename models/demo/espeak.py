"""espeak-ng through its C library: a few milliseconds an utterance, and the time of every word."""

import ctypes
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from models.demo.speech import Utterance, WordSpan
from models.demo.voices import Voice

_LIBRARY = "libespeak-ng.so.1"
_SYNCHRONOUS, _TERMINATED, _WORD, _UTF8 = 2, 0, 1, 1
_RATE, _PITCH, _RANGE = 1, 3, 4


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # characters from 1
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # ms
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class Espeak:
    """The synthesiser. The library keeps one state for the process, so use one instance: `espeak()`."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(_LIBRARY)
        self.sample_rate: int = self._library.espeak_Initialize(_SYNCHRONOUS, 0, None, 0)
        self._blocks: list[NDArray[np.int16]] = []
        self._starts: list[tuple[int, float]] = []
        self._callback = _Callback(self._collect)  # kept: the library holds only the address
        self._library.espeak_SetSynthCallback(self._callback)
        self._voice: Voice | None = None

    def speak(self, text: str, voice: Voice, words_per_minute: int, pitch: int, pitch_range: int) -> Utterance:
        """Says `text`, lowercase words between single spaces. Pitch and its range go from 0 to 100.

        Raises ValueError for an unknown voice.
        """
        if voice != self._voice and self._library.espeak_SetVoiceByName(voice.name.encode()):
            raise ValueError(f"espeak-ng has no voice {voice.name}")
        self._voice = voice
        for parameter, value in ((_RATE, words_per_minute), (_PITCH, pitch), (_RANGE, pitch_range)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._blocks, self._starts = [], []
        data = text.encode()
        self._library.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8, None, None)
        samples = np.concatenate(self._blocks).astype(np.float32) / np.float32(32768)
        return Utterance(samples, self.sample_rate, _spans(text, self._starts, len(samples) / self.sample_rate))

    def _collect(self, wave: "ctypes._Pointer[ctypes.c_short]", count: int, events: "ctypes._Pointer[_Event]") -> int:
        """The library's callback: keeps a block of samples and the words that begin in it; returning 0 means go on."""
        if wave and count:
            self._blocks.append(np.ctypeslib.as_array(wave, (count,)).copy())
        i = 0
        while (event := events[i]).type != _TERMINATED:
            if event.type == _WORD:
                self._starts.append((event.text_position - 1, event.audio_position / 1000))
            i += 1
        return 0


@cache
def espeak() -> Espeak:
    """The process's one synthesiser; raises OSError where espeak-ng is not installed."""
    return Espeak()


def _spans(text: str, starts: list[tuple[int, float]], end: float) -> list[WordSpan]:
    """Word events to spans. espeak merges clitics ("on the") into one event: its words share the time by their letters."""
    bounds = [(position, seconds) for position, seconds in starts if position >= 0]
    ends = [
        seconds for position, seconds in starts if position < 0
    ]  # an event before the text marks where the speech ends
    bounds.append((len(text) + 1, min([*ends, end])))
    spans: list[WordSpan] = []
    for (position, begin), (next_position, finish) in pairwise(bounds):
        group = text[position : next_position - 1].split()
        letters = sum(map(len, group))
        for word in group:
            until = begin + (finish - begin) * len(word) / max(letters, 1)
            spans.append(WordSpan(word, begin, until))
            letters, begin = letters - len(word), until
    return spans
