"""What the LLM is told about each transcript while an adapter for SmolLM2 is aligned: the published continuation, and what people ask."""

from models.prompt import CONTINUE

REPEAT = "Please repeat the words you hear."
"""Its reply is the transcript itself, learnt by cross-entropy."""

QUOTED, BEGUN = 'Repeat the sentence between the quotes word for word. "{speech}"', 'Sure! The sentence is: "'
"""What the checkpoint asks for a transcription, and how the reply is begun: the LLM then repeats 40 development transcripts whole."""

EXPECTING = "Quote a sentence, as somebody might say it in a conversation, or read it aloud from a novel, a letter or an encyclopedia."
"""What it is asked without the speech, its reply begun alike: so it expects a sentence, of which the words that were heard are chosen."""

REPEAT_TOO = ("Repeat the following sentence exactly.", "Write down what is said.")

REPLIES = (
    CONTINUE,
    "",  # the speech is the message: a question is answered, an order obeyed
    "",
    "Answer the question or follow the request.",
    "What is this about?",
    "Summarize this in a few words.",
    "Explain what this means.",
    "Rewrite this in a more polite way.",
    "Is this a question, a request or a statement?",
    "Translate this into French.",
)
"""Instructions whose replies are the LLM's own, learnt by the divergence from the LLM that reads the transcript."""
