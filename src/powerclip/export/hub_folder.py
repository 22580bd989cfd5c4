"""powerclip's own form with everything that a hub repository needs: config, safetensors, tokenizer, card."""

from pathlib import Path

import powerclip
from powerclip.export.parity import Exported
from powerclip.model import PowerCLIP, save
from powerclip.model.towers import Tokenizer


def write(model: PowerCLIP, tokenizer: Tokenizer, folder: Path) -> None:
    """Write ``config.json`` and ``model.safetensors``, and the tokenizer's files if it is not CLIP's."""
    save(model, folder)
    if hasattr(tokenizer, "save_pretrained") and not (folder / "tokenizer_config.json").is_file():
        tokenizer.save_pretrained(folder)


def read(folder: Path) -> Exported:
    """The model as ``powerclip.load`` gives it."""
    model, preprocess, tokenizer = powerclip.load(folder)
    return Exported.of(model, preprocess, tokenizer, buffers=dict(model.named_buffers()))


def usage(model: PowerCLIP) -> str:
    """How to load it."""
    return """```python
import powerclip

model, preprocess, tokenizer = powerclip.load("FOLDER")  # or the id of the hub repository that it was uploaded to
```"""
