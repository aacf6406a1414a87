"""Jobs in SQLite and files by uuid, in one folder that belongs to one server.

Nothing of a client's is part of a path: a file is found by the name that this module gave it. What is older than it may
be goes first, then the oldest until all fits. Where nothing can be written any more, every change is a Failure
(`storage_failed`), and what failed is kept in mind until it can.
"""

from __future__ import annotations

import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from openlance.errors import UserError
from openlance.media.files import atomic_path
from openlance.serve.config import ServeConfig
from openlance.serve.failures import Failure, unkept

SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, number INTEGER UNIQUE, created_at REAL, status TEXT, model TEXT, prompt TEXT,
    num_frames INTEGER, width INTEGER, height INTEGER, seed INTEGER, source TEXT, notice TEXT, completed_at REAL,
    error_code TEXT, error_message TEXT, verdict TEXT
);
CREATE TABLE IF NOT EXISTS files (name TEXT PRIMARY KEY, job TEXT, bytes INTEGER, created_at REAL);
"""
QUEUED, IN_PROGRESS, COMPLETED, FAILED = "queued", "in_progress", "completed", "failed"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A row. source: the job that this one was made from. notice: what was done otherwise than one might expect.
    verdict: what the model found at it, as JSON, where it was asked to check."""

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
    verdict: str | None = None


class Store:
    """May be used from any thread.

    Raises:
        UserError: The folder cannot be written or read, or another server has it.
    """

    def __init__(self, config: ServeConfig) -> None:
        self.config, self.files, self.path_of_db = config, config.folder / "files", config.folder / "jobs.db"
        self.lock = threading.RLock()
        self.unsaved: dict[str, Failure] = {}  # ends of jobs that could not be written yet
        try:
            self.files.mkdir(parents=True, exist_ok=True)
            if not self.path_of_db.exists() and any(self.files.iterdir()):
                raise UserError(
                    f"{self.files} has files, and {self.path_of_db}, which knows them, is missing: put it back, or "
                    f"remove {self.files}, or choose another folder"
                )
            self.db = sqlite3.connect(self.path_of_db, check_same_thread=False, timeout=1.0)
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"{config.folder} cannot hold the server's files ({error}): choose another folder"
            ) from error
        self.db.row_factory = sqlite3.Row
        try:
            self._begin()
        except (sqlite3.Error, Failure) as error:
            self.db.close()
            if "locked" in str(error):
                message = f"{config.folder} belongs to another server: end it, or choose another folder"
            else:
                message = (
                    f"{self.path_of_db} cannot be used ({error}): put a good copy in its place, or remove it together "
                    f"with {self.files}, or choose another folder"
                )
            raise UserError(message) from error

    def _begin(self) -> None:
        """Take the folder over. What ran when the last server ended has failed, and what no job and no answer names is
        removed."""
        self.db.execute("PRAGMA locking_mode=EXCLUSIVE")
        self.db.execute("PRAGMA journal_mode=WAL")
        (found,) = self.db.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError("it is damaged")
        self.db.executescript(SCHEMA)
        if "verdict" not in {
            row["name"] for row in self.db.execute("PRAGMA table_info(jobs)")
        }:  # of an earlier version
            self.db.execute("ALTER TABLE jobs ADD COLUMN verdict TEXT")
        self.inode = self.path_of_db.stat().st_ino
        with self._change():
            self.db.execute(
                "UPDATE jobs SET status = ?, error_code = 'server_restarted', error_message = ? WHERE status IN (?, ?)",
                (FAILED, "the server was restarted before this was done", QUEUED, IN_PROGRESS),
            )
            known = {row["name"] for row in self.db.execute("SELECT name FROM files")}
        self._unlink([path.name for path in self.files.iterdir() if path.name not in known])
        self.sweep()

    @property
    def there(self) -> bool:
        """Whether the folder is still the one that this server began with."""
        try:
            return self.path_of_db.stat().st_ino == self.inode
        except OSError:
            return False

    @contextmanager
    def _change(self) -> Iterator[None]:
        """A transaction. Failure (507) if it cannot be kept."""
        with self.lock:
            if not self.there:
                raise unkept(f"{self.path_of_db} was removed; start the server again")
            try:
                with self.db:
                    yield
            except sqlite3.Error as error:
                raise unkept(error) from error

    def close(self) -> None:
        with self.lock:
            self.db.close()

    # Jobs.

    def add(self, job: Job) -> Job:
        """Keep a new job, with its number and its time."""
        row = asdict(job) | {"created_at": time.time()}
        with self._change():
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
        return self._job(row)

    def page(self, limit: int, after: str | None, newest_first: bool) -> tuple[list[Job], bool]:
        """So many jobs behind another, and whether there are more."""
        order, sign = ("DESC", "<") if newest_first else ("ASC", ">")
        where, values = ("", []) if after is None else (f"WHERE number {sign} ?", [self.job(after).number])
        with self.lock:
            query = f"SELECT * FROM jobs {where} ORDER BY number {order} LIMIT ?"
            rows = self.db.execute(query, [*values, limit + 1]).fetchall()
        return [self._job(row) for row in rows[:limit]], len(rows) > limit

    def _job(self, row: sqlite3.Row) -> Job:
        job, failure = Job(**row), self.unsaved.get(row["id"])
        if failure is None:
            return job
        return replace(job, status=FAILED, error_code=failure.code, error_message=str(failure))

    def begin(self, name: str) -> None:
        with self._change():
            self.db.execute("UPDATE jobs SET status = ? WHERE id = ? AND status = ?", (IN_PROGRESS, name, QUEUED))

    def complete(self, name: str, files: dict[str, bytes], seed: int | None = None, verdict: str | None = None) -> None:
        """Keep what a job made, by suffix, and with which seed; a job that was deleted meanwhile leaves nothing."""
        kept = {f"{uuid.uuid4().hex}.{suffix}": data for suffix, data in files.items()}
        changed = 0
        try:
            for file, data in kept.items():
                self._write(file, data)
            with self._change():
                changed = self.db.execute(
                    "UPDATE jobs SET status = ?, completed_at = ?, seed = COALESCE(?, seed), verdict = ?"
                    " WHERE id = ? AND status IN (?, ?)",
                    (COMPLETED, time.time(), seed, verdict, name, QUEUED, IN_PROGRESS),
                ).rowcount
                if changed:
                    self._enter(kept, name)
        except Failure:
            changed = 0
            raise
        finally:
            if not changed:
                self._unlink(kept)
        with suppress(Failure):  # the next one may find room
            self.sweep()

    def fail(self, name: str, failure: Failure) -> None:
        try:
            with self._change():
                self.db.execute(
                    "UPDATE jobs SET status = ?, error_code = ?, error_message = ? WHERE id = ? AND status IN (?, ?)",
                    (FAILED, failure.code, str(failure), name, QUEUED, IN_PROGRESS),
                )
            self.unsaved.pop(name, None)
        except Failure:  # every job ends: it is said, and written as soon as that is possible
            self.unsaved[name] = failure

    def delete(self, name: str) -> None:
        """Remove a job and its files. Failure (404) if there is none."""
        self.job(name)
        self._remove([name])

    # Files.

    def keep(self, data: bytes, suffix: str) -> str:
        """Keep a file of no job; its name."""
        name = f"{uuid.uuid4().hex}.{suffix}"
        self._write(name, data)
        try:
            with self._change():
                self._enter({name: data}, None)
        except Failure:
            self._unlink([name])
            raise
        with suppress(Failure):
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
        """Remove what is too old or too much: jobs with their files, and files of no job. Failure if that is impossible
        now."""
        for name, failure in list(self.unsaved.items()):
            self.fail(name, failure)
        now = time.time()
        with self._change():
            old = now - self.config.keep
            gone = [row["id"] for row in self.db.execute(
                "SELECT id FROM jobs WHERE status IN (?, ?) AND (COALESCE(completed_at, created_at) < ? OR number <="
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
        with self._change():
            for name in names:
                rows = self.db.execute("SELECT name FROM files WHERE job = ? OR name = ?", (name, name)).fetchall()
                self.db.execute("DELETE FROM files WHERE job = ? OR name = ?", (name, name))
                self.db.execute("DELETE FROM jobs WHERE id = ?", (name,))
                # Before the transaction ends, which needs room where the disk is full.
                self._unlink([row["name"] for row in rows])

    def _enter(self, kept: dict[str, bytes], job: str | None) -> None:
        rows = [(name, job, len(data), time.time()) for name, data in kept.items()]
        self.db.executemany("INSERT INTO files VALUES (?, ?, ?, ?)", rows)

    def _write(self, name: str, data: bytes) -> None:
        try:
            with atomic_path(self.files / name) as temporary:
                temporary.write_bytes(data)
        except (UserError, OSError) as error:
            raise unkept(error) from error

    def _unlink(self, names: list[str] | dict[str, bytes]) -> None:
        for name in names:
            with suppress(OSError):
                (self.files / name).unlink()
