"""Floor 4: a model behind HTTP: the OpenAI interface, limits, metrics, a page."""
