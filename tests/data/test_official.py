import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from media import numbered, read_numbers, write_picture, write_video
from PIL import Image

from nextvid.data import benchmarks
from nextvid.data.benchmarks import official
from nextvid.data.benchmarks.official import diving48, ground_truth, imagenet1k, kinetics400, ssv2
from nextvid.data.benchmarks.official.clips import balanced_order
from nextvid.data.clip import BrokenFile, ClipSpec, LabelledClips
from nextvid.data.views import segment_times
from nextvid.errors import UserError
from nextvid.randomness import generator

SPEC = ClipSpec(frames=4, fps=5.0, size=32)
COUNTS = {"imagenet1k": 1000, "kinetics400": 400, "ssv2": 174, "diving48": 48}


def write_clip(path: Path, count: int = 20, **settings) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_video(path, [numbered(number, 64, 64) for number in range(count)], **settings)


def write_json(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def jpeg(colour: tuple[int, int, int] | tuple[int, int, int, int], mode: str = "RGB", width: int = 60) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (width, 40), colour).save(file, "JPEG", quality=95)
    return file.getvalue()


def swapped(names: list[str]) -> list[str]:
    return [*names[:3], names[4], names[3], *names[5:]]


# The pinned maps


@pytest.mark.parametrize("name", official.names())
def test_every_map_is_whole_and_without_repeats(name):
    classes = official.class_map(name)
    assert len(classes) == len(set(classes)) == COUNTS[name]


def test_the_maps_are_those_of_the_releases():
    assert list(kinetics400.CLASSES) == sorted(kinetics400.CLASSES)
    assert (kinetics400.CLASSES[0], kinetics400.CLASSES[399]) == ("abseiling", "zumba")
    assert list(ssv2.CLASSES) == sorted(ssv2.CLASSES)
    assert ssv2.CLASSES[0] == "Approaching something with your camera"
    assert list(diving48.CLASSES) == sorted(diving48.CLASSES)
    assert diving48.CLASSES[30] == "Forward+Dive+NoTwis+STR"
    assert list(imagenet1k.WNIDS) == sorted(imagenet1k.WNIDS)
    assert (imagenet1k.CLASSES[0], imagenet1k.CLASSES[999]) == ("n01440764 tench", "n15075141 toilet tissue")


# Kinetics-400

TRICKY = ["passing American football (not in game)", "massaging person's head", "tying knot (not on a tie)", "zumba"]


def kinetics(
    root: Path, rows: list[str] | None = None, header: str = "label,youtube_id,time_start,time_end,split,is_cc"
):
    rows = (
        [f'"{label}",--é_{place:07d},{place},{place + 10},train,0' for place, label in enumerate(TRICKY)]
        if rows is None
        else rows
    )
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / "train.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    for place, label in enumerate(TRICKY[:2]):
        folder = root / "train" if place == 0 else root / "train" / label
        write_clip(folder / f"--é_{place:07d}_{place:06d}_{place + 10:06d}.mp4")
    return root


def test_kinetics_counts_what_is_there_and_names_what_is_missing(tmp_path):
    split = kinetics400.read(kinetics(tmp_path / "a: folder"), "train")
    assert split.summary() == {
        "benchmark": "kinetics400",
        "split": "train",
        "official": 246_535,
        "listed": 4,
        "found": 2,
        "missing": 2,
    }
    assert split.missing == ["--é_0000002_000002_000012.mp4", "--é_0000003_000003_000013.mp4"]
    assert [split.classes[entry.label] for entry in split.entries] == TRICKY[:2]


def test_kinetics_validation_under_each_of_its_names(tmp_path):
    for annotation, folder, split in (("val.csv", "val", "val"), ("validate.csv", "videos/validate", "validate")):
        root = tmp_path / annotation
        write_clip(root / folder / "zumba" / "abcdefghijk_000001_000011.mp4")
        (root / annotation).write_text(
            f"label,youtube_id,time_start,time_end,split\nzumba,abcdefghijk,1,11,{split}\n", encoding="utf-8-sig"
        )
        found = official.read(f"kinetics400:{root}", "test")
        assert (found.official, found.listed, len(found.entries)) == (19_907, 1, 1)
        assert found.entries[0].label == 399


def test_kinetics_takes_replacements_for_corrupted_clips(tmp_path):
    root = kinetics(tmp_path)
    replacement = write_clip(root / "replacement/replacement_for_corrupted_k400/--é_0000002_000002_000012.mp4")
    split = kinetics400.read(root, "train")
    assert [entry.path for entry in split.entries][2] == str(replacement)
    assert len(split.missing) == 1


@pytest.mark.parametrize(
    ("header", "row", "words"),
    [
        ("label,youtube_id,time_start,split", "zumba,abc,1,train", "has no column time_end"),
        ("label,youtube_id,time_start,time_end", "zumba,abc,1", "line 2: the row ends before time_end"),
        (
            "label,youtube_id,time_start,time_end",
            "zumbaa,abc,1,11",
            "line 2: 'zumbaa' is none of the 400 classes.*zumba",
        ),
        ("label,youtube_id,time_start,time_end", "zumba,abc,soon,11", "time_start is 'soon'"),
        ("label,youtube_id,time_start,time_end,split", "zumba,abc,1,11,test", "of the split 'test'"),
        ("label,youtube_id,time_start,time_end", "zumba,abc,1,11", "None of the 1 files.*abc_000001_000011.mp4"),
    ],
)
def test_kinetics_annotations_that_are_wrong_are_told(tmp_path, header, row, words):
    with pytest.raises(UserError, match=words):
        kinetics400.read(kinetics(tmp_path, [row], header), "train")


def test_kinetics_refuses_a_label_file_in_another_order(tmp_path):
    root = kinetics(tmp_path)
    names = list(kinetics400.CLASSES)
    (root / "label_map.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    kinetics400.read(root, "train")
    (root / "label_map.txt").write_text("\n".join(swapped(names)), encoding="utf-8")
    with pytest.raises(UserError, match="class 3 is 'applying cream' there and 'applauding'"):
        kinetics400.read(root, "train")


def test_kinetics_refuses_a_table_of_labels_that_ends_early(tmp_path):
    rows = [f'{label},"{name}"' for label, name in enumerate(kinetics400.CLASSES[:399])]
    root = kinetics(tmp_path)
    (root / "annotations/kinetics_400_labels.csv").write_text("\n".join(["id,name", *rows]), encoding="utf-8")
    with pytest.raises(UserError, match="class 399 is nothing there and 'zumba'"):
        kinetics400.read(root, "train")


# Something-Something V2


def something(root: Path, labels: list[str] | None = None, folder: str = "20bn-something-something-v2") -> Path:
    names = list(ssv2.CLASSES) if labels is None else labels
    write_json(root / "labels/labels.json", {name: str(label) for label, name in enumerate(names)})
    clips = [
        {
            "id": "78687",
            "label": "putting a cup next to a book",
            "template": "Putting [something] next to [something]",
            "placeholders": ["a cup", "a book"],
        },
        {
            "id": "3",
            "label": "putting 2 keys onto a mat",
            "template": "Putting [number of] [something] onto [something]",
            "placeholders": ["2", "keys", "a mat"],
        },
        {"id": "5", "label": "gone", "template": "Unfolding [something]", "placeholders": ["a map"]},
    ]
    write_json(root / "labels/train.json", clips)
    write_json(root / "something-something-v2-validation.json", clips[1:])
    for name in ("78687", "3"):
        write_clip(root / folder / f"{name}.webm", codec="libvpx-vp9")
    return root


@pytest.mark.parametrize("folder", ["20bn-something-something-v2", "videos"])
def test_something_something_matches_templates_without_their_brackets(tmp_path, folder):
    root = something(tmp_path, folder=folder)
    train, test = ssv2.read(root, "train"), ssv2.read(root, "test")
    assert [train.classes[entry.label] for entry in train.entries] == [
        "Putting something next to something",
        "Putting number of something onto something",
    ]
    assert train.missing == test.missing == ["5.webm"]
    assert (train.official, train.listed, test.official, test.listed) == (168_913, 3, 24_777, 2)


def test_something_something_refuses_another_class_order(tmp_path):
    with pytest.raises(
        UserError, match=r"labels\.json is not the class map.*class 3 is 'Burying something in something'"
    ):
        ssv2.read(something(tmp_path, swapped(list(ssv2.CLASSES))), "train")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("labels/train.json", '[{"id": "1"', "is not JSON"),
        ("labels/train.json", "{}", "should hold a list of clips, but holds dict"),
        ("labels/train.json", "[]", "lists no clip"),
        ("labels/train.json", '[{"id": "1"}]', "entry 0: there is no 'template'"),
        ("labels/train.json", '[{"id": "1", "template": "Folding [thing]"}]', "'Folding thing'.*Folding something"),
        ("labels/labels.json", '{"Folding something": "first"}', "gives a template no number"),
        ("labels/labels.json", '{"Folding something": "1"}', "does not number its templates 0, 1, 2"),
    ],
)
def test_something_something_files_that_are_wrong_are_told(tmp_path, file, content, words):
    root = something(tmp_path)
    (root / file).write_text(content)
    with pytest.raises(UserError, match=words):
        ssv2.read(root, "train")


def test_something_something_needs_no_labels_file_but_an_annotation(tmp_path):
    root = something(tmp_path)
    (root / "labels/labels.json").unlink()
    assert len(ssv2.read(root, "train").entries) == 2
    (root / "labels/train.json").unlink()
    with pytest.raises(UserError, match=r"has no annotation: none of something-something-v2-train\.json, labels/"):
        ssv2.read(root, "train")


# Diving48


def diving(root: Path, rows: list[dict] | None = None, vocabulary: list[str] | None = None) -> Path:
    if rows is None:
        rows = [
            {"vid_name": "QuXLf7Z2jMQ_00000", "label": 30, "start_frame": 10, "end_frame": 18},
            {"vid_name": "QuXLf7Z2jMQ_00001", "label": 47, "start_frame": 0, "end_frame": 40},
            {"vid_name": "gone_00002", "label": 0, "start_frame": 0, "end_frame": 40},
        ]
    names = list(diving48.CLASSES) if vocabulary is None else vocabulary
    write_json(root / "Diving48_vocab.json", [name.split("+") for name in names])
    write_json(root / "Diving48_V2_train.json", rows)
    write_json(root / "Diving48_V2_test.json", rows[:1])
    for name in ("QuXLf7Z2jMQ_00000", "QuXLf7Z2jMQ_00001"):
        write_clip(root / f"rgb/{name}.mp4", 40)
    return root


def test_diving48_counts_and_labels(tmp_path):
    root = diving(tmp_path)
    train, test = diving48.read(root, "train"), diving48.read(root, "test")
    assert [entry.label for entry in train.entries] == [30, 47]
    assert train.missing == ["gone_00002.mp4"]
    assert (train.official, train.listed, test.official, test.listed) == (15_027, 3, 1_970, 1)


def test_diving48_shows_the_dive_and_nothing_beside_it(tmp_path):
    clips = official.OfficialClips(diving48.read(diving(tmp_path), "train"))
    assert read_numbers(clips.clip(0, ClipSpec(4, 10.0, 48))) == [12, 13, 14, 15]
    assert read_numbers(clips.clip(0, ClipSpec(8, 10.0, 48))) == list(range(10, 18))
    assert read_numbers(clips.clip(0, ClipSpec(12, 10.0, 48))) == [*range(10, 18), 17, 17, 17, 17]
    assert read_numbers(clips.clip(1, ClipSpec(4, 10.0, 48))) == [18, 19, 20, 21]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"vid_name": "a", "label": 48}, "entry 0: the label is 48, not a number from 0 to 47"),
        ({"vid_name": "a", "label": True}, "the label is True"),
        ({"vid_name": "a"}, "entry 0: there is no 'label'"),
        ({"label": 3}, "entry 0: there is no 'vid_name'"),
        ({"vid_name": "a", "label": 3, "start_frame": 9, "end_frame": 9}, "start_frame 9 to end_frame 9"),
        ({"vid_name": "a", "label": 3, "start_frame": 9}, "end_frame None"),
    ],
)
def test_diving48_rows_that_are_wrong_are_told(tmp_path, row, words):
    with pytest.raises(UserError, match=words):
        diving48.read(diving(tmp_path, [row]), "train")


def test_diving48_refuses_another_vocabulary(tmp_path):
    with pytest.raises(
        UserError, match=r"Diving48_vocab\.json is not the class map.*class 3 is 'Back\+15som\+NoTwis\+TUCK'"
    ):
        diving48.read(diving(tmp_path, vocabulary=swapped(list(diving48.CLASSES))), "test")


# ImageNet-1K

WNIDS = ("n01440764", "n02119789", "n15075141")
COLOURS = ((200, 30, 30), (30, 200, 30), (30, 30, 200))
KIT_START = [490, 361, 171, 822]


def tar_of(files: dict[str, bytes], path: Path | None = None, extra: list[tarfile.TarInfo] | None = None) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in extra or []:
            tar.addfile(member)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.getvalue())
    return file.getvalue()


def training_tar(root: Path) -> Path:
    inner = {
        f"{wnid}.tar": tar_of({f"{wnid}_{number}.JPEG": jpeg(colour) for number in (1, 20)})
        for wnid, colour in zip(WNIDS, COLOURS, strict=True)
    }
    tar_of(inner, root / "ILSVRC2012_img_train.tar")
    return root


def validation_pictures(count: int = 3) -> dict[str, bytes]:
    return {f"ILSVRC2012_val_{number:08d}.JPEG": jpeg(COLOURS[number - 1]) for number in range(1, count + 1)}


def write_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def shown_colours(split: official.OfficialSplit) -> list[int]:
    """Which of ``COLOURS`` each entry shows, by its brightest channel."""
    clips = official.OfficialClips(split)
    return [int(clips.clip(index, SPEC).mean((0, 1, 2)).argmax()) for index in range(len(clips))]


def test_imagenet_training_folders(tmp_path):
    files = {f"train/{wnid}/{wnid}_7.JPEG": jpeg(colour) for wnid, colour in zip(WNIDS, COLOURS, strict=True)}
    root = write_folder(tmp_path, files | {"train/n01440764/.hidden.JPEG": b"", "train/n01440764/notes.txt": b""})
    split = imagenet1k.read(root, "train")
    assert [entry.label for entry in split.entries] == [0, imagenet1k.WNIDS.index("n02119789"), 999]
    assert split.summary()["official"] == 1_281_167
    assert (split.listed, split.missing) == (3, [])
    assert shown_colours(split) == [0, 1, 2]


def test_imagenet_training_tar_is_read_in_place(tmp_path):
    split = imagenet1k.read(training_tar(tmp_path), "train")
    kit_fox = imagenet1k.WNIDS.index("n02119789")
    assert [entry.label for entry in split.entries] == [0, 0, kit_fox, kit_fox, 999, 999]
    assert split.entries[1].path == "n01440764/n01440764_20.JPEG"
    assert shown_colours(split) == [0, 0, 1, 1, 2, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ILSVRC2012_img_train.tar"]


KIT = "".join(f"{number}\n" for number in KIT_START)
NUMBERED = "".join(f"ILSVRC2012_val_{place:08d}.JPEG {label}\n" for place, label in enumerate((65, 970, 230, 809), 1))
SOLUTION = "ImageId,PredictionString\n" + "".join(
    f"ILSVRC2012_val_{place:08d},{wnid} 1 2 3 4 {wnid} 5 6 7 8 \n"
    for place, wnid in enumerate(("n01751748", "n09193705", "n02105855", "n04263257"), 1)
)
LISTS = {
    "ILSVRC2012_validation_ground_truth.txt": KIT.encode(),
    "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": KIT.encode(),
    "val.txt": NUMBERED.encode(),
    "LOC_val_solution.csv": SOLUTION.encode(),
}


@pytest.mark.parametrize("truth", LISTS)
@pytest.mark.parametrize("form", ["tar", "flat folder"])
def test_imagenet_validation_with_each_list_of_labels(tmp_path, truth, form):
    if form == "tar":
        tar_of(validation_pictures(), tmp_path / "ILSVRC2012_img_val.tar")
    else:
        write_folder(tmp_path, {f"val/{name}": content for name, content in validation_pictures().items()})
    split = imagenet1k.read(write_folder(tmp_path, {truth: LISTS[truth]}), "test")
    assert [entry.label for entry in split.entries] == [65, 970, 230]
    assert split.missing == ["ILSVRC2012_val_00000004.JPEG"]
    assert (split.official, split.listed) == (50_000, 4)
    assert shown_colours(split) == [0, 1, 2]


def test_imagenet_labels_are_read_inside_the_packed_development_kit(tmp_path):
    write_folder(tmp_path, {f"val/{name}": content for name, content in validation_pictures().items()})
    with tarfile.open(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo("ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt")
        member.size = len(KIT)
        tar.addfile(member, io.BytesIO(KIT.encode()))
    assert [entry.label for entry in imagenet1k.read(tmp_path, "test").entries] == [65, 970, 230]


def test_imagenet_validation_folders_need_no_list(tmp_path):
    write_folder(tmp_path, {"val/n01751748/ILSVRC2012_val_00000001.JPEG": jpeg((9, 9, 9))})
    assert [entry.label for entry in imagenet1k.read(tmp_path, "test").entries] == [65]


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("val.txt", "ILSVRC2012_val_00000001.JPEG 490\n", "val.txt is not in the class order.*n01751748 sea snake"),
        ("val.txt", "ILSVRC2012_val_00000001.JPEG 1000\n", "row 1.*not a picture's name and a number from 0 to 999"),
        ("ILSVRC2012_validation_ground_truth.txt", "66\n971\n", "is not in the class order of ImageNet-1K"),
        ("ILSVRC2012_validation_ground_truth.txt", "490\n0\n", "'0' is not a number from 1 to 1000"),
        (
            "LOC_val_solution.csv",
            "ImageId,PredictionString\na,n99999999 1\n",
            "line 2: 'n99999999' is none of the 1000",
        ),
        ("LOC_val_solution.csv", "ImageId,Label\na,b\n", "has no column PredictionString"),
        ("ILSVRC2012_devkit_t12.tar.gz", "no tar", "does not give ILSVRC2012_devkit_t12/data"),
        ("nothing.txt", "", "has no list of validation labels: none of ILSVRC2012_validation_ground_truth.txt"),
    ],
)
def test_imagenet_lists_of_labels_that_are_wrong_are_told(tmp_path, file, content, words):
    tar_of(validation_pictures(), tmp_path / "ILSVRC2012_img_val.tar")
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=words):
        imagenet1k.read(tmp_path, "test")


def test_the_development_kits_numbers_are_not_in_the_order_of_the_ids(tmp_path):
    (tmp_path / "ILSVRC2012_validation_ground_truth.txt").write_text(
        "490\n361\n171\n822\n297\n482\n13\n704\n599\n164\n649\n1\n"
    )
    labels = list(ground_truth.ground_truth(tmp_path).values())
    assert labels[:11] == [65, 970, 230, 809, 516, 57, 334, 415, 674, 332, 109]
    assert imagenet1k.CLASSES[labels[11]] == "n02119789 kit fox"


def test_imagenet_refuses_lists_of_classes_in_another_order(tmp_path):
    root = write_folder(tmp_path, {"train/n01440764/a.JPEG": jpeg((9, 9, 9))})
    words = [f"{wnid} some words" for wnid in swapped(list(imagenet1k.WNIDS))]
    (root / "LOC_synset_mapping.txt").write_text("\n".join(words))
    with pytest.raises(
        UserError, match=r"LOC_synset_mapping\.txt is not.*class 3 is 'n01494475' there and 'n01491361'"
    ):
        imagenet1k.read(root, "train")
    (root / "LOC_synset_mapping.txt").unlink()
    write_json(root / "imagenet_class_index.json", {"0": ["n01443537", "goldfish"]})
    with pytest.raises(UserError, match="class 0 is 'n01443537'"):
        imagenet1k.read(root, "train")


def test_imagenet_refuses_a_folder_or_tar_of_another_class(tmp_path):
    folders = write_folder(tmp_path / "folders", {"train/n01440765/a.JPEG": jpeg((9, 9, 9))})
    tar_of({"n01440765.tar": tar_of({"a.JPEG": b""})}, tmp_path / "tars/ILSVRC2012_img_train.tar")
    for root in (folders, tmp_path / "tars"):
        with pytest.raises(UserError, match="'n01440765' is none of the 1000 classes"):
            imagenet1k.read(root, "train")


def test_members_that_climb_out_and_links_and_devices_are_left_out(tmp_path):
    link, device = tarfile.TarInfo("link.JPEG"), tarfile.TarInfo("device.JPEG")
    link.type, link.linkname, device.type = tarfile.SYMTYPE, "/etc/passwd", tarfile.CHRTYPE
    files = {"../out.JPEG": b"x", "/root.JPEG": b"x", "a/../../b.JPEG": b"x", "./fine.JPEG": jpeg((9, 9, 9))}
    inner = tar_of(files, extra=[link, device])
    tar_of({"n01440764.tar": inner, "../n01443537.tar": inner}, tmp_path / "ILSVRC2012_img_train.tar")
    assert [entry.path for entry in imagenet1k.read(tmp_path, "train").entries] == ["n01440764/fine.JPEG"]


def test_damaged_tars_are_told(tmp_path):
    tar = training_tar(tmp_path) / "ILSVRC2012_img_train.tar"
    content = tar.read_bytes()
    for damaged in (content[:9000], content[:700], b"no tar at all" * 100, b""):
        tar.write_bytes(damaged)
        with pytest.raises(UserError, match="download it anew"):
            imagenet1k.read(tmp_path, "train")
    with tarfile.open(tar, "w:gz") as packed:
        packed.addfile(tarfile.TarInfo("n01440764.tar"))
    with pytest.raises(UserError, match="cannot be read as an uncompressed tar"):
        imagenet1k.read(tmp_path, "train")


def test_pictures_that_are_not_what_their_name_says(tmp_path):
    """ImageNet has a PNG and some CMYK pictures under the suffix JPEG."""
    picture = write_picture(tmp_path / "picture.png", np.full((40, 60, 3), (30, 200, 30), np.uint8)).read_bytes()
    cmyk = jpeg((200, 30, 200, 0), "CMYK")
    root = write_folder(tmp_path, {"train/n01440764/a.JPEG": picture, "train/n01440764/b.JPEG": cmyk})
    assert shown_colours(imagenet1k.read(root, "train")) == [1, 1]


# Clips


def test_clips_come_from_the_middle_in_true_time_and_square(tmp_path):
    root = something(tmp_path)
    clips = benchmarks.load(f"ssv2:{root}", "official", "train")
    assert isinstance(clips, LabelledClips)
    assert clips.tasks == {"class": ssv2.CLASSES}
    frames = clips.clip(0, ClipSpec(frames=4, fps=5.0, size=24))
    assert frames.shape == (4, 24, 24, 3)
    assert frames.dtype == np.uint8
    np.testing.assert_array_equal(frames, clips.clip(0, ClipSpec(frames=4, fps=5.0, size=24)))
    assert read_numbers(clips.clip(0, ClipSpec(frames=4, fps=5.0, size=64))) == [6, 8, 10, 12]


def test_a_single_segment_lies_in_the_middle():
    np.testing.assert_allclose(segment_times(0.0, 3.0, ClipSpec(3, 1.0, 8), 1)[0], [0.5, 1.5, 2.5])
    np.testing.assert_allclose(segment_times(1.0, 2.0, ClipSpec(4, 2.0, 8), 1)[0], [1, 1.5, 2, 2])
    np.testing.assert_allclose(segment_times(1.0, 2.0, ClipSpec(1, 2.0, 8), 1)[0], [1.5])


def test_a_picture_stands_still_and_only_its_middle_square_is_seen(tmp_path):
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, 20:60] = 255
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=95)
    root = write_folder(tmp_path, {"train/n01440764/a b (1).JPEG": file.getvalue()})
    frames = benchmarks.load(f"imagenet1k:{root}", "official", "train").clip(0, SPEC)
    assert frames.shape == (4, 32, 32, 3)
    assert frames[:, :, 2:-2].min() > 240
    assert (frames == frames[0]).all()


def test_a_broken_file_is_told_when_its_clip_is_asked_for(tmp_path):
    root = diving(tmp_path)
    (root / "rgb/QuXLf7Z2jMQ_00000.mp4").write_bytes(b"")
    clips = benchmarks.load(f"diving48:{root}", "official", "train")
    with pytest.raises(BrokenFile, match="empty"):
        clips.clip(0, SPEC)
    with pytest.raises(IndexError):
        clips.clip(2, SPEC)
    with pytest.raises(IndexError):
        clips.labels(-1)


def test_every_beginning_of_the_order_holds_the_classes_in_balance():
    labels = [0] * 50 + [7] * 20 + [3] * 5
    order = balanced_order(labels, generator("order"))
    assert sorted(order) == list(range(75))
    assert order != list(range(75))
    assert order == balanced_order(labels, generator("order"))
    chosen = np.array(labels)[order]
    assert np.bincount(chosen[:15])[[0, 3, 7]].tolist() == [5, 5, 5]
    assert np.bincount(chosen[:45])[[0, 3, 7]].tolist() == [20, 5, 20]


def test_a_length_takes_that_many_and_a_longer_one_begins_with_them(tmp_path):
    root = training_tar(tmp_path)
    two, three, many = (benchmarks.load(f"imagenet1k:{root}", "official", "train", length) for length in (2, 3, 100))
    assert [len(clips) for clips in (two, three, many)] == [2, 3, 6]
    labels = [three.labels(index)["class"] for index in range(3)]
    assert sorted(labels) == [0, imagenet1k.WNIDS.index("n02119789"), 999]
    assert [two.labels(index)["class"] for index in range(2)] == labels[:2]


# By name


def test_names_and_levels(tmp_path):
    assert benchmarks.official_names() == ("imagenet1k", "kinetics400", "ssv2", "diving48")
    assert not set(benchmarks.official_names()) & set(benchmarks.names())
    assert benchmarks.levels(f"ssv2:{tmp_path}") == ("official",)
    assert official.is_official("ssv2:/data")
    assert not official.is_official("moving-sprites")


@pytest.mark.parametrize(
    ("name", "level", "split", "words"),
    [
        ("kinetics40:/data", "official", "train", "no official benchmark 'kinetics40'; did you mean 'kinetics400'"),
        ("kinetics400:", "official", "train", "names no folder; write kinetics400:FOLDER"),
        ("kinetics400", "official", "train", "kinetics400 is read from its released files: write kinetics400:FOLDER"),
        ("kinetics400:/no such folder", "official", "train", "There is no folder /no such folder"),
        ("kinetics400:/", "film", "train", "no level 'film' of kinetics400:/"),
        ("kinetics400:/", "official", "val", "no split 'val' of kinetics400"),
    ],
)
def test_names_levels_and_splits_that_are_wrong_are_told(name, level, split, words):
    with pytest.raises(UserError, match=words):
        benchmarks.load(name, level, split)


def test_what_has_no_meaning_for_released_files_is_told(tmp_path):
    with pytest.raises(UserError, match="at least 1"):
        benchmarks.load(f"ssv2:{tmp_path}", "official", "train", 0)
    with pytest.raises(UserError, match=r"name their folder in data\.sources"):
        benchmarks.unlabelled(f"ssv2:{tmp_path}", "official")
    with pytest.raises(UserError, match="no official benchmark 'nothing'"):
        official.class_map("nothing")
    for name in benchmarks.official_names():
        with pytest.raises(UserError, match=str(tmp_path)):
            official.read(f"{name}:{tmp_path}", "train")
