"""Powerset alignment: similarity of sets of regions and trees of phrases."""

from powerclip.alignment.grounding import Grounding, grounding
from powerclip.alignment.similarity import similarity

__all__ = ["Grounding", "grounding", "similarity"]
