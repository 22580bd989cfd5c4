"""Zero-shot evaluation tasks: the questions that a model is asked, whatever data set they come from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

Picture = Image.Image | Callable[[], Image.Image]
"""An image, or a function that opens it when it is needed: evaluation holds only a batch of images at a time. Functions
that are equal (frozen dataclasses, say) open the same image, which is then encoded once."""

Masks = Callable[[], Any]
"""A function that opens the region masks of an image when needed: (M, H, W) bool array in the image's pixels, or (H, W)
arrays one after the other."""

Truth = Callable[[], Any]
"""A function that opens the labels of an image's pixels: (H, W) integer array, ``IGNORED`` where there is none."""

IGNORED = 255
"""The label of pixels that do not count."""


@dataclass(frozen=True, eq=False)
class Region:
    """A box of an image, whose vector is that of the patches inside: (left, top, right, bottom) in pixels."""

    image: Picture
    box: tuple[float, float, float, float]


Shown = Picture | Region
"""What is shown to a model: an image, or a box of one."""

Content = Shown | str
"""What is compared in hard negatives: images or texts."""

PLACE = "{c}"
"""Where the class name goes in a prompt."""


@dataclass(frozen=True, kw_only=True)
class Classification:
    """A zero-shot classification task: single-label images or boxes and the class names to choose from."""

    name: str
    images: Sequence[Shown]
    labels: Sequence[int]
    class_names: Sequence[str]
    templates: Sequence[str]
    """Prompts with one ``{c}`` where the class name goes."""


@dataclass(frozen=True, kw_only=True)
class MultiLabel:
    """A zero-shot classification task whose images have any number of classes."""

    name: str
    images: Sequence[Picture]
    targets: Sequence[Sequence[int]]
    """For each image and class, 1 if the image has the class, otherwise 0."""
    class_names: Sequence[str]
    templates: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """An image-text retrieval task: each image has one or more captions."""

    name: str
    images: Sequence[Picture]
    captions: Sequence[Sequence[str]]
    masks: Sequence[Masks | None] | None = None
    """The images' own regions, for scores that look at regions; None where an image has none stored."""


@dataclass(frozen=True, kw_only=True)
class HardNegative:
    """An image with one right and one or more minimally wrong captions (the form of SugarCrepe).

    The question may also be turned around: ``image`` is then a text, with a right and wrong images or other texts.
    """

    image: Content
    positive: Content
    negatives: Sequence[Content]
    """The wrong captions: the right one must score higher than all.
    Where none could be made, the item counts as right."""
    kind: str
    """What the captions differ in: replace_obj, swap_att, ...; each data set has its own."""
    group: str = ""
    """Items of the same kind and group count as one, which is right if all are."""

    @property
    def contents(self) -> tuple[Content, ...]:
        """Everything that is compared."""
        return (self.image, self.positive, *self.negatives)


@dataclass(frozen=True, kw_only=True)
class HardNegatives:
    """A hard-negative task; what the items ask about, and what they choose from, is all images or all texts."""

    name: str
    items: Sequence[HardNegative]
    macro_kinds: frozenset[str] | None = None
    """The kinds that the release's macro average is over; None for all."""

    @property
    def units(self) -> list[tuple[str, str]]:
        """What each item is counted with: equal for those of one kind and group."""
        return [(item.kind, item.group or f"item {i}") for i, item in enumerate(self.items)]


@dataclass(frozen=True, kw_only=True)
class Quadruple:
    """Two images and two captions of the same words; caption i fits image i only (the form of Winoground)."""

    images: tuple[Picture, Picture]
    captions: tuple[str, str]
    kind: str = ""
    """The part of the data set it belongs to, where there are several."""


@dataclass(frozen=True, kw_only=True)
class Quadruples:
    """A Winoground-style task."""

    name: str
    items: Sequence[Quadruple]


@dataclass(frozen=True, kw_only=True)
class Grounding:
    """A grounding task: where in an image is the object that a phrase names?"""

    name: str
    images: Sequence[Picture]
    phrases: Sequence[Sequence[str]]
    """For each object of an image, a phrase that is true of it and of no other object there."""
    masks: Sequence[Masks]
    """The objects of each image, in the order of its phrases."""


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """A zero-shot segmentation task; the settings are SCLIP's."""

    name: str
    images: Sequence[Picture]
    truths: Sequence[Truth]
    class_names: Sequence[Sequence[str]]
    """The names of each class; a class is as likely as its likeliest name."""
    templates: Sequence[str]
    short_side: int = 0
    """Pixels to which an image's shorter side is resized; at least the model's image size."""
    logit_scale: float = 40.0
    """Inverse temperature of the likelihoods."""
    least_probability: float = 0.0
    """Pixels whose class is less likely become background, class 0."""
    least_area: float = 0.0
    """Classes with a smaller share of the pixels that are not background become background."""


@dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """A linear classifier is trained on the embeddings of some images and tested on those of others."""

    name: str
    images: Sequence[Picture]
    """Images to train on, then images to choose the regularisation by, then test images."""
    labels: Sequence[int]
    counts: tuple[int, int, int]
    """How many images of each; if there is none to choose by, part of the training images is taken."""
    classes: int


Task = Segmentation | Classification | MultiLabel | Retrieval | HardNegatives | Quadruples | Grounding | LinearProbe


def images_of(task: Task) -> Sequence[Shown]:
    """The images of a task, in order (two for each quadruple)."""
    if isinstance(task, HardNegatives):
        return [content for item in task.items for content in item.contents if not isinstance(content, str)]
    if isinstance(task, Quadruples):
        return [image for item in task.items for image in item.images]
    return task.images
