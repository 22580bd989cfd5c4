"""A model with its preprocessing: images and texts to embeddings, each once, in batches, on one or many processes."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from powerclip.alignment.vectors import MaskedVectors
from powerclip.config.values import Pixels
from powerclip.distributed import gather_rows, rank, world_size
from powerclip.evaluate.datasets.images import key_of, open_picture
from powerclip.model import PowerCLIP, make_transforms
from powerclip.phrases.tokens import used_length
from powerclip.regions import masks_to_grid
from powerclip.tasks import Picture, Region, Shown

Item = TypeVar("Item")
Preprocess = Callable[[Image.Image], Tensor]
Tokenize = Callable[[list[str]], Tensor]
Tensors = tuple[Tensor, ...]
Key = tuple[Hashable, Hashable]
"""``key_of`` an image, or a text; and what is computed of it."""


BOXES_AT_ONCE = 16
"""Boxes of an image whose vectors are kept in a row; an image with more is encoded again."""


class Model(Protocol):
    """What evaluation needs of a model: any open_clip-style one will do."""

    training: bool

    def encode_image(self, images: Tensor, normalize: bool = False) -> Tensor:
        """(B, 3, H, W) images to (B, D)."""

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        """(B, T) token ids to (B, D)."""

    def train(self, mode: bool = True) -> object:
        """Switch between training and evaluation."""


@dataclass
class Encoder:
    """A model with its preprocessing: images and texts to unit float32 embeddings on the CPU.

    ``preprocess`` turns a PIL image into (3, H, W), ``tokenizer`` texts into (B, T). An image or text is encoded once,
    whatever number of items and tasks show it. Only a batch of images is open at a time, and the next one while the
    model works on it. Under an initialised process group each process encodes its share of the batches, and all get all
    embeddings: the batches are those of one process, so that the embeddings are the same.
    """

    model: Model
    preprocess: Preprocess
    tokenizer: Tokenize
    _: KW_ONLY
    device: torch.device | str
    batch_size: int
    workers: int = 0
    """Threads that open and preprocess images while the model works."""
    pixels: Pixels = "pil"
    """How images of public data sets are read."""
    known: dict[Key, tuple[object, Tensors]] = field(default_factory=dict)
    """What was computed, with its item, which is held so that the key can be its id."""

    def images(self, shown: Sequence[Shown], masks: object = None) -> Tensor:
        """(I, D) embeddings, which do not depend on masks, of images; or of regions, if the first is one."""
        if shown and isinstance(shown[0], Region):
            return self._regions([region for region in shown if isinstance(region, Region)])
        pictures = [picture for picture in shown if not isinstance(picture, Region)]
        keys = [(key_of(picture), "image") for picture in pictures]
        return _stacked(self.once(pictures, keys, self.open_images, lambda x: (unit(self.model.encode_image(x)),)))

    def _regions(self, regions: Sequence[Region]) -> Tensor:
        """(R, D) unit vectors of regions, from one pass over each image, which is squeezed to the tower's size."""
        model = powerclip_model(self.model, "a task on regions")
        transform = make_transforms(model, crop="none")[0]
        by_image: dict[Hashable, list[Region]] = {}
        for region in regions:
            by_image.setdefault(key_of(region.image), []).append(region)
        parts: list[list[Region]] = []
        for of_image in by_image.values():
            parts += [of_image[start : start + BOXES_AT_ONCE] for start in range(0, len(of_image), BOXES_AT_ONCE)]

        def prepare(items: Sequence[list[Region]]) -> Tensors:
            pictures = [open_picture(part[0].image, self.pixels) for part in items]
            grids = [self._on_grid(model, part, size.size) for part, size in zip(items, pictures, strict=True)]
            return torch.stack([transform(picture) for picture in pictures]), pad_sequence(grids, batch_first=True)

        keys = [(key_of(part[0].image), tuple(id(region) for region in part)) for part in parts]
        rows = self.once(parts, keys, prepare, lambda images, grids: (unit(model.encode_regions(images, grids)[0]),))
        found = {id(region): row[i] for part, (row,) in zip(parts, rows, strict=True) for i, region in enumerate(part)}
        return torch.stack([found[id(region)] for region in regions])

    @staticmethod
    def _on_grid(model: PowerCLIP, regions: Sequence[Region], size: tuple[int, int]) -> Tensor:
        """(M, N) bool: the patches of each region of an image of (width, height) pixels; at least one."""
        height, width = model.image_size
        masks = torch.zeros(len(regions), height, width, dtype=torch.bool)
        for mask, region in zip(masks, regions, strict=True):
            x0, x1 = (region.box[i] * width / size[0] for i in (0, 2))
            y0, y1 = (region.box[i] * height / size[1] for i in (1, 3))
            left, top = (min(max(round(at), 0), end - 1) for at, end in ((x0, width), (y0, height)))
            mask[top : max(round(y1), top + 1), left : max(round(x1), left + 1)] = True
        return masks_to_grid(masks, model.grid_size)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """(J, D) embeddings."""
        keys = [(text, "text") for text in texts]
        return _stacked(self.once(texts, keys, self.tokens, lambda x: (unit(self.model.encode_text(x)),)))

    def tokens(self, texts: Sequence[str]) -> Tensors:
        """(B, T) ids of texts, as ``tokenized`` gives them."""
        return (tokenized(self.model, self.tokenizer, texts),)

    def seen_of(self, texts: Sequence[str]) -> list[Hashable]:
        """What the model sees of each text: texts whose tokens are equal cannot be told apart."""
        parts = [texts[start : start + self.batch_size] for start in range(0, len(texts), self.batch_size)]
        return [row.numpy().tobytes() for part in parts for row in self.tokenizer(list(part))]

    def cut(self, texts: Sequence[str]) -> float:
        """The share of texts that are longer than the model's context; 0 if the tokenizer does not say its length."""
        length = getattr(self.tokenizer, "context_length", None)
        if length is None or not texts:
            return 0.0
        tokenize: Any = self.tokenizer  # open_clip's can also be asked for one token more
        padding, longer = tokenize([""])[0, -1], 0
        for start in range(0, len(texts), self.batch_size):
            tokens = tokenize(list(texts[start : start + self.batch_size]), context_length=length + 1)
            longer += int((tokens[:, length] != padding).sum())
        return longer / len(texts)

    def score(self, images: Tensor, texts: Tensor) -> Tensor:
        """(I, J) scores of every image and text: the products of their embeddings."""
        return images @ texts.T

    score_images = score
    """The same for a scorer whose scores depend on which of both asks: (I, J) where the texts do."""

    def score_pairs(self, images: Tensor, texts: Tensor) -> Tensor:
        """(P,) scores of P images, each with the text in its place."""
        return (images * texts).sum(dim=1)

    def once(
        self,
        items: Sequence[Item],
        keys: Sequence[Key],
        prepare: Callable[[Sequence[Item]], Tensors],
        embed: Callable[..., Tensors],
    ) -> list[Tensors]:
        """Each item's rows on the CPU; those whose key, equal for equal items, is not known yet are computed.

        ``prepare`` turns a batch of items into tensors with a row for each, and ``embed`` these tensors, on the model's
        device, into others with a row for each item. Rows of different lengths are padded with zeros.
        """
        new = {key: item for key, item in zip(keys, items, strict=True) if key not in self.known}
        if new:
            distinct = list(new.values())
            # One block for all rows: small tensors kept between large ones that are freed would split the heap.
            blocks: list[Tensor] = []
            count, filled = sum(len(distinct[start : start + self.batch_size]) for start in self._own(distinct)), 0
            for batch, own in self._batches(distinct, prepare):
                made = embed(*map(self._sent, batch))
                blocks = blocks or [x.new_zeros(count, *x.shape[1:]) for x in made]
                if own:
                    blocks = [_put(block, x, filled) for block, x in zip(blocks, made, strict=True)]
                    filled += len(made[0])
            columns = [gather_rows(block)[0].cpu() for block in blocks]
            rows = zip(*columns, strict=True)
            self.known |= {key: (item, row) for (key, item), row in zip(new.items(), rows, strict=True)}
        return [self.known[key][1] for key in keys]

    def _sent(self, x: Tensor) -> Tensor:
        """A batch's tensor on the model's device; pixels in the precision of its weights."""
        weights: Iterable[Tensor] = getattr(self.model, "parameters", tuple)()
        dtype = next((w.dtype for w in weights if w.is_floating_point()), x.dtype)
        return x.to(self.device, dtype if x.is_floating_point() else None)

    def open_images(self, pictures: Sequence[Picture]) -> Tensors:
        """(B, 3, H, W) preprocessed images."""

        def opened(picture: Picture) -> Tensor:
            return self.preprocess(open_picture(picture, self.pixels))

        if self.workers == 0:
            return (torch.stack([opened(picture) for picture in pictures]),)
        with ThreadPoolExecutor(self.workers) as pool:
            return (torch.stack(list(pool.map(opened, pictures))),)

    def _batches(
        self, items: Sequence[Item], prepare: Callable[[Sequence[Item]], Tensors]
    ) -> Iterator[tuple[Tensors, bool]]:
        """This process's batches, prepared, and whether it is its own; with workers, one is prepared ahead.

        All processes get the same number: a model sharded over them can only be run by all. Where one has fewer of its
        own, the first ones of others follow, whose embeddings are not used.
        """
        starts, own = range(0, len(items), self.batch_size), self._own(items)
        per_process = -(-len(starts) // world_size())
        begins = [*own, *starts[: per_process - len(own)]]
        parts = [items[start : start + self.batch_size] for start in begins]
        for number, batch in enumerate(map(prepare, parts) if self.workers == 0 else _ahead(parts, prepare)):
            yield batch, number < len(own)

    def _own(self, items: Sequence[Item]) -> range:
        """Where this process's batches start."""
        starts = range(0, len(items), self.batch_size)
        per_process = -(-len(starts) // world_size())
        return starts[rank() * per_process : (rank() + 1) * per_process]


def powerclip_model(model: object, what: str, *, hint: str = "") -> PowerCLIP:
    """The model, if it has patches, regions and phrases; ValueError, which says what needs them, if not."""
    if not isinstance(model, PowerCLIP):
        raise ValueError(f"{what} needs a PowerCLIP model, got {type(model).__name__}{hint}")
    return model


def tokenized(model: object, tokenizer: Tokenize, texts: Sequence[str]) -> Tensor:
    """(B, T) ids of texts, with T the ``used_length`` for a PowerCLIP model; others may need all of the context."""
    tokens = tokenizer(list(texts))
    return tokens[:, : used_length([tokens])] if isinstance(model, PowerCLIP) else tokens


def unit(embedded: Tensor) -> Tensor:
    """(B, D) embeddings as float32 of unit length."""
    return normalize(embedded.float(), dim=-1)


def padded(rows: Sequence[Tensors]) -> MaskedVectors:
    """The vectors and masks with which the rows of ``Encoder.once`` begin."""
    if not rows:
        return MaskedVectors(values=torch.zeros(0, 1, 1), mask=torch.zeros(0, 1).bool())
    values, mask = (pad_sequence([row[i] for row in rows], batch_first=True) for i in (0, 1))
    return MaskedVectors(values=values, mask=mask)


def _ahead(parts: Sequence[Sequence[Item]], prepare: Callable[[Sequence[Item]], Tensors]) -> Iterator[Tensors]:
    with ThreadPoolExecutor(1) as thread:
        prepared = thread.submit(prepare, parts[0])
        for following in parts[1:]:
            batch, prepared = prepared.result(), thread.submit(prepare, following)
            yield batch
        yield prepared.result()


def _put(block: Tensor, rows: Tensor, at: int) -> Tensor:
    """The block with a batch's rows from a place on; both are padded with zeros to the longer rows."""
    if rows.ndim == 1:
        block[at : at + len(rows)] = rows
        return block
    if rows.shape[1] > block.shape[1]:
        wider = block.new_zeros(len(block), *rows.shape[1:])
        wider[:, : block.shape[1]] = block
        block = wider
    block[at : at + len(rows), : rows.shape[1]] = rows
    return block


def _stacked(rows: Sequence[Tensors]) -> Tensor:
    return torch.stack([row for (row,) in rows]) if rows else torch.zeros(0, 1)
