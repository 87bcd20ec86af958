"""The cache gives back what was made, whole or not at all, whoever writes beside it and however they die."""

import json
import multiprocessing
import os
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from mammo_fed.data.cache import ArrayCache, default_cache_root
from mammo_fed.errors import InvalidSetting, RunFailed

KEY = "ab" * 32
ARRAYS = {
    "features": np.arange(12, dtype=np.float32).reshape(3, 4),
    "labels": np.array([1, 0, 1]),
    "names": np.array(["a", "bcd"]),
    "turned": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "empty": np.zeros((0, 5), np.float32),
    "scalar": np.array(2.5),
}
SPAWN = multiprocessing.get_context("spawn")


class Maker:
    """Makes fixed arrays and counts how often."""

    def __init__(self, arrays: Mapping[str, np.ndarray] = ARRAYS) -> None:
        self.arrays = arrays
        self.calls = 0

    def __call__(self) -> Mapping[str, np.ndarray]:
        self.calls += 1
        return self.arrays


def never() -> Mapping[str, np.ndarray]:
    raise AssertionError("the entry was there and was made again")


def assert_same(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray] = ARRAYS) -> None:
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def entry_of(root: Path) -> Path:
    return root / KEY[:2] / KEY


def leftovers(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if ".tmp" in path.name]


def test_arrays_are_made_once_and_come_back_mapped_and_read_only(tmp_path):
    cache, make = ArrayCache(tmp_path / "cache"), Maker()
    assert KEY not in cache
    first = cache.get_or_make(KEY, make)
    assert KEY in cache
    again = ArrayCache(tmp_path / "cache").get_or_make(KEY, never, verify=True)
    assert make.calls == 1
    for found in (first, again):
        assert_same(found)
        assert all(isinstance(array, np.memmap) and not array.flags.writeable for array in found.values())
        with pytest.raises(ValueError, match="read-only"):
            found["features"][0, 0] = 9
        with pytest.raises(TypeError):
            found["more"] = np.zeros(1)
    assert leftovers(tmp_path) == []


def test_keys_do_not_share_an_entry(tmp_path):
    cache = ArrayCache(tmp_path)
    other = KEY[:-1] + "0"
    cache.get_or_make(KEY, Maker())
    assert other not in cache
    assert_same(cache.get_or_make(other, Maker({"x": np.zeros(2)})), {"x": np.zeros(2)})
    assert_same(cache.get_or_make(KEY, never))


def test_the_folders_are_their_owners_alone(tmp_path):
    root = tmp_path / "deep" / "cache"
    ArrayCache(root).get_or_make(KEY, Maker())
    for folder in (root, entry_of(root).parent, entry_of(root)):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_arrays_stay_readable_when_their_entry_is_removed(tmp_path):
    found = ArrayCache(tmp_path).get_or_make(KEY, Maker())
    for path in entry_of(tmp_path).iterdir():
        path.unlink()
    assert_same(found)
    assert_same(ArrayCache(tmp_path).get_or_make(KEY, Maker()))


@pytest.mark.parametrize("key", ["", "abc", "AB" * 32, "../../etc", "ab" * 65, "xy" * 8, "ab" * 8 + "\n"])
def test_a_key_that_is_no_hash_is_refused(tmp_path, key):
    cache = ArrayCache(tmp_path)
    with pytest.raises(InvalidSetting, match="must be 8 to 128 lower-case hex digits"):
        cache.get_or_make(key, never)
    with pytest.raises(InvalidSetting, match="must be 8 to 128 lower-case hex digits"):
        key in cache  # noqa: B015


@pytest.mark.parametrize("name", ["", "../up", "Upper", "with.dot", "1st", "a/b"])
def test_an_array_name_that_is_no_plain_word_is_refused_and_nothing_stays(tmp_path, name):
    with pytest.raises(InvalidSetting, match=r"array name .* must be lower-case letters"):
        ArrayCache(tmp_path).get_or_make(KEY, Maker({name: np.zeros(1)}))
    assert KEY not in ArrayCache(tmp_path)
    assert leftovers(tmp_path) == []


def test_python_objects_are_refused(tmp_path):
    with pytest.raises(InvalidSetting, match="array things has dtype object"):
        ArrayCache(tmp_path).get_or_make(KEY, Maker({"things": np.array([{}, None])}))


def test_what_make_raises_passes_through_and_leaves_nothing(tmp_path):
    def fail() -> Mapping[str, np.ndarray]:
        raise ArithmeticError("no features today")

    with pytest.raises(ArithmeticError, match="no features today"):
        ArrayCache(tmp_path / "cache").get_or_make(KEY, fail)
    assert not (tmp_path / "cache").exists()


def test_any_file_cut_short_is_noticed_and_made_again(tmp_path):
    cache = ArrayCache(tmp_path)
    cache.get_or_make(KEY, Maker())
    for path in sorted(entry_of(tmp_path).iterdir()):
        for keep in (0, path.stat().st_size // 2, path.stat().st_size - 1):
            os.truncate(path, keep)
            assert KEY not in cache
            make = Maker()
            assert_same(cache.get_or_make(KEY, make))
            assert make.calls == 1
    assert leftovers(tmp_path) == []


def test_any_damaged_byte_of_header_or_manifest_is_noticed_or_harmless(tmp_path):
    cache = ArrayCache(tmp_path)
    arrays = {"x": np.arange(3, dtype=np.float32)}
    cache.get_or_make(KEY, Maker(arrays))
    for path, length in ((entry_of(tmp_path) / "x.npy", 128), (entry_of(tmp_path) / "manifest.json", None)):
        content = path.read_bytes()
        for position in range(len(content[:length])):
            path.write_bytes(content[:position] + bytes([content[position] ^ 0x11]) + content[position + 1 :])
            if KEY in cache:
                assert_same(cache.get_or_make(KEY, never), arrays)
        path.write_bytes(content)
    assert_same(cache.get_or_make(KEY, never, verify=True), arrays)


def test_a_manifest_of_another_shape_or_type_is_noticed(tmp_path):
    cache = ArrayCache(tmp_path)
    cache.get_or_make(KEY, Maker())
    manifest = entry_of(tmp_path) / "manifest.json"
    written = json.loads(manifest.read_text())
    for field, value in (("shape", [4, 3]), ("dtype", "<i4"), ("bytes", 1), ("header_sha256", "0")):
        changed = json.loads(json.dumps(written))
        changed["arrays"]["features"][field] = value
        manifest.write_text(json.dumps(changed))
        assert KEY not in cache
    for text in ("", "[]", "{}", '{"arrays": 3}', '{"arrays": {"../x": {}}}', '{"arrays": {"features": null}}', "\xff"):
        manifest.write_text(text, encoding="latin-1")
        assert KEY not in cache
    assert_same(cache.get_or_make(KEY, Maker()))


def test_a_flipped_value_is_found_where_verification_is_asked_for(tmp_path):
    cache = ArrayCache(tmp_path)
    cache.get_or_make(KEY, Maker())
    path = entry_of(tmp_path) / "features.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    make = Maker()
    assert_same(cache.get_or_make(KEY, make, verify=True))
    assert make.calls == 1
    assert_same(cache.get_or_make(KEY, never, verify=True))


@pytest.mark.parametrize("intruder", ["file", "empty folder", "folder of something else"])
def test_whatever_sits_in_an_entrys_place_makes_room(tmp_path, intruder):
    entry = entry_of(tmp_path)
    entry.parent.mkdir()
    if intruder == "file":
        entry.write_text("not an entry")
    else:
        entry.mkdir()
    if intruder == "folder of something else":
        (entry / "notes").mkdir()
    assert_same(ArrayCache(tmp_path).get_or_make(KEY, Maker()))
    assert leftovers(tmp_path) == []


def test_only_leftovers_older_than_a_day_are_removed(tmp_path):
    shard = tmp_path / "cd"
    for name, age_hours in ((".old.tmp", 25), (".young.tmp", 23)):
        (shard / name / "entry").mkdir(parents=True)
        os.utime(shard / name, times=(time.time() - age_hours * 3600,) * 2)
    ArrayCache(tmp_path).get_or_make(KEY, Maker())
    assert [path.name for path in leftovers(tmp_path)] == [".young.tmp"]


def test_a_cache_that_cannot_be_written_is_named_with_its_remedy(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunFailed, match=r"cache .*file.* cannot be written \(.+\); free disk space or set MAMMO_FED_CACHE"):
        ArrayCache(tmp_path / "file" / "cache").get_or_make(KEY, Maker())


def write_at_once(root: Path, value: int, barrier: object, made: object) -> None:
    """One of several processes that miss the same key at the same moment; each makes arrays of its own value."""

    def make() -> Mapping[str, np.ndarray]:
        barrier.wait(timeout=60)
        return {f"part_{part}": np.full((200, 300), value) for part in range(5)}

    found = ArrayCache(root).get_or_make(KEY, make, verify=True)
    made.put(sorted({int(number) for array in found.values() for number in np.unique(array)}))


def test_two_processes_that_write_at_once_both_read_one_whole_entry(tmp_path):
    barrier, made = SPAWN.Barrier(2), SPAWN.Queue()
    processes = [SPAWN.Process(target=write_at_once, args=(tmp_path, value, barrier, made)) for value in (1, 2)]
    for process in processes:
        process.start()
    values = [made.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert values[0] == values[1]
    assert values[0] in ([1], [2])
    assert leftovers(tmp_path) == []
    assert len(ArrayCache(tmp_path).get_or_make(KEY, never, verify=True)) == 5


class DiesOnSecond(Mapping[str, np.ndarray]):
    """Arrays of which the second ends the process as it is about to be written."""

    def __getitem__(self, name: str) -> np.ndarray:
        if name == "second":
            os._exit(7)
        return np.ones(1000)

    def __iter__(self) -> Iterator[str]:
        return iter(("first", "second"))

    def __len__(self) -> int:
        return 2


def die_in_make(root: Path) -> None:
    ArrayCache(root).get_or_make(KEY, lambda: os._exit(7))


def die_while_writing(root: Path) -> None:
    ArrayCache(root).get_or_make(KEY, DiesOnSecond)


@pytest.mark.parametrize(("die", "left"), [(die_in_make, 0), (die_while_writing, 1)])
def test_a_process_that_dies_leaves_no_entry_and_no_obstacle(tmp_path, die, left):
    process = SPAWN.Process(target=die, args=(tmp_path,))
    process.start()
    process.join(timeout=60)
    assert process.exitcode == 7
    assert len(leftovers(tmp_path)) == left
    cache = ArrayCache(tmp_path)
    assert KEY not in cache
    assert_same(cache.get_or_make(KEY, Maker()))
    assert_same(cache.get_or_make(KEY, never, verify=True))


def test_the_default_root_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MAMMO_FED_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert default_cache_root() == tmp_path / ".cache" / "mammo-fed"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_root() == tmp_path / ".cache" / "mammo-fed"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_root() == tmp_path / "xdg" / "mammo-fed"
    monkeypatch.setenv("MAMMO_FED_CACHE", str(tmp_path / "own"))
    assert default_cache_root() == tmp_path / "own"
