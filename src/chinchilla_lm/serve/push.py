"""A model folder onto the Hugging Face Hub: first a plan of exactly what would go, then the upload of just that.

Only files of known kinds go. Refused before anything leaves the machine: pickled files (they run code where they are
loaded), links, and files that hold what looks like a secret. The token is found by huggingface_hub itself (`hf auth
login` or HF_TOKEN) and never read here.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chinchilla_lm.core.errors import ConfigError, ModelError
from chinchilla_lm.core.files import sha256_file
from chinchilla_lm.serve.model_folder import check_model_folder, find_model_folder

_KINDS = (".json", ".safetensors", ".gguf", ".jinja", ".md", ".txt", ".png", ".svg", ".html")
_NAMES = ("LICENSE", "NOTICE")
_TEXT_KINDS = (".json", ".jinja", ".md", ".txt", ".svg", ".html")
# Source: the prefixes that the services document for their own keys; PEM headers (RFC 7468).
_SECRETS = {
    "a Hugging Face token": rb"\bhf_[A-Za-z0-9]{30,}",
    "an API key": rb"\bsk-[A-Za-z0-9_-]{20,}",
    "a GitHub token": rb"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{50,})",
    "an AWS key": rb"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a private key": rb"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----",
}
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)  # the Hub's rule for OWNER/NAME
_NEEDED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True, kw_only=True)
class PushFile:
    """A file that goes: its name in the repository, size and SHA-256."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class PushPlan:
    """What an upload would send.

    Attributes:
        folder: of the model.
        repo: OWNER/NAME.
        files: in order of name.
        left_out: files and folders of other kinds, which stay.
        card_header: lines of the model card's front matter.
        missing: what readers on the Hub would look for in vain, with the way out.
    """

    folder: Path
    repo: str
    files: tuple[PushFile, ...]
    left_out: tuple[str, ...]
    card_header: tuple[str, ...]
    missing: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the record that `chinchilla push --json` prints."""
        return {
            "schema": "push/1",
            "repo": self.repo,
            "folder": str(self.folder),
            "files": [asdict(file) for file in self.files],
            "left_out": list(self.left_out),
            "card": list(self.card_header),
            "missing": list(self.missing),
        }


def plan_push(place: Path, repo: str) -> PushPlan:
    """Decide what would go to the Hub; asks nothing of a network.

    Args:
        place: a model folder or a run directory.
        repo: OWNER/NAME.

    Raises:
        ConfigError: the repository's name is none.
        ModelError: the folder is unsafe or broken, or a file holds a secret.
    """
    if not _REPO.fullmatch(repo):
        raise ConfigError(f"repository {repo[:100]!r} must be OWNER/NAME, such as ada/first-model")
    folder = find_model_folder(place)
    check_model_folder(folder)  # refuses pickled files, and links that leave the folder
    files: list[PushFile] = []
    left_out: list[str] = []
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith(".") and (path.suffix in _KINDS or path.name in _NAMES):
            _refuse_secrets(path)
            files.append(PushFile(name=path.name, bytes=path.stat().st_size, sha256=sha256_file(path)))
        else:
            left_out.append(path.name)
    header = _card_header(folder / "README.md")
    return PushPlan(
        folder=folder,
        repo=repo,
        files=tuple(files),
        left_out=tuple(left_out),
        card_header=header,
        missing=_missing({file.name for file in files}, header),
    )


def upload(plan: PushPlan, *, is_private: bool) -> str:
    """Send a plan's files in one commit, making the repository if it is absent.

    Args:
        plan: as `plan_push` made it.
        is_private: of a new repository; an existing one keeps what it is.

    Returns:
        The address of the commit.

    Raises:
        ModelError: the Hub refused or cannot be reached, or a file has changed since the plan.
    """
    from huggingface_hub import CommitOperationAdd, HfApi  # a second to import
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    for file in plan.files:
        if sha256_file(plan.folder / file.name) != file.sha256:
            raise ModelError(f"{plan.folder / file.name} changed since the plan was made; push again")
    api = HfApi()
    operations = [
        CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=plan.folder / file.name) for file in plan.files
    ]
    try:
        api.create_repo(plan.repo, private=is_private, exist_ok=True)
        done = api.create_commit(plan.repo, operations, commit_message="Upload by chinchilla push")
    except (HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"the Hub did not take {plan.repo} ({reason}); log in with `hf auth login`, and check the owner's name and "
            "the network"
        ) from None
    return done.commit_url


def _refuse_secrets(path: Path) -> None:
    if path.suffix not in _TEXT_KINDS and path.suffix:
        return
    content = path.read_bytes()
    for what, pattern in _SECRETS.items():
        if found := re.search(pattern, content):
            line = content.count(b"\n", 0, found.start()) + 1
            raise ModelError(f"{path} line {line} holds what looks like {what}; remove it (and revoke it), then push")


def _card_header(path: Path) -> tuple[str, ...]:
    """Return the lines between the first two lines of `---`, without comments."""
    if not path.is_file():
        return ()
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or lines[0].strip() != "---" or "---" not in lines[1:]:
        return ()
    return tuple(line for line in lines[1 : lines.index("---", 1)] if not line.lstrip().startswith("#"))


def _missing(names: set[str], header: tuple[str, ...]) -> tuple[str, ...]:
    missing = [f"{name}; `chinchilla export --to hf` writes it" for name in _NEEDED if name not in names]
    if not any(name.endswith(".safetensors") for name in names):
        missing.append("weights (.safetensors)")
    if not header:
        missing.append("README.md with front matter, the model card; `chinchilla export --to hf` writes one")
    elif not any(line.startswith("license:") for line in header):
        missing.append("license: in the card's front matter; add one that the training text allows")
    return tuple(missing)
