"""What is newer, what it costs, and having it: against a web server that plays the Hub."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nexo_lsp.errors import ModelError, ModelUnknown
from nexo_lsp.models.announcing import Announced
from nexo_lsp.models.catalog import CatalogEntry
from nexo_lsp.models.store import ModelStore
from nexo_lsp.models.transfer import HttpLimits, Report, SourceFailed, append
from nexo_lsp.models.updates import Announce, hub_announcer, offline, outlook, take
from nexo_lsp.models.versions import short

MakeEntry = Callable[..., CatalogEntry]
OLD, NEW, HUBS = b"old weights" * 50, b"new weights!" * 50, b"what only the Hub has" * 50


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Delivers:
    name = "delivers"

    def fetch(self, entry: CatalogEntry, target: Path, progress: Report, cancel: threading.Event) -> None:
        data = {len(one): one for one in (OLD, NEW, HUBS)}[entry.size]
        have = target.stat().st_size if target.exists() else 0
        append(target, [data[have:]], entry.size, progress, cancel)


@pytest.fixture
def store_of(tmp_path: Path, make_entry: MakeEntry) -> Callable[[bytes], ModelStore]:
    def make(data: bytes) -> ModelStore:
        return ModelStore(tmp_path / "models", {}, [Delivers()], (make_entry(data),))

    return make


StoreOf = Callable[[bytes], ModelStore]


def says(data: bytes) -> Announce:
    return lambda _, _cancel: Announced(len(data), _sha(data))


def test_the_catalogues_new_version_is_offered_with_its_cost_and_taken(store_of: StoreOf) -> None:
    store_of(OLD).pull("tiny-coder")
    store = store_of(NEW)
    (found,) = outlook(store, ["tiny-coder"], says(NEW))
    (offer,) = found.offers
    assert (found.now, found.note, found.pinned) == (short(_sha(OLD)), "", False)
    assert (offer.origin, offer.version) == ("catalogue", short(_sha(NEW)))
    assert (offer.fetch_bytes, offer.disk_bytes) == (len(NEW), len(NEW))
    take(store, offer)
    assert store.locate("tiny-coder").read_bytes() == NEW
    (after,) = outlook(store, ["tiny-coder"], says(NEW))
    assert after.offers == ()


def test_what_came_already_is_not_counted(store_of: StoreOf) -> None:
    store_of(OLD).pull("tiny-coder")
    store = store_of(NEW)
    place = store.versions.place(store.catalog[0])
    place.with_name(place.name + ".partial").write_bytes(NEW[:100])
    (found,) = outlook(store, ["tiny-coder"], offline)
    assert found.offers[0].fetch_bytes == len(NEW) - 100
    take(store, found.offers[0])
    assert store.locate("tiny-coder").read_bytes() == NEW


def test_after_a_roll_back_the_way_forward_costs_nothing(store_of: StoreOf) -> None:
    store_of(OLD).pull("tiny-coder")
    store = store_of(NEW)
    store.pull("tiny-coder")
    store.versions.roll(store.catalog[0])
    (found,) = outlook(store, ["tiny-coder"], says(NEW))
    (offer,) = found.offers
    assert (offer.fetch_bytes, offer.disk_bytes) == (0, 0)
    take(store, offer)
    assert store.locate("tiny-coder").read_bytes() == NEW
    assert store.versions.choices() == {}


def test_what_only_the_hub_has_is_offered_as_such(store_of: StoreOf) -> None:
    store = store_of(NEW)
    store.pull("tiny-coder")
    (found,) = outlook(store, ["tiny-coder"], says(HUBS))
    (offer,) = found.offers
    assert (offer.origin, offer.entry.mirror, offer.entry.urls) == ("Hugging Face", (), ())
    take(store, offer)
    assert store.locate("tiny-coder").read_bytes() == HUBS
    # The catalogue's is older than what is in use now, and can be gone back to.
    assert outlook(store, ["tiny-coder"], says(HUBS))[0].offers == ()
    store.versions.roll(store.catalog[0])
    assert store.locate("tiny-coder").read_bytes() == NEW


def test_offline_only_the_catalogue_is_compared_with(store_of: StoreOf) -> None:
    store = store_of(OLD)
    store.pull("tiny-coder")
    (found,) = outlook(store, ["tiny-coder"], offline)
    assert found.offers == ()
    assert "nexo.offline is set" in found.note
    with pytest.raises(ModelUnknown):
        outlook(store, ["tiny-codr"], offline)


def test_a_pin_is_told_and_not_gone_over(store_of: StoreOf) -> None:
    store_of(OLD).pull("tiny-coder")
    store = store_of(NEW)
    store.versions.pin(store.catalog[0])
    (found,) = outlook(store, ["tiny-coder"], offline)
    assert found.pinned
    with pytest.raises(ModelError, match="unpin"):
        take(store, found.offers[0])
    assert store.locate("tiny-coder").read_bytes() == OLD


# The Hub


@dataclass
class Hub:
    """Answers HEAD as the Hub does, and GET with the file if it has one."""

    url: str = ""
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict[str, str])
    moved: dict[str, str] = field(default_factory=dict[str, str])
    asked: list[tuple[str, str | None]] = field(default_factory=list[tuple[str, str | None]])


@pytest.fixture
def heads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            hub.asked.append((self.path, self.headers.get("authorization")))
            onward = hub.moved.get(self.path)
            self.send_response(307 if onward else hub.status)
            for name, value in ({"Location": onward} if onward else hub.headers).items():
                self.send_header(name, value)
            self.end_headers()

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(hub.body)))
            self.end_headers()
            self.wfile.write(hub.body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield hub
    server.shutdown()
    thread.join()
    server.server_close()


def _announce(hub: Hub, **more: str) -> Callable[[CatalogEntry], Announced]:
    ask = hub_announcer({"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", **more})
    return lambda entry: ask(entry, threading.Event())


PATH = "/org/tiny-GGUF/resolve/main/tiny-coder.gguf"


@pytest.mark.parametrize("status", [200, 302])
def test_the_hub_announces_size_and_digest(heads: Hub, make_entry: MakeEntry, status: int) -> None:
    heads.status = status
    heads.headers = {
        "X-Linked-ETag": f'"{_sha(NEW)}"',
        "X-Linked-Size": str(len(NEW)),
        "ETag": '"the answer\'s own"',
        "Location": "https://elsewhere.invalid/bytes",
    }
    assert _announce(heads)(make_entry()) == Announced(len(NEW), _sha(NEW), mark=_sha(NEW))
    assert heads.asked == [(PATH, None)]


def test_a_model_that_names_a_revision_stays_with_it(heads: Hub, make_entry: MakeEntry) -> None:
    heads.headers = {"X-Linked-ETag": f'"{_sha(NEW)}"', "X-Linked-Size": str(len(NEW))}
    pinned = replace(make_entry(OLD), hub_revision="0123abcd")
    for entry in (pinned, replace(pinned, sha256=""), replace(pinned, announced_by="Hugging Face")):
        _announce(heads)(entry)
    assert [path.split("/")[4] for path, _ in heads.asked] == ["main", "0123abcd", "0123abcd"]


def test_a_repository_that_was_renamed_is_followed_within_the_hub(heads: Hub, make_entry: MakeEntry) -> None:
    heads.moved = {PATH: "/new/name/resolve/main/tiny-coder.gguf"}
    heads.headers = {"ETag": f'"{_sha(NEW)}"', "Content-Length": str(len(NEW))}
    assert _announce(heads)(make_entry()) == Announced(len(NEW), _sha(NEW), mark=_sha(NEW))
    assert len(heads.asked) == 2


def test_the_token_goes_to_the_hub_only(heads: Hub, make_entry: MakeEntry) -> None:
    heads.moved = {PATH: "http://localhost:9/elsewhere"}
    announce = hub_announcer({"HF_ENDPOINT": heads.url, "HF_TOKEN": " secret "})
    with pytest.raises(SourceFailed, match="does not say"):
        announce(make_entry(), threading.Event())
    assert heads.asked == [(PATH, "Bearer secret")]


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (404, {}, "404 Not Found"),
        (599, {}, "599"),
        (200, {"ETag": '"abc"', "Content-Length": "5"}, "does not say"),
        (200, {"X-Linked-ETag": f'"{"0" * 64}"', "X-Linked-Size": "many"}, "how long"),
    ],
)
def test_what_says_nothing_is_a_reason(
    heads: Hub, make_entry: MakeEntry, status: int, headers: dict[str, str], said: str
) -> None:
    heads.status, heads.headers = status, headers
    with pytest.raises(SourceFailed, match=said):
        _announce(heads)(make_entry())


def test_a_circle_of_redirects_ends(heads: Hub, make_entry: MakeEntry) -> None:
    heads.moved = {PATH: PATH}
    with pytest.raises(SourceFailed, match="without an end"):
        _announce(heads)(make_entry())


def test_nobody_there_and_no_network_wanted_are_reasons(heads: Hub, make_entry: MakeEntry) -> None:
    gone = hub_announcer({"HF_ENDPOINT": "http://127.0.0.1:9"}, HttpLimits(connect_s=1, answer_s=1))
    with pytest.raises(SourceFailed, match="no connection"):
        gone(make_entry(), threading.Event())
    with pytest.raises(SourceFailed, match="HF_HUB_OFFLINE"):
        _announce(heads, HF_HUB_OFFLINE="1")(make_entry())
    assert heads.asked == []


# What no catalogue pins


def test_a_model_of_a_reference_is_updated_pinned_rolled_back_and_pruned(
    tmp_path: Path, environ: dict[str, str], heads: Hub
) -> None:
    """The Hub is all there is to ask: nobody has to allow what it has now, and the version before stays."""
    environ["HF_ENDPOINT"] = heads.url
    reference = "hf:org/tiny-GGUF/tiny-coder.gguf"

    def publish(data: bytes) -> None:
        heads.body = data
        heads.headers = {"X-Linked-ETag": f'"{_sha(data)}"', "X-Linked-Size": str(len(data))}

    publish(OLD)
    store = ModelStore(tmp_path / "models", environ, catalog=())
    old = store.pull(reference)
    announce = hub_announcer(environ)
    assert outlook(store, [reference], announce)[0].offers == ()
    publish(NEW)
    (found,) = outlook(store, [reference], announce)
    (offer,) = found.offers
    assert (offer.fetch_bytes, offer.instead_of_pinned) == (len(NEW), False)
    take(store, offer)
    assert store.locate(reference).read_bytes() == NEW
    entry = store.entry(reference)
    assert store.versions.choices() == {}
    store.versions.roll(entry)
    assert store.locate(reference) == old
    store.versions.pin(entry)
    store.versions.roll(entry, forward=True)
    store.versions.unpin(entry)
    assert store.locate(reference).read_bytes() == NEW
    waste = store.cleaning.waste([])
    assert [one.path for one in waste] == [old]
    store.versions.pin(entry, short(_sha(OLD)))
    assert store.cleaning.remove(waste) == ()
    store.versions.unpin(entry)
    assert store.cleaning.remove(waste) == waste
    assert store.locate(reference).read_bytes() == NEW
    assert [model.name for model in store.installed()] == [reference]
    assert store.verify(reference).ok
