"""An exclusive lock between processes, held by a file."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

WITHOUT_LOCKS = (
    *(errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL),
    *(errno.EACCES, errno.EPERM, errno.EROFS),
)


@contextmanager
def file_lock(path: Path, wait: bool = True) -> Iterator[bool | None]:
    """Lock a file in an existing folder; yields whether this process has the lock.

    wait: wait for the other process. The kernel releases the lock when the process ends, also after
    kill -9. None: the file system has no locks or is read-only, so nobody waits.
    """
    lock = FileLock(path, timeout=-1 if wait else 0)
    try:
        lock.acquire()
        locked: bool | None = True
    except Timeout:
        locked = False
    except NotImplementedError:
        locked = None
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        locked = None
    try:
        yield locked
    finally:
        if locked:  # removed before the release: a waiting process then opens a new lock file
            with suppress(OSError):
                path.unlink()
        lock.release()
