"""One run, one folder: a lock file that names the process which writes to a run's folder.

RUN/run.lock holds the process as JSON, and its time of change is renewed every HEARTBEAT_SECONDS.
Whether a process of this machine runs is asked of the system; one of another machine has ended if
it has not renewed the lock for STALE_SECONDS, by the clock of the file system. Locks of the kernel
(flock) are not used: on shared file systems they often hold for one machine alone.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from tubesynth.runtime import dist
from tubesynth.runtime.atomic import temporary_name, write_text, writing
from tubesynth.runtime.errors import InputError
from tubesynth.runtime.log import logger
from tubesynth.runtime.process_id import ProcessId
from tubesynth.runtime.reading import stored_json

NAME = "run.lock"
HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 60.0
SETTLE_SECONDS = 0.5  # two processes that take over one lock at the same time see it after this


class _State(NamedTuple):
    text: str
    time_ns: int


class RunLock:
    """The lock of one run's folder, for rank 0."""

    def __init__(self, run_dir: Path):
        self.run_dir, self.path = run_dir, run_dir / NAME
        started = datetime.now().isoformat(" ", "seconds")
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "started": started}
        self.owner = {**owner, "process": str(ProcessId.own())}
        self.text = ""  # of the lock; known when the folder exists
        self.ended = threading.Event()
        self.made_folder = False

    def acquire(self) -> None:
        """Lock the folder, made where it is missing; InputError while another run lives in it."""
        with writing(self.run_dir):
            self.made_folder = not self.run_dir.exists()
            self.run_dir.mkdir(parents=True, exist_ok=True)
            self.text = json.dumps({**self.owner, "folder": self._folder()}) + "\n"
            while not self._create():
                self.require_free()
                if self._state() is None:
                    continue  # released meanwhile
                owner = self._owner()
                write_text(self.path, self.text)
                time.sleep(SETTLE_SECONDS)
                self.require_own()
                logger.warning(f"{self.path}: taken over from the run of {owner}, which has ended")
                break
        threading.Thread(target=self._beat, daemon=True).start()

    def release(self) -> None:
        """Remove the lock, and the folder if it is new and nothing was written."""
        self.ended.set()
        with suppress(OSError):  # the next run takes over what is left
            state = self._state()
            if state and state.text == self.text:
                self.path.unlink()
            if self.made_folder:
                self.run_dir.rmdir()

    def require_own(self) -> None:
        """InputError if another run has taken the folder over, as after a suspended machine."""
        state = self._state()
        if state is None:  # removed by hand
            self._create()
        elif state.text != self.text:
            raise self._in_use()

    def require_free(self) -> None:
        """Return once no run lives in the folder; InputError if one does."""
        stored = stored_json(self.path)
        if "folder" in stored and stored["folder"] != self._folder():
            return  # copied with the folder of another run
        first, is_announced = self._state(), False
        process = ProcessId.parse(str(stored_json(self.path).get("process")))
        while first and (state := self._state()):
            runs = process.runs if process else None
            if runs or state != first:
                raise self._in_use()
            if runs is False or self._age(state) > STALE_SECONDS:
                return
            if not is_announced:
                logger.info(
                    f"{self.path}: waiting up to {STALE_SECONDS:.0f} s to see whether the run of"
                    f" {self._owner()} has ended"
                )
                is_announced = True
            time.sleep(0.5)

    def _create(self) -> bool:
        """Write the lock if there is none; whether it was written."""
        try:
            with open(self.path, "x", encoding="utf-8") as file:
                file.write(self.text)
        except FileExistsError:
            return False
        return True

    def _state(self) -> _State | None:
        """The text and time of the lock; opening a file asks a shared file system for both."""
        try:
            with open(self.path, encoding="utf-8", errors="replace") as file:
                return _State(file.read(10_000), os.fstat(file.fileno()).st_mtime_ns)
        except FileNotFoundError:
            return None

    def _age(self, state: _State) -> float:
        """Seconds since the last heartbeat, by the clock of the file system."""
        probe = temporary_name(self.path)
        try:
            probe.touch()
            return (probe.stat().st_mtime_ns - state.time_ns) / 1e9
        finally:
            probe.unlink(missing_ok=True)

    def _folder(self) -> int:
        """The number of the folder in its file system, which a copy does not share."""
        return self.run_dir.stat().st_ino

    def _owner(self) -> str:
        stored = stored_json(self.path)
        return (
            f"process {stored.get('pid', 'unknown')} on {stored.get('host', 'an unknown host')},"
            f" started {stored.get('started', 'at an unknown time')}"
        )

    def _in_use(self) -> InputError:
        return InputError(
            f"{self.run_dir}: a run is writing to it ({self._owner()}): wait for its end or stop"
            " it, or choose another --run-dir"
        )

    def _beat(self) -> None:
        while not self.ended.wait(HEARTBEAT_SECONDS):
            with suppress(OSError):  # a file system that is away for a moment: the next beat
                state = self._state()
                if state and state.text == self.text:
                    os.utime(self.path)


@contextmanager
def locked(run_dir: Path) -> Iterator[RunLock]:
    """Lock a run's folder for this run: rank 0 does, and a refusal is raised on every rank."""
    lock = RunLock(run_dir)
    dist.together(lambda: lock.acquire() if dist.is_main() else None)
    try:
        yield lock
    finally:
        if dist.is_main():
            lock.release()
