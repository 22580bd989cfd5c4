"""ONNX: a graph per tower, and what to do with images and texts before, as JSON."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from powerclip.errors import needs_extra
from powerclip.export.parity import Exported
from powerclip.export.tokenizer_files import write_tokenizer
from powerclip.files import read_json, write_json
from powerclip.model import PowerCLIP
from powerclip.model.towers import Tokenizer

TOWERS = {"image": ("pixel_values", "image_embeds"), "text": ("input_ids", "text_embeds")}
"""The input and the output of each graph."""

LARGEST_FILE = 1 << 30
"""Bytes of weights above which they have a file of their own; a graph alone is limited to 2 GiB."""


class _Tower(nn.Module):
    """One of a model's encoders as a module, with unit embeddings."""

    def __init__(self, model: PowerCLIP, encode: str) -> None:
        super().__init__()
        self.model, self.encode = model, encode

    def forward(self, x: Tensor) -> Tensor:
        embedded: Tensor = getattr(self.model, self.encode)(x, normalize=True)
        return embedded


def write(model: PowerCLIP, tokenizer: Tokenizer, folder: Path) -> None:
    """Write ``image.onnx`` and ``text.onnx`` for any batch size, ``preprocess.json`` and the tokenizer's files.

    Raises:
        PowerclipError: onnx, onnxscript or onnxruntime is not installed.
    """
    _require()
    inputs = {"image": torch.zeros(2, 3, *model.image_size), "text": tokenizer(["a", "b"])}
    size = sum(value.nbytes for value in model.state_dict().values())
    for tower, (name, output) in TOWERS.items():
        program = torch.onnx.export(
            _Tower(model, f"encode_{tower}").eval(),
            (inputs[tower],),
            dynamo=True,
            input_names=[name],
            output_names=[output],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
        assert program is not None
        program.save(folder / f"{tower}.onnx", external_data=size > LARGEST_FILE)
    bias = model.logit_bias
    logits = {"scale": model.logit_scale.exp().item(), "bias": None if bias is None else bias.item()}
    preprocess = {**model.backbone.visual.preprocess_cfg, "size": list(model.image_size)}
    image = {"input": "pixel_values", "layout": "batch, RGB, height, width; float32", "rescale": "1/255", **preprocess}
    text: dict[str, Any] = {"input": "input_ids", "layout": "batch, context_length; int64"}
    text |= {"context_length": model.context_length, **write_tokenizer(tokenizer, folder)}
    write_json(folder / "preprocess.json", {"image": image, "text": text, "logits": logits})


def read(folder: Path) -> Exported:
    """Both graphs in onnxruntime, on the CPU, and the tokenizer; the rest is left to whoever runs them."""
    runtime = _require()

    def encoder(tower: str) -> Any:
        session = runtime.InferenceSession(folder / f"{tower}.onnx", providers=["CPUExecutionProvider"])
        return lambda x: torch.from_numpy(session.run(None, {TOWERS[tower][0]: x.numpy()})[0])

    return Exported(encode_image=encoder("image"), encode_text=encoder("text"), tokenizer=bare_tokenizer(folder))


def bare_tokenizer(folder: Path) -> Callable[[Sequence[str]], Tensor] | None:
    """What ``tokenizer.json`` alone makes of captions; None for CLIP's tokenizer, which has none."""
    if not (folder / "tokenizer.json").is_file():
        return None
    from tokenizers import Tokenizer as Bare

    bare, says = Bare.from_file(str(folder / "tokenizer.json")), read_json(folder / "preprocess.json")["text"]
    bare.enable_truncation(says["context_length"])
    bare.enable_padding(length=says["context_length"], pad_id=says["padding"])
    return lambda captions: torch.tensor([encoded.ids for encoded in bare.encode_batch(list(captions))])


def usage(model: PowerCLIP) -> str:
    """How to run it."""
    return """```python
import onnxruntime

image_tower, text_tower = (onnxruntime.InferenceSession(f"FOLDER/{name}.onnx") for name in ("image", "text"))
(image_embeds,) = image_tower.run(None, {"pixel_values": pixels})  # (B, 3, H, W) float32 to (B, D), unit length
(text_embeds,) = text_tower.run(None, {"input_ids": tokens})  # (B, context_length) int64 to (B, D), unit length
```

`preprocess.json` says how pixels and tokens are made, with the cleaning of texts before them, and the scale and bias of
the logits. The tokenizer's files are in the folder."""


def _require() -> Any:
    with needs_extra("--to onnx", "onnx"):
        import onnx  # noqa: F401  # the exporter needs these two
        import onnxruntime
        import onnxscript  # noqa: F401
    return onnxruntime
