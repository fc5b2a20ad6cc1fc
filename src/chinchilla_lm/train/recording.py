"""What a job writes down: step/1 records, thinned to a curve, and evaluation/1 records, in one file of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chinchilla_lm.core.files import write_text
from chinchilla_lm.core.records import append_record, read_records
from chinchilla_lm.train.loop import StepRecord

# A curve of 500 points is as fine as a report can show; the first steps show a wrong start.
_CURVE_POINTS = 500
_FIRST_STEPS = 10


class JobRecords:
    """The records.jsonl of one job. Speeds are over the updates since the last step record."""

    def __init__(self, path: Path, *, steps: int, flops_per_token: float, peak_flops_per_s: float | None) -> None:
        """Open nothing yet.

        Args:
            path: the file; appended to.
            steps: of the whole schedule, for the thinning.
            flops_per_token: spent by one training target.
            peak_flops_per_s: for the MFU; None leaves it out (null).
        """
        self._path = path
        self._steps = steps
        self._flops_per_token = flops_per_token
        self._peak_flops_per_s = peak_flops_per_s
        self._tokens: int | None = None
        self._unrecorded_seconds = 0.0

    def cut(self, step: int, tokens: int) -> None:
        """Go back to a checkpoint: drop what was recorded after it, for those steps are done again."""
        self._tokens, self._unrecorded_seconds = tokens, 0.0
        records = read_records(self._path) if self._path.exists() else []
        kept = [record for record in records if record["step"] <= step]
        if len(kept) < len(records):
            write_text(self._path, "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in kept))

    def add_step(self, record: StepRecord, elapsed_seconds: float) -> None:
        """Count an update; record it if the curve needs the point."""
        assert self._tokens is not None, "cut() says where the job starts"
        self._unrecorded_seconds += record.step_seconds
        if not is_recorded(record.step, self._steps):
            return
        tokens_per_s = (record.tokens - self._tokens) / self._unrecorded_seconds
        self._tokens, self._unrecorded_seconds = record.tokens, 0.0
        fields = {
            "step": record.step,
            "tokens": record.tokens,
            "loss": record.loss,
            "lr": record.lr,
            "grad_norm": record.grad_norm,
            "tokens_per_s": tokens_per_s,
            "mfu": self.mfu(tokens_per_s),
            "elapsed_seconds": elapsed_seconds,
        }
        append_record(self._path, "step/1", fields)

    def add_evaluation(self, step: int, tokens: int, measured: Mapping[str, Any]) -> dict[str, Any]:
        """Record a measurement; "step" and "tokens" are those of the training, whatever the measurement calls so."""
        fields = {**measured, "step": step, "tokens": tokens}
        append_record(self._path, "evaluation/1", fields, sync=True)
        return fields

    def evaluation_at(self, step: int) -> dict[str, Any] | None:
        """Give the evaluation recorded after `step` updates, or None."""
        records = read_records(self._path, "evaluation/1") if self._path.exists() else []
        found = [record for record in records if record["step"] == step]
        return {key: value for key, value in found[-1].items() if key != "schema"} if found else None

    def mfu(self, tokens_per_s: float) -> float | None:
        """Give the share of the machine's peak that a speed is."""
        return tokens_per_s * self._flops_per_token / self._peak_flops_per_s if self._peak_flops_per_s else None


def is_recorded(step: int, steps: int) -> bool:
    """Say whether the curve keeps this step: the first ten, about 500 over the run, the last."""
    return step <= _FIRST_STEPS or step == steps or step % max(1, steps // _CURVE_POINTS) == 0
