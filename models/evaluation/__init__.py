"""How good replies are, and how alike the LLM behaves when it hears a sentence and when it reads it."""
