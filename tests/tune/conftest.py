"""Tiny random models of every kind, saved as Hugging Face folders, with a tokenizer trained on a few lines.

    folder = tiny_folder("qwen3")     # or llama, gpt2, bert, t5, bart; d = 32, 2 layers, context 128
    config = configure(lr=1e-4)       # of a short tuning on `sentiment_rows`
    task, model = build(config, rows) # as a tuning has them before its first update

Folders are made once a session and read-only: copy one before changing it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from chinchilla_lm.tune.backbone import load_backbone
from chinchilla_lm.tune.config import TuneConfig
from chinchilla_lm.tune.task import TunedModel, make_task

LINES = (
    "Review: a warm , funny and moving film . Sentiment: positive",
    "Review: a dull , lifeless and boring mess . Sentiment: negative",
    "Article: the team won the final game on sunday . Topic: sports",
    "Article: shares fell as the bank warned on profit . Topic: business",
    "Question: Who wrote the play ? Context: The play was written by Anna Smith in London . Answer: Anna Smith",
    "the cat sat on the mat , and the dog ran to the river near Paris .",
    "I like good books ; they hate bad films and great terrible stories .",
    "你好，世界。今天的天气很好，我们去北京的公园。",
)
TAGGED = [
    {"tokens": ["Anna", "Smith", "ran", "to", "Paris", "."], "tags": ["B-PER", "I-PER", "O", "O", "B-LOC", "O"]},
    {"tokens": ["the", "cat", "sat"], "tags": ["O", "O", "O"]},
    {"tokens": ["London", "2010", ",", "unheardofword"], "tags": ["B-LOC", "O", "O", "B-PER"]},
]
RELATED = [
    {
        "text": "The fire was caused by a cigarette near Paris .",
        "head": [4, 8],
        "tail": [25, 34],
        "label": "Cause-Effect(e2,e1)",
    },
    {"text": "the cat sat on the mat", "head": [4, 7], "tail": [19, 22], "label": "Other"},
]
CONTEXT = 128
_BLOCKS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_SPECIALS = {  # kind -> (roles, template of one text, of a pair); GPT-like kinds add nothing around a text
    "decoder": ({"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}, None),
    "bert": (
        {
            "unk_token": "[UNK]",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "pad_token": "[PAD]",
            "mask_token": "[MASK]",
        },
        ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
    ),
    "t5": ({"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}, ("$A </s>", "$A </s> $B </s>")),
    "bart": (
        {
            "bos_token": "<s>",
            "pad_token": "<pad>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "mask_token": "<mask>",
            "cls_token": "<s>",
            "sep_token": "</s>",
        },
        ("<s> $A </s>", "<s> $A </s> </s> $B </s>"),
    ),
}


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """(kind) -> folder of a tiny random model with its tokenizer; kinds qwen3, llama, gpt2, bert, t5, bart."""
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = save_tiny_model(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return folder


@pytest.fixture
def sentiment_rows() -> list[dict[str, Any]]:
    """Forty rows that a tiny model can learn: the label is whether a good or a bad word is in the text."""
    good, bad = ("warm", "funny", "great", "good"), ("dull", "boring", "terrible", "bad")
    subjects = ("film", "story", "game", "play", "book")
    rows: list[dict[str, Any]] = []
    for subject in subjects:
        for word in good:
            rows.append({"text": f"a {word} {subject}", "label": "positive"})
        for word in bad:
            rows.append({"text": f"the {subject} was {word} , and not moving at all", "label": "negative"})
    return rows


@pytest.fixture
def configure(
    tiny_folder: Callable[[str], Path], tmp_path: Path, sentiment_rows: list[dict[str, Any]]
) -> Callable[..., TuneConfig]:
    """(kind, changes) -> config of one epoch on `sentiment_rows`, which are train, validation and test rows."""
    rows = str(write_jsonl(tmp_path / "train.jsonl", sentiment_rows))

    def make(kind: str = "qwen3", **changes: Any) -> TuneConfig:
        settings: dict[str, Any] = {
            "task": "text-classification",
            "model": str(tiny_folder(kind)),
            "train": rows,
            "validation": rows,
            "test": rows,
            "out": str(tmp_path / "run"),
            "method": "full",
            "lr": 3e-3,
            "rows": 8,
            "epochs": 1.0,
            "dtype": "float32",
            "device": "cpu",
            "bootstrap_draws": 100,
        }
        return TuneConfig(**settings | changes)

    return make


def build(
    config: TuneConfig, rows: Sequence[dict[str, Any]], *, seed: int = 0, head_spread: float | None = None
) -> tuple[Any, TunedModel]:
    """(task, model in evaluation mode); with a `head_spread` the head is random, however it would begin."""
    backbone = load_backbone(config)
    task = make_task(config, rows, backbone)
    torch.manual_seed(seed)
    head = task.make_head(backbone)
    if head_spread is not None:
        assert head is not None
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.normal_(0, head_spread)
    return task, TunedModel(backbone, head).eval()


def batch_of(task: Any, items: Sequence[Any]) -> tuple[torch.Tensor, ...]:
    """What `task.objective` takes."""
    return tuple(torch.from_numpy(array) for array in task.collate(items))


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def save_tiny_model(kind: str, folder: Path, *, seed: int = 0) -> Path:
    """Save a random model of a kind and its tokenizer; weights have spread 0.15, or every logit would be near 0."""
    family = kind if kind in _SPECIALS else "decoder"
    tokenizer = make_tokenizer(family)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    model = _make_model(kind, tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.15)
    model.save_pretrained(folder)
    return folder


def make_tokenizer(family: str) -> Any:
    """Train a byte-level BPE of a few hundred tokens with the special tokens of a family (decoder, bert, t5, bart)."""
    from transformers import PreTrainedTokenizerFast

    roles, template = _SPECIALS[family]
    specials = list(dict.fromkeys(roles.values()))
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES * 3, trainer)
    if template is not None:
        used = [(token, tokenizer.token_to_id(token)) for token in specials]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template[0], pair=template[1], special_tokens=used
        )
    inputs = ["input_ids", "token_type_ids", "attention_mask"] if family == "bert" else ["input_ids", "attention_mask"]
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=CONTEXT, model_input_names=inputs, **roles
    )
    wrapped.padding_side = "right"
    return wrapped


def _make_model(kind: str, tokenizer: Any) -> Any:
    import transformers as hf

    sizes = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    if kind == "bert":
        return hf.BertForMaskedLM(hf.BertConfig(**sizes, **_BLOCKS, max_position_embeddings=CONTEXT))
    ends = {"eos_token_id": tokenizer.eos_token_id}
    if kind == "t5":
        start = {"decoder_start_token_id": tokenizer.pad_token_id}
        return hf.T5ForConditionalGeneration(
            hf.T5Config(**sizes, **ends, **start, d_model=32, d_ff=64, d_kv=8, num_layers=2, num_heads=4)
        )
    if kind == "bart":
        start = {
            "bos_token_id": tokenizer.bos_token_id,
            "decoder_start_token_id": tokenizer.eos_token_id,
            "forced_eos_token_id": tokenizer.eos_token_id,
        }
        heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
        widths = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": CONTEXT}
        return hf.BartForConditionalGeneration(
            hf.BartConfig(**sizes, **ends, **start, **widths, **heads, encoder_layers=2, decoder_layers=2)
        )
    return _make_decoder(kind, sizes | ends | {"bos_token_id": tokenizer.eos_token_id})


def _make_decoder(kind: str, ids: dict[str, Any]) -> Any:
    import transformers as hf

    if kind == "gpt2":
        return hf.GPT2LMHeadModel(hf.GPT2Config(**ids, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT))
    modern = ids | _BLOCKS | {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": CONTEXT}
    if kind == "llama":
        return hf.LlamaForCausalLM(hf.LlamaConfig(**modern, tie_word_embeddings=False))
    assert kind == "qwen3", f"no tiny model of kind {kind!r}"
    return hf.Qwen3ForCausalLM(hf.Qwen3Config(**modern, tie_word_embeddings=True))
