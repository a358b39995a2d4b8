"""What a source comes to: folders, globs, lists as other projects write them, tars and URLs."""

import io
import json
import os
import tarfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextvid.data.locations import Place, open_place
from nextvid.errors import UserError
from nextvid.footage.listing import Entry, list_sources


def listed(*sources: Path | str) -> list[Entry]:
    return list(list_sources([str(source) for source in sources]))


def names(*sources: Path | str) -> list[str]:
    return [os.path.basename(str(entry.place)) for entry in listed(*sources)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.mp4", "a.MKV", "sub/p.jpeg", "sub/deep/c.webm", "notes.md", ".hidden/h.mp4", "._b.mp4", "x y.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def test_a_folder_is_its_media_files_by_name(folder: Path) -> None:
    assert names(folder) == ["a.MKV", "b.mp4", "c.webm", "p.jpeg", "x y.mp4"]


@pytest.mark.parametrize(("ending", "count"), [("*.mp4", 2), ("**/*", 5), ("sub", 2), ("sub/*", 2), ("b.mp4", 1)])
def test_globs_folders_and_files(folder: Path, ending: str, count: int) -> None:
    assert len(listed(folder / ending)) == count


def test_links_that_lead_round_in_a_circle_are_followed_once(folder: Path) -> None:
    (folder / "sub" / "up").symlink_to(folder)
    assert names(folder) == ["a.MKV", "b.mp4", "c.webm", "p.jpeg", "x y.mp4"]


def test_a_name_that_is_not_utf8_can_be_written_down_and_opened(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9 100%.mp4"
    with open(raw, "wb") as file:
        file.write(b"seven!!")
    place = listed(tmp_path)[0].place
    place.path.encode()
    with open_place(place) as file:
        assert file.read() == b"seven!!"
    assert place.local_file == os.fsdecode(raw)


V_JEPA = "b.mp4 3\nx y.mp4 12\n"
VIDEO_MAE = "b.mp4 120 3\nx y.mp4 64 12\n"
VIDEO_MAE_2 = "b.mp4 0 -1\nx y.mp4 0 -1\n"
COMMAS = 'b.mp4,3\n"x y.mp4",12\n'
TABS = "b.mp4\t3\nx y.mp4\t12\n"
PATHS = "# my list\nb.mp4\n\nx y.mp4\n"
HEADER = "label,path\n3,b.mp4\n12,x y.mp4\n"
TAB_HEADER = "video\tclass\nb.mp4\tto run\nx y.mp4\tto jump\n"
WORDS = "b.mp4 running\nx y.mp4 jumping high\n"
WINDOWS = "\ufeffb.mp4,3\r\nx y.mp4,12\r\n"


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        (V_JEPA, ["3", "12"]),
        (VIDEO_MAE, ["3", "12"]),
        (VIDEO_MAE_2, [None, None]),
        (COMMAS, ["3", "12"]),
        (TABS, ["3", "12"]),
        (PATHS, [None, None]),
        (HEADER, ["3", "12"]),
        (TAB_HEADER, ["to run", "to jump"]),
        (WINDOWS, ["3", "12"]),
    ],
)
@pytest.mark.parametrize("name", ["list.csv", "list.txt"])
def test_lists_load_as_they_are(folder: Path, name: str, text: str, labels: list[str | None]) -> None:
    (folder / name).write_bytes(text.encode())
    entries = listed(folder / name)
    assert [str(entry.place) for entry in entries] == [str(folder / "b.mp4"), str(folder / "x y.mp4")]
    assert [entry.label for entry in entries] == labels


def test_paths_of_a_list_are_relative_to_it_then_to_the_working_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "lists").mkdir()
    (folder / "lists" / "l.txt").write_text("b.mp4 1\n../x\ty.mp4\n")
    monkeypatch.chdir(folder)
    assert str(listed("lists/l.txt")[0].place) == str(folder / "b.mp4")
    (folder / "lists" / "b.mp4").touch()
    assert str(listed("lists/l.txt")[0].place) == str(folder / "lists" / "b.mp4")


@given(
    stem=st.text(
        st.characters(codec="utf-8", exclude_characters='"\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\0/#'), min_size=1
    ),
    label=st.integers(0, 999),
    delimiter=st.sampled_from([" ", "\t", ","]),
)
def test_any_file_name_survives_a_list(
    tmp_path_factory: pytest.TempPathFactory, stem: str, label: int, delimiter: str
) -> None:
    folder = tmp_path_factory.mktemp("list")
    stem = stem.strip().lstrip("\ufeff") or "a"
    (folder / "list.txt").write_bytes(f"/videos/{stem}.mp4{delimiter}{label}\n".encode())
    entry = listed(folder / "list.txt")[0]
    assert (entry.place.path, entry.label) == (f"/videos/{stem}.mp4", str(label))


def test_parquet_lists(folder: Path) -> None:
    table = pa.table({"Video": ["b.mp4", "x y.mp4"], "Label": [3, None]})
    pq.write_table(table, folder / "list.parquet")
    entries = listed(folder / "list.parquet")
    assert [os.path.basename(str(entry.place)) for entry in entries] == ["b.mp4", "x y.mp4"]
    assert [entry.label for entry in entries] == ["3", None]
    pq.write_table(pa.table({"clip_id": [1]}), folder / "other.parquet")
    with pytest.raises(UserError, match=r"other\.parquet has the columns clip_id, and none for the path"):
        listed(folder / "other.parquet")


def add(archive: tarfile.TarFile, name: str, content: bytes, kind: bytes = tarfile.REGTYPE) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = len(content), kind, "/etc/passwd"
    archive.addfile(member, io.BytesIO(content) if content else None)


def test_a_tar_is_its_members_with_the_labels_beside_them(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        add(archive, "one.mp4", b"first")
        add(archive, "one.cls", b"7")
        add(archive, "two.json", json.dumps({"label": "jump"}).encode())
        add(archive, "two.webm", b"second!")
        add(archive, "three.txt", b"a caption")
        add(archive, "three.jpg", b"third")
    entries = listed(tmp_path)
    assert [entry.label for entry in entries] == ["7", "jump", None]
    contents = []
    for entry in entries:
        with open_place(entry.place) as file:
            contents.append(file.read())
    assert contents == [b"first", b"second!", b"third"]
    assert str(entries[0].place) == str(tmp_path / "shard.tar" / "one.mp4")


@pytest.mark.parametrize("name", ["../up.mp4", "/etc/cron.mp4", "a/../../b.mp4"])
def test_members_that_climb_out_are_not_opened(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        add(archive, name, b"x")
    assert [entry.reason for entry in listed(tmp_path / "t.tar")] == ["denied"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_not_opened(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        add(archive, "good.mp4", b"x")
        add(archive, "link.mp4", b"", kind)
    assert [entry.reason for entry in listed(tmp_path / "t.tar")] == [None, "denied"]


@pytest.mark.parametrize(("content", "reason"), [(b"", "empty"), (b"no tar " * 200, "not_media")])
def test_a_tar_that_is_none_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "t.tar").write_bytes(content)
    assert [(str(e.place), e.reason) for e in listed(tmp_path / "t.tar")] == [(str(tmp_path / "t.tar"), reason)]


def test_of_a_tar_that_ends_early_what_came_before_is_listed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        add(archive, "a.mp4", b"x" * 5000)
        add(archive, "b.mp4", b"y" * 5000)
    whole = (tmp_path / "t.tar").read_bytes()
    (tmp_path / "t.tar").write_bytes(whole[: 512 + 5120 + 200])
    entries = listed(tmp_path / "t.tar")
    assert str(entries[0].place).endswith("a.mp4")
    assert [entry.reason for entry in entries[1:]] == ["truncated"]


def test_urls_are_listed_and_read(folder: Path) -> None:
    memory = fsspec.filesystem("memory")
    for name in ("v/b.mp4", "v/a.mp4", "v/sub/c.png", "v/notes.txt"):
        memory.pipe(f"/{name}", name.encode())
    assert names("memory://v") == ["a.mp4", "b.mp4", "c.png"]
    assert names("memory://v/*.mp4") == ["a.mp4", "b.mp4"]
    assert names("memory://v/b.mp4") == ["b.mp4"]
    with open_place(listed("memory://v/b.mp4")[0].place) as file:
        assert file.read() == b"v/b.mp4"
    with pytest.raises(UserError, match="no footage at memory://nowhere"):
        listed("memory://nowhere")


@given(content=st.binary(max_size=300), data=st.data())
def test_a_part_of_a_file_reads_as_a_file(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("part") / "whole"
    path.write_bytes(content)
    offset = data.draw(st.integers(0, 320))
    length = data.draw(st.none() | st.integers(0, 320))
    part = content[offset:] if length is None else content[offset : offset + length]
    with open_place(Place(str(path), offset, length)) as file:
        assert file.read() == part
        where = data.draw(st.integers(0, 320))
        file.seek(where)
        assert file.read(7) == part[where : where + 7]


def test_sources_that_are_not_there_or_empty_are_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no footage at .*missing"):
        listed(tmp_path / "missing")
    with pytest.raises(UserError, match=r"holds no video or picture.*\.mp4"):
        listed(tmp_path)
    (tmp_path / "empty.csv").touch()
    with pytest.raises(UserError, match="has no row"):
        listed(tmp_path / "empty.csv")
    (tmp_path / "packed.tar.gz").touch()
    with pytest.raises(UserError, match="packed"):
        listed(tmp_path / "packed.tar.gz")


def test_remote_lists_and_tars(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        add(archive, "one.mp4", b"first")
    memory.pipe("/lists/t.tar", (tmp_path / "t.tar").read_bytes())
    memory.pipe("/lists/l.csv", b"sub/a.mp4 3\n")
    assert [(entry.place.path, entry.label) for entry in listed("memory://lists/l.csv")] == [
        ("memory://lists/sub/a.mp4", "3")
    ]
    for source in ("memory://lists/t.tar", "memory://lists"):
        with open_place(listed(source)[0].place) as file:
            assert file.read() == b"first"


def test_lists_with_odd_content_are_a_sentence_or_read(tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes(b"a.mp4,caf\xe9\n")
    assert listed(tmp_path / "latin.csv")[0].label == "caf\\xe9"
    (tmp_path / "long.csv").write_text("path,label\na.mp4," + "x" * 200_000 + "\n")
    with pytest.raises(UserError, match="cannot be read as rows"):
        listed(tmp_path / "long.csv")
    pq.write_table(pa.table({"image": [{"bytes": b"x", "path": "a.png"}]}), tmp_path / "pictures.parquet")
    with pytest.raises(UserError, match="none for the path as text"):
        listed(tmp_path / "pictures.parquet")
    pq.write_table(pa.table({"path": ["a.mp4"], "length": [12.5], "name": ["A"]}), tmp_path / "own.parquet")
    assert listed(tmp_path / "own.parquet")[0].place.length is None


def test_a_label_file_that_is_no_json_is_no_label(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        add(archive, "k.mp4", b"x")
        add(archive, "k.json", b"[" * 100_000)
    assert [entry.label for entry in listed(tmp_path / "t.tar")] == [None]
