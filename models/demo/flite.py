"""flite through its C library, with the time of every word."""

import ctypes
from functools import cache

import numpy as np

from models.demo.speech import Utterance, WordSpan
from models.demo.voices import Voice


class _Wave(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_char_p),
        ("sample_rate", ctypes.c_int),
        ("num_samples", ctypes.c_int),
        ("num_channels", ctypes.c_int),
        ("samples", ctypes.POINTER(ctypes.c_short)),
    )


class _VoiceHead(ctypes.Structure):
    """The first fields of flite's `cst_voice`."""

    _fields_ = (("name", ctypes.c_char_p), ("features", ctypes.c_void_p))


@cache
def _library() -> ctypes.CDLL:
    """flite with the types of what is called here; raises OSError where it is not installed."""
    flite = ctypes.CDLL("libflite.so.1")
    flite.flite_init()
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    for function, result, arguments in (
        ("flite_synth_text", pointer, (text, pointer)),
        ("utt_wave", ctypes.POINTER(_Wave), (pointer,)),
        ("utt_relation", pointer, (pointer, text)),
        ("relation_head", pointer, (pointer,)),
        ("item_next", pointer, (pointer,)),
        ("item_feat_float", ctypes.c_float, (pointer, text)),
        ("ffeature_string", text, (pointer, text)),
        ("path_to_item", pointer, (pointer, text)),
        ("feat_set_float", None, (pointer, text, ctypes.c_float)),
        ("delete_utterance", None, (pointer,)),
    ):
        getattr(flite, function).restype, getattr(flite, function).argtypes = result, arguments
    return flite


@cache
def _voice(name: str) -> int:
    """The address of a voice, loaded once."""
    register = getattr(ctypes.CDLL(f"libflite_cmu_us_{name}.so.1"), f"register_cmu_us_{name}")
    register.restype, register.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
    return int(register(None))


def speak(text: str, voice: Voice, stretch: float = 1.0, pitch: float = 1.0) -> Utterance:
    """Says `text`; `stretch` above 1 is slower, `pitch` above 1 is higher than the voice's own (rms always keeps its own)."""
    flite, address = _library(), _voice(voice.name)
    features = _VoiceHead.from_address(address).features
    flite.feat_set_float(features, b"duration_stretch", stretch)
    flite.feat_set_float(features, b"f0_shift", pitch)
    utterance = flite.flite_synth_text(text.encode(), address)
    try:
        wave = flite.utt_wave(utterance).contents
        samples = np.ctypeslib.as_array(wave.samples, (wave.num_samples,)).astype(np.float32) / np.float32(32768)
        spans = _words(flite, utterance)  # flite spells some words its own way ("oclock")
        words = [span._replace(word=word) for span, word in zip(spans, text.split(), strict=True)]
        return Utterance(samples, wave.sample_rate, words)
    finally:
        flite.delete_utterance(utterance)


def _words(flite: ctypes.CDLL, utterance: int) -> list[WordSpan]:
    """Spans of the words, from the end times of the segments and the word that each belongs to (none: a pause)."""
    spans: list[WordSpan] = []
    begin, previous = 0.0, None
    segment = flite.relation_head(flite.utt_relation(utterance, b"Segment"))
    while segment:
        end = flite.item_feat_float(segment, b"end")
        word = flite.path_to_item(segment, b"R:SylStructure.parent.parent.R:Word")
        if word and word == previous:
            spans[-1] = spans[-1]._replace(end=end)
        elif word:
            spans.append(WordSpan(flite.ffeature_string(word, b"name").decode(), begin, end))
        begin, previous, segment = end, word, flite.item_next(segment)
    return spans


def pronounce(word: str) -> list[str]:
    """The phones of a word in American English."""
    flite = _library()
    utterance = flite.flite_synth_text(word.encode(), _voice("kal16"))
    try:
        phones: list[str] = []
        segment = flite.relation_head(flite.utt_relation(utterance, b"Segment"))
        while segment:
            phones.append(flite.ffeature_string(segment, b"name").decode())
            segment = flite.item_next(segment)
        return [phone for phone in phones if phone != "pau"]
    finally:
        flite.delete_utterance(utterance)
