"""The model card: what a model is, how to load it, and what it was trained on, how, with which results."""

from dataclasses import replace
from pathlib import Path, PurePath
from urllib.parse import urlsplit

import yaml

import powerclip
from powerclip.config import to_yaml
from powerclip.data.remote import is_remote
from powerclip.evaluate import read_evaluation
from powerclip.export.parity import Parity
from powerclip.model import PowerCLIP, describe
from powerclip.report.tables import absent_note, results_table
from powerclip.runs import RunFolder


def model_card(source: str, model: PowerCLIP, *, usage: str, parity: Parity, licence: str) -> str:
    """The card in Markdown, with the hub's front matter; what is not known is said to be so.

    ``source`` is the run, model folder or hub id that the model was loaded from; a model folder inside a run takes
    data and settings from it. Data sets are named by their last folder, as the others are nobody else's business.
    """
    front = {
        "license": licence or "unknown",
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["clip", "powerclip", "zero-shot-image-classification"],
    }
    name = Path(source).resolve().name if Path(source).exists() else source
    folders = (RunFolder(folder) for folder in (Path(source), Path(source).parent))
    run = next((folder for folder in folders if folder.config_file.is_file()), None)
    data = None if run is None else run.data()
    results = read_evaluation(Path(source))
    settings = f"```yaml\n{to_yaml(run.config())}```" if run else "Not recorded with the model."
    trained_on = "Not recorded with the model."
    if data is not None:
        names = ", ".join(f"`{_name(place)}`" for place in data.sources)
        trained_on = f"{data.samples} pairs in {data.shards} shards: {names} (digest `{data.digest}`)."
    measured = "Not measured; `powerclip evaluate` does."
    if results is not None:
        measured = results_table({name: [results]}).markdown() + "".join(
            f"\n- {line}" for line in absent_note(results).splitlines()
        )
    compared = replace(parity, source=_name(parity.source))
    height, width = model.image_size
    sections = {
        "Use": usage,
        "Model": f"{describe(model)}. Images are {height} x {width} pixels, "
        f"texts at most {model.context_length} tokens.",
        "Training data": trained_on,
        "Settings": settings,
        "Results": measured,
        "Parity with the original": "".join(f"- {line}\n" for line in compared.lines()),
        "Licence": licence or "The owner of the weights has not stated one. That of the training data may apply, too.",
    }
    body = "\n".join(f"## {title}\n\n{text.strip()}\n" for title, text in sections.items())
    made = f"An image tower and a text tower in one space, exported by powerclip {powerclip.__version__}."
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# {name}\n\n{made}\n\n{body}"


def _name(source: str) -> str:
    """A data set without the folders above it, or the user and the query of its URL."""
    if not is_remote(source):
        return PurePath(source).name
    parts = urlsplit(source)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
