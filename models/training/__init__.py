"""Behaviour alignment: manifests, batches, and the training of the adapter. Knows nothing about audio formats or vLLM."""

CONTINUE = "Continue the following text in a coherent and engaging style with less than 40 words."
"""The published instruction for continuations (paper, section 2.1)."""


class InputError(ValueError):
    """A manifest or an option that can't be used; the message says which, where and why."""
