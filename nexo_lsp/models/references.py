"""Models that no catalogue names: an address of a GGUF file on the Hub or on any other server.

`hf:owner/repo/file.gguf`, with `@revision` behind it if it is not `main`; the addresses that the Hub itself
shows for a file; and `https://host/file.gguf`. From each follows an entry that is not pinned, and a file name
that no other reference has.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from urllib.parse import SplitResult, unquote, urlsplit

from nexo_lsp.errors import ModelUnknown
from nexo_lsp.models.catalog import MAIN, CatalogEntry

_PART = r"[A-Za-z0-9_][A-Za-z0-9._+-]*"
_HF = re.compile(
    rf"hf:(?P<repo>{_PART}/{_PART})/(?P<file>({_PART}/)*{_PART}\.gguf)(@(?P<revision>{_PART}(/{_PART})*))?"
)
_HUB_PAGE = re.compile(rf"/(?P<repo>{_PART}/{_PART})/(resolve|blob)/(?P<revision>{_PART})/(?P<file>.+\.gguf)")
_HUB_HOSTS = {"huggingface.co", "www.huggingface.co", "hf.co"}
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


def is_reference(text: str) -> bool:
    """Whether `text` is meant as an address (and not as a name or a path), right or wrong."""
    return text.startswith("hf:") or re.match(r"[a-z]+://", text, re.IGNORECASE) is not None


def file_of(name: str, catalog: Sequence[CatalogEntry]) -> str:
    """What a model lies under in the models folder if `name` is a reference; `name` itself if it is none."""
    try:
        return entry_of(name, catalog).file if is_reference(name) else name
    except ModelUnknown:
        return name


def entry_of(text: str, catalog: Sequence[CatalogEntry]) -> CatalogEntry:
    """The entry for a reference: the catalogue's own if it has this file, else one that is not pinned.

    Raises `ModelUnknown` where the text is none of the forms that are understood.
    """
    if not text.startswith("hf:"):
        try:
            parts = urlsplit(text)
        except ValueError as error:
            raise ModelUnknown(f"{text} is no address ({error}).") from error
        if parts.hostname not in _HUB_HOSTS:
            return _of_address(text, parts)
        page = _HUB_PAGE.fullmatch(unquote(parts.path))
        text = f"hf:{page['repo']}/{page['file']}@{page['revision']}" if page else text
    match = _HF.fullmatch(text)
    if match is None:
        raise ModelUnknown(
            f"{text} does not name a model file; write hf:owner/repo/file.gguf, with @revision behind it "
            "for another branch or commit than main."
        )
    return _of_hub(match["repo"], match["file"], match["revision"] or MAIN, catalog)


def _of_hub(repo: str, file: str, revision: str, catalog: Sequence[CatalogEntry]) -> CatalogEntry:
    _require_whole(file)
    for entry in catalog:
        if (entry.hub_repo, entry.hub_file) == (repo, file) and revision in {MAIN, entry.hub_revision}:
            return entry
    behind = "" if revision == MAIN else f"@{revision}"
    return _unpinned(
        name=f"hf:{repo}/{file}{behind}",
        # Names in a models folder are flat, and two repositories may have files of one name.
        file=f"{repo}{behind}/{file}".replace("/", "--"),
        repo=repo,
        hub_file=file,
        revision=revision,
        urls=(f"https://huggingface.co/{repo}/resolve/{revision}/{file}",),
    )


def _of_address(text: str, parts: SplitResult) -> CatalogEntry:
    file = unquote(parts.path).rpartition("/")[2]
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        # Whoever sits between could put any file in the place of one that nobody has pinned.
        raise ModelUnknown(
            f"{text} is no address that a model is fetched from; it has to begin with https://."
        )
    if parts.username is not None or parts.hostname is None:
        raise ModelUnknown(
            "An address of a model has to name a host and no user; leave out what is before the @."
        )
    if not re.fullmatch(rf"{_PART}\.gguf", file):
        raise ModelUnknown(f"{text} does not end with the name of a GGUF file (…/name.gguf).")
    _require_whole(file)
    # A query may hold a key that is only for a day: it is used, and not kept in names.
    plain = parts._replace(query="", fragment="").geturl()
    mark = hashlib.sha256(plain.encode()).hexdigest()[:8]
    return _unpinned(name=plain, file=f"{file[: -len('.gguf')]}.{mark}.gguf", urls=(text,))


def _require_whole(file: str) -> None:
    if re.search(r"-\d{5}-of-\d{5}\.gguf$", file):
        raise ModelUnknown(
            f"{file} is one of several parts of a model, which are not fetched; choose a file in one piece, "
            "or fetch all parts into one folder by hand and give the path of the first."
        )


def _unpinned(
    *, name: str, file: str, urls: tuple[str, ...], repo: str = "", hub_file: str = "", revision: str = MAIN
) -> CatalogEntry:
    return CatalogEntry(
        name=name,
        file=file,
        size=0,
        sha256="",
        hub_repo=repo,
        hub_file=hub_file,
        urls=urls,
        family="",
        hub_revision=revision,
    )
