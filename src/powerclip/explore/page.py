"""What is entered on the page and what is done with it; gradio is imported here alone."""

import html
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio
from PIL import Image

from powerclip.errors import PowerclipError
from powerclip.explore.captions import MAX_REGIONS, Captions
from powerclip.explore.prompts import heat_maps
from powerclip.explore.search import ImageIndex
from powerclip.explore.subject import Subject, open_image
from powerclip.report.samples import Pair

MAX_CHARACTERS = 20_000
"""Of a text that is entered."""

RESULTS = 24
"""Images that a search shows."""

SIZING = """<script>
addEventListener("message", (event) => {
  for (const frame of document.querySelectorAll("iframe.result")) {
    const height = Number(event.data && event.data.height);
    if (frame.contentWindow === event.source && height) frame.style.height = `${Math.ceil(height) + 2}px`;
  }
});
</script>"""
"""Makes a result's frame as high as the result, which says so in a message."""

LOOK: dict[str, Any] = {
    "theme": gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    "head": SIZING,
    "css": "iframe.result { width: 100%; height: 20rem; border: 0; display: block; }",
}
"""Fonts are the system's: others would be fetched."""

PRIVATE: dict[str, Any] = {"api_visibility": "private"}


@contextmanager
def messages() -> Iterator[None]:
    """What a visitor can change becomes a message on the page, with any markup in it shown as text."""
    try:
        yield
    except (PowerclipError, ValueError, OSError) as error:
        raise gradio.Error(html.escape(str(error)), duration=None, print_exception=False) from None


@dataclass(frozen=True, kw_only=True)
class Actions:
    """What the page's buttons do."""

    subject: Subject
    captions: Captions
    index: ImageIndex

    def compare(
        self, image: Path | None, first: str | None, second: str | None, proposer: str, count: float, log_tau: float
    ) -> str:
        """One or two captions of the image."""
        with messages():
            texts = [text[:MAX_CHARACTERS] for text in (first, second) if text]
            regions, tau = min(max(int(count), 1), MAX_REGIONS), 10.0 ** min(float(log_tau), 1.0)
            return self.captions.show(_opened(image), texts, proposer=proposer, count=regions, tau=tau)

    def draw(self, image: Path | None, text: str | None) -> str:
        """Heat maps of the image."""
        with messages():
            return heat_maps(self.subject, _opened(image), (text or "")[:MAX_CHARACTERS])

    def update(self) -> Iterator[str]:
        """Bring the index up to date, and say how far it is."""
        with messages():
            for state in self.index.update(self.subject):
                yield f"<p>{html.escape(f'{self.index.folder}: {state}. Kept in {self.index.file}')}</p>"

    def by_text(self, text: str | None) -> Any:
        """Search by a text."""
        with messages():
            text = (text or "").strip()[:MAX_CHARACTERS]
            if not text:
                raise ValueError("no text was given; type what to find")
            return self._found(self.subject.vector_of(text), f'"{text}"', cut=self.subject.cut([text]))

    def by_image(self, image: Path | None) -> Any:
        """Search by the image on the page."""
        with messages():
            return self._found(self.subject.vector_of(_opened(image)), "the image on the page")

    def by_result(self, paths: list[bytes], event: gradio.SelectData) -> Any:
        """Search by an image that was found."""
        with messages():
            path = paths[event.index]
            return self._found(path, path.decode(errors="replace"))

    def _found(self, query: Any, words: str, *, cut: str = "") -> tuple[Any, list[bytes], str]:
        """The gallery, what it shows, and that in words."""
        hits = self.index.search(query, count=RESULTS)
        gallery = gradio.Gallery([(hit.thumbnail, f"{hit.score:.3f} {hit.name}") for hit in hits], selected_index=None)
        said = (
            f"The {len(hits)} images nearest to {words}, by the cosine of the global embeddings. "
            f"Choose one to search on. {cut}"
        )
        return gallery, [hit.path for hit in hits], said


def build(subject: Subject, captions: Captions, index: ImageIndex, folder: Path) -> Any:
    """The page as gradio's blocks; the images of the examples are written to a folder."""
    actions = Actions(subject=subject, captions=captions, index=index)
    examples = _examples(subject.pairs, folder)
    prompts = _innermost_phrases(subject.pairs[0])
    with gradio.Blocks(title="powerclip explore", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        gradio.HTML(f"<h1>powerclip explore: {html.escape(subject.name)}</h1>")
        with gradio.Row():
            with gradio.Column(scale=1, min_width=260):
                image = gradio.Image(
                    examples[0][0], label="Image", sources=["upload", "clipboard"], height=280, buttons=[]
                )
                # It is decoded by powerclip, within its limits, and not by gradio.
                image.preprocess = lambda payload: None if payload is None else Path(payload.path)
                caption = _caption("Caption", examples, value=examples[0][1], info="type one, or pick")
                chosen = gradio.Examples(examples, [image, caption], label="Examples", **PRIVATE)
            with gradio.Column(scale=3, min_width=320), gradio.Tabs():
                with gradio.Tab("Captions"):
                    _captions_tab(actions, page, image, caption, chosen, examples)
                with gradio.Tab("Prompts"):
                    _prompts_tab(actions, image, prompts)
                with gradio.Tab("Search") as tab:
                    _search_tab(actions, tab, image, prompts[0])
    return page


def _captions_tab(
    actions: Actions, page: Any, image: Any, caption: Any, chosen: Any, examples: list[list[str]]
) -> None:
    caption.render()
    second = _caption("Second caption", [["", ""], *examples], value="", info="which of the two fits better?")
    second.render()
    with gradio.Accordion("Regions and temperature", open=False, visible=actions.subject.aligned):
        proposers, single = actions.captions.proposers, actions.captions.single
        proposer = gradio.Radio(proposers, value=proposers[0], label="Regions are")
        count = gradio.Slider(1, MAX_REGIONS, value=MAX_REGIONS, step=1, label="At most this many regions")
        tau = gradio.Slider(
            -4,
            0,
            value=actions.captions.log_tau,
            step=0.25,
            label="log10 of tau, the temperature of S",
            info="This model grounds a phrase by its best region alone, which has no temperature." if single else None,
            interactive=not single,
        )
    show = gradio.Button("Show", variant="primary")
    result = gradio.HTML()
    inputs = [image, caption, second, proposer, count, tau]
    triggers = [show.click, count.change, tau.change, proposer.change, caption.select, second.select, page.load]
    _clearing(gradio.on(triggers, actions.compare, inputs, result, trigger_mode="always_last", **PRIVATE), result)
    _clearing(chosen.load_input_event.then(actions.compare, inputs, result, **PRIVATE), result)


def _prompts_tab(actions: Actions, image: Any, prompts: Sequence[str]) -> None:
    text = gradio.Textbox(
        "\n".join(prompts), lines=4, max_lines=12, label="Prompts, one a line", max_length=MAX_CHARACTERS
    )
    draw = gradio.Button("Draw heat maps", variant="primary")
    result = gradio.HTML()
    _clearing(draw.click(actions.draw, [image, text], result, **PRIVATE), result)


def _search_tab(actions: Actions, tab: Any, image: Any, prompt: str) -> None:
    query = gradio.Textbox(prompt, label="Text to find", max_length=MAX_CHARACTERS)
    with gradio.Row():
        by_text = gradio.Button("Find by this text", variant="primary")
        by_image = gradio.Button("Find by the image")
        update = gradio.Button("Update the index")
    status = gradio.HTML()
    said = gradio.Textbox(show_label=False, container=False, interactive=False)
    gallery = gradio.Gallery(
        label="Results", columns=6, height="auto", allow_preview=False, interactive=False, buttons=[]
    )
    paths = gradio.State([])
    outputs = [gallery, paths, said]
    updated = gradio.on([tab.select, update.click], actions.update, None, status, concurrency_limit=1, **PRIVATE)
    _clearing(updated, status)
    _clearing(gradio.on([by_text.click, query.submit], actions.by_text, query, outputs, **PRIVATE), *outputs)
    _clearing(by_image.click(actions.by_image, image, outputs, **PRIVATE), *outputs)
    _clearing(gallery.select(actions.by_result, paths, outputs, **PRIVATE), *outputs)


def _clearing(event: Any, *outputs: Any) -> None:
    """After an error, an earlier result is not left under what is asked now."""
    empty: list[Any] = [[] if isinstance(output, gradio.State) else None for output in outputs]
    event.failure(lambda: empty if len(empty) > 1 else empty[0], None, list(outputs), **PRIVATE)


def _caption(label: str, examples: list[list[str]], *, value: str, info: str) -> Any:
    """A field for a caption, which is placed later."""
    picked = [caption for _, caption in examples]
    return gradio.Dropdown(picked, value=value, label=label, info=info, allow_custom_value=True, render=False)


def _opened(path: Path | None) -> Image.Image:
    if path is None:
        raise ValueError("no image was given; drop one on the page, or choose an example")
    try:
        return open_image(path)
    except ValueError as error:
        raise ValueError(f"this file cannot be used as an image: {error}") from error


def _examples(pairs: Sequence[Pair], folder: Path) -> list[list[str]]:
    """The images of pairs as files, each with its caption."""
    found = []
    for number, pair in enumerate(pairs):
        path = folder / f"example-{number}.png"
        pair.image.save(path)
        found.append([str(path), pair.caption])
    return found


def _innermost_phrases(pair: Pair) -> list[str]:
    """The phrases of a caption that hold no other phrase; the caption if it has none."""
    spans = {(phrase.first, phrase.last) for phrase in pair.tree.phrases}
    inner = [a for a in spans if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
    leaves = pair.tree.leaves
    return list(dict.fromkeys(pair.caption[leaves[a][0] : leaves[b][1]] for a, b in sorted(inner))) or [pair.caption]
