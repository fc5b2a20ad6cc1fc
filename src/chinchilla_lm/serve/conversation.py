"""A conversation in one process: turns, their prompt by the model's chat template, answers piece by piece.

A model without a template is no chat model: each text is then continued by itself. When the turns outgrow the context
the oldest are left out of the prompt, never the system message. Knows nothing of terminals.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

from chinchilla_lm.core.errors import ModelError
from chinchilla_lm.core.files import write_json
from chinchilla_lm.generate.request import Request
from chinchilla_lm.generate.sampling import Sampling
from chinchilla_lm.generate.text import encode_prompt
from chinchilla_lm.serve.served_model import ServedModel

_LEAST_ROOM = 4  # an answer has at least a quarter of the context, if it may be that long: else turns are left out


class Conversation:
    """Turns with a model.

    Attributes:
        is_chat: the model has a chat template.
        messages: {"role", "content"} of the system message if there is one, and of all turns.
        left_out: turns that the last prompt had no room for.
    """

    def __init__(self, served: ServedModel, *, sampling: Sampling, max_tokens: int, system: str | None = None) -> None:
        """Begin.

        Args:
            served: a language model; its scheduler is used and not ended.
            sampling: its seed is that of the first answer, one more for each further.
            max_tokens: most tokens of an answer, >= 1.
            system: the system message; None leaves it to the template.

        Raises:
            ModelError: the model is a classifier.
        """
        if served.scheduler is None:
            raise ModelError(f"{served.name} is a classifier and writes no text; use `chinchilla serve`")
        self._served, self._scheduler = served, served.scheduler
        self._sampling, self._max_tokens = sampling, max_tokens
        self.is_chat = served.template is not None
        self.messages: list[dict[str, str]] = []
        self.left_out = 0
        self.set_system(system)

    def reset(self) -> None:
        """Forget the turns; the system message stays."""
        self.messages = [one for one in self.messages if one["role"] == "system"]
        self.left_out = 0

    def set_system(self, text: str | None) -> None:
        """Begin anew under a system message; None or "" leaves it to the template."""
        self.messages = [{"role": "system", "content": text}] if text else []
        self.left_out = 0

    def save(self, path: Path) -> None:
        """Write the turns as JSON: {"messages": [...]}, as training files and the API have them.

        Raises:
            DataError: the place may not be written.
        """
        write_json(path, {"messages": self.messages})

    def answer(self, text: str) -> Generator[str, None, None]:
        """Answer a text, or continue it when the model is no chat model.

        What was said is kept as a turn, even if the caller stops early (closing this generator cancels the rest).

        Yields:
            Pieces of text, non-empty.

        Raises:
            ModelError: the text alone fills the context, or the template refused it; the turn is not kept.
        """
        turns = len(self.messages)
        self.messages.append({"role": "user", "content": text})
        try:
            ids = self._prompt_ids()
            seed = (self._sampling.seed + turns) % 2**63
            count = min(self._max_tokens, self._served.capacity - len(ids))
            request = Request(prompt_ids=ids, max_tokens=count, sampling=replace(self._sampling, seed=seed))
            ticket = self._scheduler.submit(request)
        except BaseException:
            del self.messages[turns:]
            raise
        said: list[str] = []
        try:
            for event in ticket.events():
                if event.text:
                    said.append(event.text)
                    yield event.text
        finally:
            ticket.cancel()
            self.messages.append({"role": "assistant", "content": "".join(said)})

    def _prompt_ids(self) -> tuple[int, ...]:
        """Tokens of the next prompt; of a chat the longest end that leaves room for an answer."""
        tokenizer, template, capacity = self._served.tokenizer, self._served.template, self._served.capacity
        if template is None:
            ids = tuple(encode_prompt(tokenizer, self.messages[-1]["content"]))
            if len(ids) >= capacity:
                raise ModelError(f"the text has {len(ids)} tokens and the context {capacity}; write a shorter one")
            return ids
        most = capacity - min(self._max_tokens, capacity // _LEAST_ROOM)
        system = [one for one in self.messages if one["role"] == "system"]
        turns = self.messages[len(system) :]
        # Question and answer leave together, so that the prompt always begins with a question.
        for start in range(0, len(turns), 2):
            prompt = template.render([*system, *turns[start:]])
            ids = tuple(tokenizer.encode(prompt, add_special_tokens=False).ids)
            if 0 < len(ids) <= most:
                self.left_out = start
                return ids
        raise ModelError(
            f"the text has {len(ids)} tokens with its system message and the context of {capacity} has room for "
            f"{most}; write a shorter one, or lower --max-tokens"
        )
