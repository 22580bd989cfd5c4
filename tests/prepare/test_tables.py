"""Tables with stray quotes, line breaks, URLs and damage: a bad row costs itself, and no two rows become one."""

import csv
import io
import json

import datasets
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from rich.console import Console

from powerclip.data.shards import read_shards
from powerclip.errors import BadSampleError, PowerclipError, RunFailedError
from powerclip.prepare import prepare
from powerclip.prepare.lines import LINE_BREAK, Lines, tab_rows
from powerclip.prepare.sources import SourceOptions, open_source
from tests.support.sources import picture


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i}.jpg").write_bytes(picture(i))
    return folder


def prepared(source, output, **options):
    return prepare(source, output, parser="none", max_bad_share=0.95, console=Console(file=io.StringIO()), **options)


def captions(folder):
    return [sample.caption for sample in read_shards(folder)]


def table(photos, suffix, rows, *, head="path{}caption\n"):
    """Rows written as they are, each with its picture."""
    separator = "\t" if suffix == "tsv" else ","
    path = photos / f"t.{suffix}"
    path.write_text(head.format(separator) + "".join(f"{i}.jpg{separator}{row}\n" for i, row in enumerate(rows)))
    return path


STRAY = ["a dog", '"Hello" he said', '"unclosed', "a cat", 'the 5" pipe', '"a ""quoted"" cell"', '"end', '6" "', "last"]


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_quotes_in_a_tsv_are_the_captions_own(step, photos, tmp_path):
    report = prepared(table(photos, "tsv", STRAY), tmp_path / "out", samples_per_shard=step)
    assert report["skipped"] == {}
    assert captions(tmp_path / "out") == [*STRAY[:5], 'a "quoted" cell', *STRAY[6:]]


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_a_stray_quote_costs_its_row_of_a_csv(step, photos, tmp_path):
    report = prepared(table(photos, "csv", STRAY), tmp_path / "out", samples_per_shard=step)
    assert report["skipped"] == {"quotes do not match": 3}
    assert report["examples"] == {"quotes do not match": [f"row {i}" for i in (2, 3, 7)]}
    assert captions(tmp_path / "out") == ["a dog", "a cat", 'the 5" pipe', 'a "quoted" cell', '6" "', "last"]


def test_a_quote_that_is_never_closed_swallows_a_mebibyte_at_most(photos, tmp_path):
    rows = ['"never closed', *["a dog"] * 100_000]
    source = table(photos, "csv", rows)
    assert source.stat().st_size > 2**20
    chunks = open_source(str(source), SourceOptions()).chunks
    assert sum(1 for chunk in chunks for _ in chunk.items()) == len(rows)
    (tmp_path / "long.csv").write_text("path,caption\n" + "a" * 2**21 + ",b\nx.jpg,a dog\n")
    with pytest.raises(RunFailedError, match="1 line too long"):
        prepared(tmp_path / "long.csv", tmp_path / "out")


@pytest.mark.parametrize("step", [1, 1000])
def test_a_line_break_in_a_cell_is_no_end_of_a_row_in_a_csv_and_a_bad_row_in_a_tsv(step, photos, tmp_path):
    broken = ['"a dog\nruns"', "a cat", '"two\n\nbreaks ""here""\nand there"', "end"]
    assert prepared(table(photos, "csv", broken), tmp_path / "csv", samples_per_shard=step)["skipped"] == {}
    assert captions(tmp_path / "csv") == ["a dog runs", "a cat", 'two breaks "here" and there', "end"]
    report = prepared(table(photos, "tsv", broken), tmp_path / "tsv", samples_per_shard=step)
    assert report["skipped"] == {LINE_BREAK: 2}
    assert captions(tmp_path / "tsv") == ["a cat", "end"]
    (photos / "first.tsv").write_text('caption\tpath\n"a dog\nruns"\t0.jpg\n"a cat\t1.jpg\na bird\t2.jpg\n')
    report = prepared(photos / "first.tsv", tmp_path / "first", samples_per_shard=step)
    assert report["skipped"] == {LINE_BREAK: 1}
    assert captions(tmp_path / "first") == ['"a cat', "a bird"]


CELL = st.text(st.sampled_from('ab" \u00e9'), max_size=6)


@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=8), st.booleans())
def test_tsv_cells_written_by_the_csv_module_are_read_back(rows, quoted):
    """With quotes where they are needed, or around every cell."""
    file = io.StringIO()
    csv.writer(
        file, delimiter="\t", quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL, lineterminator="\n"
    ).writerows(rows)
    found = [row for _, row in tab_rows(Lines(io.BytesIO(file.getvalue().encode())), 2)]
    assert found == [list(row) for row in rows if quoted or any(cell.strip() for cell in row) or '"' in "".join(row)]


@given(st.text(st.sampled_from('a,"\n\r\t'), max_size=60), st.sampled_from([".csv", ".tsv"]))
def test_every_row_is_counted_once_however_it_is_chunked(tmp_path_factory, body, suffix):
    path = tmp_path_factory.mktemp("rows") / f"t{suffix}"
    separator = "\t" if suffix == ".tsv" else ","
    path.write_bytes(f"path{separator}caption\nfirst{separator}x\n{body}".encode())
    whole = [row for chunk in open_source(str(path), SourceOptions()).chunks for row in chunk.rows.read()]
    for step in (1, 2, 3):
        chunks = open_source(str(path), SourceOptions(samples_per_shard=step)).chunks
        assert [row for chunk in chunks for row in chunk.rows.read()] == whole


def test_a_table_that_is_none_says_what_is_wrong(tmp_path):
    for name, content, message in [
        (
            "a.csv",
            b"path;caption\n0.jpg;a dog\n",
            "first line is one column, 'path;caption'; CSV is separated by commas",
        ),
        ("b.csv", b"path,caption\r0.jpg,a dog\r", "its lines end in CR alone"),
        ("c.csv", 'path,caption\n"'.encode("utf-16"), "it is UTF-16"),
        ("d.csv", b'path,"caption\n', "first line should name the columns, but: quotes do not match"),
        ("e.tsv", b"\n", "e.tsv has no row"),
        ("f.jsonl", b"[1]\n2\n", "none of its first 2 lines is a JSON object"),
        ("g.tsv", b"0.jpg\ta dog\n1.jpg\ta cat\n", "no column named path, .*columns: 0.jpg, a dog"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PowerclipError, match=message):
            prepared(tmp_path / name, tmp_path / "out")


def test_columns_of_a_jsonl_are_those_of_its_first_lines(photos, tmp_path):
    rows = [
        {"path": "0.jpg"},
        [1],
        {"path": "1.jpg", "caption": ["a dog", "another"]},
        {"caption": "a cat", "path": "2.jpg"},
    ]
    (photos / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report = prepared(photos / "t.jsonl", tmp_path / "out")
    assert report["skipped"] == {"empty caption": 1, "line is no JSON object": 1}
    assert captions(tmp_path / "out") == ["a dog", "a cat"]


def test_images_by_urls_that_were_fetched(photos, tmp_path):
    """Where wget -x puts them: below a folder of the host's name."""
    for place in (
        "x.org/a/0.jpg",
        "x.org/1.jpg?size=2%2F3",
        "x.org/a b/2.jpg",
        "x.org/a%20b/3.jpg",
        "x.org:8000/4.jpg",
    ):
        (photos / place).parent.mkdir(parents=True, exist_ok=True)
        (photos / place).write_bytes(picture())
    cells = [
        "http://x.org/a/0.jpg", "HTTPS://user@X.org/1.jpg?size=2/3", "http://x.org/a%20b/2.jpg",
        "http://x.org/a%20b/3.jpg",
        "http://x.org:8000/4.jpg", f"file://{photos}/5.jpg", f"file://localhost{photos}/6.jpg", "7.jpg",
        "http://x.org/missing.jpg", "http://x.org/../8.jpg", "http://../8.jpg", "http://x.org/%2e%2e/8.jpg",
        "s3://x.org/a/0.jpg",
        f"file://elsewhere{photos}/9.jpg", "http://x.org/" + "x" * 300, "http:///8.jpg",
        "http://[x/8.jpg",
    ]  # fmt: skip
    (photos / "t.jsonl").write_text("\n".join(json.dumps({"URL": cell, "TEXT": "a dog"}) for cell in cells))
    report = prepared(photos / "t.jsonl", tmp_path / "out")
    assert report["samples"] == 8
    assert report["skipped"] == {"URL not fetched, expected as HOST/PATH beside the table": 8, "malformed URL": 1}


def test_a_column_of_paths_goes_before_one_of_urls(photos, tmp_path):
    (photos / "t.csv").write_text("url,caption,path\nhttp://x/0.jpg,a dog,0.jpg\n")
    assert prepared(photos / "t.csv", tmp_path / "out")["samples"] == 1


def corrupt_parquet(path, rows=300, **options):
    parquet.write_table(
        pa.table({"image": [picture(i) for i in range(rows)], "caption": ["a dog"] * rows}), path, **options
    )
    raw = bytearray(path.read_bytes())
    begin = len(raw) // 2
    raw[begin : begin + 500] = bytes(b ^ 0xA5 for b in raw[begin : begin + 500])
    path.write_bytes(raw)


def test_a_damaged_page_costs_the_rows_behind_it_in_its_group(tmp_path):
    corrupt_parquet(tmp_path / "t.parquet", row_group_size=100, compression="none", use_dictionary=False)
    report = prepared(tmp_path / "t.parquet", tmp_path / "out", samples_per_shard=70)
    assert report["samples"] + sum(report["skipped"].values()) == 300
    assert 200 <= report["samples"] < 300
    assert 0 < report["skipped"]["row cannot be read"] <= 100


def test_a_parquet_file_that_is_cut_after_it_was_opened(tmp_path):
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"image": [picture()] * 5, "caption": ["a dog"] * 5}), path)
    (chunk,) = open_source(str(path), SourceOptions()).chunks
    path.write_bytes(path.read_bytes()[:-20])
    reasons = []
    for item in chunk.items():
        with pytest.raises(BadSampleError) as caught:
            item.load()
        reasons.append(str(caught.value))
    assert reasons == ["row cannot be read"] * 5


def test_text_of_a_parquet_file_that_is_no_utf_8_costs_its_row(tmp_path):
    text = pa.array([b"a dog", b"caf\xe9", b"a cat"]).view(pa.string())
    parquet.write_table(pa.table({"image": [picture()] * 3, "caption": text}), tmp_path / "t.parquet")
    assert prepared(tmp_path / "t.parquet", tmp_path / "out")["skipped"] == {"text not UTF-8": 1}
    assert captions(tmp_path / "out") == ["a dog", "a cat"]


def test_bytes_beyond_the_limit_are_a_bad_sample(tmp_path, monkeypatch):
    monkeypatch.setattr("powerclip.prepare.tables.MAX_MEMBER_BYTES", 10_000)
    parquet.write_table(
        pa.table({"image": [picture(), picture() + b"\0" * 10_000], "caption": ["a dog"] * 2}), tmp_path / "t.parquet"
    )
    assert prepared(tmp_path / "t.parquet", tmp_path / "out")["skipped"] == {"file too large": 1}


@pytest.mark.filterwarnings("ignore")
def test_other_columns_of_a_datasets_folder_are_not_looked_at(tmp_path):
    columns = {"image": datasets.Image(), "caption": datasets.Value("string"), "mask": datasets.Image()}
    rows = {
        "image": [{"bytes": picture(i), "path": None} for i in range(4)], "caption": ["a dog", "a cat", None, "a bird"],
        "mask": [{"bytes": b"junk", "path": None}] * 4,
    }  # fmt: skip
    datasets.Dataset.from_dict(rows, features=datasets.Features(columns)).save_to_disk(str(tmp_path / "in"))
    assert prepared(tmp_path / "in", tmp_path / "out")["skipped"] == {"empty caption": 1}
    assert captions(tmp_path / "out") == ["a dog", "a cat", "a bird"]


def test_img2dataset_s_files_are_a_folder_of_images(tmp_path):
    part = tmp_path / "in" / "00000"
    part.mkdir(parents=True)
    for i in range(3):
        (part / f"{i:09d}.jpg").write_bytes(picture(i))
        (part / f"{i:09d}.txt").write_text(f"dog {i}")
        (part / f"{i:09d}.json").write_text("{}")
        (part / f"._{i:09d}.jpg").write_bytes(b"junk")
    told = {"url": ["http://x"] * 3, "caption": ["a dog"] * 3, "key": ["0"] * 3, "status": ["success"] * 3}
    parquet.write_table(pa.table(told), tmp_path / "in" / "00000.parquet")
    (tmp_path / "in" / "00000_stats.json").write_text("{}")
    assert prepared(tmp_path / "in", tmp_path / "out")["skipped"] == {}
    assert captions(tmp_path / "out") == ["dog 0", "dog 1", "dog 2"]


def test_a_caption_file_of_any_size_is_not_read(photos, tmp_path):
    (photos / "0.txt").write_text("a dog " * 200_000)
    (photos / "1.txt").write_text("a dog " * 20_000)
    report = prepared(photos, tmp_path / "out")
    assert report["skipped"] == {"caption too large": 1, "no caption": 10}
