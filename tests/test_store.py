"""The cache: hits and misses of its keys, concurrent and killed builders, damaged entries."""

import errno
import mmap
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors.numpy import load_file

from tubesynth.data.entry import METADATA_KEY
from tubesynth.data.preprocessing import Preprocessing
from tubesynth.data.store import Store, entry_key
from tubesynth.data.volumes import (
    TokenSource,
    build_volumes,
    ensure_tokens,
    ensure_volume,
    volume_key,
)
from tubesynth.runtime.errors import InputError
from tubesynth.runtime.file_lock import file_lock
from tubesynth.runtime.process_id import ProcessId
from tubesynth.volume.cases import Case
from tubesynth.volume.digest import source_digest
from tubesynth.volume.vessels import VesselTokens

KEY, LIVING = "0" * 32, "a" * 32
GRID = Preprocessing((16, 14, 12), (1.0, 1.0, 1.0))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.ENOLCK])
def test_a_file_system_without_locks_is_told_from_one_that_fails(code, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(code, os.strerror(code), str(tmp_path / "lock"))

    monkeypatch.setattr(FileLock, "acquire", fail)
    if code == errno.ENOLCK:
        with file_lock(tmp_path / "lock") as locked:
            assert locked is None
    else:
        with pytest.raises(OSError, match="lock"), file_lock(tmp_path / "lock"):
            pass


def make_case(folder, name="1", seed=0, top=8):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    image = rng.integers(-1200, 1200, (14, 15, 13)).astype(np.int16)
    label = rng.integers(0, top + 1, (14, 15, 13)).astype(np.uint8)
    paths = folder / f"{name}.img.nii.gz", folder / f"{name}.label.nii.gz"
    for path, array in zip(paths, (image, label), strict=True):
        nib.save(nib.Nifti1Image(array, np.diag([0.9, 0.9, 1.1, 1])), path)
    return Case(name, *paths)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "cache")


def numbers():
    return {"a": np.arange(24, dtype=np.int16).reshape(2, 3, 4), "empty": np.zeros((0, 3))}


def arrays_of(store, kind, key, build, meta):
    """The arrays of an entry, which is built if it is missing."""
    return store.ensure(kind, key, lambda: (build(), {}), meta)[0].arrays()


def damaged(store) -> list:
    """(file, damage) of every entry that differs from its checksums."""
    problems = [(file, store.problem(file)) for file in store.files()]
    return [(file, problem) for file, problem in problems if problem]


def names(store):
    return sorted(str(p.relative_to(store.root)) for p in store.root.rglob("*") if p.is_file())


# ---- entries


def test_arrays_come_back_as_they_were_memory_mapped_and_read_only(store):
    arrays = arrays_of(store, "things", KEY, numbers, {"case": "1"})
    assert isinstance(arrays["a"].base, mmap.mmap) and not arrays["a"].flags.writeable
    for name, expected in numbers().items():
        assert arrays[name].dtype == expected.dtype and np.array_equal(arrays[name], expected)
    assert store.open("things", KEY).meta["case"] == "1"
    assert np.array_equal(load_file(store.path("things", KEY))["a"], numbers()["a"])
    assert names(store) == [f"things/00/{KEY}.safetensors"]


def test_the_second_time_nothing_is_built(store):
    arrays_of(store, "things", KEY, numbers, {})
    built = []
    arrays_of(store, "things", KEY, lambda: built.append(1), {})
    assert built == []


def test_an_entry_that_another_process_finishes_at_this_moment_is_used(store, monkeypatch):
    """The other process renames its file into place while this one opens it in vain."""
    other, opened, open_entry = Store(store.root), [], Store.open

    def open_too_early(self, kind, key):
        if self is store and not opened:
            opened.append(key)
            arrays_of(other, kind, key, numbers, {})
            return None
        return open_entry(self, kind, key)

    monkeypatch.setattr(Store, "open", open_too_early)
    entry, was_built = store.ensure("things", KEY, lambda: pytest.fail("built again"), {})
    assert opened == [KEY] and not was_built and entry.damage() is None


@pytest.mark.parametrize("damage", ["empty", "in length", "in header", "in arrays", "longer"])
def test_a_damaged_entry_is_no_entry_and_is_built_again(store, damage, caplog):
    arrays_of(store, "things", KEY, numbers, {})
    file = store.path("things", KEY)
    if damage == "longer":
        file.write_bytes(file.read_bytes() + b"x")
    else:
        end = file.stat().st_size - 1
        os.truncate(file, {"empty": 0, "in length": 5, "in header": 50, "in arrays": end}[damage])
    assert store.open("things", KEY) is None
    assert [path for path, _ in damaged(store)] == [file]
    with caplog.at_level("WARNING", logger="tubesynth"):
        assert store.checked("things", KEY) is None
    assert "its header is damaged, or its size is wrong: the entry is removed" in caplog.text
    arrays = arrays_of(store, "things", KEY, numbers, {})
    assert np.array_equal(arrays["a"], numbers()["a"])
    assert list(damaged(store)) == []


def test_an_entry_with_a_flipped_bit_is_built_again_by_the_next_process(store, capsys):
    arrays_of(store, "things", KEY, numbers, {})
    file = store.path("things", KEY)
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    assert damaged(store) == [(file, "a differs from its checksum")]
    assert store.checked("things", KEY) is None and not file.exists()
    assert np.array_equal(arrays_of(store, "things", KEY, numbers, {})["a"], numbers()["a"])
    assert store.checked("things", KEY) == store.open("things", KEY)


def test_a_build_that_fails_leaves_nothing(store):
    def fail():
        raise InputError("no")

    with pytest.raises(InputError):
        arrays_of(store, "things", KEY, fail, {})
    assert names(store) == []


def test_a_key_changes_with_every_setting_and_not_with_their_order():
    settings = {"a": 1, "spacing": (0.7, 0.7), "digest": "x"}
    key = entry_key(**settings)
    assert key == entry_key(**dict(reversed(settings.items())))
    for changed in ({"a": 2}, {"spacing": (0.7, 0.8)}, {"digest": "y"}, {"more": 0}):
        assert entry_key(**{**settings, **changed}) != key


def test_removing_is_one_step_and_an_open_reader_keeps_its_arrays(store):
    arrays = arrays_of(store, "things", KEY, numbers, {})
    store.remove(store.open("things", KEY).path)
    assert store.open("things", KEY) is None
    assert np.array_equal(arrays["a"], numbers()["a"])


def test_a_store_that_cannot_be_written_is_reported_with_the_key_to_change(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="data.cache_dir"):
        arrays_of(Store(tmp_path / "file"), "things", KEY, numbers, {})


# ---- keys of volumes: hits and misses


def test_spacing_window_resolution_and_classes_are_misses(store, tmp_path):
    case = make_case(tmp_path / "data")
    changed = [
        GRID,
        replace(GRID, spacing=(1.0, 1.0, 1.2)),
        replace(GRID, hu_window=(-200, 600)),
        replace(GRID, resolution=(16, 14, 10)),
        replace(GRID, num_classes=10),
    ]
    assert len({volume_key(store, case, p) for p in changed}) == len(changed)
    same = Preprocessing([16, 14, 12], [1, 1, 1], [-1000, 1000])  # as YAML gives them
    assert volume_key(store, case, same) == volume_key(store, case, GRID)


def test_a_changed_source_is_a_miss_even_with_the_same_size_and_time(store, tmp_path):
    case = make_case(tmp_path / "data")
    before = volume_key(store, case, GRID)
    stat = os.stat(case.image)
    raw = bytearray(case.image.read_bytes())
    raw[-1] ^= 1
    case.image.write_bytes(raw)
    os.utime(case.image, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert os.stat(case.image).st_size == stat.st_size
    assert volume_key(store, case, GRID) != before


def test_a_copied_or_renamed_source_is_a_hit(store, tmp_path):
    case = make_case(tmp_path / "data")
    copied = Case("7", tmp_path / "7.img.nii.gz", tmp_path / "7.label.nii.gz")
    shutil.copy(case.image, copied.image)
    shutil.copy(case.label, copied.label)
    assert volume_key(store, case, GRID) == volume_key(store, copied, GRID)


def test_a_warm_start_reads_no_source(store, tmp_path, monkeypatch):
    case = make_case(tmp_path / "data")
    monkeypatch.setattr("tubesynth.volume.digest._SETTLED_SECONDS", -1)
    key = volume_key(store, case, GRID)
    read = []
    monkeypatch.setattr("tubesynth.volume.digest.file_digest", lambda file: read.append(file))
    assert volume_key(store, case, GRID) == key
    assert read == []


def test_the_digest_of_a_file_just_written_is_not_stored(store, tmp_path, monkeypatch):
    """The clock stands still one second after the file was written."""
    case = make_case(tmp_path / "data")
    now = max(os.stat(path).st_ctime for path in (case.image, case.label)) + 1
    monkeypatch.setattr(time, "time", lambda: now)
    volume_key(store, case, GRID)
    assert names(store) == []


def test_a_process_reads_a_source_once_until_it_changes(tmp_path, monkeypatch):
    path = make_case(tmp_path / "data").image
    monkeypatch.setattr("tubesynth.volume.digest._SETTLED_SECONDS", -1)
    first, read = source_digest(path), []
    monkeypatch.setattr("tubesynth.volume.digest.file_digest", lambda file: read.append(file))
    assert source_digest(path) == first and read == []
    path.write_bytes(path.read_bytes() + b"0")
    source_digest(path)
    assert read == [path]


def test_a_stored_digest_that_the_machine_lost_is_computed_again(store, tmp_path, monkeypatch):
    """Digests do not wait for the disk: without power one may be empty, or full of zeros."""
    path = make_case(tmp_path / "data").image
    monkeypatch.setattr("tubesynth.volume.digest._SETTLED_SECONDS", -1)
    digest = store.digest(path)
    (record,) = (store.root / "digests").glob("??/*.json")
    for content in (b"", bytes(record.stat().st_size)):
        record.write_bytes(content)
        assert store.stored_digest(path) is None and store.digest(path) == digest
        assert store.stored_digest(path) == digest


def test_every_file_of_a_dicom_folder_counts(store, tmp_path):
    folder = tmp_path / "series"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.dcm").write_bytes(bytes([i]) * 10)
    before = store.digest(folder)
    (folder / "2.dcm").write_bytes(b"x" * 10)
    assert store.digest(folder) != before


def test_other_settings_of_the_tokens_do_not_change_the_key_of_the_volume(store, tmp_path):
    case = make_case(tmp_path / "data")
    entry, _ = ensure_volume(store, case, GRID)
    first, new_first = ensure_tokens(store, case, entry, FewTokens(8, 1.0))
    second, new_second = ensure_tokens(store, case, entry, FewTokens(8, 0.5))
    _, again = ensure_tokens(store, case, entry, FewTokens(8, 0.5))
    assert first.key != second.key and new_first and new_second and not again
    assert ensure_volume(store, case, GRID)[1] is False


class FewTokens(TokenSource):
    def trace(self, labels):
        table = np.zeros((5, 9))
        table[:, :3] = np.argwhere(labels.array == self.vessel_class)[:5]
        return VesselTokens.from_array(table)


# ---- several builders, and killed ones


def test_build_counts_its_entries_and_names_the_broken_case_after_the_others(store, tmp_path):
    cases = [make_case(tmp_path / "data", str(i), seed=i) for i in range(3)]
    cases[1].image.write_bytes(b"rubbish")
    with pytest.raises(InputError, match="1.img.nii.gz"):
        build_volumes(store, cases, GRID, workers=1)
    assert len(list(store.entries("volumes"))) == 2
    report = build_volumes(store, [cases[0], cases[2]], GRID, FewTokens(8, 1.0), workers=1)
    assert (report.built, report.existing) == (2, 2)  # tokens are built, volumes existed


def test_ranks_share_the_cases_and_processes_build_the_same_bytes(tmp_path):
    cases = [make_case(tmp_path / "data", str(i), seed=i) for i in range(4)]
    alone, shared = Store(tmp_path / "alone"), Store(tmp_path / "shared")
    build_volumes(alone, cases, GRID, workers=1)
    counts = [
        build_volumes(shared, cases, GRID, workers=2 - rank, rank=rank, world=2).built
        for rank in (0, 1)
    ]
    assert counts == [2, 2]
    digests = [[(e.key, e.meta["arrays"]) for e in s.entries()] for s in (alone, shared)]
    assert digests[0] == digests[1] and len(digests[0]) == 4


class KilledTokens(TokenSource):
    def trace(self, labels):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_reported_with_a_remedy_and_built_entries_stay(store, tmp_path):
    cases = [make_case(tmp_path / "data", str(i), seed=i) for i in range(2)]
    with pytest.raises(InputError, match="fewer workers"):
        build_volumes(store, cases, GRID, KilledTokens(8, 1.0), workers=2)
    assert len(list(store.entries("volumes"))) >= 1 and list(damaged(store)) == []


def slow_build(root, queue, barrier):
    def build():
        queue.put(os.getpid())
        time.sleep(0.05)
        return numbers()

    store = Store(root)
    for i in range(6):
        barrier.wait()
        assert np.array_equal(
            arrays_of(store, "things", f"{i:032x}", build, {})["a"], numbers()["a"]
        )


def test_three_jobs_that_build_the_same_set_all_finish_and_write_each_entry_once(store):
    context = multiprocessing.get_context("fork")
    queue, barrier = context.Queue(), context.Barrier(3, timeout=600)
    jobs = [context.Process(target=slow_build, args=(store.root, queue, barrier)) for _ in range(3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(timeout=600)
    assert [job.exitcode for job in jobs] == [0, 0, 0]
    assert sum(1 for _ in range(6) if queue.get(timeout=60)) == 6 and queue.empty()
    assert len(list(store.entries())) == 6 and list(damaged(store)) == []
    assert store.leftovers() == []


def test_a_file_system_without_locks_has_a_cache_too(store, monkeypatch):
    def refuse(self, *args, **options):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(FileLock, "acquire", refuse)
    assert np.array_equal(arrays_of(store, "things", KEY, numbers, {})["a"], numbers()["a"])


BUILDER = """
import sys, pickle
from tubesynth.data.store import Store
from tubesynth.data.volumes import build_volumes
from tubesynth.data.entry import METADATA_KEY
from tubesynth.data.preprocessing import preprocess_case, read_case
cases, grid = pickle.load(open(sys.argv[2], "rb"))
preprocess_case(*read_case(cases[0], grid), grid)  # imports are done
print("go", flush=True)
build_volumes(Store(sys.argv[1]), cases, grid, workers=1)
print("done", flush=True)
"""


@pytest.mark.slow
def test_killed_at_any_moment_a_build_leaves_no_entry_that_reads_wrongly(tmp_path):
    cases = [make_case(tmp_path / "data", str(i), seed=i) for i in range(24)]
    reference, store = Store(tmp_path / "reference"), Store(tmp_path / "cache")
    build_volumes(reference, cases, GRID, workers=1)
    expected = {entry.key: entry.meta["arrays"] for entry in reference.entries()}
    with open(tmp_path / "job", "wb") as stream:
        pickle.dump((cases, GRID), stream)
    rng = np.random.default_rng(0)
    seen, leftovers = set(), 0
    for _ in range(8):
        command = [sys.executable, "-c", BUILDER, str(store.root), str(tmp_path / "job")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as job:
            assert job.stdout.readline() == "go\n"
            time.sleep(rng.uniform(0, 0.04))
            job.send_signal(signal.SIGKILL)
            finished = job.stdout.readline() == "done\n"
        assert list(damaged(store)) == []
        entries = {entry.key: entry.meta["arrays"] for entry in store.entries()}
        assert seen <= set(entries)  # finished entries stay
        assert all(expected[key] == arrays for key, arrays in entries.items())
        seen, leftovers = set(entries), leftovers + len(store.leftovers())
        if finished:
            break
    print(f"{len(seen)} of {len(cases)} entries, {leftovers} torn files over all kills")
    build_volumes(store, cases, GRID, workers=1)
    assert {entry.key: entry.meta["arrays"] for entry in store.entries()} == expected
    store.sweep()
    assert store.leftovers() == [] and not list(store.root.rglob("*.tmp"))


DYING = """
import os, signal, sys
from pathlib import Path
import numpy as np
from tubesynth.data.store import Store
left, sync, write = [int(sys.argv[2])], os.fsync, Path.write_bytes
def dying_sync(handle):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    sync(handle)
def dying_write(path, content):
    if sys.argv[2] == "0":  # half of a file
        write(path, content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, content)
os.fsync, Path.write_bytes = dying_sync, dying_write
KEY = "0" * 32
Store(sys.argv[1]).ensure("things", KEY, lambda: ({"a": np.arange(9), "b": np.ones(3)}, {}), {})
"""


@pytest.mark.parametrize("moment", range(3))  # half a file; the file, its folder synced
def test_killed_at_each_step_of_writing_an_entry_is_whole_or_absent(store, moment):
    job = subprocess.run([sys.executable, "-c", DYING, str(store.root), str(moment)])
    assert job.returncode == -signal.SIGKILL
    assert list(damaged(store)) == []
    assert (store.open("things", KEY) is not None) == (moment == 2)  # after the rename
    assert len(store.leftovers()) == (moment != 2)
    arrays = arrays_of(store, "things", KEY, lambda: {"a": np.arange(9), "b": np.ones(3)}, {})
    assert np.array_equal(arrays["a"], np.arange(9))
    assert list(damaged(store)) == []


def test_a_disk_that_is_full_within_an_array_is_one_line_and_leaves_no_entry(store):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(InputError, match="not written .*; free space or set data.cache_dir"):
            store.ensure("things", KEY, lambda: ({"a": np.zeros(100_000)}, {}), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert store.open("things", KEY) is None and store.leftovers() == []


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(
    arrays(
        st.sampled_from(["<i2", "|u1", "<f4", "<f8", "|b1", ">i4"]),
        array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
    ),
    st.dictionaries(st.text(max_size=5), st.floats() | st.text(max_size=5), max_size=3),
)
def test_any_array_and_any_meta_are_read_back_as_they_were_written(array, meta):
    with tempfile.TemporaryDirectory() as folder:
        meta = {f"meta {name}": value for name, value in meta.items()}
        entry, _ = Store(folder).ensure("things", KEY, lambda: ({"a": array}, {}), meta)
        stored = entry.arrays()["a"]
        assert (stored.dtype, stored.shape) == (array.dtype.newbyteorder("<"), array.shape)
        assert np.array_equal(stored, array, equal_nan=array.dtype.kind == "f")
        assert repr(entry.meta | meta) == repr(entry.meta) and entry.damage() is None
        assert load_file(entry.path)["a"].tobytes() == stored.tobytes()


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_a_changed_byte_of_the_header_is_an_entry_that_is_missing_damaged_or_the_same(data):
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        meta = {"case": "1", "affine": [[1.5, 0.0], [0.0, 2.5]]}
        entry, _ = store.ensure("things", KEY, lambda: (numbers(), {}), meta)
        raw = bytearray(entry.path.read_bytes())
        byte = data.draw(st.integers(0, entry.starts["a"] - 1))
        raw[byte] ^= 1 << data.draw(st.integers(0, 7))
        entry.path.write_bytes(raw)
        again = store.open("things", KEY)
        assert again is None or again.damage() or again.meta == entry.meta


@pytest.mark.parametrize(
    "header",
    [
        *("no JSON", "[]", "{}", '{"__metadata__": 3}', '{"__metadata__": {}}', "[" * 10**5),
        *(f'{{"__metadata__": {{"{METADATA_KEY}": "{text}"}}}}' for text in ("", "3", "[]", "{}")),
    ],
)
def test_a_header_of_another_form_is_a_missing_entry(store, header):
    entry, _ = store.ensure("things", KEY, lambda: (numbers(), {}), {})
    entry.path.write_bytes(len(header).to_bytes(8, "little") + header.encode())
    assert store.open("things", KEY) is None
    assert store.ensure("things", KEY, lambda: (numbers(), {}), {})[1]  # built again


def test_sweeping_removes_files_of_dead_builders_and_no_file_of_a_living_one(store):
    folder = store.path("things", LIVING).parent
    dead, living = (
        folder / f".{KEY}.safetensors.{writer}.{8 * digit}.tmp"
        for writer, digit in ((ProcessId.own()._replace(pid=2**22), "1"), (ProcessId.own(), "2"))
    )

    def build():
        folder.mkdir(parents=True)
        for file in (dead, living):
            file.write_bytes(b"half")
        assert store.leftovers() == [dead]
        assert store.sweep() == 1
        return numbers()

    arrays_of(store, "things", LIVING, build, {})
    assert not dead.exists() and living.exists()
    assert store.sweep() == 0


def test_entries_and_digests_of_version_0_2_0_are_outdated_and_others_are_not(store):
    arrays_of(store, "things", KEY, numbers, {})
    folder, digest = store.root / "things" / LIVING, store.root / "digests" / f"{KEY}.json"
    folder.mkdir()
    digest.parent.mkdir()
    for file in (folder / "a.npy", digest, store.root / "things" / "notes.txt"):
        file.write_text("x")
    assert sorted(store.outdated()) == [digest, folder]
    for path in store.outdated():
        store.remove(path)
    assert names(store) == [f"things/00/{KEY}.safetensors", "things/notes.txt"]
