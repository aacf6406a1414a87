"""Jobs in SQLite and files by uuid, in one folder that belongs to one server.

Nothing of a client's is part of a path: a file is found by the name that this module gave it. What is older than it may
be goes first, then the oldest until all fits.
"""

from __future__ import annotations

import sqlite3
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from openlance.errors import UserError
from openlance.media.files import atomic_path
from openlance.serve.config import ServeConfig
from openlance.serve.failures import Failure

SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, number INTEGER UNIQUE, created_at REAL, status TEXT, model TEXT, prompt TEXT,
    num_frames INTEGER, width INTEGER, height INTEGER, seed INTEGER, source TEXT, notice TEXT, completed_at REAL,
    error_code TEXT, error_message TEXT
);
CREATE TABLE IF NOT EXISTS files (name TEXT PRIMARY KEY, job TEXT, bytes INTEGER, created_at REAL);
"""
QUEUED, IN_PROGRESS, COMPLETED, FAILED = "queued", "in_progress", "completed", "failed"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A row. source: the job that this one was made from. notice: what was done otherwise than one might expect."""

    id: str
    number: int = 0
    created_at: float = 0.0
    status: str = QUEUED
    model: str
    prompt: str
    num_frames: int
    width: int
    height: int
    seed: int
    source: str | None = None
    notice: str | None = None
    completed_at: float | None = None
    error_code: str | None = None
    error_message: str | None = None


class Store:
    """May be used from any thread.

    Raises:
        UserError: The folder cannot be written, or another server has it.
    """

    def __init__(self, config: ServeConfig) -> None:
        self.config, self.files = config, config.folder / "files"
        self.lock = threading.RLock()
        try:
            self.files.mkdir(parents=True, exist_ok=True)
            self.db = sqlite3.connect(config.folder / "jobs.db", check_same_thread=False, timeout=1.0)
            self.db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self.db.execute("PRAGMA journal_mode=WAL")
            self.db.executescript(SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"{config.folder} cannot hold the server's files ({error}): choose another folder, or end the server "
                f"that has it"
            ) from error
        self.db.row_factory = sqlite3.Row
        self._failed_before()
        self.sweep()

    def _failed_before(self) -> None:
        """What ran when the last server ended has failed, and what no job and no answer names is removed."""
        with self.lock, self.db:
            self.db.execute(
                "UPDATE jobs SET status = ?, error_code = 'server_restarted', error_message = ? WHERE status IN (?, ?)",
                (FAILED, "the server was restarted before this was done", QUEUED, IN_PROGRESS),
            )
            known = {row["name"] for row in self.db.execute("SELECT name FROM files")}
        for path in self.files.iterdir():
            if path.name not in known:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        with self.lock:
            self.db.close()

    # Jobs.

    def add(self, job: Job) -> Job:
        """Keep a new job, with its number and its time."""
        row = asdict(job) | {"created_at": time.time()}
        with self.lock, self.db:
            (last,) = self.db.execute("SELECT COALESCE(MAX(number), 0) FROM jobs").fetchone()
            row["number"] = last + 1
            places = ", ".join(f":{name}" for name in row)
            self.db.execute(f"INSERT INTO jobs ({', '.join(row)}) VALUES ({places})", row)
        return self.job(job.id)

    def job(self, name: str) -> Job:
        """Failure (404) if there is none."""
        with self.lock:
            row = self.db.execute("SELECT * FROM jobs WHERE id = ?", (name,)).fetchone()
        if row is None:
            raise Failure(f"there is no video {name[:80]!r} (any more)", status=404, code="not_found", param="video_id")
        return Job(**row)

    def page(self, limit: int, after: str | None, newest_first: bool) -> tuple[list[Job], bool]:
        """So many jobs behind another, and whether there are more."""
        order, sign = ("DESC", "<") if newest_first else ("ASC", ">")
        where, values = ("", []) if after is None else (f"WHERE number {sign} ?", [self.job(after).number])
        with self.lock:
            query = f"SELECT * FROM jobs {where} ORDER BY number {order} LIMIT ?"
            rows = self.db.execute(query, [*values, limit + 1]).fetchall()
        return [Job(**row) for row in rows[:limit]], len(rows) > limit

    def begin(self, name: str) -> None:
        with self.lock, self.db:
            self.db.execute("UPDATE jobs SET status = ? WHERE id = ? AND status = ?", (IN_PROGRESS, name, QUEUED))

    def complete(self, name: str, files: dict[str, bytes]) -> None:
        """Keep what a job made, by suffix; a job that was deleted meanwhile leaves nothing."""
        kept = {f"{uuid.uuid4().hex}.{suffix}": data for suffix, data in files.items()}
        try:
            for file, data in kept.items():
                self._write(file, data)
        except Failure:
            self._unlink(kept)
            raise
        with self.lock, self.db:
            changed = self.db.execute(
                "UPDATE jobs SET status = ?, completed_at = ? WHERE id = ? AND status IN (?, ?)",
                (COMPLETED, time.time(), name, QUEUED, IN_PROGRESS),
            )
            if changed.rowcount:
                self._enter(kept, name)
        if not changed.rowcount:
            self._unlink(kept)
        self.sweep()

    def fail(self, name: str, failure: Failure) -> None:
        with self.lock, self.db:
            self.db.execute(
                "UPDATE jobs SET status = ?, error_code = ?, error_message = ? WHERE id = ? AND status IN (?, ?)",
                (FAILED, failure.code, str(failure), name, QUEUED, IN_PROGRESS),
            )

    def delete(self, name: str) -> None:
        """Remove a job and its files. Failure (404) if there is none."""
        self.job(name)
        self._remove([name])

    # Files.

    def keep(self, data: bytes, suffix: str) -> str:
        """Keep a file of no job; its name."""
        name = f"{uuid.uuid4().hex}.{suffix}"
        self._write(name, data)
        with self.lock, self.db:
            self._enter({name: data}, None)
        self.sweep()
        return name

    def path(self, name: str) -> Path:
        """Where a file is. Failure (404) if it was never there, or is gone."""
        with self.lock:
            row = self.db.execute("SELECT name FROM files WHERE name = ?", (name,)).fetchone()
        return self._there(row, name)

    def path_of(self, job: str, suffix: str) -> Path:
        """Where the file of a job is that ends so."""
        with self.lock:
            rows = self.db.execute("SELECT name FROM files WHERE job = ?", (job,)).fetchall()
        return self._there(next((row for row in rows if row["name"].endswith(f".{suffix}")), None), job)

    def _there(self, row: sqlite3.Row | None, name: str) -> Path:
        path = None if row is None else self.files / row["name"]
        if path is None or not path.is_file():
            raise Failure(f"there is no file of {name[:80]!r} (any more)", status=404, code="not_found")
        return path

    def sweep(self) -> None:
        """Remove what is too old or too much: jobs with their files, and files of no job."""
        now = time.time()
        with self.lock:
            old = now - self.config.keep
            gone = [row["id"] for row in self.db.execute(
                "SELECT id FROM jobs WHERE status IN (?, ?) AND (created_at < ? OR number <="
                " (SELECT MAX(number) FROM jobs) - ?)", (COMPLETED, FAILED, old, self.config.keep_jobs))]  # fmt: skip
            rows = self.db.execute("SELECT * FROM files ORDER BY created_at DESC, rowid DESC").fetchall()
            room = self.config.keep_bytes
            for row in rows:
                room -= row["bytes"]
                if room < 0 or row["created_at"] < old:
                    gone.append(row["job"] or row["name"])
            self._remove(list(dict.fromkeys(gone)))

    def _remove(self, names: list[str]) -> None:
        """Jobs, or files of no job, with everything that is kept of them."""
        with self.lock, self.db:
            for name in names:
                rows = self.db.execute("SELECT name FROM files WHERE job = ? OR name = ?", (name, name)).fetchall()
                self.db.execute("DELETE FROM files WHERE job = ? OR name = ?", (name, name))
                self.db.execute("DELETE FROM jobs WHERE id = ?", (name,))
                self._unlink([row["name"] for row in rows])

    def _enter(self, kept: dict[str, bytes], job: str | None) -> None:
        rows = [(name, job, len(data), time.time()) for name, data in kept.items()]
        self.db.executemany("INSERT INTO files VALUES (?, ?, ?, ?)", rows)

    def _write(self, name: str, data: bytes) -> None:
        try:
            with atomic_path(self.files / name) as temporary:
                temporary.write_bytes(data)
        except (UserError, OSError) as error:
            raise Failure(f"the result could not be kept: {error}", status=507, code="storage_failed") from error

    def _unlink(self, names: list[str] | dict[str, bytes]) -> None:
        for name in names:
            with suppress(OSError):
                (self.files / name).unlink()
