"""The explorer: a page in the browser on which a model's phrases, prompts and search can be tried."""

from powerclip.explore.server import explore

__all__ = ["explore"]
