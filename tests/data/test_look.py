"""What is said of data before the first step."""

import time
from dataclasses import replace

import pytest

from powerclip.data import look
from powerclip.data.look import look_at_sample, look_at_texts, read_some, read_texts, sample_places
from powerclip.data.sample import Caption, Sample
from powerclip.data.shards import index_shard, write_shards
from powerclip.phrases.tokens import clip_tokenizer
from powerclip.phrases.tree import PhraseTree
from tests.support.images import one_colour
from tests.support.memory import more_bytes
from tests.support.tars import write_tar

CLIP = clip_tokenizer()


def sample(caption, i=0, known=None, *, tree=None):
    return Sample(key=f"{i:04d}", image=b"", image_extension="png", caption=caption, tree=tree, metadata=known or {})


def lines(*samples, context_length=12):
    return look_at_texts(samples, CLIP, context_length=context_length)


def tree_of(caption, label="NP"):
    return PhraseTree.from_spans([(0, len(caption))], [(label, 0, 0)], parser="p")


def test_captions_that_are_cut_equal_or_bare_are_counted():
    captions = ["a dog", "a dog", *(f"dog {i}" for i in range(5)), "a dog and " * 3 + "a cat"]
    trees = [tree_of("a dog"), tree_of("a dog", "CAPTION"), *[tree_of("dog 1")] * 5, None]
    samples = [sample(caption, i, tree=tree) for i, (caption, tree) in enumerate(zip(captions, trees, strict=True))]
    (line,) = lines(*samples)
    assert line == (
        "Of 8 captions, 1 (12%) are longer than the context of 12 tokens, 2 (25%) occur more than once, and "
        "2 (25%) have no phrases"
    )
    assert "0 (0%) are longer" in lines(*samples, context_length=13)[0]
    assert lines() == ["No caption could be looked at"]


def test_one_caption_for_all_is_a_warning():
    many = [sample("a dog", i) for i in range(6)] + [sample(f"dog {i}", i) for i in range(5)]
    assert lines(*many)[1] == "Warning: 6 of 11 captions are 'a dog': is the right file, column or key read?"
    assert len(lines(*many[1:])) == 1  # half of them
    assert len(lines(sample("a dog"))) == 1


@pytest.mark.parametrize(
    ("caption", "meaning"),
    [
        ("['a dog', 'a cat on a chair']", "are written as lists"),
        ('["a dog", "it\'s a cat"]', "are written as lists"),
        ("photos/a dog.JPG a dog", "hold a file name"),
        ("http://x.org/1.png", "hold a file name"),
        ("['a dog'] is written", None),
        ("a dog [sic], a cat", None),
        ("a jpg, and no .NET", None),
    ],
)
def test_captions_that_were_not_split_are_a_warning(caption, meaning):
    usual = [sample(f"dog {i}", i) for i in range(8)]
    assert len(lines(*usual, sample(caption, 8), *[sample(f"cat {i}", 20 + i) for i in range(1)])) == 1  # a tenth
    found = lines(*usual, sample(caption, 8), sample(caption + " ", 9))[1:]
    assert [line.split(":")[1].strip() for line in found] == ([f"2 of 10 captions {meaning}"] if meaning else [])
    assert all(repr(caption) in line for line in found)


def test_lines_that_were_joined_by_cleaning_are_a_warning():
    samples = [sample(f"dog {i} cat", i, {"caption_original": f"dog {i}\ncat"}) for i in range(3)]
    assert lines(*samples)[1].startswith(
        "Warning: 3 of 3 captions hold line breaks: several captions that were not split"
    )
    assert len(lines(*(sample(f"dog {i}", i, {"caption_original": f" dog {i} \n\n"}) for i in range(3)))) == 1


def test_a_caption_or_key_of_another_sample_is_a_warning():
    kept = [sample(f"dog {i}", i, {"key": f"{i:04d}", "caption": f"dog  {i}"}) for i in range(5)]
    assert len(lines(*kept)) == 1
    again = [sample(f"new {i}", i, {"caption": f"dog {i}"}) for i in range(5)]  # new captions for old images
    assert len(lines(*again)) == 1
    shifted = [sample(f"dog {i}", i, {"caption": f"dog {(i + 1) % 5}"}) for i in range(5)]
    assert lines(*shifted)[1] == (
        "Warning: KEY.json of 5 of 5 samples has the key or caption of another sample, for example 0000: images and "
        "captions may be mixed up"
    )
    assert "of 1 of 6 samples" in lines(*kept, sample("a cat", 7, {"key": "0008"}))[1]
    assert len(lines(sample("a cat", 0, {"key": 3, "caption": ["a"]}))) == 1


def test_a_sample_is_shown_as_the_model_reads_it():
    caption = "A xylophonist on a red chair near a house"
    leaves = [(0, 1), (2, 13), (14, 16), (17, 18), (19, 22), (23, 28), (29, 33), (34, 35), (36, 41)]
    spans = [("NP", 0, 8), ("NP", 0, 1), ("PP", 2, 5), ("NP", 3, 5), ("PP", 6, 8), ("NP", 7, 8)]
    tree = PhraseTree.from_spans(leaves, spans, parser="p")

    def shown(context_length, tree=tree):
        whole = sample(caption, tree=tree)
        return look_at_sample(whole, CLIP, context_length=context_length, size=(30, 40), regions="3 boxes")

    assert shown(77) == [
        "0000: 40 x 30 pixels, 3 boxes",
        "  caption: 'a xylophonist on a red chair near a house'",
        "  phrases: 'A xylophonist on a red chair near a house', 'A xylophonist', 'on a red chair', 'a red chair', "
        "'near a house', 'a house'",
    ]
    assert shown(11)[1:] == [
        "  caption: 'a xylophonist on a red chair' (3 tokens cut)",
        "  phrases: 'A xylophonist on a red chair', 'A xylophonist', 'on a red chair', 'a red chair'",
    ]
    assert shown(77, None)[2] == "  phrases: none, so the caption is one"


def test_only_some_phrases_are_shown():
    caption = "a b c d e f g h"
    tree = PhraseTree.from_spans([(i, i + 1) for i in range(0, 15, 2)], [("NP", i, i) for i in range(8)], parser="p")
    line = look_at_sample(sample(caption, tree=tree), CLIP, context_length=20, size=(1, 1), regions="")[2]
    assert line == "  phrases: 'a', 'b', 'c', 'd', 'e', 'f' and 2 more"


def test_all_captions_of_an_image_are_looked_at(tmp_path):
    """Also those that are read from a shard."""
    tree, long = tree_of("a dog"), "a dog and " * 3 + "a cat"
    others = [Caption(text=long, source="syn"), Caption(text="a dog", source="alt", tree=tree)]
    several = [
        sample("a dog", i, tree=tree).with_captions([Caption(text="a dog", tree=tree), *others]) for i in range(2)
    ]
    write_shards([replace(s, image=one_colour()) for s in several], tmp_path)
    places = sample_places([tmp_path / "shard-000000.tar"], index_shard)
    assert lines(*read_texts(places))[0] == (
        "Of 6 captions, 2 (33%) are longer than the context of 12 tokens, 6 (100%) occur more than once, "
        "and 2 (33%) have no phrases"
    )
    shown = look_at_sample(several[0], CLIP, context_length=12, size=(1, 1), regions="")
    assert shown[-1] == "  further captions: 1 from syn, 1 from alt"


def test_samples_come_from_all_over_and_bad_ones_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(look, "LOOKED_AT", 32)
    for number in range(40):
        members = [("bad.png", b"junk"), ("bad.txt", b""), *(
            (f"{number:02d}-{i}.{e}", d) for i in range(9) for e, d in (("png", one_colour()), ("txt", b"a dog"))
        )]  # fmt: skip
        write_tar(tmp_path / f"{number:02d}.tar", members)
    (tmp_path / "02.tar").write_bytes(b"junk")
    places = list(sample_places(sorted(tmp_path.iterdir()), index_shard))
    assert len(places) == 30  # two of each of sixteen shards but the broken one
    assert len({place.shard for place in places}) == 15
    texts = list(read_texts(places))
    assert len(texts) == 15  # the first of each is bad
    assert len({s.key[:2] for s in texts}) == 15
    shown = list(read_some(places))
    assert len(shown) == 3
    assert len({s.key[:2] for s, _ in shown}) == 3
    assert all(image.size == (8, 8) for _, image in shown)
    assert len(list(sample_places([tmp_path / "00.tar"], index_shard))) == 10


def test_regions_and_images_of_texts_are_not_read(tmp_path):
    write_tar(tmp_path / "0.tar", [
        ("a.png", b"junk"), ("a.txt", b"a dog"), ("a.regions.json", b"junk"),
        ("a.json", b'{"x": 1, "key": "a", "caption": 3}'),
    ])  # fmt: skip
    (text,) = read_texts(index_shard(tmp_path / "0.tar"))
    assert (text.caption, text.metadata, text.image) == ("a dog", {"key": "a"}, b"")


def test_texts_and_metadata_that_are_large_are_not_held(tmp_path):
    """Each is less than the limit of a file; as values, its list takes 20 megabytes, and those of 30 samples 600."""
    metadata = b'{"caption_original": 3, "a":[' + b"[]," * 300_000 + b"0]}"
    members = [(f"{i}.{e}", d) for i in range(30) for e, d in (("png", b""), ("txt", b"a dog"), ("json", metadata))]
    write_tar(tmp_path / "0.tar", members)
    with more_bytes() as more:
        texts = list(read_texts(index_shard(tmp_path / "0.tar")))
    assert len(texts) == look.TEXT_BYTES // (len(metadata) + 5)
    assert more[0] < 48 * 2**20
    assert lines(*texts)[0].startswith(f"Of {len(texts)} captions")


@pytest.mark.parametrize("text", ["a" + "\n" * 200_000, "['" + "'," * 200_000])
def test_the_signs_of_a_long_text_take_no_longer(text):
    start = time.process_time()
    lines(sample("a dog", known={"caption_original": text}))
    assert time.process_time() - start < 1  # hours, of all of it
