"""What the language model is asked about a sentence, in what words, and what it should answer."""

import random
from collections.abc import Callable

from models.demo.world import Sentence, digits, spoken_words, thoughts

INSTRUCTIONS: dict[str, list[str]] = {
    "repeat": [
        "Please repeat the words you hear.",
        "Transcribe the audio.",
        "Repeat after me.",
        "Write down what is said.",
        "What did the speaker say?",
        "Please transcribe the following audio.",
        "Say it again.",
        "Repeat the sentence.",
        "What do you hear?",
        "Transcribe the speech into text.",
        "Give me the transcript.",
        "Please write the words of the recording.",
    ],
    "german": [
        "Please translate the following audio into German text.",
        "Translate into German.",
        "Say it in German.",
        "What is this in German?",
        "Translate the speech to German.",
        "Please translate the sentence into German.",
        "How do you say this in German?",
        "German translation please.",
    ],
    "spanish": [
        "Please translate the following audio into Spanish text.",
        "Translate into Spanish.",
        "Say it in Spanish.",
        "What is this in Spanish?",
        "Translate the speech to Spanish.",
        "Please translate the sentence into Spanish.",
        "How do you say this in Spanish?",
        "Spanish translation please.",
    ],
    "intent": [
        "What does the speaker want?",
        "What is the intent?",
        "Classify the intent of the audio.",
        "What is this about?",
        "Which topic is it?",
        "What kind of request is this?",
        "Name the intent.",
        "What is the topic of the recording?",
    ],
    "continue": [
        "Continue the following text in a coherent and engaging style with less than 40 words.",
        "Continue the text.",
        "Continue.",
        "Go on.",
        "Please continue what is said.",
        "Write a continuation of the following text.",
        "What comes next?",
        "",
    ],
}
"""Task -> wordings; the first ones are those of the paper and of the README."""

QUESTIONS: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "number": (
        ("digits", "amount", "hour"),
        ["Which number?", "Which number do you hear?", "What number is mentioned?", "Which digits?"],
    ),
    "place": (("place",), ["Which place?", "Which place is mentioned?", "What building does the speaker mention?"]),
    "time": (("hour",), ["What time?", "At what time?", "Which hour is mentioned?"]),
    "city": (("city",), ["Which city?", "Which city is mentioned?", "What city does the speaker mention?"]),
    "day": (("day",), ["Which day?", "When?", "Which day is mentioned?"]),
    "person": (("person",), ["Who?", "Which person?", "Who is mentioned?", "Which person does the speaker mention?"]),
    "animal": (("animal",), ["Which animal?", "What animal is mentioned?", "Which animal do you hear?"]),
    "room": (("room",), ["Which room?", "What room is mentioned?", "In which room?"]),
    "food": (("food", "dish"), ["Which food?", "Which goods are mentioned?", "What is to be bought or cooked?"]),
    "thing": (
        ("object", "device", "instrument"),
        ["Which thing?", "Which object is mentioned?", "What device or object does the speaker mention?"],
    ),
    "profession": (("job",), ["Which profession?", "What is the profession?", "Which job is mentioned?"]),
}
"""One-word questions: the slots that answer them, and their wordings."""

NO_ANSWER = "none"
_FUNCTION_WORDS = (
    "a an the is are was be it to in on at for of does did do will there and i you we me my up so this what how"
)
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
"""Words that the rest of a sentence implies."""

_RESTATING = (
    "so that is",
    "i understand",
    "let us go over it",
    "to sum up",
    "you mean",
    "in other words",
    "well then",
    "all right",
)
_ASSOCIATING = (
    "that brings to mind",
    "i think of",
    "one imagines",
    "this makes me picture",
    "it has something of",
    "suddenly i see",
)
_RESTATING_JOINTS, _ASSOCIATING_JOINTS = ("and", "then", "also"), ("and", "or", "besides")


def intent(sentence: Sentence) -> str:
    """What the sentence is about, in a word."""
    return sentence.intent


def answer(sentence: Sentence, question: str) -> str:
    """The words that answer one of `QUESTIONS`, or `NO_ANSWER`."""
    slots, _ = QUESTIONS[question]
    found = [english for slot, english in sentence.slots if slot in slots]
    return " and ".join(found) or NO_ANSWER


def restate(sentence: Sentence, rng: random.Random) -> str:
    """A continuation that brings back every word of the sentence, its chunks in another order."""
    chunks = list(sentence.chunks)
    while len(chunks) > 1 and tuple(chunks) == sentence.chunks:
        rng.shuffle(chunks)
    return f"{rng.choice(_RESTATING)} {_join(chunks, _RESTATING_JOINTS, rng)}"


def associate(sentence: Sentence, rng: random.Random) -> str:
    """A continuation that names what the words of the sentence make one think of, in any order (digits keep theirs), and no word of it."""
    ideas = [idea for idea in map(_ideas, sentence.chunks) if idea]
    flat = [idea for group in ideas for idea in group]
    rng.shuffle(flat)
    return f"{rng.choice(_ASSOCIATING)} {_join(flat or ['nothing'], _ASSOCIATING_JOINTS, rng)}"


def _ideas(chunk: str) -> list[str]:
    """The thoughts at a chunk: of its longest phrases that have one, one group of digits being one thought."""
    words, ideas = chunk.split(), list[str]()
    i = 0
    while i < len(words):
        size = next((n for n in (3, 2, 1) if " ".join(words[i : i + n]) in thoughts()), 0)
        thought = thoughts().get(" ".join(words[i : i + size]), "")
        if i and {words[i], words[i - 1]} <= set(digits()):
            ideas[-1] += f" {thought}"
        elif thought and words[i] not in FUNCTION_WORDS:
            ideas.append(thought)
        i += max(size, 1)
    return ideas


def _join(parts: list[str], joints: tuple[str, ...], rng: random.Random) -> str:
    text = parts[0]
    for part in parts[1:]:
        text += f" {rng.choice(joints)} {part}"
    return text


REPLIES: dict[str, Callable[[Sentence, random.Random], str]] = {
    "repeat": lambda sentence, rng: sentence.text,
    "german": lambda sentence, rng: sentence.german,
    "spanish": lambda sentence, rng: sentence.spanish,
    "intent": lambda sentence, rng: sentence.intent,
    "continue": lambda sentence, rng: (restate if rng.random() < 0.5 else associate)(sentence, rng),
}


def draw(sentence: Sentence, rng: random.Random) -> tuple[str, str]:
    """A task of any kind about the sentence: instruction and reply."""
    if rng.random() < 0.12:
        present = [name for name, (slots, _) in QUESTIONS.items() if any(slot in slots for slot, _ in sentence.slots)]
        question = rng.choice(present if present and rng.random() < 0.8 else list(QUESTIONS))
        return rng.choice(QUESTIONS[question][1]), answer(sentence, question)
    task = rng.choices(list(REPLIES), (3, 3, 3, 1, 3))[0]
    return rng.choice(INSTRUCTIONS[task]), REPLIES[task](sentence, rng)


def random_words(rng: random.Random) -> str:
    """A few words or digits in no order, for the repeat task: the model has to read what is there, not what is likely."""
    choices = digits() if rng.random() < 0.5 else spoken_words()
    return " ".join(rng.choice(choices) for _ in range(rng.randint(1, 8)))
