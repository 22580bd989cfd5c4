"""Tables with stray quotes, line breaks, URLs and damage: a bad row costs itself, and no two rows become one."""

import csv
import io
import json
import time

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from powerclip.config import PrepareConfig
from powerclip.data.limits import MAX_MEMBER_BYTES
from powerclip.data.shards import read_shards
from powerclip.errors import BadSampleError, PowerclipError, RunFailedError
from powerclip.prepare.source import open_source
from powerclip.prepare.tables import load_row
from powerclip.prepare.text_rows import separated_rows
from tests.support.arrow_memory import peak_bytes
from tests.support.memory import more_bytes
from tests.support.sources import captions, picture, prepared


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i}.jpg").write_bytes(picture(i))
    return folder


def table(photos, suffix, rows, *, head="path{}caption\n"):
    """Rows written as they are, each with its image."""
    separator = "\t" if suffix == "tsv" else ","
    path = photos / f"t.{suffix}"
    path.write_text(head.format(separator) + "".join(f"{i}.jpg{separator}{row}\n" for i, row in enumerate(rows)))
    return path


STRAY = ["a dog", '"Hello" he said', '"unclosed', "a cat", 'the 5" pipe', '"a ""quoted"" cell"', '"end', '6" "', "last"]


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_bare_quotes_in_a_tsv_belong_to_the_captions(step, photos, tmp_path):
    report = prepared(table(photos, "tsv", STRAY), tmp_path / "out", samples_per_shard=step)
    assert report["skipped"] == {}
    assert captions(tmp_path / "out") == [*STRAY[:5], 'a "quoted" cell', *STRAY[6:]]


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_a_stray_quote_costs_its_row_of_a_csv(step, photos, tmp_path):
    report = prepared(table(photos, "csv", STRAY), tmp_path / "out", samples_per_shard=step)
    assert report["skipped"] == {"quotes do not match": 3}
    assert report["examples"] == {"quotes do not match": [f"row {i}" for i in (2, 3, 7)]}
    assert captions(tmp_path / "out") == ["a dog", "a cat", 'the 5" pipe', 'a "quoted" cell', '6" "', "last"]


def rows_of(source, step=1000):
    """The rows of a table, read in chunks."""
    chunks = open_source(str(source), PrepareConfig(samples_per_shard=step)).chunks
    return [row for chunk in chunks for row in chunk.args[0]]


def test_a_quote_that_is_never_closed_costs_its_row(photos, tmp_path):
    rows = ['"never closed', *["a dog"] * 100_000]
    source = table(photos, "csv", rows)
    assert source.stat().st_size > 2**20
    assert sum(1 for _ in rows_of(source)) == len(rows)
    (tmp_path / "long.csv").write_text("path,caption\n" + "a" * 2**21 + ",b\nx.jpg,a dog\n")
    with pytest.raises(RunFailedError, match="1 line too long"):
        prepared(tmp_path / "long.csv", tmp_path / "out", max_bad_share=0.95)


@pytest.mark.parametrize("step", [1, 1000])
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_line_break_in_a_quoted_cell_does_not_end_the_row(suffix, step, photos, tmp_path):
    broken = ['"a dog\nruns"', "a cat", '"two\n\nbreaks ""here""\nand there"', "end"]
    assert prepared(table(photos, suffix, broken), tmp_path / "out", samples_per_shard=step)["skipped"] == {}
    assert captions(tmp_path / "out") == ["a dog runs", "a cat", 'two breaks "here" and there', "end"]


@pytest.mark.parametrize("step", [1, 1000])
def test_quotes_that_happen_to_match_do_not_join_rows_of_a_tsv(step, photos, tmp_path):
    (photos / "t.tsv").write_text('caption\tpath\n"a dog\nruns"\t0.jpg\n"a cat\t1.jpg\na 5" bird"\t2.jpg\n')
    assert prepared(photos / "t.tsv", tmp_path / "out", samples_per_shard=step)["skipped"] == {}
    assert captions(tmp_path / "out") == ["a dog runs", '"a cat', 'a 5" bird"']


def test_quotes_that_happen_to_match_do_not_join_rows_of_a_csv(photos, tmp_path):
    rows = ['"big, red\nand round"', '"big red', "a dog", 'a cow"', '"a 5""\nnail, new"', "a hen"]
    report = prepared(table(photos, "csv", rows), tmp_path / "out")
    assert report["skipped"] == {"quotes do not match": 1}
    assert captions(tmp_path / "out") == ["big, red and round", "a dog", 'a cow"', 'a 5" nail, new', "a hen"]
    (photos / "u.csv").write_text('caption,path\n"big red,0.jpg\na dog",1.jpg\n')
    report = prepared(photos / "u.csv", tmp_path / "other")
    assert (report["skipped"], captions(tmp_path / "other")) == ({"quotes do not match": 1}, ['a dog"'])


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("head", [(), ("id",)])
def test_lines_of_a_caption_before_the_image_are_one_caption(head, end, photos, tmp_path):
    texts = ["A dog.\nIt sleeps, on a mat.", 'He says "run", and\nit does, so', "a cat", "a\n\nb, c"]
    with (photos / "t.csv").open("w", newline="") as file:
        rows = csv.writer(file, lineterminator=end)
        rows.writerow([*head, "caption", "image"])
        rows.writerows([*(str(i) for _ in head), text, f"{i}.jpg"] for i, text in enumerate(texts))
    assert prepared(photos / "t.csv", tmp_path / "out")["skipped"] == {}
    assert captions(tmp_path / "out") == [" ".join(text.split()) for text in texts]


def test_spaces_after_the_commas_of_a_csv_do_not_count(photos, tmp_path):
    (photos / "t.csv").write_text('caption, path, alt\na dog, 0.jpg, x\n"a cat, wet", "1.jpg", "x, y"\n')
    assert prepared(photos / "t.csv", tmp_path / "out", image_column="path")["skipped"] == {}
    assert captions(tmp_path / "out") == ["a dog", "a cat, wet"]


CELL = st.text(st.sampled_from('ab" \u00e9'), max_size=6)


@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=8), st.booleans())
def test_tsv_cells_written_by_the_csv_module_are_read_back(rows, quoted):
    """With quotes where they are needed, or around every cell."""
    file = io.StringIO()
    csv.writer(
        file, delimiter="\t", quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL, lineterminator="\n"
    ).writerows(rows)
    read = list(separated_rows(io.StringIO(file.getvalue(), newline=""), "\t"))
    assert read == [list(row) for row in rows]


@given(st.text(st.sampled_from('a,"\n\r\t'), max_size=60), st.sampled_from([".csv", ".tsv"]))
def test_every_row_is_counted_once_however_it_is_chunked(tmp_path_factory, body, suffix):
    path = tmp_path_factory.mktemp("rows") / f"t{suffix}"
    separator = "\t" if suffix == ".tsv" else ","
    path.write_bytes(f"path{separator}caption\nfirst{separator}x\n{body}".encode())
    for step in (1, 2, 3):
        assert rows_of(path, step) == rows_of(path)


def test_a_file_that_is_not_a_table_says_what_is_wrong(tmp_path):
    for name, content, message in [
        (
            "a.csv",
            b"path;caption\n0.jpg;a dog\n",
            "first line is one column, 'path;caption'; CSV is separated by commas",
        ),
        ("c.csv", 'path,caption\n"'.encode("utf-16"), "it is UTF-16"),
        ("d.csv", b'path,"caption\n', "first line should name the columns, but: quotes do not match"),
        ("e.tsv", b"\n", "e.tsv has no row"),
        ("f.jsonl", b"[1]\n2\n", "none of its first 2 lines is a JSON object"),
        ("g.tsv", b"0.jpg\ta dog\n1.jpg\ta cat\n", "no column named path, .*columns: 0.jpg, a dog"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PowerclipError, match=message):
            prepared(tmp_path / name, tmp_path / "out")


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_byte_order_marks_of_any_system(end, mark, photos, tmp_path):
    (photos / "t.csv").write_bytes(mark + f"path,caption{end}0.jpg,a dog{end}1.jpg,a cat{end}".encode())
    assert prepared(photos / "t.csv", tmp_path / "out")["skipped"] == {}
    assert captions(tmp_path / "out") == ["a dog", "a cat"]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("path,caption,caption", "2 columns 'caption' and 'caption'; rename one, .* --caption-column .* .2 or 3.$"),
        ("path,Caption,caption", "2 columns 'Caption' and 'caption'; rename one, .* --caption-column .* .2 or 3.$"),
        ("path,path,caption", "2 columns 'path' and 'path'; rename one, or choose with --image-column .* .1 or 2.$"),
    ],
)
def test_of_two_columns_neither_is_chosen(header, message, photos, tmp_path):
    (photos / "t.csv").write_text(f"{header}\n0.jpg,1.jpg,a dog\n")
    with pytest.raises(PowerclipError, match=message):
        prepared(photos / "t.csv", tmp_path / "out")


@pytest.mark.parametrize(("column", "caption"), [("2", "a dog"), ("3", "a cat")])
def test_one_of_two_columns_of_a_name_is_chosen_by_its_number(column, caption, photos, tmp_path):
    (photos / "t.csv").write_text("path,caption,caption\n0.jpg,a dog,a cat\n")
    prepared(photos / "t.csv", tmp_path / "out", caption_column=column)
    assert captions(tmp_path / "out") == [caption]
    with pytest.raises(PowerclipError, match="holds shards of another source"):
        prepared(photos / "t.csv", tmp_path / "out", caption_column=str(5 - int(column)))


def test_a_name_goes_before_a_number(photos, tmp_path):
    (photos / "t.csv").write_text("path,x,2,1\n0.jpg,a dog,a cat,a bird\n")
    prepared(photos / "t.csv", tmp_path / "out", caption_column="2")
    assert captions(tmp_path / "out") == ["a cat"]
    with pytest.raises(PowerclipError, match="has no column '5'; columns: path, x, 2, 1"):
        prepared(photos / "t.csv", tmp_path / "other", caption_column="5")


@pytest.mark.parametrize("step", [1, 1000])
@pytest.mark.parametrize(("suffix", "separator"), [("tsv", "\t"), ("csv", ",")])
def test_a_table_without_a_header_has_numbered_columns(suffix, separator, step, photos, tmp_path):
    """The form of Conceptual Captions: caption and URL, from the first line on."""
    rows = [(f"dog {i}", f"file://{photos}/{i}.jpg") for i in range(3)]
    source = photos / f"t.{suffix}"
    source.write_text("".join(separator.join(row) + "\n" for row in [*rows, ("no image",), ("a", "b", "c")]))
    settings = {"header": False, "caption_column": "1", "image_column": "2", "samples_per_shard": step}
    report = prepared(source, tmp_path / "out", **settings)
    assert captions(tmp_path / "out") == ["dog 0", "dog 1", "dog 2"]
    assert report["skipped"] == {
        "no image": 1, "more fields than columns (quote captions that hold the separator)": 1
    }  # fmt: skip
    with pytest.raises(PowerclipError, match=r"no column named .*--image-column .columns: 1, 2.$"):
        prepared(source, tmp_path / "other", header=False)
    with pytest.raises(PowerclipError, match=r"columns: dog 0, .*; if that is a row already, add --no-header$"):
        prepared(source, tmp_path / "other")


def test_two_columns_of_one_name_in_a_parquet_file_are_refused_even_by_number(tmp_path):
    columns = [pa.array([picture()]), pa.array(["a dog"]), pa.array(["a cat"])]
    parquet.write_table(pa.Table.from_arrays(columns, ["image", "caption", "caption"]), tmp_path / "t.parquet")
    with pytest.raises(PowerclipError, match="has 2 columns 'caption' and 'caption'; rename one, or"):
        prepared(tmp_path / "t.parquet", tmp_path / "out")
    with pytest.raises(PowerclipError, match="has 2 columns 'caption'; rename one$"):
        prepared(tmp_path / "t.parquet", tmp_path / "out", caption_column="3")


def test_one_of_two_similar_columns_can_be_named(photos, tmp_path):
    (photos / "t.csv").write_text("path,Caption,caption\n0.jpg,a dog,a cat\n")
    prepared(photos / "t.csv", tmp_path / "out", caption_column="Caption")
    assert captions(tmp_path / "out") == ["a dog"]


def test_columns_of_a_jsonl_are_those_of_its_first_lines(photos, tmp_path):
    rows = [
        {"path": "0.jpg"},
        [1],
        {"path": "1.jpg", "caption": ["a dog", "another"]},
        {"caption": "a cat", "path": "2.jpg"},
    ]
    (photos / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report = prepared(photos / "t.jsonl", tmp_path / "out")
    assert report["skipped"] == {"no caption": 1, "line is not a JSON object": 1}
    assert captions(tmp_path / "out") == ["a dog", "a cat"]


def test_urls_of_files_are_read_and_others_refer_to_img2dataset(photos, tmp_path):
    cells = [
        f"file://{photos}/5.jpg", f"file://localhost{photos}/6.jpg", "7.jpg",
        "http://x.org/0.jpg", "HTTPS://x.org/0.jpg", "s3://x.org/a/0.jpg", f"file://elsewhere{photos}/9.jpg",
        "http://[x/8.jpg",
    ]  # fmt: skip
    (photos / "t.jsonl").write_text("\n".join(json.dumps({"URL": cell, "TEXT": "a dog"}) for cell in cells))
    report = prepared(photos / "t.jsonl", tmp_path / "out")
    assert report["samples"] == 3
    reason = "image is a URL (download the images first, for example with img2dataset)"
    assert report["skipped"] == {reason: 4, "malformed URL": 1}


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


def test_a_damaged_page_costs_its_row_group_and_the_rest_of_the_chunk(tmp_path):
    corrupt_parquet(tmp_path / "t.parquet", row_group_size=100, compression="none", use_dictionary=False)
    report = prepared(tmp_path / "t.parquet", tmp_path / "out", samples_per_shard=70)
    assert report["samples"] + sum(report["skipped"].values()) == 300
    assert 0 < report["skipped"]["row cannot be read"] <= 110  # rows 101 to 200, and the chunk of 141 to 210


def test_a_parquet_file_that_is_cut_after_it_was_opened(tmp_path):
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"image": [picture()] * 5, "caption": ["a dog"] * 5}), path)
    (chunk,) = open_source(str(path), PrepareConfig()).chunks
    path.write_bytes(path.read_bytes()[:-20])
    reasons = []
    for item in chunk():
        with pytest.raises(BadSampleError) as caught:
            item.load()
        reasons.append(str(caught.value))
    assert reasons == ["row cannot be read"] * 5


def test_text_of_a_parquet_file_that_is_not_utf_8_costs_its_row(tmp_path):
    text = pa.array([b"a dog", b"caf\xe9", b"a cat"]).view(pa.string())
    parquet.write_table(pa.table({"image": [picture()] * 3, "caption": text}), tmp_path / "t.parquet")
    assert prepared(tmp_path / "t.parquet", tmp_path / "out")["skipped"] == {"text not UTF-8": 1}
    assert captions(tmp_path / "out") == ["a dog", "a cat"]


def test_bytes_beyond_the_limit_are_a_bad_sample(tmp_path):
    with pytest.raises(BadSampleError, match="file too large"):
        load_row("a", picture() + bytes(MAX_MEMBER_BYTES), "a dog", folder=tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_other_columns_of_a_datasets_folder_are_not_looked_at(tmp_path):
    columns = {"image": datasets.Image(), "caption": datasets.Value("string"), "mask": datasets.Image()}
    rows = {
        "image": [{"bytes": picture(i), "path": None} for i in range(4)], "caption": ["a dog", "a cat", None, "a bird"],
        "mask": [{"bytes": b"junk", "path": None}] * 4,
    }  # fmt: skip
    datasets.Dataset.from_dict(rows, features=datasets.Features(columns)).save_to_disk(str(tmp_path / "in"))
    assert prepared(tmp_path / "in", tmp_path / "out")["skipped"] == {"no caption": 1}
    assert captions(tmp_path / "out") == ["a dog", "a cat", "a bird"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("step", [1, 3, 1000])
def test_a_datasets_folder_of_several_files_is_read_in_order(step, photos, tmp_path):
    rows = {"image": [str(photos / f"{i}.jpg") for i in range(10)], "caption": [f"dog {i}" for i in range(10)]}
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "in"), num_shards=3)
    (tmp_path / "in" / "cache-0123.arrow").write_bytes(b"left by datasets")
    report = prepared(tmp_path / "in", tmp_path / "out", samples_per_shard=step)
    assert (report["skipped"], report["ignored"]) == ({}, {".arrow": 1})
    assert captions(tmp_path / "out") == rows["caption"]
    assert len(list((tmp_path / "out").glob("*.tar"))) == -(-10 // step)  # shards do not end where the files do


@pytest.mark.parametrize("state", ["{", "[]", '{"_data_files": []}', '{"_data_files": [{"filename": "x.arrow"}]}'])
def test_a_datasets_folder_that_is_damaged_is_one_line(state, tmp_path):
    (tmp_path / "state.json").write_text(state)
    (tmp_path / "x.arrow").write_bytes(b"junk")
    with pytest.raises(PowerclipError, match="cannot read the table "):
        open_source(str(tmp_path), PrepareConfig())


def test_a_datasets_folder_with_indices_is_refused(tmp_path):
    state = {"_data_files": [{"filename": "x.arrow"}], "_indices_data_files": [{"filename": "indices.arrow"}]}
    (tmp_path / "state.json").write_text(json.dumps(state))
    (tmp_path / "x.arrow").write_bytes(b"")
    with pytest.raises(PowerclipError, match=r"selects rows of its files by indices; save it again after dataset.flat"):
        open_source(str(tmp_path), PrepareConfig())


def test_a_cell_of_a_csv_file_may_be_a_list_of_captions(tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    cells = ['["a dog", "it\'s a cat"]', "['a dog', \"it's a cat\"]", "[laughs]", "[1, 2]", "[]", "[" * 500 + "]" * 500]
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "caption"), *(("a.png", cell) for cell in cells)])
    prepared(tmp_path / "t.csv", tmp_path / "out")
    found = [[caption.text for caption in sample.captions] for sample in read_shards(tmp_path / "out")]
    assert found == [["a dog", "it's a cat"], ["a dog", "it's a cat"], *([cell] for cell in cells[2:])]


@pytest.mark.parametrize("image", ["jpg", "webp"])
def test_failed_downloads_in_img2dataset_s_parquet_are_no_bad_pairs(image, tmp_path):
    status = ["success", "withdrawn", "failed_to_download", "failed_to_resize"]
    columns = {image: [picture(), None, None, None], "caption": ["a dog"] * 3 + [None], "status": status}
    parquet.write_table(pa.table(columns | {"url": ["http://x"] * 4}), tmp_path / "t.parquet")
    report = prepared(tmp_path / "t.parquet", tmp_path / "out")
    assert (report["samples"], report["skipped"]) == (1, {"no image": 1})
    assert report["ignored"] == {"row of a failed download": 2}


def test_img2dataset_s_files_are_a_folder_of_images(tmp_path):
    part = tmp_path / "in" / "00000"
    part.mkdir(parents=True)
    for i in range(3):
        (part / f"{i:09d}.jpg").write_bytes(picture(i))
        (part / f"{i:09d}.txt").write_text(f"dog {i}")
        (part / f"{i:09d}.json").write_text("{}")
        (part / f"._{i:09d}.jpg").write_bytes(b"junk")
    outcomes = {"url": ["http://x"] * 3, "caption": ["a dog"] * 3, "key": ["0"] * 3, "status": ["success"] * 3}
    parquet.write_table(pa.table(outcomes), tmp_path / "in" / "00000.parquet")
    (tmp_path / "in" / "00000_stats.json").write_text("{}")
    report = prepared(tmp_path / "in", tmp_path / "out")
    assert report["skipped"] == {}
    assert report["ignored"] == {"hidden": 3, ".json": 4, ".parquet": 1}
    assert captions(tmp_path / "out") == ["dog 0", "dog 1", "dog 2"]


def test_cells_that_inflate_thousands_of_times_are_not_read(tmp_path):
    """The file has 4 kB, and its cells 100 MB in one page, which is decompressed as a whole."""
    cells = pa.array([bytes(5_000_000)] * 20, pa.binary())
    table = pa.table({"image": cells, "caption": ["a dog"] * 20})
    parquet.write_table(table, tmp_path / "t.parquet", compression="zstd", use_dictionary=False)
    with peak_bytes() as peak:
        report = prepared(tmp_path / "t.parquet", tmp_path / "out")
    assert report["skipped"] == {"row cannot be read": 20}
    assert peak[0] < 2**20


MANY = 1_000_000
ONE_TEXT = pa.DictionaryArray.from_arrays(pa.array(np.zeros(MANY, np.int32)), ["a dog " * 200])
LISTS = {
    "a million captions": ("caption", ["a dog"] * MANY, pa.string(), "list of more than 256 values"),
    "one long text a million times": ("caption", ONE_TEXT, ONE_TEXT.type, "list of more than 256 values"),
    "nothing, many times": ("caption", [None] * (8 * MANY), pa.null(), "row cannot be read"),
    "small numbers": ("caption", [1] * (8 * MANY), pa.int8(), "row cannot be read"),
    "a million images": ("image", ["0.jpg"] * MANY, pa.string(), "list of more than 256 values"),
    "lists of lists": ("caption", [[]] * (2 * MANY), pa.list_(pa.string()), "list of more than 256 values"),
}


def cost(source, output):
    """CPU seconds and bytes of memory that a source takes, and why its rows are not used."""
    start = time.process_time()
    with more_bytes() as more:
        report = prepared(source, output)
    return time.process_time() - start, more[0], report["skipped"]


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_of_any_length_in_a_row_costs_what_its_file_does(kind, tmp_path):
    """Such a Parquet file has 600 bytes to 4 kB: what is repeated is stored once."""
    column, values, type_, reason = LISTS[kind]
    rows = {"image": pa.array([picture()] * 20), "caption": pa.array(["a dog"] * 20)}
    parquet.write_table(pa.table(rows), tmp_path / "plain.parquet")
    rows = {name: cells[:1] for name, cells in rows.items()} | {
        column: pa.ListArray.from_arrays(
            pa.array([0, len(values)], pa.int32()), values if isinstance(values, pa.Array) else pa.array(values, type_)
        )
    }
    parquet.write_table(pa.table(rows), tmp_path / "long.parquet", store_schema=False)
    assert (tmp_path / "long.parquet").stat().st_size < 10_000
    del values, rows
    plain = min(cost(tmp_path / "plain.parquet", tmp_path / f"plain-{i}")[0] for i in range(2))
    cpu_s, more, skipped = cost(tmp_path / "long.parquet", tmp_path / "long")
    assert skipped == {reason: 1}
    assert more < 48 * 2**20
    assert cpu_s < 3 * plain


@pytest.mark.filterwarnings("ignore")
def test_a_long_list_in_a_row_of_a_datasets_folder_is_not_made(tmp_path):
    (folder := tmp_path / "in").mkdir()
    rows = pa.table({"image": [picture()] * 2, "caption": [["a dog"] * MANY, ["a cat"]]})
    with pa.ipc.new_stream(folder / "data.arrow", rows.schema) as stream:
        stream.write_table(rows)
    (folder / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    del rows
    _, more, skipped = cost(folder, tmp_path / "out")
    assert skipped == {"list of more than 256 values": 1}
    assert captions(tmp_path / "out") == ["a cat"]
    assert more < 24 * 2**20  # the file has 9 megabytes, and is mapped


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_compressed_files_of_a_datasets_folder_are_refused(compression, tmp_path):
    """The file has 4 kB to 400 kB, and its cell 100 MB, which pyarrow decompresses when it opens the file."""
    rows = pa.table({"image": pa.array([bytes(10**8)]), "caption": pa.array(["a dog"]).dictionary_encode()})
    with pa.ipc.new_stream(
        tmp_path / "data.arrow", rows.schema, options=pa.ipc.IpcWriteOptions(compression=compression)
    ) as stream:
        stream.write_table(rows)
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    with (
        peak_bytes() as peak,
        pytest.raises(
            PowerclipError, match="cannot read the table .*: data.arrow is compressed; write it with save_to_disk"
        ),
    ):
        open_source(str(tmp_path), PrepareConfig())
    assert peak[0] < 2**20


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([["a dog"] * 5000], "more than 4096 values in a row"),
        ([[[[]] * 10_000]], "more than 4096 values in a row"),
        ([json.loads("[" * 50 + "]" * 50)], "more than 4096 values in a row"),
        (["a dog"] * 300, "more than 256 captions"),
        ([None] * 300, "more than 256 captions"),
        ("a dog " * 10**6, "line too long"),
    ],
)
def test_a_line_of_json_holds_few_values(values, reason, photos, tmp_path):
    rows = [{"path": "0.jpg", "caption": "a cat", "boxes": [[0] * 4] * 2000}, {"path": "1.jpg", "caption": values}]
    (photos / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert prepared(photos / "t.jsonl", tmp_path / "out")["skipped"] == {reason: 1}
    assert captions(tmp_path / "out") == ["a cat"]


def test_lines_of_json_of_15_megabytes_are_not_parsed(photos, tmp_path):
    line = '{"path": "0.jpg", "caption": [' + "[]," * (5 * 2**20) + '"a dog"]}\n'
    (photos / "t.jsonl").write_text('{"path": "0.jpg", "caption": "a cat"}\n' + line * 3)
    _, more, skipped = cost(photos / "t.jsonl", tmp_path / "out")
    assert skipped == {"line too long": 3}
    assert more < 4 * len(line)  # as values, a line takes twenty times its size


def test_a_caption_of_fifty_thousand_lines_is_one_bad_sample(photos, tmp_path):
    rows = [f"{i}.jpg,{text}" for i, text in enumerate(["a dog"] * 11 + ['"' + "a\n" * 50_000 + '"'])]
    (photos / "t.csv").write_text("path,caption\n" + "\n".join(rows))
    start = time.process_time()
    assert prepared(photos / "t.csv", tmp_path / "out", caption_lines=True)["skipped"] == {"more than 256 captions": 1}
    cpu_s = time.process_time() - start
    start = time.process_time()
    assert prepared(photos / "t.csv", tmp_path / "one")["skipped"] == {}
    assert cpu_s < 3 * (time.process_time() - start)


def test_a_caption_file_of_any_size_is_not_read(photos, tmp_path):
    (photos / "0.txt").write_text("a dog " * 200_000)
    (photos / "1.txt").write_text("a dog " * 20_000)
    report = prepared(photos, tmp_path / "out")
    assert report["skipped"] == {"caption too large": 1, "no caption": 10}


def plain_rows(captions):
    return "path,caption\n" + "\n".join(f"{i}.jpg,{caption}" for i, caption in enumerate(captions))


def test_a_comma_that_is_not_quoted_costs_its_row_only(photos, tmp_path):
    (photos / "t.csv").write_text(plain_rows(["a dog"] * 7 + ["a dog, running"] + ["a dog"] * 4))
    report = prepared(photos / "t.csv", tmp_path / "out")
    (reason,) = report["skipped"]
    assert reason == "more fields than columns (quote captions that hold the separator)"
    assert report["examples"][reason] == ["row 8"]
    assert len(captions(tmp_path / "out")) == report["samples"] == 11


def test_commas_that_are_not_quoted_everywhere_say_what_to_do(photos, tmp_path):
    (photos / "t.csv").write_text(plain_rows(["a dog, running"] * 12))
    with pytest.raises(RunFailedError, match=r"12 of 12 .*quote captions that hold the separator.*e\.g\. row 1"):
        prepared(photos / "t.csv", tmp_path / "out", max_bad_share=0.1)


def test_a_path_that_the_system_refuses_is_a_bad_sample(photos, tmp_path):
    (photos / "t.csv").write_text(plain_rows(["a dog"] * 12) + "\n" + "x" * 300 + ",a dog\n")
    report = prepared(photos / "t.csv", tmp_path / "out")
    assert report["skipped"] == {"file cannot be read": 1}


def test_names_as_flickr30k_numbers_them_say_what_to_do(photos, tmp_path):
    (photos / "t.tsv").write_text("path\tcaption\n0.jpg#0\ta dog\nx.jpg#1\ta dog\n")
    with pytest.raises(RunFailedError, match="1 image file missing .it is there without # and what follows; remove"):
        prepared(photos / "t.tsv", tmp_path / "out", max_bad_share=0.1)


def test_a_row_that_is_short_has_no_caption(photos, tmp_path):
    (photos / "t.csv").write_text(plain_rows(["a dog"] * 11) + "\n11.jpg\n")
    assert prepared(photos / "t.csv", tmp_path / "out")["skipped"] == {"no caption": 1}


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_tables_put_together_may_have_a_byte_order_mark_each(suffix, photos, tmp_path):
    separator = "\t" if suffix == "tsv" else ","

    def row(i):
        return json.dumps({"path": f"{i}.jpg", "caption": "a"}) if suffix == "jsonl" else f'"{i}.jpg"{separator}a'

    parts = ["".join(f"{row(i)}\n" for i in some) for some in ((0, 1), (2, 3))]
    (photos / f"t.{suffix}").write_bytes(b"".join(part.encode("utf-8-sig") for part in parts))
    settings = {} if suffix == "jsonl" else {"header": False, "image_column": "1", "caption_column": ("2",)}
    report = prepared(photos / f"t.{suffix}", tmp_path / "out", **settings)
    assert (report["samples"], report["skipped"]) == (4, {})
