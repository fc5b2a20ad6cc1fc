"""The model card of an export whose source has none: what the files themselves say, and no more."""

from __future__ import annotations

from chinchilla_lm.core.shapes import ModelShape
from chinchilla_lm.laws.count import count_parameters


def plain_card(name: str, shape: ModelShape) -> str:
    """Return the text of README.md: front matter that the Hub reads, sizes, and how to load the model.

    Args:
        name: of the model.
        shape: its sizes.
    """
    shown = " ".join(name.split()).replace("`", "'")
    params = count_parameters(shape).total
    return f"""---
# license: yours to choose; the text that the model learned from decides what you may grant
library_name: transformers
pipeline_tag: text-generation
tags:
- chinchilla-lm
---

# {shown}

A {shape.layout} language model of {params:,} parameters: {shape.n_layers} layers, width {shape.d_model},
{shape.n_heads} heads ({shape.n_kv_heads} for keys and values), context {shape.context:,}, vocabulary {shape.vocab:,}.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```

Exported with chinchilla-lm. What it was trained on, and how good it is, its maker has not written down here.
"""
