"""After training: the Hugging Face folder, the held-out loss beside the forecast, samples, another library's check."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from chinchilla_lm.core.files import explain_os_error, read_json, write_json, write_text
from chinchilla_lm.data.loader import HeldOut
from chinchilla_lm.data.manifest import Manifest
from chinchilla_lm.data.tokenizer import load_tokenizer
from chinchilla_lm.evals.item_sets import read_item_sets, score_item_sets
from chinchilla_lm.evals.perplexity import evaluate
from chinchilla_lm.generate.completion import generate
from chinchilla_lm.generate.sampling import Sampling
from chinchilla_lm.model.compiling import compile_blocks
from chinchilla_lm.model.huggingface import load_model, save_model
from chinchilla_lm.model.transformer import Transformer
from chinchilla_lm.report.card import model_card
from chinchilla_lm.study.asking import asking_flops
from chinchilla_lm.study.directory import RunDirectory
from chinchilla_lm.study.tasks import judge_tasks

_SAMPLE_TOKENS = 160
_SAMPLE_PROMPT_TOKENS = 24
_SAMPLE_TEMPERATURES = (0.0, 0.8)
# Windows that transformers is asked for as well; its loss must agree with ours to rounding.
_CHECK_WINDOWS = 64
# A draft of a tenth of the size is usual (Leviathan et al. 2023, section 4, took 1 to 10 %); above a half its own
# passes cost more than it can spare.
_DRAFT_SHARE, _LARGEST_DRAFT_SHARE = 0.1, 0.5


def export_and_evaluate(directory: RunDirectory, model: Transformer, manifest: Manifest, heldout: HeldOut) -> float:
    """Write model/ and eval.json; return the FLOPs that asking the suites took.

    Args:
        directory: of the run; it has forecast.json.
        model: trained.
        manifest: of the prepared text, with the tokenizer.
        heldout: the windows that the forecast speaks of.
    """
    save_model(model, directory.model, tokenizer_folder=manifest.tokenizer_folder)
    saved = load_model(directory.model)
    item_sets = read_item_sets(directory.suites)
    measured = score_item_sets(saved, item_sets, manifest.tokenizer_folder)
    compile_blocks(saved)
    result = evaluate(saved, heldout)
    made = read_json(directory.forecast)
    write_json(
        directory.evaluation,
        {
            "schema": "eval/1",
            **result.to_dict(),
            "predicted": {name: made[name] for name in ("loss", "low", "high")},
            "inside": made["low"] <= result.loss <= made["high"],
            "error_percent": 100 * (made["loss"] / result.loss - 1),
            "tasks": judge_tasks(measured, made),
            "samples": _samples(saved, manifest, heldout),
            "transformers_check": _check_with_transformers(directory, saved, heldout),
        },
    )
    return asking_flops(item_sets, model.shape)


def keep_draft(directory: RunDirectory, params_total: int) -> Path | None:
    """Leave one of the sweep's models as a draft of the final one, in drafts/<parameters>/, and remove the others.

    A draft is a model folder like any other; `chinchilla serve RUN --draft auto` finds it. May be called again.

    Args:
        directory: of the run; ladder trials left their models in sweep/drafts/.
        params_total: of the final model.

    Returns:
        The draft's folder; None if no trial was of less than half the final size.
    """
    candidates = directory.sweep / "drafts"
    sizes = [int(folder.name) for folder in candidates.glob("*") if folder.name.isdigit()]
    smaller = [size for size in sizes if size <= _LARGEST_DRAFT_SHARE * params_total]
    if smaller and not any(directory.drafts.glob("*")):  # one is there when a kill came before the others went
        best = min(smaller, key=lambda size: abs(math.log(size / (_DRAFT_SHARE * params_total))))
        with explain_os_error(directory.drafts):
            directory.drafts.mkdir(exist_ok=True)
            (candidates / str(best)).rename(directory.drafts / str(best))
    shutil.rmtree(candidates, ignore_errors=True)
    return next(iter(sorted(directory.drafts.glob("*"))), None)


def write_card(directory: RunDirectory) -> None:
    """Write model/README.md, the Hugging Face model card."""
    write_text(directory.model / "README.md", model_card(directory.path))


def _samples(model: Transformer, manifest: Manifest, heldout: HeldOut) -> list[dict[str, Any]]:
    """Continue the opening of two held-out windows and an empty prompt."""
    tokenizer = load_tokenizer(manifest.tokenizer_folder)
    n_prompt = min(_SAMPLE_PROMPT_TOKENS, model.shape.context // 2)
    middle = len(heldout.inputs_nt) // 2
    openings = [_whole_words(tokenizer.decode(heldout.inputs_nt[row, :n_prompt].tolist())) for row in (0, middle)]
    wanted = [(openings[0], temperature) for temperature in _SAMPLE_TEMPERATURES]
    wanted += [(openings[1], _SAMPLE_TEMPERATURES[-1]), ("", _SAMPLE_TEMPERATURES[-1])]
    samples: list[dict[str, Any]] = []
    for prompt, temperature in wanted:
        text = generate(
            model, tokenizer, prompt, max_tokens=_SAMPLE_TOKENS, sampling=Sampling(temperature=temperature, seed=0)
        ).text
        samples.append({"prompt": prompt, "text": text, "temperature": temperature})
    return samples


def _whole_words(text: str) -> str:
    """Leave out a last word that may be cut; text without spaces, such as Chinese, stays."""
    return text.rsplit(" ", 1)[0] if " " in text else text


def _check_with_transformers(directory: RunDirectory, model: Transformer, heldout: HeldOut) -> dict[str, Any]:
    """Let transformers load the folder and compare its loss with ours on the first windows."""
    import torch
    from transformers import AutoModelForCausalLM  # seconds to import; only here

    ids = heldout.inputs_nt[:_CHECK_WINDOWS]
    targets = heldout.targets_nt[:_CHECK_WINDOWS]
    theirs = AutoModelForCausalLM.from_pretrained(directory.model, dtype=torch.float32, local_files_only=True)
    theirs.eval()
    sums = np.zeros(2)
    with torch.inference_mode():
        for row in range(len(ids)):
            ids_bt, targets_bt = (torch.from_numpy(array[row : row + 1]) for array in (ids, targets))
            logits = theirs(ids_bt).logits.float()
            sums[0] += torch.nn.functional.cross_entropy(logits[0], targets_bt[0], reduction="sum").item()
            sums[1] += model.token_losses(ids_bt, targets_bt).sum().item()
    losses = sums / targets.size
    return {"tokens": int(targets.size), "loss": float(losses[0]), "difference": float(losses[0] - losses[1])}
