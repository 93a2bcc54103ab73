from __future__ import annotations

import subprocess
import sys
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest

from nexo_lsp.ignore import IgnoreRules, disabled_glob, secret_by_name
from nexo_lsp.offload import in_thread


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    "name",
    [
        ".env", ".env.production", "prod.env", ".ENV", "id_rsa", "id_ed25519", "server.pem", "tls.KEY",
        "store.p12", "store.pfx", "release.keystore", ".netrc", "_netrc", ".npmrc", ".pypirc", "credentials",
        "credentials.json", "secrets.yaml", "secrets.py", "prod.tfvars", ".bash_history", ".git-credentials",
        "/home/ana/.ssh/config", "/home/ana/.aws/config", "/home/ana/.docker/config.json",
        "C:\\Users\\ana\\.ssh\\known_hosts", "C:\\app\\.env", "/repo/.env",
    ],
)  # fmt: skip
def test_secret_names(name: str) -> None:
    assert secret_by_name(name) is not None


@pytest.mark.parametrize(
    "name",
    [
        ".env.example", ".env.sample", "environment.py", "env.py", "id_rsa.pub", "key.py", "keys.go",
        "credentials.py", "config.json", "secretsanta.py", "docker/config.json", "pem.rs", "history.py", "",
        "monkey", "/",
    ],
)  # fmt: skip
def test_ordinary_names(name: str) -> None:
    assert secret_by_name(name) is None


def test_secret_outside_every_root_and_without_a_file(tmp_path: Path) -> None:
    rules = IgnoreRules([tmp_path / "work"])
    assert rules.secret(tmp_path / "elsewhere" / ".env", ".env")
    assert rules.secret(tmp_path / "elsewhere" / "a.py", "a.py") is None
    assert rules.secret(None, ".env")
    assert rules.secret(None, "/repo/.env")
    assert rules.secret(None, "Untitled-1") is None


def test_nexoignore_at_the_root_and_in_folders(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            ".nexoignore": "private/\n*.sql\n!schema.sql\n",
            "app/.nexoignore": "local_*.py\n!keep.sql\n",
            ".gitignore": "built.py\n",
        },
    )
    rules = IgnoreRules([tmp_path])

    def hidden(name: str) -> bool:
        return rules.secret(tmp_path / name, Path(name).name) is not None

    assert hidden("private/deep/a.py")
    assert hidden("dump.sql")
    assert not hidden("schema.sql")
    assert hidden("app/local_settings.py")
    assert not hidden("local_settings.py")
    assert not hidden("app/keep.sql")
    # git's list does not make a file secret.
    assert not hidden("built.py")
    assert rules.git_ignored(tmp_path / "built.py")
    reason = rules.secret(tmp_path / "dump.sql", "dump.sql")
    assert reason == "dump.sql is named by .nexoignore"


def test_a_workspace_inside_a_repository_obeys_the_files_above_it(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            ".git/HEAD": "",
            ".gitignore": "gen/\n",
            ".nexoignore": "vault/\n",
            "services/api/.gitignore": "tmp.py\n",
        },
    )
    rules = IgnoreRules([tmp_path / "services" / "api"])
    assert rules.git_ignored(tmp_path / "services/api/gen/a.py")
    assert rules.git_ignored(tmp_path / "services/api/tmp.py")
    assert not rules.git_ignored(tmp_path / "services/api/a.py")
    assert rules.secret(tmp_path / "services/api/vault/a.py", "a.py")


def test_an_inner_repository_answers_for_itself(tmp_path: Path) -> None:
    """A home folder kept in git ignores everything; the projects below it must not be."""
    write(tmp_path, {".git/HEAD": "", ".gitignore": "*\n", "project/.git": "gitdir: elsewhere\n"})
    rules = IgnoreRules([tmp_path / "project"])
    assert not rules.git_ignored(tmp_path / "project" / "a.py")
    assert rules.git_ignored(tmp_path / "a.py")


def test_several_roots(tmp_path: Path) -> None:
    write(tmp_path, {"one/.nexoignore": "a.py\n", "two/.nexoignore": "b.py\n"})
    rules = IgnoreRules([tmp_path / "one", tmp_path / "two"])
    assert rules.secret(tmp_path / "one/a.py", "a.py")
    assert rules.secret(tmp_path / "one/b.py", "b.py") is None
    assert rules.secret(tmp_path / "two/b.py", "b.py")


async def test_prepare_notices_changes_and_answers_come_from_memory(tmp_path: Path) -> None:
    rules = IgnoreRules([tmp_path], in_thread)
    path = tmp_path / "a.py"
    await rules.prepare(path)
    assert rules.secret(path, "a.py") is None
    (tmp_path / ".nexoignore").write_text("a.py\n")
    assert rules.secret(path, "a.py") is None
    await rules.prepare(path)
    assert rules.secret(path, "a.py")
    (tmp_path / ".nexoignore").unlink()
    await rules.prepare(path)
    assert rules.secret(path, "a.py") is None


def test_a_link_is_judged_by_what_it_leads_to(tmp_path: Path) -> None:
    write(tmp_path, {".env": "TOKEN=1", ".nexoignore": "vault.py\n", "vault.py": "", "plain.py": ""})
    try:
        (tmp_path / "notes.txt").symlink_to(tmp_path / ".env")
    except OSError:
        assert sys.platform == "win32", "links are refused on Windows only"
        return
    (tmp_path / "other.py").symlink_to(tmp_path / "vault.py")
    (tmp_path / "same.py").symlink_to(tmp_path / "plain.py")
    rules = IgnoreRules([tmp_path])
    assert rules.secret(tmp_path / "notes.txt", "notes.txt")
    assert rules.secret(tmp_path / "other.py", "other.py")
    assert rules.secret(tmp_path / "same.py", "same.py") is None


def test_bad_patterns_and_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / ".nexoignore").write_bytes(
        b"\xef\xbb\xbffirst.py\r\n!\r\n[z-\r\n# note\r\n\xff\xfe\r\nlast.py\r\n"
    )
    rules = IgnoreRules([tmp_path])
    assert rules.secret(tmp_path / "first.py", "first.py")
    assert rules.secret(tmp_path / "last.py", "last.py")
    assert rules.secret(tmp_path / "other.py", "other.py") is None


def test_an_unreadable_ignore_file_hides_its_folder(tmp_path: Path) -> None:
    (tmp_path / "vault" / ".nexoignore").mkdir(parents=True)  # a folder cannot be read as a file
    rules = IgnoreRules([tmp_path])
    assert rules.secret(tmp_path / "vault" / "a.py", "a.py")
    assert rules.secret(tmp_path / "a.py", "a.py") is None


def test_disabled_globs() -> None:
    root = PurePosixPath("/work")
    globs = ("*.gen.py", "/dist/", "tests/**/data_*", "!keep.gen.py")
    assert disabled_glob(root / "a/b.gen.py", globs, root) == "*.gen.py"
    assert disabled_glob(root / "keep.gen.py", globs, root) is None
    assert disabled_glob(root / "dist/x.js", globs, root) == "/dist/"
    assert disabled_glob(root / "src/dist/x.js", globs, root) is None
    assert disabled_glob(root / "tests/a/b/data_1.py", globs, root) == "tests/**/data_*"
    assert disabled_glob(root / "src/a.py", globs, root) is None
    assert disabled_glob(root / "src/a.py", (), root) is None
    assert disabled_glob(PurePosixPath("/else/a.gen.py"), globs, None) == "*.gen.py"


def test_disabled_globs_on_windows_paths() -> None:
    root = PureWindowsPath("C:\\work")
    assert disabled_glob(root / "src" / "a.gen.py", ("src/*.gen.py",), root) == "src/*.gen.py"
    assert disabled_glob(PureWindowsPath("D:\\x\\dist\\a.js"), ("dist/",), None) == "dist/"


def test_walk(tmp_path: Path) -> None:
    root = write(
        tmp_path / "tree",
        {
            ".gitignore": "out/\n*.log\n!keep.log\n",
            ".nexoignore": "vault/\n",
            "b.py": "b",
            "a/z.py": "z",
            "a/.gitignore": "gen_*.py\n",
            "a/gen_x.py": "",
            "out/x.py": "",
            "vault/x.py": "",
            "node_modules/m/index.js": "",
            ".git/config": "",
            ".env": "",
            "x.log": "",
            "keep.log": "",
        },
    )
    (root / "image.png").write_bytes(b"\x89PNG\0\0")
    (root / "huge.py").write_bytes(b"#" * 1_000_001)
    if sys.platform != "win32":
        (root / "a" / "loop").symlink_to(root, target_is_directory=True)
        (root / "gone.py").symlink_to(root / "nowhere.py")
    rules = IgnoreRules([root])
    found = [path.relative_to(root).as_posix() for path in rules.walk(root)]
    assert found == [".gitignore", ".nexoignore", "b.py", "keep.log", "a/.gitignore", "a/z.py"]
    python = [path.name for path in rules.walk(root, lambda path: path.suffix == ".py")]
    assert python == ["b.py", "z.py"]


# What git itself says about these is the standard that we are held to.
TREES: list[tuple[dict[str, str], list[str]]] = [
    (
        {".gitignore": "*\n!*/\n!*.py\n"},
        ["a.py", "a.txt", "d/a.py", "d/a.txt", "d/e/f.py", "d/e/f"],
    ),
    (
        {".gitignore": "build/\n!build/keep.py\nlib/*\n!lib/keep.py\n"},
        ["build/keep.py", "build/a.py", "lib/keep.py", "lib/a.py", "x/build/a.py", "x/lib/a.py", "build.py"],
    ),
    (
        {
            ".gitignore": "/top.py\ndeep/mid.py\n**/any/x.py\na/**/z.py\n",
            "sub/.gitignore": "!*.log\n/top.py\n",
        },
        [
            "top.py", "s/top.py", "sub/top.py", "sub/s/top.py", "deep/mid.py", "x/deep/mid.py", "any/x.py",
            "q/w/any/x.py", "a/z.py", "a/b/c/z.py", "b/a/z.py",
        ],
    ),
    (
        {".gitignore": "*.log\nfoo?.py\n[ab].txt\n\\!bang.py\n\\#hash.py\ntrail.py   \nspace\\ .py\n"},
        ["x.log", "sub/x.log", "foo1.py", "foo.py", "a.txt", "c.txt", "!bang.py", "#hash.py", "trail.py"],
    ),
    (
        {".gitignore": "*.gen\n", "sub/.gitignore": "!keep.gen\n", "sub/deep/.gitignore": "keep.gen\n"},
        ["a.gen", "keep.gen", "sub/keep.gen", "sub/deep/keep.gen", "sub/other.gen"],
    ),
    (
        {".git/info/exclude": "mine.py\nshared.py\n", ".gitignore": "!shared.py\n"},
        ["mine.py", "d/mine.py", "shared.py"],
    ),
    (
        {".gitignore": "a.py\n!d\nx/**\n!x/y\n!x/y/*\n/p/*\n!/p/q/\n/p/q/*.tmp\nfull/**/*.o\n"},
        [
            "a.py", "d/a.py", "d/e/a.py", "x/1.py", "x/y/1.py", "x/z/1.py", "p/1.py", "p/q/1.py", "p/q/1.tmp",
            "p/q/r/1.tmp", "p/r/1.py", "full/a.o", "full/b/c/a.o", "full/a.c",
        ],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("files", "paths"), TREES)
def test_the_same_answers_as_git(tmp_path: Path, files: dict[str, str], paths: list[str]) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    write(tmp_path, {**dict.fromkeys(paths, "x"), **files})
    asked = subprocess.run(
        ["git", "-C", str(tmp_path), "-c", "core.excludesFile=", "check-ignore", "--stdin"],
        input="\n".join(paths),
        capture_output=True,
        text=True,
        check=False,
    )
    by_git = set(asked.stdout.splitlines())
    rules = IgnoreRules([tmp_path])
    assert {path for path in paths if rules.git_ignored(tmp_path / path)} == by_git
