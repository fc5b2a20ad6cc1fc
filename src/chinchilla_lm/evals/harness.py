"""Any task of lm-evaluation-harness, answered by our engine.

The harness is the field's reference for tasks, prompts and metrics; its own Hugging Face model reads a question once
for each choice. Here it asks our `Scorer`, which reads it once. `lm_eval` is the extra [eval], imported where used.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from chinchilla_lm.core.errors import ConfigError, DataError
from chinchilla_lm.evals.scorer import Scorer
from chinchilla_lm.model.transformer import Transformer

DEFAULT_NEW_TOKENS = 256
"""Where a task names no max_gen_toks: the harness's own default."""
BOOTSTRAP_DRAWS = 1_000
"""For the standard errors of perplexity, F1 and the like; those of means have a formula. The harness draws 100,000."""


def make_harness_model(model: Transformer, scorer: Scorer) -> Any:
    """Wrap a model as `lm_eval.api.model.LM`, for `lm_eval.simple_evaluate(model=...)`.

    Args:
        model: the model that `scorer` holds; rolling log-likelihoods are computed with it.
        scorer: prices continuations and generates; float32 weights agree with the harness's own model to rounding.

    Raises:
        ConfigError: lm-eval is not installed.
    """
    try:
        from chinchilla_lm.evals.harness_model import HarnessModel  # needs lm_eval to be imported at all
    except ImportError as error:
        raise ConfigError(
            f"tasks of lm-eval need it ({error.name} is absent); pip install 'chinchilla-lm[eval]'"
        ) from None
    return HarnessModel(model, scorer)


def run_harness(
    model: Transformer,
    scorer: Scorer,
    tasks: Sequence[str],
    *,
    shots: int | None = None,
    limit: int | None = None,
    task_folder: Path | None = None,
) -> dict[str, dict[str, float]]:
    """Run tasks of the harness.

    Args:
        model: as `make_harness_model`.
        scorer: as `make_harness_model`.
        tasks: names that the harness knows, or of YAML files in `task_folder`.
        shots: demonstrations; None takes each task's own number.
        limit: items of each task; None takes all.
        task_folder: further task files.

    Returns:
        task -> metric ("acc,none", "acc_stderr,none", ...) -> value; "samples" holds the number of items.

    Raises:
        ConfigError: lm-eval is not installed, or does not know a task.
        DataError: a task's data cannot be had, such as from a hub that is out of reach.
    """
    harness_model = make_harness_model(model, scorer)
    import lm_eval  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=None if task_folder is None else str(task_folder))
    unknown = [task for task in tasks if not manager.match_tasks([task])]
    if unknown:
        raise ConfigError(f"lm-eval knows no task {unknown[0]!r}; `lm-eval ls tasks` lists them")
    try:
        with _kept_in_this_process():
            results = lm_eval.simple_evaluate(
                model=harness_model, tasks=list(tasks), num_fewshot=shots, limit=limit, task_manager=manager,
                bootstrap_iters=BOOTSTRAP_DRAWS, log_samples=False,
            )  # fmt: skip
    except (OSError, ConnectionError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"the data of {', '.join(tasks)} cannot be had ({reason}); check the network") from None
    assert results is not None  # None only on other ranks of a distributed run
    return {task: _numbers(values) for task, values in results["results"].items()}


@contextlib.contextmanager
def _kept_in_this_process() -> Generator[None]:
    """Let the harness draw its bootstraps here, not in forks beside torch's threads; it prints, and stdout is ours."""
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if before is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = before


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Keep the finite numbers; the harness writes "N/A" for an error that it has no formula of."""
    return {
        name: float(value) for name, value in values.items() if isinstance(value, int | float) and math.isfinite(value)
    }
