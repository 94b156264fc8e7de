"""What each kind of request asks for, without HTTP: prompts in, events out."""
