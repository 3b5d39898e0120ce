"""The folder of arrays: what comes back, what does not, and how large it gets."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import platformdirs
import pytest

from onnxprune import cache
from onnxprune.cache import fetch, folder, keep, key_of

ARRAYS = {"a": np.arange(1000.0), "b": np.array(3), "c.d": np.eye(4, dtype=np.float32)}
KEY = key_of([b"one"])


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "deep" / "cache"
    monkeypatch.setenv(cache.VARIABLE, str(path))
    return path


def same(found: object) -> bool:
    return (
        isinstance(found, dict)
        and found.keys() == ARRAYS.keys()
        and all(np.array_equal(found[n], a) and found[n].dtype == a.dtype for n, a in ARRAYS.items())
    )


def files(home: Path) -> list[str]:
    return sorted(p.name for p in home.iterdir())


def test_what_is_kept_comes_back(home: Path) -> None:
    assert fetch(KEY) is None and not home.exists()
    keep(KEY, ARRAYS)
    assert same(fetch(KEY)) and fetch(key_of([b"two"])) is None
    assert files(home) == [f"{KEY}.moments.npz"]


def test_a_key_tells_parts_from_each_other() -> None:
    parts: tuple[list[bytes | memoryview], ...]
    parts = ([], [b""], [b"ab"], [b"a", b"b"], [b"a", b"b", b""], [np.zeros((1, 2)).data])
    assert len({key_of(p) for p in parts}) == len(parts)


def test_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for said in ("off", "OFF"):
        monkeypatch.setenv(cache.VARIABLE, said)
        assert folder() is None and fetch(KEY) is None
        keep(KEY, ARRAYS)
    monkeypatch.setenv(cache.VARIABLE, "~/there")
    assert folder() == Path.home() / "there"
    usual = platformdirs.user_cache_path("onnxprune", appauthor=False)
    monkeypatch.setenv(cache.VARIABLE, "")
    assert folder() == usual
    monkeypatch.delenv(cache.VARIABLE)
    assert folder() == usual


def test_broken_files(home: Path) -> None:
    """Cut off, changed anywhere, or something else: never an error, never another value."""
    keep(KEY, ARRAYS)
    path = home / files(home)[0]
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    broken = [b"", b"nonsense", whole[:100], whole[:-1], whole[len(whole) // 2 :]]
    for at in rng.integers(0, len(whole), 300):
        broken.append(whole[:at] + bytes([whole[at] ^ int(rng.integers(1, 256))]) + whole[at + 1 :])
    for content in broken:
        path.write_bytes(content)
        found = fetch(KEY)
        assert found is None or same(found)  # a byte that says nothing, a date for instance
    keep(KEY, ARRAYS)
    assert same(fetch(KEY))


def test_a_home_that_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.VARIABLE, "~nobody-of-that-name/x")
    assert cache.folder() is not None
    assert cache.fetch("0" * 64) is None


def test_a_folder_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "file"))
    keep(KEY, ARRAYS)
    assert fetch(KEY) is None


def test_a_disk_that_is_full(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", full)
    keep(KEY, ARRAYS)
    assert files(home) == [] and fetch(KEY) is None


def test_the_oldest_go(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LIMIT", 3 * 9500)  # three of these
    keys = [key_of([bytes([n])]) for n in range(5)]
    (home / "notes").mkdir(parents=True)
    (home / "of the user.npz").write_bytes(bytes(100_000))
    for age, key in enumerate(keys[:3]):
        keep(key, ARRAYS)
        os.utime(home / f"{key}.moments.npz", (1000 + age, 1000 + age))
    left = home / f"{keys[0]}.moments.npz.half"  # of a run that was killed
    left.write_bytes(b"half")
    os.utime(left, (1, 1))
    assert same(fetch(keys[0]))  # so it is not the oldest any more
    keep(keys[3], ARRAYS)
    assert [same(fetch(k)) for k in keys[:4]] == [True, False, True, True]
    assert not left.exists() and (home / "of the user.npz").exists() and (home / "notes").exists()
    monkeypatch.setattr(cache, "LIMIT", 8000)
    keep(keys[4], ARRAYS)  # too large for this cache: it does not take the others with it
    assert [same(fetch(k)) for k in keys] == [True, False, True, True, False]


def test_many_at_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is there as a whole or not at all, whoever writes, reads and removes."""
    monkeypatch.setattr(cache, "LIMIT", 2 * 9500)
    keys = [key_of([bytes([n])]) for n in range(4)]

    def work(number: int) -> bool:
        keep(keys[number % 4], ARRAYS)
        found = fetch(keys[(number + 1) % 4])
        return found is None or same(found)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(200)))
    assert len(files(home)) <= 2
