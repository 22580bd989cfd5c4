"""New captions for the images of shards that exist."""

import io
import json

import pytest

from powerclip.cli import main
from powerclip.data.shards import index_shard, read_shards
from powerclip.errors import PowerclipError
from powerclip.prepare.join import DATABASE, join_name
from powerclip.runs import read_metrics
from tests.support.sources import picture, prepared
from tests.support.tars import npy, write_tar

URLS = [
    "http://A.example/1.jpg",
    "https://a.example:443/x%20y.jpg#top",
    "http://a.example/3.jpg?w=1",
    "http://a.example/4/",
]


@pytest.fixture
def shards(tmp_path):
    """Two shards of two samples each, with URLs, regions of the published kind, and a file of another kind."""
    for shard in range(2):
        members = []
        for i in range(2 * shard, 2 * shard + 2):
            extra = {"samlens.npy": npy([1]), "samcat.npy": npy([5]), "cls": b"7"}
            info = json.dumps({"url": URLS[i]}, separators=(",", ":")).encode()
            files = {"jpg": picture(i), "txt": f"caption {i}".encode(), "json": info, **extra}
            members += [(f"{i:09d}.{name}", data) for name, data in files.items()]
        write_tar(tmp_path / "in" / f"{shard}.tar", members)
    return tmp_path / "in"


def table_of(path, *rows, header="key,caption"):
    path.write_text("\n".join([header, *rows, ""]))
    return path


def found(folder):
    return [[(c.source, c.text) for c in sample.captions] for sample in read_shards(folder)]


@pytest.mark.parametrize(
    ("join", "value", "name"),
    [
        ("key", "000012", "12"),
        ("key", "./000012.jpg", "12"),
        ("key", 12, "12"),
        ("key", 12.0, "12"),
        ("key", " 0000.jpg ", "0"),
        ("key", b"a/0b.json", "a/0b"),
        ("key", None, ""),
        ("url", "HTTP://A.example:80/B%20c/?q=%41#x", "a.example/B c?q=A"),
        ("url", "https://a.example/B c/?q=A", "a.example/B c?q=A"),
        ("url", "a.jpg", "a.jpg"),
        ("url", "http://[", "http://["),
        ("url", None, ""),
    ],
)
def test_names_are_compared_in_one_form(join, value, name):
    assert join_name(value, join) == name


def test_captions_join_by_key_and_every_file_stays_as_it_is(shards, tmp_path):
    rows = ["0,a  dog", '"000000001.jpg",a cat', "7,nobody", ",nameless", "2,one", "2,another", "3,a,b"]
    table, text = table_of(tmp_path / "t.csv", *rows), io.StringIO()
    report = prepared(shards, tmp_path / "out", captions=str(table), parser="spacy", text=text)
    assert found(tmp_path / "out") == [
        [("txt", "caption 0"), ("caption", "a dog")],
        [("txt", "caption 1"), ("caption", "a cat")],
        [("txt", "caption 2")],
        [("txt", "caption 3")],
    ]
    assert report["remarks"] == {"matched": 2, "missing in the table": 1, "ambiguous in the table": 1}
    assert report["examples"]["ambiguous in the table"] == ["1.tar/000000002"]
    assert report["ignored"] == {
        "row of the table without key": 1,
        "row of the table: more fields than columns (quote captions that hold the separator)": 1,
    }
    assert "; 2 matched, 1 missing in the table, 1 ambiguous in the table" in text.getvalue()
    made = [place for shard in sorted((tmp_path / "out").glob("*.tar")) for place in index_shard(shard)]
    for place, old in zip(made, (p for s in sorted(shards.glob("*.tar")) for p in index_shard(s)), strict=True):
        files = old.files(only=old.members)
        assert place.files(only=files) == files
        assert all(c.tree.parser.startswith("spacy:") for c in place.read().captions)
        assert place.read().patch_regions == ((5,),)
    assert not (tmp_path / "out" / DATABASE).exists()


def test_of_coco_s_ids_the_image_s_is_joined_by(shards, tmp_path):
    rows = [{"id": 1 - i, "image_id": i, "caption": f"of {i}"} for i in range(2)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prepared(shards, tmp_path / "out", captions=str(tmp_path / "t.jsonl"), text=(text := io.StringIO()))
    assert [captions[1:] for captions in found(tmp_path / "out")[:2]] == [[("caption", f"of {i}")] for i in range(2)]
    assert text.getvalue().endswith("; joined by the column image_id\n")


def folder_of(path, names):
    """The shards of a folder of images with these names."""
    for i, name in enumerate(names):
        (path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (path / "photos" / name).write_bytes(picture(i))
        (path / "photos" / name).with_suffix(".txt").write_text(f"caption {i}")
    prepared(path / "photos", path / "in")
    return path / "in"


def joined(source, output, *rows, **options):
    """Captions that each sample gets from a table of these rows, and the report."""
    report = prepared(source, output, captions=str(table_of(output.with_suffix(".csv"), *rows)), **options)
    return [[c.text for c in s.captions[1:]] for s in read_shards(output)], report["remarks"]


def test_samples_of_a_folder_join_by_the_names_of_their_files(tmp_path):
    source = folder_of(tmp_path, ["a/0007.jpg", "a/my dog.v2.jpg", "a/x.jpg", "b/x.jpg"])
    rows = ["7,by id", "a/my dog.v2.jpg,by file", "x.jpg,whose"]
    found, remarks = joined(source, tmp_path / "names", *rows)
    assert found == [["by id"], ["by file"], [], []]
    assert remarks["has the key of another sample"] == 2
    found, _ = joined(source, tmp_path / "folders", "/data/b/x.jpg,of b", "data/a/x.jpg,of a", "c/0007.jpg,of c")
    assert found == [[], [], ["of a"], ["of b"]]
    keys = [sample.key for sample in read_shards(source)]
    found, _ = joined(source, tmp_path / "keys", *(f"{keys[i]},new {i}" for i in (2, 3)), "00000009-0007,of another")
    assert found == [[], [], ["new 2"], ["new 3"]]
    with pytest.raises(
        PowerclipError, match=r"a sample has '00000000-0007-_\w{8}' or '0007-_\w{8}' or '/7', the table 'other'"
    ):
        joined(source, tmp_path / "none", "other.jpg,a dog")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("猫.jpg", "狗.jpg"),
        ("photo (1).jpg", "photo [1].jpg"),
        ("train/0001.jpg", "val/0001.jpg"),
        ("a" * 70 + "1.jpg", "a" * 70 + "2.jpg"),
        ("a b/x.jpg", "a-b/x.jpg"),
    ],
)
def test_a_name_that_a_key_shows_in_part_is_no_other_s(ours, theirs, tmp_path):
    source = folder_of(tmp_path, [ours, "0.jpg"])
    found, remarks = joined(source, tmp_path / "out", f"{theirs},of another", "0.jpg,of 0")
    assert sorted(found) == [[], ["of 0"]]
    assert (remarks["matched"], remarks["missing in the table"]) == (1, 1)
    found, _ = joined(source, tmp_path / "again", f"{ours},its own", f"{theirs},of another")
    assert sorted(found) == [[], ["its own"]]
    assert sorted(joined(tmp_path / "again", tmp_path / "twice", f"{ours},a new one")[0]) == [
        [],
        ["its own", "a new one"],
    ]


def test_a_join_that_gives_no_caption_says_why(shards, tmp_path):
    table = table_of(tmp_path / "t.csv", *(f"{i},{text}" for i in range(4) for text in ("one", "another")))
    message = (
        "first 4 samples with a key gets a caption from .*: 4 have several rows with different captions; put these"
    )
    with pytest.raises(PowerclipError, match=message):
        prepared(shards, tmp_path / "out", captions=str(table))
    (shards / "1.tar").write_bytes((shards / "0.tar").read_bytes())
    table = table_of(tmp_path / "u.csv", "0,one", "1,two")
    with pytest.raises(PowerclipError, match="4 have the key of another sample; give each one of its own"):
        prepared(shards, tmp_path / "other", captions=str(table))


def test_captions_join_by_url_however_it_is_written(shards, tmp_path):
    rows = [
        {"url": "https://a.example/1.jpg", "short": "a dog", "long": ["A wet dog.", "A dog that is wet."]},
        {"url": "http://a.example/x y.jpg", "short": None, "long": [""]},
        {"url": "http://a.example/3.jpg?w=2", "short": "other query", "long": []},
        {"url": "//a.example/4", "short": "a cat", "long": []},
        {"url": "http://a.example/4", "short": "a cat", "long": []},
    ]
    table = tmp_path / "t.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)))
    settings = {"captions": str(table), "join": "url", "caption_column": ("short", "long")}
    report = prepared(shards, tmp_path / "out", **settings)
    long = [("long", "A wet dog."), ("long", "A dog that is wet.")]
    assert found(tmp_path / "out") == [
        [("txt", "caption 0"), ("short", "a dog"), *long],
        [("txt", "caption 1")],
        [("txt", "caption 2")],
        [("txt", "caption 3"), ("short", "a cat")],
    ]
    counts = {"matched": 3, "missing in the table": 1, "ambiguous in the table": 0}
    assert report["remarks"] == {**counts, "no caption": 2}


def test_a_table_joined_again_adds_nothing(shards, tmp_path):
    table = table_of(tmp_path / "t.csv", "0,a dog", "1,a cat")
    prepared(shards, tmp_path / "once", captions=str(table))
    prepared(tmp_path / "once", tmp_path / "twice", captions=str(table))
    assert found(tmp_path / "twice") == found(tmp_path / "once")


def test_workers_and_interruptions_change_nothing(shards, tmp_path):
    table = table_of(tmp_path / "t.csv", "0,a dog", "3,a cat")
    prepared(shards, tmp_path / "one", captions=str(table))
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / DATABASE).write_bytes(b"half")  # as a killed job leaves it
    prepared(shards, tmp_path / "two", captions=str(table), workers=2)
    for name in ("shard-000000.tar", "shard-000001.tar"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    (tmp_path / "two" / "shard-000001.tar").unlink()
    prepared(shards, tmp_path / "two", captions=str(table))
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    table_of(table, "0,a dog", "3,a bird")
    with pytest.raises(PowerclipError, match="of another source, or the source has changed"):
        prepared(shards, tmp_path / "two", captions=str(table))


def test_damage_to_shards_and_samples_is_counted(shards, tmp_path):
    whole = (shards / "1.tar").read_bytes()
    (shards / "1.tar").write_bytes(whole[: len(whole) // 2])
    write_tar(shards / "2.tar", [("9.jpg", picture()), ("9.txt", b"a"), ("9.json", b"["), ("._9.txt", b"")])
    table = table_of(tmp_path / "t.csv", "0,a dog", "9,a cat")
    report = prepared(shards, tmp_path / "out", captions=str(table))
    assert report["skipped"]["tar damaged or truncated (its rest is lost)"] == 1
    assert report["remarks"]["malformed json left out"] == 1
    assert report["ignored"] == {"hidden": 1}
    assert found(tmp_path / "out")[0] == [("txt", "caption 0"), ("caption", "a dog")]


def test_a_join_that_fits_nothing_is_refused_with_an_example(shards, tmp_path):
    table = table_of(tmp_path / "t.csv", "http://b.example/1,a dog", header="url,caption")
    message = (
        "none of the first 4 samples with a url is in .*t.csv: a sample has 'a.example/1.jpg', the table 'b.example/1'"
    )
    with pytest.raises(PowerclipError, match=f"{message}; join by --join key, or name the column with --join-column"):
        prepared(shards, tmp_path / "out", captions=str(table), join="url")
    write_tar(tmp_path / "bare" / "0.tar", [("a.jpg", picture()), ("a.txt", b"a dog")])
    with pytest.raises(PowerclipError, match="first 0 samples with a url .*: a sample has 'nothing', the table 'b.ex"):
        prepared(tmp_path / "bare", tmp_path / "none", captions=str(table), join="url")
    with pytest.raises(
        PowerclipError, match="has no column named key, __key__, image_id, id .*name it with --join-column"
    ):
        prepared(shards, tmp_path / "other", captions=str(table))
    with pytest.raises(PowerclipError, match="t.txt is not a table; give a .csv"):
        prepared(shards, tmp_path / "other", captions=str(tmp_path / "t.txt"))
    with pytest.raises(PowerclipError, match="--captions keeps the regions of .*; leave out --regions superpixels"):
        prepared(shards, tmp_path / "other", captions=str(table), regions="superpixels")


def test_the_command_joins_and_training_draws_the_new_captions(shards, tmp_path, capsys):
    table = table_of(tmp_path / "t.tsv", *(f"{i}\ta new caption\tx" for i in range(4)), header="name\ttext\tother")
    out = tmp_path / "out"
    command = ["prepare", "--captions", str(table), "--join", "key", "--join-column", "name", "--parser", "none"]
    assert main([*command, "--caption-column", "text", str(shards), str(out)]) == 0
    assert "captions: 4 txt, 4 text; 4 matched, 0 missing in the table" in capsys.readouterr().err
    options = ["--model.name", "tiny", "--batch-size", "4", "--steps", "2", "--log-every-steps", "1"]
    draw = ["--data.captions", "2", "--data.caption-weights", "txt", "1", "text", "3"]
    run = tmp_path / "run"
    assert main(["train", "--recipe", "scenes_tiny", "--data", str(out), "--output", str(run), *options, *draw]) == 0
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl")] == [1, 2]


def test_samples_of_one_key_get_no_caption_and_odd_keys_stay(shards, tmp_path):
    """Whether they are in one tar or in two, and however the key is written."""
    odd = "./a \N{DOG}, 1"
    members = [("0.jpg", picture()), ("0.txt", b"other"), (f"{odd}.jpg", picture()), (f"{odd}.txt", b"odd")]
    write_tar(shards / "2.tar", members)
    table = table_of(tmp_path / "t.csv", "0,a dog", "1,a cat", f'"{odd}",a wolf')
    report = prepared(shards, tmp_path / "out", captions=str(table))
    assert report["remarks"]["has the key of another sample"] == 2
    assert report["examples"]["has the key of another sample"] == ["0.tar/000000000", "2.tar/0"]
    assert found(tmp_path / "out")[::3] == [[("txt", "caption 0")], [("txt", "caption 3")]]
    assert found(tmp_path / "out")[4:] == [[("txt", "other")], [("txt", "odd"), ("caption", "a wolf")]]
    assert [sample.key for sample in read_shards(tmp_path / "out")][-1] == odd.removeprefix("./")
