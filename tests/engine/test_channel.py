"""How the processes of one user find each other, and whom they let in."""

from __future__ import annotations

import socket
import sys
import threading
from pathlib import Path

import pytest

from nexo_lsp.engines.llama.channel import Channel, ChannelError, Door, connect
from nexo_lsp.engines.llama.endpoint import Endpoint, EndpointFile, SharingFailed, key_of, private_folder
from nexo_lsp.engines.llama.hub_process import trim
from nexo_lsp.engines.llama.messages import Load

posix = pytest.mark.skipif(sys.platform == "win32", reason="there are no such sockets and permissions")


def pair(folder: Path) -> tuple[Door, Channel, Channel]:
    door = Door(private_folder(folder))
    mine = connect(door.address)
    return door, mine, door.accept()


def run(work: object, *arguments: object) -> threading.Thread:
    assert callable(work)
    thread = threading.Thread(target=work, args=arguments, daemon=True)
    thread.start()
    return thread


def refusal(channel: Channel, token: bytes, into: list[str]) -> None:
    try:
        channel.demand(token, 30)
        into.append("")
    except ChannelError as error:
        into.append(str(error))
        channel.close()


def test_both_sides_have_to_know_the_token(tmp_path: Path) -> None:
    for theirs, words in ((b"right", ""), (b"wrong", "token")):
        door, mine, other = pair(tmp_path)
        said: list[str] = []
        server = run(refusal, other, b"right", said)
        if words:
            with pytest.raises(EOFError):
                mine.prove(theirs, 30)
        else:
            mine.prove(theirs, 30)
        server.join(30)
        assert words in said[0]
        assert bool(words) == bool(said[0])
        for end in (mine, other, door):
            end.close()


def test_a_listener_that_only_pretends_to_know_the_token_is_found_out(tmp_path: Path) -> None:
    door, mine, other = pair(tmp_path)

    def pretend() -> None:
        nonce = b"n" * 32
        other.send(nonce)
        # All that it can send back is what it was sent.
        other.send(other.receive(30)[:32])

    server = run(pretend)
    with pytest.raises(ChannelError, match="does not know the token"):
        mine.prove(b"right", 30)
    server.join(30)
    for end in (mine, other, door):
        end.close()


def test_one_that_says_nothing_is_not_waited_for(tmp_path: Path) -> None:
    door, mine, other = pair(tmp_path)
    with pytest.raises(ChannelError, match="says nothing"):
        mine.prove(b"right", 0.01)
    with pytest.raises(ChannelError, match="does not answer"):
        other.demand(b"right", 0.01)
    for end in (mine, other, door):
        end.close()


@posix
def test_severing_wakes_whoever_reads_or_writes(tmp_path: Path) -> None:
    door, mine, other = pair(tmp_path)
    ended: list[type[BaseException]] = []

    def read() -> None:
        with pytest.raises(EOFError) as caught:
            mine.receive()
        ended.append(caught.type)

    def write() -> None:
        with pytest.raises(OSError):
            while True:
                mine.send(b"x" * 65536)
        ended.append(OSError)

    threads = [run(read), run(write)]
    mine.sever()
    for thread in threads:
        thread.join(30)
    assert len(ended) == 2
    for end in (mine, other, door):
        end.close()
    assert list(tmp_path.iterdir()) == []


@posix
def test_where_the_path_is_too_long_for_a_socket_another_place_is_found(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 110)
    door, mine, other = pair(deep)
    assert len(door.address) < 100
    assert Path(door.address).parent.stat().st_mode & 0o077 == 0
    run(other.demand, b"token", 30)
    mine.prove(b"token", 30)
    for end in (mine, other, door):
        end.close()
    assert not Path(door.address).parent.exists()


# The file.


def test_an_endpoint_is_found_again_and_taken_away_only_by_its_owner(tmp_path: Path) -> None:
    file = EndpointFile(private_folder(tmp_path / "engine"), "key")
    assert file.read() is None
    old, new = Endpoint("there", 1, "aa"), Endpoint("here", 2, "bb")
    file.write(old)
    assert file.read() == old
    file.write(new)
    file.withdraw(old)
    assert file.read() == new
    file.withdraw(new)
    assert file.read() is None
    assert list((tmp_path / "engine").iterdir()) == []


@pytest.mark.parametrize("text", ["", "nonsense", "[]", '{"address": "x", "pid": 1, "token": "no hex"}'])
def test_a_damaged_endpoint_counts_as_none(tmp_path: Path, text: str) -> None:
    file = EndpointFile(private_folder(tmp_path), "key")
    file.write(Endpoint("there", 1, "aa"))
    file.path.write_text(text)
    assert file.read() is None


@posix
def test_folder_and_file_are_the_users_alone(tmp_path: Path) -> None:
    folder = tmp_path / "engine"
    folder.mkdir(mode=0o755)
    file = EndpointFile(private_folder(folder), "key")
    assert folder.stat().st_mode & 0o777 == 0o700
    file.write(Endpoint("there", 1, "aa"))
    assert file.path.stat().st_mode & 0o777 == 0o600
    file.path.chmod(0o644)
    with pytest.raises(SharingFailed, match="alone"):
        file.read()


def test_who_wants_something_else_looks_elsewhere(tiny_model: Path, tmp_path: Path) -> None:
    wish = Load(str(tiny_model), 4096)
    key = key_of(wish, {"PATH": "x"})
    assert key == key_of(wish, {"PATH": "y"})
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF")
    assert key != key_of(Load(str(tiny_model), 2048), {})
    assert key != key_of(Load(str(other), 4096), {})
    assert key != key_of(wish, {"OMP_NUM_THREADS": "1"})
    before = key_of(Load(str(other), 4096), {})
    other.write_bytes(b"GGUF and more")
    assert before != key_of(Load(str(other), 4096), {})
    assert key_of(Load(str(tmp_path / "none.gguf"), 1), {})
    assert key_of(Load(str(tmp_path / "odd\udcff.gguf"), 1), {})


@pytest.mark.skipif(sys.platform == "win32", reason="making a symbolic link takes a right there")
def test_one_file_under_two_names_is_one_model(tiny_model: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.gguf"
    link.symlink_to(tiny_model)
    assert key_of(Load(str(link), 4096), {}) == key_of(Load(str(tiny_model), 4096), {})


def test_a_long_log_is_cut_to_its_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"a" * 1000 + b"end")
    trim(log, limit=1003, keep=3)
    assert log.stat().st_size == 1003
    with log.open("ab", buffering=0) as still_open:
        trim(log, limit=1002, keep=3)
        still_open.write(b" and more")
    assert log.read_bytes() == b"end and more"


@posix
def test_a_socket_that_sends_no_frames_does_no_harm(tmp_path: Path) -> None:
    door = Door(private_folder(tmp_path))
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(door.address)
        other = door.accept()
        raw.sendall(b"\xff\xff\xff\xf0GET / HTTP/1.1\r\n")
        with pytest.raises(ChannelError):
            other.demand(b"token", 30)
        other.close()
    door.close()
