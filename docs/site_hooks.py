"""Pages and files of the site that stand outside docs/, and links to them, which stay as a git forge needs them."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "examples/emoji/README.md": "emoji.md",
    "examples/emoji": "emoji.md",
    "examples/open_clip_drop_in.py": "examples/open_clip_drop_in.py",
    "CITATION.cff": "CITATION.cff",
}
"""Where each stands in the site."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add them."""
    for path, name in OUTSIDE.items():
        if (ROOT / path).is_file():
            files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links in them and to them point into the site; the strict build complains of any that lead elsewhere."""
    here = Path(str(page.file.abs_src_path)).parent

    def inside(link: re.Match[str]) -> str:
        target = (here / link[1]).resolve()
        if not target.is_relative_to(ROOT):
            return link[0]
        path = target.relative_to(ROOT).as_posix()
        name = OUTSIDE.get(path, path.removeprefix("docs/"))  # both are pages of the site's top folder
        return f"]({name}"

    return re.sub(r"\]\((?!\w+:|#)([^)#\s]+)", inside, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Keep options in the text whole: browsers would break lines after their dashes."""
    return re.sub(r"(?<=[\s>])--[a-z][\w.-]*\w", r'<span class="option">\g<0></span>', html)
