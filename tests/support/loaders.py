"""A loader of some data, opened for it."""

from contextlib import closing
from itertools import islice

from powerclip.config import DataConfig
from powerclip.data.loader import DEFAULT_CACHE, Loader, open_data
from tests.support.models import tiny_tower


def loader_of(data, towers=None, *, batch_size=8, seed=3, cache=DEFAULT_CACHE, part=(0, 1), regions=0, **settings):
    """``settings`` are those of DataConfig; regions are the stored ones unless ``boxes=True`` is among them."""
    source = "boxes" if settings.pop("boxes", False) else "stored"
    return Loader(
        open_data(data, cache=cache),
        towers or tiny_tower(),
        DataConfig(**settings),
        batch_size=batch_size,
        seed=seed,
        regions=regions,
        region_source=source,
        part=part,
    )


def batches_of(data, towers=None, epoch=0, **options):
    """The batches of an epoch, as a list."""
    return list(epoch_of(loader_of(data, towers, **options), epoch))


def epoch_of(loader, epoch=0, *, start_batch=0):
    """The batches of one epoch, one after the other."""
    with closing(loader.steps(epoch * loader.batches_per_epoch + start_batch)) as steps:
        for (batch,) in islice(steps, loader.batches_per_epoch - start_batch):
            yield batch
