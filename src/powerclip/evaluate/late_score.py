"""FILIP's late interaction as the score of an image and a text, in place of the product of global embeddings."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from powerclip.alignment.vectors import MaskedVectors
from powerclip.evaluate.datasets.images import key_of
from powerclip.evaluate.encode import Encoder, Tensors, padded, powerclip_model, unit
from powerclip.loss.filip import mean_over_patches, mean_over_tokens
from powerclip.tasks import Picture

TILE = 32
"""Images, and texts, whose vectors are on the device in float32 at once."""


class LateScorer:
    """Scores images and texts by late interaction (Yao et al., "FILIP", 2022), of any PowerCLIP model.

    With x_n the N unit patch vectors of an image and y_t the T unit vectors of a text's valid tokens, the start and the
    end of text among them as in training, FILIP's equations 4 and 5 are

        s_I = 1/N sum_n max_t <x_n, y_t>    and    s_T = 1/T sum_t max_n <x_n, y_t>.

    FILIP is trained to rank texts for an image by s_I, and images for a text by s_T (equations 2 and 3), so retrieval
    is scored that way here. Classification is by s_I, averaged over a class's prompts, as in the paper. A single pair,
    in hard negatives and quadruples, for which the paper has no score, gets the mean (s_I + s_T) / 2.

    The vectors are held in float16, which changes a score by about 2^-10 at most: 2 N D bytes an image
    (200 kB for ViT-B/16), and 2 T D a text, with T that of the longest; twice that while a task is scored.
    Scores take N T D products a pair.
    """

    def __init__(self, encoder: Encoder) -> None:
        """Set up the scorer; ValueError if the model has no patches and tokens.

        The encoder gets the images' global embeddings too, which cost no further pass.
        """
        self.encoder = encoder
        self.model = powerclip_model(encoder.model, "the late-interaction score", hint="; use score='global'")

    def images(self, pictures: Sequence[Picture], masks: object = None) -> MaskedVectors:
        """The patch vectors of images, which do not depend on masks."""

        def embed(images: Tensor) -> Tensors:
            vectors, mask, embedded = self.model.encode_image_and_regions(images, None)
            return unit(vectors).half(), mask, unit(embedded)

        keys = [(key_of(picture), "patches") for picture in pictures]
        rows = self.encoder.once(pictures, keys, self.encoder.open_images, embed)
        for picture, (key, _), row in zip(pictures, keys, rows, strict=True):
            self.encoder.known.setdefault((key, "image"), (picture, row[2:]))
        return padded(rows)

    def texts(self, texts: Sequence[str]) -> MaskedVectors:
        """The token vectors of texts."""

        def embed(tokens: Tensor) -> Tensors:
            mask = self.model.valid_tokens(tokens)
            used = mask.any(dim=0)
            vectors = unit(self.model.encode_tokens(tokens)).masked_fill(~mask[..., None], 0.0)
            return vectors[:, used].half(), mask[:, used]

        keys = [(text, "tokens") for text in texts]
        return padded(self.encoder.once(texts, keys, self.encoder.tokens, embed))

    def score(self, images: MaskedVectors, texts: MaskedVectors) -> Tensor:
        """(I, J) s_I of every image and text: how well each text answers to an image."""
        return self._in_tiles(images, texts, mean_over_patches)

    def score_images(self, images: MaskedVectors, texts: MaskedVectors) -> Tensor:
        """(I, J) s_T of every image and text: how well each image answers to a text."""
        return self._in_tiles(images, texts, mean_over_tokens)

    def score_pairs(self, images: MaskedVectors, texts: MaskedVectors) -> Tensor:
        """(P,) means of s_I and s_T of P images, each with the text in its place."""
        i, t = self._on_device(images), self._on_device(texts)
        s_PTN = torch.einsum("ptd,pnd->ptn", t.values, i.values)
        return (mean_over_patches(s_PTN, t.mask) + mean_over_tokens(s_PTN, t.mask)).cpu() / 2

    def _in_tiles(
        self, images: MaskedVectors, texts: MaskedVectors, score: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        found = torch.zeros(len(images), len(texts))
        for a in range(0, len(images), TILE):
            i = self._on_device(images[a : a + TILE])
            for b in range(0, len(texts), TILE):
                t = self._on_device(texts[b : b + TILE])
                s_IJTN = torch.einsum("jtd,ind->ijtn", t.values, i.values)
                found[a : a + TILE, b : b + TILE] = score(s_IJTN, t.mask).cpu()
        return found

    def _on_device(self, vectors: MaskedVectors) -> MaskedVectors:
        """Vectors in float32, without what is padding in all rows."""
        used = vectors.mask.any(dim=0)
        used[:1] = True  # without rows too there is one column to take maxima over
        v = MaskedVectors(values=vectors.values[:, used], mask=vectors.mask[:, used]).to(self.encoder.device)
        return MaskedVectors(values=v.values.float(), mask=v.mask)
