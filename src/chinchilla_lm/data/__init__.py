"""Text to tokens to batches: documents, a tokenizer, shards on disk, and fixed windows of them. No torch."""
