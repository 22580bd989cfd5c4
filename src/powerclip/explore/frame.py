"""What the explorer shows of a result: a document of the report's form, in a frame that can do nothing else."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import FileSystemLoader

from powerclip.report.html import render
from powerclip.report.tables import FOLDER, TEMPLATES

OWN = Path(__file__).parent
PAGES = TEMPLATES.overlay(loader=FileSystemLoader([OWN, FOLDER]))


def frame(
    template: str,
    *,
    runs: Sequence[str] = (),
    images: Sequence[str] = (),
    masks: Any = (),
    cut: str = "",
    **content: Any,
) -> str:
    """An iframe with a rendered template: no origin, no network, no script but the report's and ``frame.js``.

    ``images`` are data URIs and ``masks`` strings of 0 and 1, as the report's script reads them; ``cut`` is
    ``Subject.cut``'s line. It takes part in the height of the page around it by a message.
    """
    document = render(
        PAGES.get_template(template),
        {"runs": runs, "images": images, "curves": [], "masks": masks},
        style=(OWN / "frame.css").read_text(encoding="utf-8"),
        script=(OWN / "frame.js").read_text(encoding="utf-8"),
        runs=runs,
        loaded=runs,
        cut=cut,
        **content,
    )
    return f'<iframe class="result" title="result" sandbox="allow-scripts" srcdoc="{html.escape(document)}"></iframe>'
