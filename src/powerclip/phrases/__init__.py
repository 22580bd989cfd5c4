"""Phrases of a caption: its constituency parse, and their spans over a tokenizer's pieces."""

from powerclip.phrases.constituency import Parser, SpacyParser, load_parser, whole_caption_tree
from powerclip.phrases.spans import EncodedCaption, encode_caption

__all__ = ["EncodedCaption", "Parser", "SpacyParser", "encode_caption", "load_parser", "whole_caption_tree"]
