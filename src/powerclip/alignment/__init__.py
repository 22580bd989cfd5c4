"""Powerset alignment: similarity of sets of regions and trees of phrases."""

from powerclip.alignment.grounding import Grounding, grounding
from powerclip.alignment.similarity import Method, similarity

__all__ = ["Grounding", "Method", "grounding", "similarity"]
