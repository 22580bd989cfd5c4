"""A model with its preprocessing: images and texts to unit embeddings, batch by batch, on one or many processes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, Protocol, TypeVar

import torch
from PIL import Image
from torch import Tensor

from powerclip.distributed import gather_rows, rank, world_size
from powerclip.evaluate.datasets.images import key_of, open_picture
from powerclip.tasks import Picture

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
Value = TypeVar("Value")
Preprocess = Callable[[Image.Image], Tensor]
Tokenize = Callable[[list[str]], Tensor]


class Model(Protocol):
    """What evaluation needs of a model: any open_clip-style one will do."""

    training: bool

    def encode_image(self, images: Tensor, normalize: bool = False) -> Tensor:
        """(B, 3, H, W) images to (B, D)."""

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        """(B, T) token ids to (B, D)."""

    def train(self, mode: bool = True) -> object:
        """Switch between training and evaluation."""


class Memory(Generic[Item, Value]):
    """Values that are computed once for each item, whatever number of times it is asked for."""

    def __init__(self, key: Callable[[Item], Hashable]) -> None:
        """Set up an empty memory.

        Args:
            key: what equal items have in common. An item is held as long as its value, so that the key can be its id.
        """
        self._key = key
        self._known: dict[Hashable, tuple[Item, Value]] = {}

    def get(self, items: Sequence[Item], compute: Callable[[list[Item]], Iterable[Value]]) -> list[Value]:
        """The items' values; ``compute`` is called with the distinct items that are not known, if there are any."""
        keys = [self._key(item) for item in items]
        new = {key: item for key, item in zip(keys, items, strict=True) if key not in self._known}
        if new:
            found = zip(new.items(), compute(list(new.values())), strict=True)
            self._known |= {key: (item, value) for (key, item), value in found}
        return [self._known[key][1] for key in keys]

    def add(self, items: Iterable[Item], values: Iterable[Value]) -> None:
        """Values that were computed elsewhere; those that are known already stay."""
        for item, value in zip(items, values, strict=True):
            self._known.setdefault(self._key(item), (item, value))

    def __iter__(self) -> Iterator[Hashable]:
        """The keys of the items whose values are known."""
        return iter(self._known)

    def forget(self, keys: Iterable[Hashable]) -> None:
        """Drop some items' values, by their keys."""
        for key in keys:
            self._known.pop(key, None)


class Encoder:
    """A model with its preprocessing: images and texts to unit float32 embeddings on the CPU.

    An image or text is encoded once, whatever number of items and tasks show it. Only a batch of images is open at a
    time, and the next one while the model works on it. Under an initialised process group each process encodes its share
    of the batches, and all get all embeddings: the batches are those of one process, so that the embeddings are the same.
    """

    def __init__(
        self,
        model: Model,
        preprocess: Preprocess,
        tokenizer: Tokenize,
        *,
        device: torch.device | str,
        batch_size: int,
        workers: int = 0,
    ) -> None:
        """Set up the encoder.

        Args:
            model: where the embeddings come from.
            preprocess: PIL image to (3, H, W).
            tokenizer: texts to (B, T).
            device: where the model is.
            batch_size: images or texts encoded at once.
            workers: threads that open and preprocess images while the model works.
        """
        self.model, self.preprocess, self.tokenizer = model, preprocess, tokenizer
        self.device, self.batch_size, self.workers = device, batch_size, workers
        self.known_images: Memory[Picture, Tensor] = Memory(key_of)
        self.known_texts: Memory[str, Tensor] = Memory(str)

    def images(self, pictures: Sequence[Picture]) -> Tensor:
        """(I, D) embeddings."""
        return _stacked(
            self.known_images.get(
                pictures, lambda new: self.encode(new, self._open, lambda batch: self.model.encode_image(batch))
            )
        )

    def texts(self, texts: Sequence[str]) -> Tensor:
        """(J, D) embeddings."""
        return _stacked(
            self.known_texts.get(
                texts, lambda new: self.encode(new, self.tokenize, lambda batch: self.model.encode_text(batch))
            )
        )

    def encode(
        self, items: Sequence[Item], prepare: Callable[[Sequence[Item]], Tensor], embed: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """(items, D) unit float32 vectors on the CPU: ``embed`` of ``prepare`` of each batch, on the model's device."""
        found = [
            (torch.nn.functional.normalize(embed(batch.to(self.device)).float(), dim=-1), own)
            for batch, own in self.batches(items, prepare)
        ]
        parts = [embedded for embedded, own in found if own]
        mine = torch.cat(parts) if parts else torch.zeros(0, 1, device=self.device)
        return gather_rows(mine)[0].cpu()

    def batches(
        self, items: Sequence[Item], prepare: Callable[[Sequence[Item]], Prepared]
    ) -> Iterator[tuple[Prepared, bool]]:
        """This process's batches, prepared, and whether it is its own; with workers, one is prepared ahead.

        All processes get the same number: a model sharded over them can only be run by all. Where one has fewer of its
        own, the first ones of others follow, whose embeddings are not used.
        """
        starts = range(0, len(items), self.batch_size)
        per_process = -(-len(starts) // world_size())
        own = starts[rank() * per_process : (rank() + 1) * per_process]
        begins = [*own, *starts[: per_process - len(own)]]
        parts = [items[start : start + self.batch_size] for start in begins]
        for number, batch in enumerate(self._ahead(parts, prepare)):
            yield batch, number < len(own)

    def _ahead(
        self, parts: Sequence[Sequence[Item]], prepare: Callable[[Sequence[Item]], Prepared]
    ) -> Iterator[Prepared]:
        if self.workers == 0 or not parts:
            yield from map(prepare, parts)
            return
        with ThreadPoolExecutor(1) as ahead:
            next_one = ahead.submit(prepare, parts[0])
            for following in [*parts[1:], None]:
                batch = next_one.result()
                if following is not None:
                    next_one = ahead.submit(prepare, following)
                yield batch

    def _open(self, pictures: Sequence[Picture]) -> Tensor:
        def one(picture: Picture) -> Tensor:
            return self.preprocess(open_picture(picture))

        if self.workers == 0:
            return torch.stack([one(picture) for picture in pictures])
        with ThreadPoolExecutor(self.workers) as pool:
            return torch.stack(list(pool.map(one, pictures)))

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """(B, T) token ids."""
        return self.tokenizer(list(texts))


def _stacked(rows: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(rows)) if rows else torch.zeros(0, 1)
