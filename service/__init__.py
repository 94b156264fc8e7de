"""The HTTP side: from request bytes to streamed text. `models` never imports it."""
