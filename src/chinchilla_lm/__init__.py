"""chinchilla-lm: text and a compute budget in; a compute-optimal language model, forecast before it is trained, out."""

__version__ = "0.1.0"
