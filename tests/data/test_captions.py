"""Several captions of an image: in shards, and which of them a step shows."""

import json
from collections import Counter
from dataclasses import replace

import open_clip
import pytest
import torch

from powerclip.config import DataConfig
from powerclip.data.captions import draw_captions
from powerclip.data.limits import MAX_CAPTIONS
from powerclip.data.sample import Caption, Sample
from powerclip.data.shards import read_shards, write_shards
from powerclip.errors import BadSampleError
from powerclip.phrases import whole_caption_tree
from powerclip.phrases.tree import PhraseTree
from tests.support.images import one_colour
from tests.support.loaders import batches_of, loader_of

CLIP = open_clip.SimpleTokenizer()
NP = PhraseTree.from_spans([(0, 1), (2, 5)], [("NP", 0, 1)], parser="p")
ALT = Caption(text="a dog", source="alt", tree=NP)
LONG = Caption(text="A wet dog. It runs. Trees behind it.", source="synthetic")
SHORT = Caption(text="a cat", source="synthetic", original="a  cat &amp;")


def sample_of(*captions, key="k"):
    return Sample(key=key, image=one_colour(), image_extension="png", caption="").with_captions(captions)


def read(**files):
    names = {name.replace("_", "."): data for name, data in files.items()}
    return Sample.from_members("k", {"png": one_colour(), **names})


def test_captions_with_their_sources_and_phrases_survive_a_shard(tmp_path):
    sample = sample_of(ALT, LONG, SHORT)
    write_shards([sample], tmp_path)
    (again,) = read_shards(tmp_path)
    assert again == sample
    assert again.captions == (ALT, LONG, SHORT)
    assert (again.caption, again.tree) == ("a dog", NP)
    listed = json.loads(sample.members()["captions.json"])
    assert [(entry["source"], entry["text"]) for entry in listed] == [(c.source, c.text) for c in sample.captions]
    assert listed[0]["phrases"] == NP.to_json()


def test_one_caption_of_no_other_source_is_a_sample_as_before():
    assert sample_of(replace(ALT, source="txt")).members().keys() == {"png", "txt", "phrases.json"}
    assert sample_of(ALT).members().keys() == {"png", "txt", "phrases.json", "captions.json"}


def test_what_others_write_is_read_too():
    texts = json.dumps(["a  cat", {"text": "a dog"}, {"text": "a mouse", "source": "alt"}]).encode()
    found = read(txt=b"a dog", captions_json=texts)
    of_others = [("a dog", "captions.json"), ("a cat", "captions.json"), ("a mouse", "alt")]
    assert [(c.text, c.source) for c in found.captions] == of_others  # the first is KEY.txt, with its entry's source
    assert found.captions[1].original == "a  cat"
    assert [c.text for c in read(captions_json=texts).captions] == ["a cat", "a dog", "a mouse"]  # without KEY.txt
    assert read(captions_json=texts).metadata == {"caption_original": "a  cat"}
    assert read(txt=b"a bird", captions_json=texts).caption_source == "txt"


@pytest.mark.parametrize(
    "value", [{}, ["a"] * (MAX_CAPTIONS + 1), [{"text": "a", "phrases": {}}], [{"text": "a", "original": 3}]]
)
def test_malformed_captions_make_a_bad_sample(value):
    with pytest.raises(BadSampleError, match="malformed captions.json"):
        read(txt=b"a dog", captions_json=json.dumps(value).encode())


def test_a_caption_that_cannot_be_used_costs_no_other_one():
    texts = json.dumps(["a cat", " ", 3, None, {"source": "alt"}]).encode()
    reasons = ("empty caption", "caption is not text", "no caption", "no caption")
    for sample in (read(captions_json=texts), read(txt=b"a cat", captions_json=texts)):
        assert [caption.text for caption in sample.captions] == ["a cat"]
        assert sample.remarks == reasons
    sample = read(txt="\ufeff\u200b\u2060".encode(), captions_json=texts)  # nothing that can be seen
    assert (sample.caption, sample.remarks) == ("a cat", ("empty caption", *reasons))
    with pytest.raises(BadSampleError, match="empty caption"):
        read(txt=b" ", captions_json=b"[null]")


def test_phrases_beyond_a_further_caption_make_a_bad_sample(tmp_path):
    write_shards([sample_of(ALT, replace(SHORT, text="a", tree=NP), key="bad"), sample_of(ALT, key="good")], tmp_path)
    loader = loader_of(tmp_path, batch_size=2, shuffle=False, max_bad_share=1.0)
    (batch,) = list_of_one_epoch(loader)
    assert batch.keys == ("good", "good")
    assert loader.bad == {"phrases reach beyond the caption": 1}


def list_of_one_epoch(loader):
    steps = loader.steps(0)
    return [piece for _ in range(loader.batches_per_epoch) for piece in next(steps)]


def shares(captions, number=6000, **settings):
    config = DataConfig(**settings)
    found = Counter(caption.text for i in range(number) for caption in draw_captions(captions, config, (7, i)))
    return {text: count / found.total() for text, count in found.items()}


def test_sources_are_drawn_by_their_weights_and_shared_by_their_captions():
    # A share p of 6000 draws has a standard deviation of at most 0.0065; four of them are 0.026.
    assert shares([ALT, LONG, SHORT]) == pytest.approx(
        dict.fromkeys([ALT.text, LONG.text, SHORT.text], 1 / 3), abs=0.026
    )
    weighted = shares([ALT, LONG, SHORT], caption_weights={"alt": 1, "synthetic": 3})
    assert weighted == pytest.approx({ALT.text: 0.25, LONG.text: 0.375, SHORT.text: 0.375}, abs=0.026)
    assert shares([ALT, SHORT], caption_weights={"synthetic": 1, "other": 9}) == {SHORT.text: 1.0}
    with pytest.raises(BadSampleError, match=r"no caption of a source in data.caption-weights"):
        draw_captions([ALT, SHORT], DataConfig(caption_weights={"other": 1.0}), (0,))


def test_a_draw_is_a_function_of_its_seed():
    two = DataConfig(captions=2, sentences=0.5)
    drawn = [draw_captions([ALT, LONG, SHORT], two, (3, i)) for i in range(50)]
    assert drawn == [draw_captions([ALT, LONG, SHORT], two, (3, i)) for i in range(50)]
    assert len({tuple(c.text for c in captions) for captions in drawn}) > 5


@pytest.mark.parametrize("count", [2, 3, 7])
def test_no_caption_comes_twice_before_all_have_come(count):
    config = DataConfig(captions=count)
    for seed in range(30):
        found = Counter(caption.text for caption in draw_captions([ALT, LONG, SHORT], config, (seed,)))
        assert found.total() == count
        assert max(found.values()) - min([*found.values(), *[0] * (len(found) < 3)]) <= 1


def test_sentences_are_drawn_as_captions_with_their_phrases():
    long = replace(LONG, tree=PhraseTree.from_spans([(2, 5), (6, 9), (14, 18)], [("NP", 0, 1)], parser="p"))
    drawn = draw_captions([long], DataConfig(captions=4, sentences=1.0), (0,))
    assert sorted(c.text for c in drawn[:3]) == ["A wet dog.", "It runs.", "Trees behind it."]  # each before one again
    wet = next(c for c in drawn if c.text == "A wet dog.")
    assert wet.tree == PhraseTree.from_spans([(2, 5), (6, 9)], [("NP", 0, 1)], parser="p")
    assert wet.source == "synthetic"
    some = shares([LONG], sentences=0.25)
    assert some[LONG.text] == pytest.approx(0.75, abs=0.026)
    assert draw_captions([Caption(text="!!!")], DataConfig(sentences=1.0), (0,))[0].text == "!!!"


def words(batch):
    return [CLIP.decode(row[1 : int(row.argmax())].tolist()).strip() for row in batch.tokens]


def test_batches_hold_n_captions_of_each_image_next_to_each_other(tmp_path):
    samples = [
        sample_of(*(Caption(text=f"{name} {i}") for i in "abc"), key=name) for name in ("dog", "cat", "cow", "fox")
    ]
    write_shards(samples, tmp_path)
    (batch,) = batches_of(tmp_path, batch_size=4, captions=2)
    assert len(batch) == 4
    assert batch.tokens.shape[0] == batch.leaf_of_token.shape[0] == batch.phrase_spans.shape[0] == 8
    found = words(batch)
    assert [text.split()[0] for text in found] == [key for key in batch.keys for _ in range(2)]
    assert all(a != b for a, b in zip(found[::2], found[1::2], strict=True))
    (again,) = batches_of(tmp_path, batch_size=4, captions=2, workers=1)
    assert torch.equal(batch.tokens, again.tokens)
    (other,) = batches_of(tmp_path, batch_size=4, captions=2, epoch=1, shuffle=False)
    assert set(words(other)) != set(found)
    (one,) = batches_of(tmp_path, batch_size=4)
    assert torch.equal(one.images, batch.images)  # which captions are drawn does not move the augmentation


def test_a_draw_does_not_change_what_single_captions_see(tmp_path):
    parsed = sample_of(replace(ALT, source="txt", tree=whole_caption_tree("a dog")))
    write_shards([parsed], tmp_path / "one")
    write_shards([parsed.with_captions([*parsed.captions, LONG])], tmp_path / "two")
    (one,) = batches_of(tmp_path / "one", batch_size=1)
    (two,) = batches_of(tmp_path / "two", batch_size=1, caption_weights={"txt": 1.0})
    for name in ("images", "tokens", "leaf_of_token", "phrase_spans", "region_masks"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name


def test_sources_that_are_not_there_or_not_drawn_are_logged(tmp_path, caplog):
    write_shards([sample_of(ALT, LONG, key=f"{i}") for i in range(3)], tmp_path)
    loader_of(tmp_path, batch_size=1, caption_weights={"alt": 1.0, "synth": 2.0})
    missing, left = [record.getMessage() for record in caplog.records]
    assert missing == "caption sources in data.caption-weights that the first samples do not have: synth"
    assert left == "caption sources of the first samples that data.caption-weights leaves out: synthetic"
