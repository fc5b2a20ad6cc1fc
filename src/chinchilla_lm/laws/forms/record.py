"""Every form by its name, and any law from its record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from chinchilla_lm.core.errors import FitError
from chinchilla_lm.laws.forms.additive import AdditiveLaw
from chinchilla_lm.laws.forms.allocation import AllocationLaw
from chinchilla_lm.laws.forms.coupled import CoupledLaw
from chinchilla_lm.laws.forms.kaplan import KaplanLaw
from chinchilla_lm.laws.forms.overtraining import OvertrainingLaw
from chinchilla_lm.laws.forms.repetition import RepetitionLaw

LossForm = AdditiveLaw | KaplanLaw | CoupledLaw | RepetitionLaw | OvertrainingLaw
AnyLaw = LossForm | AllocationLaw

_READERS: dict[str, Callable[[Mapping[str, Any]], AnyLaw]] = {
    AdditiveLaw.form: AdditiveLaw.from_dict,
    KaplanLaw.form: KaplanLaw.from_dict,
    CoupledLaw.form: CoupledLaw.from_dict,
    RepetitionLaw.form: RepetitionLaw.from_dict,
    OvertrainingLaw.form: OvertrainingLaw.from_dict,
    AllocationLaw.form: AllocationLaw.from_dict,
}
FORMS = tuple(_READERS)


def law_from_dict(mapping: Mapping[str, Any]) -> AnyLaw:
    """Build the law that a record describes.

    Args:
        mapping: any form's `to_dict`, or a whole law.json that holds the same keys; without "form" it is additive.

    Returns:
        The law.

    Raises:
        FitError: an unknown form, or a missing or impossible constant.
    """
    form = mapping.get("form", AdditiveLaw.form)
    reader = _READERS.get(form) if isinstance(form, str) else None
    if reader is None:
        raise FitError(f"law form {form!r} is unknown; choose from {', '.join(FORMS)}")
    return reader(mapping)
