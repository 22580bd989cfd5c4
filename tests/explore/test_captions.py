import html
import re
from dataclasses import replace

import pytest
import torch

import powerclip
from powerclip.config import ScoringConfig
from powerclip.evaluate.encode import Encoder
from powerclip.explore.captions import Captions, parts_table
from powerclip.explore.subject import Subject
from powerclip.model import make_tokenizer, make_transforms
from powerclip.phrases import load_parser
from powerclip.regions import fixed_boxes
from powerclip.report.grounding import ground
from powerclip.report.samples import scene_pairs
from tests.support.models import write_tiny

FIRST, SECOND = "a red cube left of a ball", "a red cube below a ring"


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    torch.manual_seed(0)
    name = write_tiny(tmp_path_factory.mktemp("model"))
    model = powerclip.create_model(name, scoring=ScoringConfig(zero=0.1)).eval()
    encoder = Encoder(model, make_transforms(model)[1], make_tokenizer(model), device="cpu", batch_size=8)
    return Subject(name="tiny", encoder=encoder, aligned=True, pairs=scene_pairs(count=1, image_size=96))


def shown(subject, *captions, **options):
    """The document in the frame, and the cells of its tables."""
    settings = {"proposer": "boxes", "count": 64, "tau": 1e-3, **options}
    frame = Captions(subject=subject, device="cpu").show(subject.pairs[0].image, captions, **settings)
    document = html.unescape(re.search(r'srcdoc="([^"]*)"', frame)[1])
    cells = [[c.strip() for c in re.findall(r"<td[^>]*>(.*?)</td>", row, re.S)] for row in document.split("<tr>")]
    return document, [row for row in cells if row]


def test_scores_are_those_of_the_similarity(subject):
    document, cells = shown(subject, FIRST, SECOND, tau=0.05)
    model, image = subject.dense, subject.pairs[0].image
    boxes = fixed_boxes(model.grid_size)
    for caption, tree, row in zip((FIRST, SECOND), load_parser().parse([FIRST, SECOND]), cells, strict=False):
        with torch.inference_mode():
            pixels = subject.encoder.preprocess(image)[None]
            regions, region_mask = model.encode_regions(pixels, boxes[None])
            encoded = powerclip.phrases.encode_caption(
                caption, tree, subject.encoder.tokenizer, context_length=model.context_length
            )
            phrases, mask = model.encode_phrases(
                encoded.tokens[None], encoded.leaf_of_token[None], encoded.phrase_spans[None]
            )
            ones, minus = torch.ones(1, len(boxes), 1), torch.full((1, mask.shape[1], 1), -0.1)
            expected = powerclip.alignment.similarity(
                torch.cat([regions, ones], dim=2), torch.cat([phrases, minus], dim=2), region_mask, mask, tau=0.05
            )
        values = [expected.total.item() / len(boxes), expected.t2r.item(), expected.r2t.item()]
        assert row[0] == caption
        assert [float(re.sub("<.*?>", "", cell)) for cell in row[1:4]] == pytest.approx(values, abs=1e-3)
    assert "S = (T2R + R2T) / M, the powerset score at tau 0.05" in document


def test_parts_by_phrase_add_up_to_t2r(subject):
    trees = load_parser().parse([FIRST, SECOND])
    found = [
        ground(subject.dense, subject.pairs[0].image, caption, tree)
        for caption, tree in zip((FIRST, SECOND), trees, strict=True)
    ]
    table = parts_table(found)
    *_, total = table.rows
    for column, one in enumerate(found, start=1):
        scores = [phrase.score for phrase in one.phrases.values()]
        assert float(total[column]) == pytest.approx(sum(scores) / len(scores), abs=1e-3)
        own = [float(row[column]) for row in table.rows[:-1] if row[column] != "-"]
        assert sum(own) == pytest.approx(float(total[column]), abs=6e-3)
    rows = {row[0]: row for row in table.rows}
    assert rows["a ball"][2] == rows["a ring"][1] == "-"
    assert float(rows["a ball"][3]) == pytest.approx(float(rows["a ball"][1]), abs=1e-3)
    sizes = [abs(float(row[3])) for row in table.rows[:-1]]
    assert sizes == sorted(sizes, reverse=True)


def test_only_a_model_of_single_regions_has_no_temperature(subject):
    single = powerclip.create_model("tiny", scoring=ScoringConfig(subsets="single"))
    encoder = Encoder(single, make_transforms(single)[1], make_tokenizer(single), device="cpu", batch_size=8)
    other = Subject(name="single", encoder=encoder, aligned=True, pairs=subject.pairs)
    assert [Captions(subject=one, device="cpu").single for one in (subject, other)] == [False, True]


def test_the_number_of_regions_is_at_most_what_was_asked(subject):
    for proposer, count in (("tiles", 5), ("boxes", 3), ("superpixels", 2)):
        document, _ = shown(subject, FIRST, proposer=proposer, count=count)
        masks = re.search(r'"masks": \[\[\[(.*?)\]\]\]', document)[1].split(", ")
        assert 1 <= len(masks) <= count
        assert f"M = {len(masks)} regions: {proposer}." in document.replace("\n", " ")


def test_phrases_and_tokens_are_shown_of_a_model_trained_on_both_and_patches(subject):
    model = powerclip.create_model("tiny", phrase_unit="both", region_unit="patch")
    encoder = Encoder(model.eval(), make_transforms(model)[1], make_tokenizer(model), device="cpu", batch_size=8)
    both = Subject(name="both", encoder=encoder, aligned=True, pairs=subject.pairs)
    captions = Captions(subject=both, device="cpu")
    assert captions.proposers[:2] == ["patches", "tiles"]
    document, _ = shown(both, FIRST, SECOND, proposer="patches", count=5)
    assert "M = 64 regions: patches." in document.replace("\n", " ")
    assert re.search(r'<small>NP</small> <span dir="auto">a red cube<', document)
    assert re.search(r'<small>token</small> <span dir="auto">cube<', document)


def test_a_model_without_phrases_compares_by_cosine(subject):
    plain = Subject(name="clip", encoder=subject.encoder, aligned=False, pairs=subject.pairs)
    document, cells = shown(plain, FIRST, SECOND)
    assert "nothing to ground" in document
    assert f'<td dir="auto">{FIRST}</td>' in document
    assert sum(float(row[2].rstrip("%")) for row in cells) == pytest.approx(100, abs=0.1)
    cosines = [float(row[1]) for row in cells]
    with torch.inference_mode():
        vectors = subject.afresh().texts([FIRST, SECOND])
    assert cosines == pytest.approx((vectors @ plain.vector_of(plain.pairs[0].image)).tolist(), abs=1e-3)
    better = "first" if cosines[0] > cosines[1] else "second"
    assert f"The {better} caption wins by" in document


@pytest.mark.parametrize("aligned", [True, False])
def test_where_captions_are_cut_is_said(aligned, subject):
    one = replace(subject, aligned=aligned)
    length = subject.encoder.tokenizer.context_length
    read = [*(["dog"] * (length - 4)), "red", "cat"]  # beside the start and the end
    document, _ = shown(one, " ".join(read), FIRST)
    assert "of a text are read" not in document
    document, _ = shown(one, " ".join([*read, "and", "a", "ball"]), FIRST)
    assert f"Only the first {length} tokens of a text are read; cut here: &#34;... " in document
    assert "dog red cat&#34;." in document


def test_nothing_but_a_caption_is_asked_for(subject):
    with pytest.raises(ValueError, match="no caption was given"):
        shown(subject, " ", "")
    document, _ = shown(subject, "</script><b>bold", "!!!")
    assert "<b>bold" not in document
