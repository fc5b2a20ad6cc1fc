"""The comments of plan.toml: each value names the law that chose it. The plan file is the training config."""

from __future__ import annotations


def plan_comments(law_hash: str) -> dict[str, str]:
    """Give a comment by dotted key.

    Args:
        law_hash: of law.json, which chose size and tokens.
    """
    law = f"law.json {law_hash[:12]}"
    return {
        "shape.vocab": "vocabulary law, Tao et al. 2024 (arXiv 2407.13623)",
        "shape.d_model": f"least predicted loss for the budget, {law}",
        "shape.n_layers": "d / (16 + d/16), the path of shapes (recipe v2)",
        "shape.d_ff": "8/3 d for SwiGLU, Touvron et al. 2023",
        "batch.rows": "min(0.58 D^0.571, D/400) tokens: step law, Li et al. 2025 (arXiv 2503.04715)",
        "optimizer.rule": "Muon on the blocks' matrices, Jordan et al. 2024; AdamW on all else",
        "optimizer.lr_matrix": "(0.85 k / d) sqrt(B/900) (3.4e5/D)^0.2, k from the sweep's probe (recipe v2)",
        "optimizer.lr_embedding": "lr_matrix d/64: does not shrink with width (Everett et al. 2024)",
        "optimizer.beta2": "0.99 for batches under 32k tokens, Porian et al. 2024",
        "optimizer.weight_decay": "B / (eta D tau), tau = 1.084 (D/N)^-0.527: Power Lines, Bergsma et al. 2025",
        "schedule.steps": f"tokens D of the plan / batch tokens, {law}",
        "schedule.warmup_steps": "3 % of the steps",
        "schedule.decay_steps": "20 %, 1-sqrt cooldown: Haegele et al. 2024 (arXiv 2405.18392)",
        "run.dtype": "the faster one, measured on this machine",
    }
