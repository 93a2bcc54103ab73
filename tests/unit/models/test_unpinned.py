"""Models that no catalogue pins: what is announced is what is checked, remembered, and compared with later."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nexo_lsp.errors import (
    ModelCorrupt,
    ModelDownloadCancelled,
    ModelDownloadFailed,
    ModelMissing,
    ModelUnknown,
)
from nexo_lsp.models.catalog import CatalogEntry
from nexo_lsp.models.files import CHUNK
from nexo_lsp.models.progress import PullProgress
from nexo_lsp.models.sources import UrlSource
from nexo_lsp.models.store import ModelStore
from nexo_lsp.models.unpinned import origin_file

from .conftest import WebServer

MakeEntry = Callable[..., CatalogEntry]
HF = "hf:org/tiny-GGUF/tiny-coder.gguf"
COMMIT = "c" * 40
PINNED_PATH = f"/org/tiny-GGUF/resolve/{COMMIT}/tiny-coder.gguf"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub that everybody knows comes after the one that the tests play, and is not asked from here."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")


@pytest.fixture
def store(tmp_path: Path, environ: dict[str, str]) -> ModelStore:
    return ModelStore(tmp_path / "models", environ, catalog=())


@pytest.fixture
def served(hub: WebServer, hub_path: str, payload: bytes) -> WebServer:
    """A Hub that announces the file and serves it at the commit that it names."""
    hub.commit = COMMIT
    hub.files[hub_path] = hub.files[PINNED_PATH] = payload
    return hub


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _notes(store: ModelStore, name: str, **options: bool) -> list[str]:
    seen: list[PullProgress] = []
    store.pull(name, seen.append, **options)
    return [note for note in dict.fromkeys(at.note for at in seen) if note]


# From the Hub


def test_what_the_hub_announces_is_fetched_at_its_commit_checked_and_remembered(
    store: ModelStore, served: WebServer, hub_path: str, payload: bytes
) -> None:
    notes = _notes(store, HF)
    assert notes[0].startswith(f"not pinned: its SHA-256 ({_sha(payload)[:8]}…) is the one that Hugging Face")
    assert served.heads == [hub_path]
    assert [path for path, _ in served.requests] == [PINNED_PATH]
    path = store.locate(HF)
    assert (path.name, path.read_bytes()) == ("org--tiny-GGUF--tiny-coder.gguf", payload)
    (here,) = store.installed()
    assert (here.name, here.verified, here.problem) == (HF, True, "")
    assert here.entry is not None
    assert (here.entry.size, here.entry.sha256, here.entry.pinned) == (len(payload), _sha(payload), False)
    assert sorted(file.suffix for file in store.folder.iterdir()) == [".checked", ".gguf", ".lock", ".origin"]


def test_once_it_is_here_nobody_is_asked_again(store: ModelStore, served: WebServer) -> None:
    path = store.pull(HF)
    served.heads.clear()
    served.requests.clear()
    assert store.pull(HF) == path
    verdict = store.verify(HF)
    assert verdict.ok
    assert verdict.note.startswith("not pinned")
    assert (served.heads, served.requests) == ([], [])


def test_damage_is_seen_and_mended_by_what_is_remembered(
    store: ModelStore, served: WebServer, payload: bytes
) -> None:
    path = store.pull(HF)
    path.write_bytes(payload[::-1])
    assert not store.verify(HF).ok
    with pytest.raises(ModelCorrupt):
        store.locate(HF)
    assert store.pull(HF).read_bytes() == payload
    path.write_bytes(payload[:-1])
    assert "bytes instead of" in store.verify(HF).problem
    assert store.pull(HF).read_bytes() == payload


def test_what_is_delivered_is_held_against_what_was_announced(
    store: ModelStore, served: WebServer, payload: bytes
) -> None:
    served.files[PINNED_PATH] = payload[::-1]
    with pytest.raises(ModelDownloadFailed, match="another SHA-256 than the announced file"):
        store.pull(HF)
    assert list(store.folder.glob("*.gguf")) == []


def test_force_takes_what_the_hub_has_now(
    store: ModelStore, served: WebServer, hub_path: str, payload: bytes
) -> None:
    old = store.pull(HF)
    served.files[hub_path] = served.files[PINNED_PATH] = payload[::-1]
    assert store.pull(HF) == old, "what is here is right as long as nobody asks for another"
    new = store.pull(HF, force=True)
    assert new.read_bytes() == payload[::-1]
    assert store.locate(HF) == new
    assert store.verify(HF).sha256 == _sha(payload[::-1])


def test_a_beginning_of_another_file_is_thrown_away(
    store: ModelStore, served: WebServer, hub_path: str, payload: bytes
) -> None:
    """Without a digest of the whole nothing would show that two files were put together."""
    served.drops = [2 * CHUNK, 0, 0]
    with pytest.raises(ModelDownloadFailed):
        store.pull(HF)
    partial = next(store.folder.glob("*.partial"))
    assert partial.stat().st_size == 2 * CHUNK
    served.files[hub_path] = served.files[PINNED_PATH] = payload[::-1]
    served.requests.clear()
    assert store.pull(HF).read_bytes() == payload[::-1]
    assert served.ranges_asked == [None]


def test_a_pull_that_broke_off_goes_on(store: ModelStore, served: WebServer, payload: bytes) -> None:
    served.drops = [2 * CHUNK, 0, 0]
    with pytest.raises(ModelDownloadFailed):
        store.pull(HF)
    served.requests.clear()
    assert store.pull(HF).read_bytes() == payload
    assert served.ranges_asked == [f"bytes={2 * CHUNK}-"]


@pytest.mark.parametrize(("status", "said"), [(404, "404 Not Found"), (401, "want an account"), (500, "500")])
def test_a_hub_that_does_not_say_is_named_with_its_reason(
    store: ModelStore, served: WebServer, status: int, said: str
) -> None:
    served.statuses = [status]
    with pytest.raises(ModelDownloadFailed, match=f"Hugging Face: 127.0.0.1 answers .*{said}"):
        store.pull(HF)
    assert not store.folder.exists() or not list(store.folder.glob("*.gguf*"))


def test_a_token_that_is_refused_is_left_out(
    tmp_path: Path, environ: dict[str, str], served: WebServer, payload: bytes
) -> None:
    served.statuses = [401]
    environ = {**environ, "HF_TOKEN": "expired", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0"}
    assert ModelStore(tmp_path / "models", environ, catalog=()).pull(HF).read_bytes() == payload
    assert len(served.heads) == 2


def test_asking_can_be_cancelled(store: ModelStore, served: WebServer) -> None:
    served.silent = True
    cancel = threading.Event()
    ended: list[BaseException] = []

    def pull() -> None:
        try:
            store.pull(HF, cancel=cancel)
        except ModelDownloadCancelled as error:
            ended.append(error)

    thread = threading.Thread(target=pull)
    thread.start()
    assert served.started.wait(30)
    cancel.set()
    thread.join(30)
    assert len(ended) == 1


# Offline


def test_offline_nobody_is_asked(tmp_path: Path, environ: dict[str, str], served: WebServer) -> None:
    store = ModelStore(tmp_path / "models", {**environ, "HF_HUB_OFFLINE": "1"}, catalog=())
    with pytest.raises(ModelDownloadFailed, match="HF_HUB_OFFLINE"):
        store.pull(HF)
    assert (served.heads, served.requests) == ([], [])


def test_offline_the_cache_of_the_hubs_library_says_what_a_file_is(
    tmp_path: Path, environ: dict[str, str], served: WebServer, payload: bytes
) -> None:
    repo = Path(environ["HF_HUB_CACHE"]) / "models--org--tiny-GGUF"
    (repo / "blobs").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "snapshots" / COMMIT).mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "blobs" / _sha(payload)).write_bytes(payload)
    (repo / "snapshots" / COMMIT / "tiny-coder.gguf").symlink_to(repo / "blobs" / _sha(payload))
    store = ModelStore(tmp_path / "models", {**environ, "TRANSFORMERS_OFFLINE": "yes"}, catalog=())
    assert store.pull(HF).read_bytes() == payload
    assert store.entry(HF).sha256 == _sha(payload)
    assert (served.heads, served.requests) == ([], [])


# From other places


def test_a_plain_address_says_only_how_long_the_file_is(
    store: ModelStore, web: WebServer, payload: bytes
) -> None:
    web.files["/m/coder.gguf"] = payload
    url = f"{web.url}/m/coder.gguf"
    assert _notes(store, url)[0].startswith("not pinned: only its length is announced")
    path = store.locate(url)
    assert path.read_bytes() == payload
    assert store.entry(url).sha256 == _sha(payload)
    assert store.verify(url).ok
    path.write_bytes(payload[::-1])
    assert not store.verify(url).ok
    assert store.remove(url) == len(payload)
    assert {file.suffix for file in store.folder.iterdir()} <= {".lock"}


def test_what_an_address_delivers_at_its_second_coming_has_to_be_the_same(
    store: ModelStore, web: WebServer, payload: bytes
) -> None:
    web.files["/m/coder.gguf"] = payload
    path = store.pull(f"{web.url}/m/coder.gguf")
    path.write_bytes(payload[::-1])
    web.files["/m/coder.gguf"] = b"x" * len(payload)
    with pytest.raises(ModelDownloadFailed, match="--force takes what there is now"):
        store.pull(f"{web.url}/m/coder.gguf")
    assert store.pull(f"{web.url}/m/coder.gguf", force=True).read_bytes() == b"x" * len(payload)


def test_where_another_endpoint_of_the_hub_fails_the_public_one_says_the_digest(
    tmp_path: Path,
    environ: dict[str, str],
    served: WebServer,
    hub_path: str,
    payload: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nexo_lsp.models.sources._HUB_HOST", "//127.0.0.1")
    entry = replace(ModelStore(tmp_path, environ, catalog=()).entry(HF), urls=(f"{served.url}{hub_path}",))
    assert UrlSource("plain URL").announce(entry, threading.Event()).sha256 == _sha(payload)


def test_a_web_page_is_no_model(store: ModelStore, web: WebServer) -> None:
    web.files["/m/coder.gguf"] = b"<html>please sign in</html>"
    web.headers["Content-Type"] = "text/html"
    with pytest.raises(ModelDownloadFailed, match="web page"):
        store.pull(f"{web.url}/m/coder.gguf")


def test_a_folder_of_the_users_serves_it_by_its_published_name_and_no_network_is_asked(
    tmp_path: Path, environ: dict[str, str], served: WebServer, payload: bytes
) -> None:
    (tmp_path / "share").mkdir()
    (tmp_path / "share" / "tiny-coder.gguf").write_bytes(payload)
    store = ModelStore(
        tmp_path / "models", {**environ, "NEXO_MODEL_DIR": str(tmp_path / "share")}, catalog=()
    )
    assert _notes(store, HF)[0].startswith("not pinned: only its length")
    assert store.entry(HF).sha256 == _sha(payload)
    assert (served.heads, served.requests) == ([], [])


def test_a_server_of_the_users_serves_it_by_its_published_name(
    tmp_path: Path, environ: dict[str, str], served: WebServer, web: WebServer, payload: bytes
) -> None:
    web.files["/models/tiny-coder.gguf"] = payload
    store = ModelStore(tmp_path / "models", {**environ, "NEXO_MODEL_URL": f"{web.url}/models/"}, catalog=())
    assert store.pull(HF).read_bytes() == payload
    assert (served.heads, served.requests) == ([], [])


def test_where_the_users_folder_lacks_it_the_hub_is_asked(
    tmp_path: Path, environ: dict[str, str], served: WebServer, payload: bytes
) -> None:
    store = ModelStore(tmp_path / "models", {**environ, "NEXO_MODEL_DIR": str(tmp_path)}, catalog=())
    assert store.pull(HF).read_bytes() == payload
    assert store.entry(HF).announced_by == "Hugging Face"


# By hand


def test_a_file_put_there_by_hand_is_held_against_what_is_announced(
    store: ModelStore, served: WebServer, payload: bytes
) -> None:
    path = store.folder / store.entry(HF).file
    store.folder.mkdir()
    path.write_bytes(payload)
    assert store.locate(HF) == path, "it is used without being asked about"
    assert store.pull(HF) == path
    assert served.requests == []
    assert store.entry(HF).announced_by == "Hugging Face"


def test_a_file_put_there_by_hand_is_taken_as_it_is_where_nobody_can_be_asked(
    store: ModelStore, hub: WebServer, payload: bytes
) -> None:
    path = store.folder / store.entry(HF).file
    store.folder.mkdir()
    path.write_bytes(payload)
    verdict = store.verify(HF)
    assert verdict.ok
    assert "nobody could be asked" in verdict.note
    assert store.pull(HF) == path
    assert store.entry(HF).sha256 == _sha(payload)
    path.write_bytes(payload[::-1])
    assert not store.verify(HF).ok


# In the catalogue, and around


def test_an_entry_of_the_catalogue_without_a_digest_is_fetched_alike(
    tmp_path: Path, environ: dict[str, str], make_entry: MakeEntry, served: WebServer, payload: bytes
) -> None:
    entry = replace(make_entry(), size=0, sha256="")
    store = ModelStore(tmp_path / "models", environ, catalog=(entry,))
    with pytest.raises(ModelMissing, match="unknown size"):
        store.locate("tiny-coder")
    assert not store.installed()
    assert store.pull("tiny-coder").read_bytes() == payload
    (here,) = store.installed()
    assert (here.name, here.verified) == ("tiny-coder", True)
    known = store.entry("tiny-coder")
    assert (known.sha256, known.pinned, known.license) == (_sha(payload), False, entry.license)
    assert store.verify("tiny-coder").ok


def test_it_can_be_named_by_its_file_and_removed_with_all_that_belongs_to_it(
    store: ModelStore, served: WebServer, payload: bytes
) -> None:
    path = store.pull(HF)
    assert store.entry(path.name).name == HF
    assert store.locate(path.name) == path
    assert store.remove(path.name) == len(payload)
    assert not origin_file(path).exists()
    with pytest.raises(ModelMissing):
        store.locate(HF)
    with pytest.raises(ModelMissing):
        store.verify(HF)


@pytest.mark.parametrize(
    "text",
    ["[]", "no json", '{"size": "x"}', '{"size": 1, "reference": "nonsense", "by": "x", "sha256": "y"}'],
)
def test_what_is_remembered_may_be_damaged_itself(
    store: ModelStore, served: WebServer, payload: bytes, text: str
) -> None:
    path = store.pull(HF)
    origin_file(path).write_text(text)
    assert len(store.installed()) == 1
    if "reference" in text:
        origin_file(path).unlink()
    assert store.pull(HF).read_bytes() == payload
    assert json.loads(origin_file(path).read_text())["sha256"] == _sha(payload)


def test_what_is_remembered_of_another_file_says_nothing_of_this_one(
    store: ModelStore, served: WebServer
) -> None:
    path = store.pull(HF)
    other = path.with_name("other.gguf")
    other.write_bytes(b"something else")
    origin_file(other).write_bytes(origin_file(path).read_bytes())
    assert [model.name for model in store.installed()] == [HF, "other.gguf"]
    path.unlink()
    assert store.entry(HF).sha256 == "", "a file that is gone is fetched as it is now"


def test_an_address_that_is_none_is_told_so_everywhere(store: ModelStore) -> None:
    for ask in (store.locate, store.pull, store.verify, store.remove, store.entry, store.entry_for):
        with pytest.raises(ModelUnknown, match="hf:owner/repo/file"):
            ask("hf:nothing")


def test_what_the_settings_name_by_an_address_is_kept(
    store: ModelStore, served: WebServer, web: WebServer, payload: bytes
) -> None:
    from nexo_lsp.settings import Settings

    path = store.pull(HF)
    settings = Settings().model_copy(update={"model": HF})
    store.follow(settings)
    store.limit_bytes = len(payload) + 1000
    assert store.cleaning.evictable(store.configured) == ()
    assert path.exists()
