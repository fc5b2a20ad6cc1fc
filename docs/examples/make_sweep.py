"""Write sweep.csv, a sweep whose law is known: 7 budgets of 6 sizes, .3 % noise between seeds, and one run gone wrong.

Run: python docs/examples/make_sweep.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from chinchilla_lm.laws.forms.additive import AdditiveLaw

# Made up, near the law of the Chinchilla runs.
TRUTH = AdditiveLaw(E=1.82, A=480.0, B=2100.0, alpha=0.347, beta=0.367, params_convention="total")
NOISE_SD = 0.003  # of ln L, as between seeds of small models
GONE_WRONG = 20  # this run's learning rate was too high: 4 % more loss


def sweep_text() -> str:
    """Return the table as CSV."""
    rng = np.random.default_rng(0)
    lines = ["name,params (M),tokens (B),flops,val_loss"]
    for flops in np.geomspace(1e18, 1e21, 7):
        for ratio in np.geomspace(0.25, 4.0, 6):
            params = TRUTH.optimum(flops)[0] * ratio
            tokens = flops / 6 / params
            loss = TRUTH.loss(params, tokens) * float(np.exp(rng.normal(scale=NOISE_SD)))
            loss *= 1.04 if len(lines) == GONE_WRONG else 1.0
            lines.append(f"r{len(lines):02d},{params / 1e6:.5g},{tokens / 1e9:.5g},{flops:.4g},{loss:.4f}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("sweep.csv").write_text(sweep_text(), encoding="utf-8")
