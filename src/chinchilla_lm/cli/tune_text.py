"""What `chinchilla tune` says at the end, in aligned lines: the verdict, the metrics, the cost, the files."""

from __future__ import annotations

from pathlib import Path

MOST_METRICS = 6


def tune_lines(run_dir: Path) -> list[str]:
    """Return the end of a tuning for a terminal.

    Args:
        run_dir: a finished tuning's run directory.
    """
    # jinja2 and markupsafe come with the report: help stays fast
    from chinchilla_lm.report.tune_record import read_tune_run
    from chinchilla_lm.report.tune_rows import changed_examples, metric_rows
    from chinchilla_lm.report.tune_words import added_sentence, change_words, data_sentence, headline, notes, tiles

    run = read_tune_run(run_dir)
    lines = ["", *headline(run).sentences, *filter(None, [added_sentence(run), data_sentence(run)]), ""]
    rows = metric_rows(run)[:MOST_METRICS]
    width = max([12, *(len(row["name"]) for row in rows)])
    if rows:
        lines.append(f"{'':{width}}  {'before':>9}  {'after':>9}  {'points':>9}")
    lines += [f"{row['name']:{width}}  {row['before']:>9}  {row['after']:>9}  {row['change']:>9}" for row in rows]
    lines.append("")
    for name, value, remark in tiles(run):
        if name in ("Rows trained on", "Training time", "Peak memory", "Parameters learned"):
            lines.append(f"{name.lower():{width + 8}}{value}" + (f"  ({remark})" if remark else ""))
    changed = changed_examples(run)
    if changed["n_fixed"] is not None and changed["n_broken"] is not None:
        better, worse = change_words(run)
        lines.append(f"{'rows changed':{width + 8}}{changed['n_fixed']} turned {better}, {changed['n_broken']} {worse}")
    kept = "model" if run.table("continual").get("is_accepted", True) else "model-rejected"
    lines.append(f"{'model folder':{width + 8}}{run_dir / kept}")
    lines.append(f"{'report':{width + 8}}{run_dir / 'report.html'}")
    return lines + [f"note: {note}" for note in notes(run)]
