"""`chinchilla merge`: adapters into the weights of the model that they were trained on.

torch is imported inside the function, so that `chinchilla merge --help` answers at once.
"""

from __future__ import annotations

import json as json_format
import math
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from chinchilla_lm.core.errors import ConfigError


def merge(
    base: Path,
    *,
    adapter: Annotated[tuple[Path, ...], Parameter(negative="", consume_multiple=True)],
    weight: Annotated[tuple[float, ...], Parameter(negative="", show_default=False, consume_multiple=True)] = (),
    out: Path,
    json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Merge one adapter, or several as a weighted sum, into a model; the result is an ordinary model folder.

    Args:
        base: Folder of the model that the adapters were trained on.
        adapter: An adapter folder (the adapter/ of a tuning's run directory, or one of peft), or a run directory; once
            for each. Head, labels and tokenizer are those of the first.
        weight: One for each adapter, in their order. [default: 1 each]
        out: The folder to write; it must not exist yet, or be an earlier result.
        json: Print one JSON document: base, adapters[{folder, weight}], out.
    """
    folders = [find_adapter(folder) for folder in adapter]
    weights = list(weight) or [1.0] * len(folders)
    if len(weights) != len(folders) or not all(math.isfinite(each) for each in weights):
        raise ConfigError(
            f"{len(folders)} adapters and the weights {weights} do not fit; give --weight once for each --adapter, "
            "or not at all"
        )
    check_target(out, [base, *folders])
    from chinchilla_lm.tune.merging import merge_adapters  # torch takes seconds to import

    merge_adapters(base, folders, out, weights=weights)
    if json:
        rows = [{"folder": str(folder), "weight": each} for folder, each in zip(folders, weights, strict=True)]
        print(json_format.dumps({"schema": "merge/1", "base": str(base), "adapters": rows, "out": str(out)}))
        return
    for folder, each in zip(folders, weights, strict=True):
        print(f"{each:+g} x {folder}")
    print(f"model folder  {out}")


def find_adapter(folder: Path) -> Path:
    """Return the adapter's folder: the one named, or the adapter/ in it.

    Raises:
        ConfigError: neither has an adapter_config.json.
    """
    for each in (folder, folder / "adapter"):
        if (each / "adapter_config.json").is_file():
            return each
    raise ConfigError(
        f"{folder} has no adapter_config.json, nor has its adapter/; name a run of --method lora, or a folder of peft"
    )


def check_target(out: Path, sources: list[Path]) -> None:
    """Refuse to overwrite a source, or a folder that holds no model.

    Raises:
        ConfigError: see above.
    """
    for source in sources:
        if out.resolve() in (source.resolve(), *source.resolve().parents):
            raise ConfigError(f"--out {out} would replace {source}; write to a new folder")
    if out.is_dir() and any(out.iterdir()) and not (out / "config.json").is_file():
        raise ConfigError(f"--out {out} holds other files; write to a new folder")
