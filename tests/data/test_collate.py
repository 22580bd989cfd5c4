import pytest
import torch

from powerclip.data.collate import annotate, equally_wide
from powerclip.model import make_tokenizer
from powerclip.phrases import load_parser
from powerclip.types import Batch
from tests.support.models import tiny_model


def batch(tokens, phrases=1):
    tokens = torch.tensor(tokens)
    return Batch(
        images=torch.zeros(len(tokens), 3, 8, 8),
        tokens=tokens,
        leaf_of_token=torch.where(tokens > 0, 0, -1),
        phrase_spans=torch.zeros(len(tokens), phrases, 2, dtype=torch.int64),
        region_masks=torch.zeros(len(tokens), 0, 1, dtype=torch.bool),
    )


def padded(*lengths, context, padding=0):
    return [[7] * length + [padding] * (context - length) for length in lengths]


@pytest.mark.parametrize(("longest", "kept"), [(3, 8), (8, 8), (9, 16), (17, 20), (20, 20)])
def test_tokens_are_cut_to_the_longest_text_of_all_pieces(longest, kept):
    pieces = [batch(padded(2, 3, context=20)), batch(padded(longest, 1, context=20))]
    cut = equally_wide(pieces)
    assert [piece.tokens.shape[1] for piece in cut] == [kept, kept]
    for piece, before in zip(cut, pieces, strict=True):
        assert torch.equal(piece.tokens, before.tokens[:, :kept])
        assert torch.equal(piece.leaf_of_token, before.leaf_of_token[:, :kept])
        assert not before.tokens[:, kept:].any()


def test_padding_with_another_id_stays():
    assert equally_wide([batch(padded(2, context=20, padding=1))])[0].tokens.shape == (1, 20)


def test_phrases_are_padded_to_the_longest_list():
    first, second = equally_wide([batch([[7]], phrases=1), batch([[7]], phrases=3)])
    assert first.phrase_spans.tolist() == [[[0, 0], [-1, -1], [-1, -1]]]
    assert second.phrase_spans.shape == (1, 3, 2)


def test_an_empty_caption_of_another_trainer_has_no_phrases():
    def annotated(*captions):
        return annotate(
            torch.zeros(len(captions), 3, 64, 64),
            captions,
            region_masks=torch.ones(len(captions), 2, 64, dtype=torch.bool),
            parser=load_parser(),
            tokenizer=make_tokenizer(tiny_model()),
            context_length=tiny_model().context_length,
        )

    batch, alone = annotated("", "a red cube on a ball", " \ufeff\n"), annotated("a red cube on a ball")
    assert (batch.phrase_spans[[0, 2]] == -1).all()
    for name in ("tokens", "leaf_of_token", "phrase_spans"):
        assert torch.equal(getattr(batch, name)[1:2], getattr(alone, name))
    assert annotated("").phrase_spans.shape == (1, 0, 2)
