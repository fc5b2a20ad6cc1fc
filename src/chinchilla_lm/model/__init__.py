"""Floor 2: the Transformer (transformer.py) and Hugging Face folders (huggingface.py)."""
