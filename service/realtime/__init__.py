"""Talking: a socket on which one speaks and is answered, in the form of OpenAI's Realtime API, with text as output."""
