import random
import string
import time

import open_clip
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from powerclip.phrases import encode_caption, whole_caption_tree
from powerclip.phrases.tokens import count_tokens, read_tokens
from powerclip.phrases.tree import Phrase, PhraseTree

TOKENIZER = open_clip.SimpleTokenizer()
captions = st.text(st.characters(exclude_categories=["Cs"]), max_size=120).filter(str.strip)


def tree(leaves, phrases):
    return PhraseTree(
        leaves=tuple(leaves), phrases=tuple(Phrase(label="NP", first=a, last=b) for a, b in phrases), parser="gold"
    )


def words_of(encoded):
    """The text of each leaf, as the tokens that belong to it."""
    leaves = [leaf for leaf in encoded.leaf_of_token.unique().tolist() if leaf >= 0]
    return {leaf: TOKENIZER.decode(encoded.tokens[encoded.leaf_of_token == leaf].tolist()).strip() for leaf in leaves}


@settings(max_examples=150, deadline=None)
@given(captions, st.integers(3, 40))
@example("Fish &amp; CHIPS  at \t the caf\u00c3\u00a9", 20)
@example("\u0130stanbul \u03a3\u0391\u03a3 \ufb01sh", 20)
@example("<start_of_text> <end_of_text>", 10)
@example("\x00a dog\x00", 10)
def test_tokens_are_the_tokenizers_and_spans_in_range(caption, context_length):
    encoded = encode_caption(caption, whole_caption_tree(caption), TOKENIZER, context_length=context_length)
    assert torch.equal(encoded.tokens, TOKENIZER([caption], context_length)[0])
    assert encoded.tokens.dtype == encoded.leaf_of_token.dtype == encoded.phrase_spans.dtype == torch.int64
    present = set(encoded.leaf_of_token.tolist()) - {-1}
    assert all(first in present and last in present for first, last in encoded.phrase_spans.tolist())
    ends = (encoded.tokens == TOKENIZER.eot_token_id).nonzero()[-1].item()
    assert encoded.leaf_of_token[0] == -1
    assert (encoded.leaf_of_token[ends:] == -1).all()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.from_regex(r"[A-Za-z]{1,14}", fullmatch=True), min_size=1, max_size=12), st.sampled_from([" ", "  \n"])
)
def test_every_token_of_a_word_belongs_to_its_leaf(words, space):
    caption = space.join(words)
    encoded = encode_caption(caption, whole_caption_tree(caption), TOKENIZER, context_length=200)
    assert words_of(encoded) == {leaf: word.lower() for leaf, word in enumerate(words)}
    assert encoded.phrase_spans.tolist() == [[0, len(words) - 1]]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("Fish &amp; chips at sea", ["fish", "&", "chips", "at", "sea"]),
        ("a   RED\t\tcube", ["a", "red", "cube"]),
        ("the caf\u00c3\u00a9 is open", ["the", "caf\u00e9", "is", "open"]),
        ("a &amp; b " * 20 + "last word", ["a", "&", "b"] * 20 + ["last", "word"]),
        ("&amp;lt; " * 20 + "last word", ["<"] * 20 + ["last", "word"]),
        ("the 'tall' man says 'stop'", ["the", "'t all '", "man", "says", "'s top '"]),
        ("&nbsp; it\u2019s cafe\u0301&nbsp;a", ["it 's", "caf\u00e9 a"]),
        ("an anti-aliased Xylophonist", ["an", "anti - aliased", "xylophonist"]),
    ],
)
def test_leaves_of_an_uncleaned_caption_find_their_tokens(caption, expected):
    encoded = encode_caption(caption, whole_caption_tree(caption), TOKENIZER, context_length=200)
    found = [" ".join(word.split()) for word in words_of(encoded).values()]
    assert found == expected


def test_punctuation_outside_of_leaves_belongs_to_none():
    encoded = encode_caption("a dog.", tree([(0, 1), (2, 5)], [(0, 1)]), TOKENIZER, context_length=8)
    assert encoded.leaf_of_token.tolist() == [-1, 0, 1, -1, -1, -1, -1, -1]


@pytest.mark.parametrize("word", ["tall", "small", "moon", "stop", "dog"])
def test_the_first_piece_of_a_word_in_single_quotes_is_its_own(word):
    caption = f"the '{word}' man"
    leaves = [(0, 3), (5, 5 + len(word)), (7 + len(word), 10 + len(word))]
    found = encode_caption(caption, tree(leaves, [(0, 2)]), TOKENIZER, context_length=12)
    own = TOKENIZER.decode(found.tokens[found.leaf_of_token == 1].tolist())
    assert own.replace(" ", "").strip("'") == word
    assert "".join(words_of(found)[leaf] for leaf in (0, 2)) == "theman"


def test_white_space_written_as_an_entity_is_passed_over():
    encoded = encode_caption("&nbsp; a  a&nbsp; b", tree([(7, 8), (10, 11), (18, 19)], []), TOKENIZER, context_length=8)
    assert encoded.leaf_of_token.tolist() == [-1, 0, 1, 2, -1, -1, -1, -1]


def test_a_piece_that_begins_before_a_leaf_belongs_to_it():
    caption = "xylophonist"
    assert [TOKENIZER.decode([i]) for i in TOKENIZER.encode(caption)] == ["xy", "lo", "ph", "onist "]
    encoded = encode_caption(caption, tree([(3, 8), (8, 11)], [(0, 1)]), TOKENIZER, context_length=8)
    assert encoded.leaf_of_token.tolist() == [-1, -1, 0, 0, 0, -1, -1, -1]


def test_truncation_cuts_phrases_and_counts_equal_ones_once():
    caption = "a red cube on a ball"
    leaves = [(0, 1), (2, 5), (6, 10), (11, 13), (14, 15), (16, 20)]
    phrases = tree(leaves, [(0, 5), (0, 2), (3, 5), (4, 5)])
    full = encode_caption(caption, phrases, TOKENIZER, context_length=8)
    assert full.phrase_spans.tolist() == [[0, 5], [0, 2], [3, 5], [4, 5]]
    cut = encode_caption(caption, phrases, TOKENIZER, context_length=6)
    assert cut.leaf_of_token.tolist() == [-1, 0, 1, 2, 3, -1]
    assert cut.phrase_spans.tolist() == [[0, 3], [0, 2], [3, 3]]
    assert encode_caption(caption, phrases, TOKENIZER, context_length=5).phrase_spans.tolist() == [[0, 2]]


def test_a_tree_of_another_caption_is_refused():
    with pytest.raises(ValueError, match="reach to character 10, the caption has 5"):
        encode_caption("a dog", tree([(0, 10)], []), TOKENIZER, context_length=8)


def test_a_tokenizer_that_drops_tokens_is_refused():
    tokenizer = open_clip.SimpleTokenizer(reduction_mask="random")
    with pytest.raises(ValueError, match="drops tokens at random"):
        encode_caption("a dog", whole_caption_tree("a dog"), tokenizer, context_length=8)


def fast_tokenizer():
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=60, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(["a red cube, on a blue ball"] * 3, trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


@pytest.mark.parametrize("strip", [False, True])
def test_hugging_face_tokenizers(strip):
    fast = fast_tokenizer()
    wrapper = open_clip.tokenizer.HFTokenizer.__new__(open_clip.tokenizer.HFTokenizer)
    wrapper.tokenizer, wrapper.tokenizer_mode, wrapper.strip_sep_token = fast, "", strip
    wrapper.clean_fn, wrapper.context_length = open_clip.tokenizer.get_clean_fn("whitespace"), 16
    caption = "A red   cube, bled"
    encoded = encode_caption(caption, whole_caption_tree(caption), wrapper, context_length=16)
    assert torch.equal(encoded.tokens, wrapper([caption], 16)[0])
    pieces = fast.convert_ids_to_tokens(encoded.tokens.tolist())
    for leaf, word in enumerate(["a", "red", "cube,", "bled"]):
        own = [p for p, at in zip(pieces, encoded.leaf_of_token.tolist(), strict=True) if at == leaf]
        assert "".join(p.removeprefix("##") for p in own) == word
    assert encoded.phrase_spans.tolist() == [[0, 3]]
    clean = " ".join(caption.split())
    plain = encode_caption(clean, whole_caption_tree(clean), fast, context_length=16)
    assert torch.equal(plain.leaf_of_token, encoded.leaf_of_token)
    for tokenizer in (wrapper, fast):
        number = count_tokens(clean, tokenizer)
        assert number == int((plain.tokens != 0).sum()) == 9
        assert count_tokens(" ".join([clean] * 9), tokenizer) == 9 * (number - 2) + 2  # beyond any context
        assert read_tokens(plain.tokens, tokenizer) == "a red cube , bl ##e ##d"  # this one has no decoder of pieces


def test_tokens_are_counted_beyond_the_context_and_read_back():
    caption = "A xylophonist's 2 dogs"
    tokens = TOKENIZER([caption])[0]
    assert count_tokens(caption, TOKENIZER) == int((tokens != 0).sum())
    assert read_tokens(tokens, TOKENIZER) == "a xylophonist 's 2 dogs"
    assert count_tokens(" ".join(["dog"] * 100), TOKENIZER) == 102
    assert read_tokens(TOKENIZER([" ".join(["dog"] * 100)])[0], TOKENIZER) == " ".join(["dog"] * 75)


LETTERS = string.ascii_letters


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("abehnrst\u00e9\u4e2d"), min_size=65, max_size=400))
@example("a" * 300)
@example("ha" * 200)
@example("photograph" * 40)
@example(open_clip.tokenizer.basic_clean("".join(random.Random(0).choices(LETTERS, k=600))))
def test_a_long_word_has_the_tokenizers_own_pieces(word):
    encoded = encode_caption(word, whole_caption_tree(word), TOKENIZER, context_length=450)
    assert torch.equal(encoded.tokens, TOKENIZER([word], 450)[0])


def test_a_caption_of_one_long_word_costs_no_more_than_some_plain_ones():
    plain = [f"a {colour} cube in row {i}" for i in range(500) for colour in ("red", "blue")]
    long = "".join(random.Random(1).choices(LETTERS, k=2**18))
    kept, costs = len(TOKENIZER.cache), []
    for captions in (plain, [long]):
        start = time.process_time()
        for caption in captions:
            encode_caption(caption, whole_caption_tree(caption), TOKENIZER, context_length=77)
        costs.append(time.process_time() - start)
    assert costs[1] < costs[0]  # of a thousand captions
    assert not any(len(word) > 64 for word in list(TOKENIZER.cache)[kept:])
