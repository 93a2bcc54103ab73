"""Which files may be read, shown to a model, or sent.

Three lists count. The built-in one names files that hold secrets by their nature (keys, `.env`); nothing can
switch it off. `.nexoignore` files, in `.gitignore` syntax, name what no model may see. `.gitignore` files
(and `.git/info/exclude`) name what is never context for other files, never sent to a remote engine, and
passed over when a folder is walked.

Answers come from memory: the ignore files of a folder are read once, and again by `prepare` when they have
changed on disk. `prepare` off-loads its reading, so it belongs before a request; a question about a folder
that nobody prepared reads its few small files at once, because a wrong "may be shown" would be worse than a
short wait.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache
from pathlib import Path, PurePath

from pathspec import GitIgnoreSpec
from pathspec.pattern import Pattern

from nexo_lsp.offload import Offload, inline

NEXO_IGNORE = ".nexoignore"
GIT_IGNORE = ".gitignore"
_GIT_EXCLUDE = Path(".git", "info", "exclude")

# Names (lower case) of files whose purpose is to hold a secret.
_SECRET_NAMES = (
    ".env", ".env.*", "*.env", ".envrc",
    "id_rsa", "id_dsa", "id_ecdsa", "id_ed25519", "id_ecdsa_sk", "id_ed25519_sk",
    "*.pem", "*.key", "*.p8", "*.p12", "*.pfx", "*.ppk", "*.jks", "*.keystore", "*.kdbx", "*.ovpn",
    ".netrc", "_netrc", ".npmrc", ".pypirc", ".pgpass", ".my.cnf", ".htpasswd", ".dockercfg",
    ".git-credentials", ".vault-token", ".terraformrc", ".s3cfg", ".boto", "kubeconfig",
    "credentials", "credentials.json", "credentials.ya?ml", "credentials.yml", "credentials.yaml",
    "credentials.toml", "credentials.ini", "credentials.xml", "credentials.csv", "credentials.properties",
    "secret.json", "secret.yml", "secret.yaml", "secret.toml", "secrets", "secrets.*",
    "service-account*.json", "service_account*.json", "*.tfvars", "*.tfstate", "*.tfstate.backup",
    ".*_history",
)  # fmt: skip

# Templates that are made to be shared.
_NOT_SECRET = (".env.example", ".env.sample", ".env.template", ".env.dist", "example.env", "sample.env")

# Files that are secret by the folder that holds them.
_SECRET_PLACES = (".ssh/*", ".gnupg/*", ".aws/*", ".docker/config.json", ".kube/config", ".azure/*")

# Folders that hold no code of the user's; a walk never enters them.
_NEVER_WALKED = frozenset({
    ".git", ".hg", ".svn", ".jj", "node_modules", "__pycache__", ".venv", "venv", ".tox", ".nox",
    ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", ".idea", ".gradle", ".cache",
})  # fmt: skip

# A file with a NUL among its first bytes is binary: the rule of git and of grep.
_SNIFFED_BYTES = 8000
_MAX_WALKED_BYTES = 1_000_000


def _any_of(patterns: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(translate(pattern) for pattern in patterns))


_SECRET_NAME = _any_of(_SECRET_NAMES)
_SECRET_PLACE = _any_of(_SECRET_PLACES)
_SHARED_NAME = _any_of(_NOT_SECRET)


def secret_by_name(path: str) -> str | None:
    """Why a file of this name (with or without folders, `/` or `\\` between them) is a secret, or None."""
    parts = [part for part in re.split(r"[/\\]", path.lower()) if part]
    if not parts:
        return None
    name = parts[-1]
    if _SHARED_NAME.match(name) or name.endswith(".pub"):
        return None
    if _SECRET_NAME.match(name) or _SECRET_PLACE.match("/".join(parts[-2:])):
        return f"{PurePath(name).name} is a file that usually holds secrets"
    return None


class _Pattern:
    """One line of an ignore file."""

    __slots__ = ("_anchored", "_folders_only", "_open_ended", "_pattern", "excludes", "line")

    def __init__(self, line: str, pattern: Pattern, *, excludes: bool) -> None:
        self.line = line
        self.excludes = excludes
        self._pattern = pattern
        body = line.rstrip().removeprefix("!")
        self._folders_only = body.endswith("/")
        body = body.rstrip("/")
        if not body.replace("**", "").strip("/"):
            body = "**"
        while body.startswith("**/"):
            body = body.removeprefix("**/")
        self._anchored = "/" in body
        self._open_ended = body.endswith("/**")

    def matches(self, candidate: str) -> bool:
        """Whether it names just this relative path (folders end with `/`), not merely a folder above it.

        The library's patterns match all that lies below as well, which would let `!*/` bring back every
        file; git takes that back only for the folder itself.
        """
        if self._folders_only and not candidate.endswith("/"):
            return False
        whole = candidate.rstrip("/")
        parent, _, name = whole.rpartition("/")
        if not self._anchored:
            return self._pattern.match_file(candidate[len(whole) - len(name) :]) is not None
        if self._pattern.match_file(candidate) is None:
            return False
        above = bool(parent) and self._pattern.match_file(parent + "/") is not None
        if self._open_ended:
            # `x/**` is all that lies below `x`, without `x`; the library's pattern takes `x/` as well.
            return above
        # With `**` inside, both may be meant (`**/a/*` for `a/a/b`); then less is shown, rather than more.
        return not above or (self.excludes and "**" in self.line)


class _Spec:
    """The lines of one ignore file; the last one that matches decides."""

    __slots__ = ("_patterns",)

    def __init__(self, lines: Iterable[str]) -> None:
        patterns = [_compile(line) for line in lines]
        self._patterns = tuple(reversed([pattern for pattern in patterns if pattern is not None]))

    def decides(self, candidate: str) -> _Pattern | None:
        return next((pattern for pattern in self._patterns if pattern.matches(candidate)), None)


def _compile(line: str) -> _Pattern | None:
    """The pattern of `line`; None for a comment, a blank line, and what git could not take either."""
    try:
        pattern = GitIgnoreSpec.from_lines([line]).patterns[0]
    except (ValueError, IndexError):
        return None
    return None if pattern.include is None else _Pattern(line, pattern, excludes=pattern.include)


@dataclass(frozen=True, slots=True)
class _Rules:
    """The ignore files of one folder, as they were when `stamp` was taken."""

    stamp: tuple[tuple[int, int] | None, ...]
    nexo: _Spec | None
    git: _Spec | None
    exclude: _Spec | None
    repository: bool
    """Whether the folder is the top of a git work tree (`.git` is a folder, or a file in linked trees)."""


_NOTHING = _Rules((None, None, None), None, None, None, repository=False)


class IgnoreRules:
    """The rules for one workspace. Paths given to it are absolute."""

    def __init__(self, roots: Sequence[Path] = (), offload: Offload = inline) -> None:
        self._offload = offload
        self._rules: dict[Path, _Rules] = {}
        self._real: dict[Path, Path] = {}
        self.roots: tuple[Path, ...] = ()
        """The folders of the workspace; assign by `set_roots`."""
        self.set_roots(roots)

    def set_roots(self, roots: Sequence[Path]) -> None:
        """Replace the workspace's folders; what was read is forgotten."""
        self.roots = tuple(dict.fromkeys(roots))
        self._rules.clear()
        self._real.clear()

    async def prepare(self, *paths: Path) -> None:
        """Read, away from the loop, whatever ignore files of `paths` are new or have changed on disk."""
        await self._offload(lambda: self._read(paths))

    def secret(self, path: Path | None, name: str) -> str | None:
        """Why no model may see the file, or None.

        `path` is None for a document without a file (`untitled:`); `name` is its name, or the whole path of
        its URI. A link is judged by its own name and by the file that it leads to.
        """
        reason = secret_by_name(name)
        if reason is not None or path is None:
            return reason
        for place in self._places(path):
            reason = secret_by_name(place.as_posix())
            if reason is not None:
                return reason
            if _excluded(place, [(folder, [rules.nexo]) for folder, rules in self._chain(place)]):
                return f"{place.name} is named by {NEXO_IGNORE}"
        return None

    def git_ignored(self, path: Path) -> bool:
        """Whether git would leave the file out: `.gitignore` files of its work tree, `.git/info/exclude`.

        Without a repository around it, the `.gitignore` files inside the workspace's folder count.
        """
        return any(self._git_ignored(place) for place in self._places(path))

    def disabled_glob(self, path: Path, globs: Sequence[str]) -> str | None:
        """The first of `globs` (`.gitignore` syntax, relative to the workspace's folders) that decides
        against the file, or None."""
        return disabled_glob(path, globs, self._root_of(path))

    def walk(self, root: Path, accept: Callable[[Path], bool] = lambda _path: True) -> Iterator[Path]:
        """The text files under `root` that may be read and that `accept` takes, in a stable order.

        Left out: what `.gitignore` or `.nexoignore` name, secrets, version control's and tools' own folders,
        binary and very large files, and links to folders (they could lead in a circle). Blocks: run it away
        from the loop.
        """
        for folder, folders, files in os.walk(root):
            here = Path(folder)
            self._rules.pop(here, None)
            folders[:] = sorted(name for name in folders if self._enters(here / name))
            for name in sorted(files):
                path = here / name
                if (
                    accept(path)
                    and self.secret(path, name) is None
                    and not self.git_ignored(path)
                    and _is_text(path)
                ):
                    yield path

    def _enters(self, folder: Path) -> bool:
        if folder.name in _NEVER_WALKED or folder.is_symlink():
            return False
        chain = self._chain(folder)
        return not (
            _excluded(folder, [(place, [rules.nexo]) for place, rules in chain], is_folder=True)
            or self._git_ignored(folder, is_folder=True)
        )

    def _git_ignored(self, path: Path, *, is_folder: bool = False) -> bool:
        levels: list[tuple[Path, list[_Spec | None]]] = []
        for folder, rules in self._chain(path):
            if rules.repository:
                # A repository inside another one answers for itself.
                levels.clear()
            levels.append((folder, [rules.exclude, rules.git]))
        return _excluded(path, levels, is_folder=is_folder)

    def _places(self, path: Path) -> tuple[Path, ...]:
        """The path as given and, where it is or passes a link, the file that it leads to."""
        real = self._real.get(path)
        if real is None:
            real = self._real[path] = _resolve(path)
        return (path,) if real == path else (path, real)

    def _root_of(self, path: PurePath) -> Path | None:
        """The innermost workspace folder that holds `path`."""
        holders = [root for root in self.roots if path.is_relative_to(root)]
        return max(holders, key=lambda root: len(root.parts), default=None)

    def _chain(self, path: Path) -> list[tuple[Path, _Rules]]:
        """The folders whose ignore files count for `path`, outermost first, with their rules.

        They begin at the workspace's folder or at the top of the repository, whichever is further out; a
        file outside both has only its own folder.
        """
        chain = [(folder, self._rules_of(folder)) for folder in path.parents]
        root = self._root_of(path)
        tops = [index for index, (_, rules) in enumerate(chain) if rules.repository][:1]
        if root is not None:
            tops += [index for index, (folder, _) in enumerate(chain) if folder == root]
            # A workspace inside a work tree obeys the ignore files above it too.
            tops += [
                index
                for index, (folder, rules) in enumerate(chain)
                if rules.repository and root.is_relative_to(folder)
            ][:1]
        return chain[: max(tops, default=0) + 1][::-1]

    def _rules_of(self, folder: Path) -> _Rules:
        rules = self._rules.get(folder)
        if rules is None:
            rules = self._rules[folder] = _read_folder(folder, None)
        return rules

    def _read(self, paths: Sequence[Path]) -> None:
        folders: set[Path] = set()
        for path in paths:
            real = self._real[path] = _resolve(path)
            folders.update(path.parents, real.parents)
        for folder in folders:
            self._rules[folder] = _read_folder(folder, self._rules.get(folder))


def disabled_glob(path: PurePath, globs: Sequence[str], root: PurePath | None) -> str | None:
    """The pattern of `globs` that decides against `path`, or None; patterns are relative to `root`.

    A path outside the workspace (`root` is None) is matched from the top of its drive.
    """
    if not globs:
        return None
    spec = _globs(tuple(globs))
    relative = path.relative_to(root if root is not None else path.anchor)
    for candidate in _with_parents(relative, is_folder=False):
        decision = spec.decides(candidate)
        if decision is not None and decision.excludes:
            return decision.line
    return None


@lru_cache(maxsize=16)
def _globs(globs: tuple[str, ...]) -> _Spec:
    return _Spec(globs)


def _with_parents(relative: PurePath, *, is_folder: bool) -> Iterator[str]:
    """`a/`, `a/b/`, `a/b/c` for `a/b/c`: git decides from the outside in, and never looks into what is out.

    A folder ends with `/`, as the patterns want it.
    """
    parts = relative.parts
    for count in range(1, len(parts)):
        yield "/".join(parts[:count]) + "/"
    if parts:
        yield "/".join(parts) + ("/" if is_folder else "")


def _excluded(
    path: PurePath,
    levels: Sequence[tuple[PurePath, Sequence[_Spec | None]]],
    *,
    is_folder: bool = False,
) -> bool:
    """Whether `path` is left out by `levels` (outermost first; the last one with an opinion decides)."""
    if not any(spec for _, specs in levels for spec in specs):
        return False
    top = levels[0][0]
    for candidate in _with_parents(path.relative_to(top), is_folder=is_folder):
        folder_mark = "/" if candidate.endswith("/") else ""
        place = top / candidate
        decided: bool | None = None
        for folder, specs in levels:
            if place == folder or not place.is_relative_to(folder):
                continue
            name = place.relative_to(folder).as_posix() + folder_mark
            for spec in specs:
                decision = spec.decides(name) if spec is not None else None
                decided = decided if decision is None else decision.excludes
        if decided:
            return True
    return False


def _resolve(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        # A circle of links, or a drive that does not answer: only the name can be judged.
        return path


def _read_folder(folder: Path, known: _Rules | None) -> _Rules:
    files = (folder / NEXO_IGNORE, folder / GIT_IGNORE, folder / _GIT_EXCLUDE)
    stamp = tuple(_stamp(file) for file in files)
    repository = _exists(folder / ".git")
    if known is not None and known.stamp == stamp and known.repository == repository:
        return known
    if stamp == _NOTHING.stamp and not repository:
        return _NOTHING
    nexo, git, exclude = (
        _read_spec(file) if mark is not None else None for file, mark in zip(files, stamp, strict=True)
    )
    return _Rules(stamp, nexo, git, exclude, repository)


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except (OSError, ValueError):
        return None
    return (status.st_mtime_ns, status.st_size)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _read_spec(file: Path) -> _Spec:
    try:
        # Not `splitlines`: a form feed does not end a line for git. A byte order mark is passed over.
        lines = file.read_text(encoding="utf-8-sig", errors="replace").split("\n")
    except OSError:
        # It is there and says something that cannot be read: nothing beside it may be shown.
        lines = ["*"]
    return _Spec(line.removesuffix("\r") for line in lines)


def _is_text(path: Path) -> bool:
    try:
        if not path.is_file() or path.stat().st_size > _MAX_WALKED_BYTES:
            return False
        with path.open("rb") as file:
            return b"\0" not in file.read(_SNIFFED_BYTES)
    except PermissionError:
        # Whoever reads it will be refused too, and can name it: passed over here, nobody would know.
        return True
    except OSError:
        return False
