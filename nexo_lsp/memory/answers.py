"""Answers of the model, remembered by content, and the findings that the user dismissed.

The same question (same code, same model, same prompt texts) is never put to the engine twice, also not after
a restart. Reading and writing the disk happens off the loop; a small part is kept in memory.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import OrderedDict

from nexo_lsp.errors import StorageError
from nexo_lsp.offload import Offload
from nexo_lsp.storage import Database, Row, Value

_log = logging.getLogger("nexo_lsp.memory")
_IN_MEMORY = 1024
# Rows that nobody asked for in so many seconds are dropped when the database is first used: 90 days.
_KEEP_S = 90 * 86_400


def answer_key(*parts: str) -> str:
    """One key out of everything that an answer depends on; the order of the parts counts."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()


class Answers:
    """A key-value store of answers. If the database fails, it goes on in memory and says so once."""

    def __init__(self, database: Database, offload: Offload) -> None:
        self._database = database
        self._offload = offload
        self._recent: OrderedDict[str, str] = OrderedDict()
        self._dismissed: set[str] | None = None
        self._broken = False
        self._pruned = False

    async def get(self, key: str) -> str | None:
        """The answer stored under `key`."""
        value = self._recent.get(key)
        if value is not None:
            self._recent.move_to_end(key)
            return value
        rows = await self._query("SELECT value FROM answers WHERE key = ?", key)
        if not rows:
            return None
        value = str(rows[0][0])
        self._remember(key, value)
        await self._execute("UPDATE answers SET used = ? WHERE key = ?", time.time(), key)
        return value

    async def put(self, key: str, kind: str, value: str) -> None:
        """Store an answer; `kind` (`review`, `hover`, …) is for people who look into the database."""
        self._remember(key, value)
        now = time.time()
        if not self._pruned:
            self._pruned = True
            await self._execute("DELETE FROM answers WHERE used < ?", now - _KEEP_S)
        await self._execute(
            "INSERT OR REPLACE INTO answers (key, kind, value, created, used) VALUES (?, ?, ?, ?, ?)",
            key, kind, value, now, now,
        )  # fmt: skip

    async def dismissed(self) -> frozenset[str]:
        """The ids of all dismissed findings."""
        if self._dismissed is None:
            rows = await self._query("SELECT finding FROM dismissed")
            # A dismissal that came while the disk was read is kept.
            self._dismissed = {str(row[0]) for row in rows} | (self._dismissed or set())
        return frozenset(self._dismissed)

    async def dismiss(self, finding_id: str) -> None:
        """Never show this finding again."""
        self._dismissed = set(await self.dismissed()) | {finding_id}
        await self._execute(
            "INSERT OR IGNORE INTO dismissed (finding, created) VALUES (?, ?)", finding_id, time.time()
        )

    async def close(self) -> None:
        """Let go of the database."""
        await self._offload(self._database.close)

    def _remember(self, key: str, value: str) -> None:
        self._recent[key] = value
        self._recent.move_to_end(key)
        while len(self._recent) > _IN_MEMORY:
            self._recent.popitem(last=False)

    async def _query(self, sql: str, *values: Value) -> list[Row]:
        if self._broken:
            return []
        try:
            return await self._offload(lambda: self._database.query(sql, values))
        except StorageError as error:
            self._give_up(error)
            return []

    async def _execute(self, sql: str, *values: Value) -> None:
        if self._broken:
            return
        try:
            await self._offload(lambda: self._database.execute(sql, values))
        except StorageError as error:
            self._give_up(error)

    def _give_up(self, error: StorageError) -> None:
        self._broken = True
        _log.warning("%s Answers are kept in memory until the next start.", error)
