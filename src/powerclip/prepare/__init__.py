"""From images and captions to annotated shards."""

from powerclip.prepare.job import prepare

__all__ = ["prepare"]
