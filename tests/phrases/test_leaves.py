"""Which leaf each token belongs to: for every kind of tokenizer, with the trees of the parser and without a parse.

The places of the tokens come from the tokenizers' own offsets here, or from the bytes that their tokens stand for.
"""

from itertools import chain, pairwise

import open_clip
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from powerclip.phrases import encode_caption, load_parser, whole_caption_tree
from powerclip.phrases.clean import clean_caption

WORDS = [
    "a", "The", "red", "DOG", "woman's", "don't", "x-y", "black-and-white", "3", "50%", "$5", "U.S.", "A&B",
    "#tag", "@me", "a_b", "'tall'", "'small'", "'moon'", "'n'", "'stop", "'", '"', "(in)", "“quoted”", "it’s", "‘t’",
    "—", "...", "…", "|", "+", "!", ",", ".",
    "&amp;", "&#39;", "&lt;b&gt;", "&eacute;t&eacute;", "&nbsp;", "R&amp;D",
    "café", "cafe\u0301", "na\u0308ive", "\u0301", "İstanbul", "Straße", "ﬁsh", "ǅ", "½", "①", "caf\u00c3\u00a9",
    "it\u00e2\u20ac\u2122s",
    "🎂", "❤️", "👍🏽", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "🇩🇪", "🎂🎂",
    "犬", "犬が好き。", "中国", "שלום", "مرحبا", "ह\u093fन\u094dद\u0940", "١٢٣",
    "\u200b", "\u00ad", "a\u200bdog", "\x07", "\x80",
]  # fmt: skip
SPACES = [" ", " ", " ", "", "  ", "\t", "\n", "\xa0", "\u2003", "\u3000", " \r\n "]
LATIN_1 = "".join(map(chr, range(0x80, 0x100)))
"""Characters that cleaning may take for the bytes of others."""
others = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=LATIN_1), max_size=4)
words_and_spaces = st.tuples(st.sampled_from(WORDS) | others, st.sampled_from(SPACES))
pieces = st.lists(words_and_spaces, min_size=1, max_size=15).map(lambda pairs: [*chain.from_iterable(pairs)])


def bytes_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    return fast(tokenizer, trainer, pad_token="<pad>")


def word_pieces_tokenizer():
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=special, show_progress=False)
    return fast(tokenizer, trainer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def pieces_with_spaces_tokenizer():
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=250, special_tokens=["<pad>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    return fast(tokenizer, trainer, pad_token="<pad>", unk_token="<unk>")


def fast(tokenizer, trainer, **special):
    tokenizer.train_from_iterator([" ".join(WORDS), "the 'tall' man, 'small' moons, don't, it's"] * 20, trainer)
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


BUILDERS = {"bytes": bytes_tokenizer, "word pieces": word_pieces_tokenizer, "unigram": pieces_with_spaces_tokenizer}
CLIP = open_clip.SimpleTokenizer()


@pytest.fixture(scope="module")
def parse():
    parser = load_parser()
    return {"spacy": lambda caption: next(parser.parse([caption])), "whole": whole_caption_tree}


@pytest.fixture(scope="module", params=BUILDERS)
def tokenizer(request):
    return BUILDERS[request.param]()


def lettered(text):
    return any(character.isalnum() for character in text)


@pytest.mark.parametrize("trees", ["spacy", "whole"])
@settings(max_examples=40)
@given(pieces.map("".join).filter(str.strip), st.integers(2, 30))
@example("the 'tall' man says 'stop'", 12)
@example("''s' 's", 12)
def test_each_token_of_a_fast_tokenizer_has_the_first_leaf_it_covers(parse, tokenizer, trees, caption, context_length):
    tree = parse[trees](caption)
    own = tokenizer(caption, return_offsets_mapping=True, return_special_tokens_mask=True)
    ids, special = own["input_ids"], own["special_tokens_mask"]
    full = encode_caption(caption, tree, tokenizer, context_length=len(ids) + 1)
    assert full.tokens[: len(ids)].tolist() == ids
    leaf_of_token = full.leaf_of_token.tolist()
    for (start, end), is_special, leaf in zip(own["offset_mapping"], special, leaf_of_token, strict=False):
        covered = [i for i, (a, b) in enumerate(tree.leaves) if max(a, start) < min(b, end)]
        assert leaf == (covered[0] if covered and not is_special else -1)
    for leaf, (start, end) in enumerate(tree.leaves):
        inside = [
            at for at, (a, b) in zip(leaf_of_token, own["offset_mapping"], strict=False) if max(a, start) < min(b, end)
        ]
        assert leaf in inside or (inside and min(inside) < leaf) or not lettered(caption[start:end])
    cut = encode_caption(caption, tree, tokenizer, context_length=context_length)
    expected = tokenizer(caption, max_length=context_length, truncation=True, padding="max_length")["input_ids"]
    assert cut.tokens.tolist() == expected
    check_truncation(tree, full, cut, kept=context_length - sum(special[1:]))


@pytest.mark.parametrize("trees", ["spacy", "whole"])
@settings(max_examples=150)
@given(pieces, st.integers(3, 30))
@example(["the", " ", "'tall'", " ", "man", " ", "don't"], 5)
@example(["&eacute;t&eacute;", " ", "cafe\u0301", " ", "'moon'"], 8)
def test_each_token_of_clip_has_the_first_leaf_it_covers(parse, trees, pieces, context_length):
    caption = clean_caption("".join(pieces))
    assume(caption)
    tree = parse[trees](caption)
    length = len(CLIP.encode(caption)) + 2
    full = encode_caption(caption, tree, CLIP, context_length=length)
    assert torch.equal(full.tokens, CLIP([caption], length)[0])
    cut = encode_caption(caption, tree, CLIP, context_length=context_length)
    assert torch.equal(cut.tokens, CLIP([caption], context_length)[0])
    check_truncation(tree, full, cut, kept=context_length - 1)

    folded = [(i, c) for i, character in enumerate(caption) for c in character.lower() if not c.isspace()]
    spans = token_spans("".join(c for _, c in folded), full.tokens)
    for (start, end), leaf in zip(spans, full.leaf_of_token[1:-1].tolist(), strict=True):
        covered = [at for at, (a, b) in enumerate(tree.leaves) if any(a <= i < b for i, _ in folded[start:end])]
        assert leaf == (covered[0] if covered else -1)


def check_truncation(tree, full, cut, *, kept):
    """What is within the context is as without truncation, and what lies beyond is dropped."""
    length = min(kept, len(full.leaf_of_token))
    assert torch.equal(cut.leaf_of_token[:length], full.leaf_of_token[:length])
    assert (cut.leaf_of_token[length:] == -1).all()
    present = [leaf for leaf in cut.leaf_of_token.tolist() if leaf >= 0]
    assert present == sorted(present)
    spans = [[i for i in set(present) if p.first <= i <= p.last] for p in tree.phrases]
    expected = {(min(inside), max(inside)) for inside in spans if inside}
    assert sorted(expected) == sorted(tuple(span) for span in cut.phrase_spans.tolist())


def token_spans(text, tokens):
    """The characters of a text without white space that each token, but the first and the last, stands for."""
    character_of_byte = [i for i, character in enumerate(text) for _ in character.encode()]
    found, position = [], 0
    for token in tokens[1:-1].tolist():
        length = len(CLIP.decoder[token].removesuffix("</w>"))
        found.append((character_of_byte[position], character_of_byte[position + length - 1] + 1))
        position += length
    assert position == len(character_of_byte)
    assert all(a[0] <= b[0] for a, b in pairwise(found))
    return found
