"""Where to cut a long recording for transcription, and subtitles of what was said in the pieces."""

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

from models.features import SAMPLE_RATE

PAUSE = SAMPLE_RATE // 5  # samples: a pause of 200 ms is quiet enough for a cut


class Segment(Protocol):
    """A piece of a transcript: seconds from the recording's start, and text."""

    start: float
    end: float
    text: str


def quietest_cut(samples: npt.NDArray[np.float32]) -> int:
    """Where to end a full window of samples (n,): in the middle of the quietest 200 ms of its second half."""
    half = len(samples) // 2
    energy = np.cumsum(np.square(samples[half:], dtype=np.float64))
    pauses = energy[PAUSE:] - energy[:-PAUSE]
    return half + int(pauses.argmin()) + 1 + PAUSE // 2


def srt(segments: Iterable[Segment], begin: float = 0.0) -> str:
    """SubRip subtitles, of the segments that have text, of a recording that begins so many seconds late."""
    return "\n".join(f"{i}\n{_cue(s, begin, ',')}" for i, s in enumerate(_spoken(segments), 1))


def vtt(segments: Iterable[Segment], begin: float = 0.0) -> str:
    """WebVTT subtitles, as `srt` makes SubRip's."""
    return "WEBVTT\n" + "".join(f"\n{_cue(s, begin, '.')}" for s in _spoken(segments))


def _spoken(segments: Iterable[Segment]) -> Iterator[Segment]:
    """Without those of silence: parsers take a cue without text for the end of the file, or for an error."""
    return (segment for segment in segments if segment.text.strip())


def _cue(segment: Segment, begin: float, point: str) -> str:
    start, end = (_clock(begin + seconds, point) for seconds in (segment.start, segment.end))
    return f"{start} --> {end}\n{_line(segment.text)}\n"


def _clock(seconds: float, point: str) -> str:
    """Hours, minutes, seconds and milliseconds."""
    minutes, milliseconds = divmod(round(seconds * 1000), 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds // 1000:02d}{point}{milliseconds % 1000:03d}"


def _line(text: str) -> str:
    """A cue's text must not hold an empty line or an arrow: either would end it."""
    return " ".join(text.split()).replace("-->", "→")
