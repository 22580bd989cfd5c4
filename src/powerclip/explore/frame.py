"""What the explorer shows of a result: a document of the report's form, in a frame that can do nothing else."""

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, FileSystemLoader
from markupsafe import Markup

from powerclip.report.html import page_part
from powerclip.report.tables import TEMPLATES

OWN = FileSystemLoader(Path(__file__).parent)
PAGES = TEMPLATES.overlay(loader=ChoiceLoader([OWN, *([TEMPLATES.loader] if TEMPLATES.loader else [])]))


def frame(
    template: str, *, runs: Sequence[str] = (), images: Sequence[str] = (), masks: Any = (), **content: Any
) -> str:
    """An iframe with a rendered template: no origin, no network, no script but the report's and ``frame.js``.

    ``images`` are data URIs and ``masks`` strings of 0 and 1, as the report's script reads them; it takes part in the
    height of the page around it by a message.
    """
    script = page_part("page.js") + Markup(Path(__file__).with_name("frame.js").read_text(encoding="utf-8"))
    document = PAGES.get_template(template).render(
        **content,
        runs=runs,
        loaded=runs,
        data=Markup(json.dumps({"runs": runs, "images": images, "curves": [], "masks": masks}).replace("<", "\\u003c")),
        style=page_part("page.css") + Markup(Path(__file__).with_name("frame.css").read_text(encoding="utf-8")),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return f'<iframe class="result" title="result" sandbox="allow-scripts" srcdoc="{html.escape(document)}"></iframe>'
