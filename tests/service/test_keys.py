import os
from pathlib import Path

import pytest

from service.errors import OptionError
from service.gate.keys import MAX_LENT, Keys, key_line, new_key


def keyfile(path: Path, **keys: str) -> Path:
    path.write_text("# who may ask\n" + "".join(f"{key_line(name, key)}\n" for name, key in keys.items()))
    return path


def test_a_key_is_known_by_its_name_and_kept_as_a_hash(tmp_path: Path) -> None:
    key, other = new_key(), new_key()
    file = keyfile(tmp_path / "keys", alice=key)
    keys = Keys(file=file)
    assert key not in file.read_text()
    assert keys.required
    assert keys.name_of(key) == "alice"
    assert keys.name_of(other) is None
    assert keys.name_of("") is None
    assert keys.name_of(file.read_text().split(":")[1]) is None  # its hash is no key


def test_two_keys_of_one_name_and_keys_in_a_setting(tmp_path: Path) -> None:
    old, new, third = new_key(), new_key(), new_key()
    keys = Keys(f"{key_line('bob', old)}, {key_line('bob', new)}", keyfile(tmp_path / "keys", carol=third))
    assert [keys.name_of(key) for key in (old, new, third)] == ["bob", "bob", "carol"]


def test_without_any_source_no_key_is_required_but_an_empty_file_lets_nobody_in(tmp_path: Path) -> None:
    assert not Keys().required
    assert Keys(file=keyfile(tmp_path / "keys")).required


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    first, second = new_key(), new_key()
    file = keyfile(tmp_path / "keys", alice=first)
    keys = Keys(file=file)
    assert keys.name_of(first) == "alice"
    os.replace(keyfile(tmp_path / "next", alice=second), file)
    assert keys.name_of(first) is None
    assert keys.name_of(second) == "alice"


def test_a_file_is_read_again_as_kubernetes_exchanges_it(tmp_path: Path) -> None:
    """It is a link through the folder `..data`, itself a link, which another one to a new folder replaces."""

    def mount(version: str, **keys: str) -> None:
        (tmp_path / version).mkdir()
        keyfile(tmp_path / version / "keys", **keys)
        (tmp_path / "next").symlink_to(version)
        (tmp_path / "next").rename(tmp_path / "..data")

    first, second = new_key(), new_key()
    mount("..1", alice=first)
    (tmp_path / "keys").symlink_to("..data/keys")
    keys = Keys(file=tmp_path / "keys")
    assert keys.name_of(first) == "alice"
    mount("..2", alice=second)
    assert keys.name_of(first) is None
    assert keys.name_of(second) == "alice"


@pytest.mark.parametrize("damage", [b"garbage", b"\xff\xfe", None])
def test_a_file_that_goes_bad_leaves_the_former_keys(
    tmp_path: Path, damage: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    key, later = new_key(), new_key()
    file = keyfile(tmp_path / "keys", alice=key)
    keys = Keys(file=file)
    file.unlink()
    if damage is not None:
        file.write_bytes(damage)
    assert [keys.name_of(key) for _ in range(3)] == ["alice"] * 3
    assert len([record for record in caplog.records if "former keys" in record.message]) == 1
    keyfile(file, alice=later)
    assert keys.name_of(later) == "alice"
    assert keys.name_of(key) is None


@pytest.mark.parametrize(
    "line", ["alice", "alice sha256:12", f"al ice sha256:{'0' * 64}", f"anonymous sha256:{'0' * 64}"]
)
def test_a_line_that_is_no_key_is_an_error_that_says_which(line: str) -> None:
    with pytest.raises(OptionError, match="line 2"):
        Keys(f"{key_line('bob', new_key())},{line}")


def test_a_file_that_is_no_text_is_an_error_that_names_it(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(OptionError, match=f"{file} is not UTF-8"):
        Keys(file=file)


@pytest.mark.parametrize("name", ["", "al ice", "x" * 65, "anonymous"])
def test_names_that_could_not_stand_in_a_file_are_refused(name: str) -> None:
    with pytest.raises(OptionError, match="letters"):
        key_line(name, new_key())


def test_a_key_is_lent_for_a_while() -> None:
    now = 100.0
    keys = Keys(key_line("alice", new_key()), clock=lambda: now)
    key = keys.lend("alice", 10, {"for": "this"})
    assert key.startswith("ek_")
    assert (lent := keys.lent(key)) is not None
    assert (lent.name, lent.what_for) == ("alice", {"for": "this"})
    assert keys.name_of(key) is None, "it opens nothing else"
    assert keys.lent(new_key()) is keys.lent("ek_guessed") is None
    now += 10
    assert keys.lent(key) is None


def test_lent_keys_make_room_for_others() -> None:
    keys = Keys()
    lent = [keys.lend("alice", 10) for _ in range(MAX_LENT + 1)]
    assert keys.lent(lent[0]) is None
    assert all(map(keys.lent, lent[1:]))


def test_what_was_lent_ends_with_the_key_of_who_lent_it(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(key_line("alice", new_key()) + "\n")
    keys = Keys(file=file)
    key = keys.lend("alice", 10)
    assert keys.lent(key)
    file.write_text(key_line("bob", new_key()) + "\n" + "# more\n")
    assert keys.lent(key) is None
