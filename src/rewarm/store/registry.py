"""Which revision a function's name means, in SQLite: a few rows, written in one transaction per deploy.

    schema_version  version
    functions       name*, current_version (null: removed), last_version, created_at
    revisions       name*, version*, digest, code_sha, spec_json, weights_sha, weights_file, weights_bytes, created_at

A row is written only after the files it names are durable, so a row never points into nothing. `last_version` outlives
a removal: a version number that a caller has seen never means other code.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rewarm.errors import BadDefinition, HomeTooNew, NotFound, SystemFault
from rewarm.facts.function import FunctionSpec, Revision
from rewarm.store.artifacts import StoredWeights
from rewarm.store.home import Home

SCHEMA_VERSION = 1

_SCHEMA = (
    """CREATE TABLE functions(
        name TEXT PRIMARY KEY, current_version INTEGER, last_version INTEGER NOT NULL, created_at REAL NOT NULL)""",
    """CREATE TABLE revisions(
        name TEXT NOT NULL REFERENCES functions(name), version INTEGER NOT NULL, digest TEXT NOT NULL,
        code_sha TEXT NOT NULL, spec_json TEXT NOT NULL, weights_sha TEXT, weights_file TEXT,
        weights_bytes INTEGER NOT NULL, created_at REAL NOT NULL, PRIMARY KEY(name, version))""",
)
_COLUMNS = (
    "revisions.name, version, digest, code_sha, spec_json, weights_sha, weights_file, weights_bytes,"
    " revisions.created_at"
)
_IS_CURRENT = "FROM revisions JOIN functions ON functions.name = revisions.name AND version = current_version"

#: (name, version, digest, code_sha, spec_json, weights_sha, weights_file, weights_bytes, created_at)
_Row = tuple[str, int, str, str, str, str | None, str | None, int, float]

Connect = Callable[[str], sqlite3.Connection]


@dataclass(frozen=True, slots=True)
class Broken:
    """A current revision that cannot be served, and why; deploying the function again mends it."""

    name: str
    version: int
    reason: str


def connect(path: str) -> sqlite3.Connection:
    """Autocommit, so that every transaction is begun and ended by name; any thread, one at a time."""
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False)


class Registry:
    """The table of functions and revisions. Not for two threads at once: the Store holds a lock around it.

    Every method raises SystemFault if the database or its disk fails; nothing is changed then.
    """

    def __init__(self, home: Home, connection: sqlite3.Connection) -> None:
        self._home = home
        self._db = connection

    @classmethod
    def open(cls, home: Home, connect: Connect = connect) -> Registry:
        """Opens or creates the home's registry. Raises HomeTooNew, SystemFault."""
        with _sqlite_errors(home):
            connection = connect(str(home.registry_path))
            try:
                # A deploy that was acknowledged survives a power cut: WAL, synced at every commit.
                for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000"):
                    connection.execute(f"PRAGMA {pragma}").fetchall()
                registry = cls(home, connection)
                registry._make_schema()
            except BaseException:
                connection.close()
                raise
        return registry

    def put(
        self, spec: FunctionSpec, digest: str, code_sha: str, weights: StoredWeights | None, created_at: float
    ) -> tuple[Revision, bool]:
        """Makes this the current revision of its name, in one transaction → (revision, unchanged).

        If the current one has the same digest it stays and is returned with unchanged=True.
        """
        with self._write():
            found = self._db.execute("SELECT last_version FROM functions WHERE name = ?", (spec.name,)).fetchone()
            current = self._current_row(spec.name)
            spec_json = canonical(spec.to_json())
            # Comparing the text too mends a row whose specification cannot be read any more.
            if current is not None and (current[2], current[4]) == (digest, spec_json):
                return self._revision(current), True
            version = (found[0] if found else 0) + 1
            self._db.execute(
                "INSERT INTO functions VALUES(?, ?, ?, ?) ON CONFLICT(name) DO UPDATE SET"
                " current_version = excluded.current_version, last_version = excluded.last_version",
                (spec.name, version, version, created_at),
            )
            stored = (weights.sha256, weights.file, weights.size_bytes) if weights else (None, None, 0)
            row = (spec.name, version, digest, code_sha, spec_json, *stored, created_at)
            self._db.execute("INSERT INTO revisions VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        return self._revision(row), False

    def version_for(self, name: str, digest: str) -> int:
        """The version that `put` would give to this."""
        with _sqlite_errors(self._home):
            found = self._db.execute("SELECT last_version FROM functions WHERE name = ?", (name,)).fetchone()
            current = self._current_row(name)
        if current is not None and current[2] == digest:
            return int(current[1])
        return (found[0] if found else 0) + 1

    def get(self, name: str) -> Revision:
        """The current revision. Raises NotFound."""
        with _sqlite_errors(self._home):
            row = self._current_row(name)
        if row is None:
            raise _not_found(name)
        return self._revision(row)

    def current(self) -> tuple[list[Revision], list[Broken]]:
        """The current revision of every function, by name; those whose specification cannot be read stand apart."""
        with _sqlite_errors(self._home):
            rows = self._db.execute(f"SELECT {_COLUMNS} {_IS_CURRENT} ORDER BY revisions.name").fetchall()
        return self._split(rows)

    def kept(self) -> list[Revision]:
        """Every revision that is kept, of every function, if its specification can be read."""
        with _sqlite_errors(self._home):
            rows = self._db.execute(f"SELECT {_COLUMNS} FROM revisions").fetchall()
        return self._split(rows)[0]

    def revisions(self, name: str) -> list[Revision]:
        """Every revision that is kept, newest first. Raises NotFound."""
        with _sqlite_errors(self._home):
            rows = self._db.execute(
                f"SELECT {_COLUMNS} FROM revisions WHERE name = ? ORDER BY version DESC", (name,)
            ).fetchall()
        if not rows:
            raise _not_found(name)
        return [self._revision(row) for row in rows]

    def remove(self, name: str) -> None:
        """Forgets the function and its revisions; their files stay until they are collected. Raises NotFound."""
        with self._write():
            if self._current_row(name) is None:
                raise _not_found(name)
            self._db.execute("UPDATE functions SET current_version = NULL WHERE name = ?", (name,))
            self._db.execute("DELETE FROM revisions WHERE name = ?", (name,))

    def prune(self) -> None:
        """Forgets all but the current revision and the one before it, of every function."""
        with self._write():
            self._db.execute(
                "DELETE FROM revisions WHERE version <"
                " (SELECT max(old.version) FROM revisions old JOIN functions USING(name)"
                "  WHERE old.name = revisions.name AND old.version < current_version)"
            )

    def used(self) -> tuple[set[str], set[str]]:
        """The digests of code and of weights that any kept revision needs."""
        with _sqlite_errors(self._home):
            rows = self._db.execute("SELECT code_sha, weights_sha FROM revisions").fetchall()
        return {code for code, _ in rows}, {weights for _, weights in rows if weights is not None}

    def close(self) -> None:
        """Idempotent."""
        self._db.close()

    def _make_schema(self) -> None:
        with self._write():
            self._db.execute("CREATE TABLE IF NOT EXISTS schema_version(version INTEGER NOT NULL)")
            found = self._db.execute("SELECT version FROM schema_version").fetchone()
            if found is None:
                for statement in _SCHEMA:
                    self._db.execute(statement)
                self._db.execute("INSERT INTO schema_version VALUES(?)", (SCHEMA_VERSION,))
            elif found[0] > SCHEMA_VERSION:
                raise HomeTooNew(
                    f"{self._home.registry_path} was written by a newer rewarm (schema {found[0]}, this one knows "
                    f"{SCHEMA_VERSION}); upgrade rewarm or choose another directory with --home"
                )

    def _current_row(self, name: str) -> _Row | None:
        row: _Row | None = self._db.execute(
            f"SELECT {_COLUMNS} {_IS_CURRENT} WHERE revisions.name = ?", (name,)
        ).fetchone()
        return row

    def _split(self, rows: list[_Row]) -> tuple[list[Revision], list[Broken]]:
        good: list[Revision] = []
        broken: list[Broken] = []
        for row in rows:
            try:
                good.append(self._revision(row))
            except BadDefinition as error:
                broken.append(Broken(row[0], row[1], error.message))
        return good, broken

    def _revision(self, row: _Row) -> Revision:
        """Raises BadDefinition if the specification cannot be read."""
        name, version, digest, code_sha, spec_json, weights_sha, weights_file, weights_bytes, created_at = row
        try:
            spec = FunctionSpec.from_json(json.loads(spec_json))
        except (ValueError, AttributeError) as error:
            raise BadDefinition(f"the specification of {name} version {version} is damaged: {error}") from error
        weights = self._home.weights_file(weights_sha, weights_file) if weights_sha and weights_file else None
        return Revision(
            spec=spec,
            digest=digest,
            version=version,
            code_dir=str(self._home.artifact_dir(code_sha)),
            weights_path=None if weights is None else str(weights),
            weights_bytes=weights_bytes,
            created_at=created_at,
        )

    @contextmanager
    def _write(self) -> Iterator[None]:
        """All of the block or nothing of it."""
        with _sqlite_errors(self._home):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                self._db.rollback()
                raise


def canonical(value: object) -> str:
    """JSON with one spelling, to store and to hash."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _not_found(name: str) -> NotFound:
    return NotFound(f"there is no function {name!r}; `rewarm ls` lists what is deployed")


_HINTS = {
    "SQLITE_FULL": "the disk is full; free some space",
    "SQLITE_READONLY": "it cannot be written; give this user the right to",
    "SQLITE_CANTOPEN": "it cannot be opened; check the permissions of the directory",
    "SQLITE_CORRUPT": "it is damaged; put back a copy, or move it away and deploy again",
    "SQLITE_NOTADB": "it is not a registry; put back a copy, or move it away and deploy again",
}


@contextmanager
def _sqlite_errors(home: Home) -> Iterator[None]:
    """Turns sqlite3's errors into a SystemFault with the next step."""
    try:
        yield
    except sqlite3.Error as error:
        name = str(getattr(error, "sqlite_errorname", ""))  # e.g. SQLITE_READONLY_DIRECTORY, SQLITE_IOERR_WRITE
        hint = next((hint for start, hint in _HINTS.items() if name.startswith(start)), "check the disk")
        raise SystemFault(f"{home.registry_path}: {error}; {hint}") from error
