"""Floor 3: text from a model: KV-cache decoding, sampling, streaming."""
