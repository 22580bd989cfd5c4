"""The commands of ``powerclip``: a dataclass each, which tyro fills and ``cli`` runs."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from powerclip.config import EmbedConfig, EvaluateConfig, ExploreConfig, PrepareConfig, TrainConfig
from powerclip.config.checks import changed
from powerclip.config.values import ExportTarget, Objective
from powerclip.errors import PowerclipError, printable
from powerclip.launcher import is_first_process

# Each command imports what it runs when it runs: torch takes seconds, `--help` should not.


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Train CLIP and PowerCLIP on generated scenes from the same seed, evaluate both, write report.html.

    If it is interrupted, the same command continues where it stopped.

    Example: powerclip demo --output runs/demo
    """

    output: Path = Path("runs/demo")
    """Folder for the data, both runs and the report."""
    steps: int | None = None
    """Training steps of each of the two models; the default takes a few minutes on two cores."""
    seed: int = 0
    """Decides scenes, initial weights, data order and boxes."""

    def run(self) -> None:
        from powerclip.demo import demo_configs, run_demo

        run_demo(self.output, demo_configs(steps=self.steps, seed=self.seed), console=Console())


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Make annotated shards from images and captions: pack them, parse the captions' phrases, propose regions.

    SOURCE is a folder of images with a .txt caption next to each; a folder of WebDataset tars, or one; a CSV,
    TSV, JSONL or Parquet table of images and captions; a folder saved by Hugging Face's datasets; or
    scenes:train, scenes:test, scenes:compositional (generated). With --captions TABLE, SOURCE is shards, whose
    images get the captions of the table, joined by --join key or url. If it is interrupted, the same command
    continues where it stopped.

    Example: powerclip prepare photos.csv data/photos --workers 8; then powerclip prepare --check data/photos
    """

    source: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="SOURCE")]] = None
    """Where the pairs are."""
    output: tyro.conf.Positional[Annotated[Path | None, tyro.conf.arg(metavar="OUTPUT")]] = None
    """Folder for the shards."""
    check: Path | None = None
    """Instead of making shards: validate these, print their statistics, write a contact sheet next to them."""
    look: bool = True
    """With --check, print three samples and what is odd about the captions."""
    config: Annotated[PrepareConfig, tyro.conf.arg(name="")] = dataclasses.field(default_factory=PrepareConfig)

    def run(self) -> None:
        if self.check is not None:
            if self.source is not None or changed(self.config).keys() - {"workers"}:
                raise PowerclipError(
                    "--check FOLDER checks existing shards; leave out SOURCE, OUTPUT and all options but --workers and "
                    "--no-look"
                )
            from powerclip.prepare.check import check

            check(self.check, workers=self.config.workers, console=Console(), look=self.look)
            return
        if self.source is None or self.output is None:
            raise PowerclipError("no source and output given: powerclip prepare SOURCE OUTPUT, or --check FOLDER")
        if not self.look:
            raise PowerclipError("--no-look is for --check FOLDER; leave it out")
        from powerclip.prepare import prepare

        prepare(self.source, self.output, self.config)


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a model on shards and leave a run folder; an option overrides the recipe's setting of that name.

    Example: powerclip train --recipe scenes_tiny --data data/scenes --output runs/scenes
    """

    data: tuple[str, ...]
    """Folder of shards, one tar, a pattern or a URL (http://host/{000000..000099}.tar); or several of them."""
    output: Path
    """The run folder."""
    resume: Literal["never", "auto"] = "never"
    """auto: continue from the newest checkpoint in the run folder, if there is one."""
    look: bool = True
    """Before the first step, print three samples as the model sees them and what is odd about the captions."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")]

    def run(self) -> None:
        from powerclip.train import train as run

        result = run(self.config, data=self.data, output=self.output, resume=self.resume == "auto", look=self.look)
        if not result.interrupted and is_first_process():
            print(printable(f"Trained {result.steps} steps: {result.output}. Next: powerclip evaluate {result.output}"))


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Train several objectives with several seeds on the same data and steps, evaluate all, print mean and deviation.

    Run again on the same folder, finished runs are skipped.

    Example: powerclip compare --objectives clip siglip powerclip --seeds 3 --recipe scenes_tiny --data data/scenes
    --output runs/compare
    """

    objectives: tuple[Objective, ...]
    """Losses to compare."""
    seeds: int = 3
    """Runs of each, with consecutive seeds from the recipe's."""
    data: Path
    """Shards to train on."""
    output: Path
    """Folder for the runs and the tables."""
    suite: tuple[str, ...] = ("scenes",)
    """What to evaluate, as in powerclip evaluate."""
    suite_data: Path | None = None
    """Data of the suite."""
    size: int = 1000
    """Images per generated task."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")]

    def run(self) -> None:
        from powerclip.compare import compare

        if len(set(self.objectives)) < len(self.objectives):
            raise PowerclipError(f"objectives are {' '.join(self.objectives)}; name each once")
        compare(
            {name: self.config.with_objective(name) for name in self.objectives},
            seeds=self.seeds,
            data=self.data,
            output=self.output,
            evaluation=EvaluateConfig(suite=self.suite, data=self.suite_data, size=self.size),
            console=Console(),
        )


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Evaluate a run or a model zero-shot, print the table, write evaluation.json, .md, .csv and a JSON file per task.

    Results on other data are added to those that are there.

    Example: powerclip evaluate runs/scenes --suite classification retrieval --data benchmarks; or any model of
    open_clip: powerclip evaluate --model ViT-B-32 --pretrained laion2b_s34b_b79k --suite retrieval --data benchmarks
    """

    place: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="MODEL")]] = None
    """Run folder, model folder or hub id."""
    model: str | None = None
    """The same; or with --pretrained a model of open_clip by name."""
    config: Annotated[EvaluateConfig, tyro.conf.arg(name="")] = dataclasses.field(default_factory=EvaluateConfig)

    def run(self) -> None:
        from powerclip.evaluate import read_evaluation
        from powerclip.evaluate.run import evaluate_model, results_folder
        from powerclip.progress import print_line
        from powerclip.report.tables import notes, results_table, write_tables

        model = self.place or self.model
        if model is None or (self.place and self.model):
            raise PowerclipError("name one model: powerclip evaluate MODEL, or --model NAME --pretrained TAG")
        said = Console(stderr=True, quiet=not is_first_process())
        evaluation = evaluate_model(model, self.config, progress=lambda task: print_line(said, f"{task} ..."))
        if not is_first_process():
            return
        name = Path(model).name or model
        folder = results_folder(model, self.config)
        write_tables(folder, name, read_evaluation(folder) or evaluation)
        Console().print(results_table({name: [evaluation]}).rich())
        print(notes(evaluation), end="")


@dataclass(frozen=True, kw_only=True)
class Interpolate:
    """Average the weights of two models (a fine-tuned one and its start, say), and evaluate what is in between.

    A weight is the share of the second model: 0 is the first, 1 the second. If it is interrupted, the same command
    continues where it stopped.

    Example: powerclip interpolate runs/start runs/tuned --weights 0 0.25 0.5 0.75 1 --suite pairs --data data/held-out
    --output runs/between
    """

    models: tyro.conf.Positional[tuple[str, str]]
    """Two run folders, model folders or hub ids."""
    weights: Annotated[tuple[float, ...], tyro.conf.arg(aliases=("--weight",))] = (0.5,)
    """Shares of the second model. One makes OUTPUT a model folder, several a folder of them."""
    output: Path
    """Folder for the model or models."""
    suite: tuple[str, ...] = ()
    """Evaluate each model on this, as in powerclip evaluate; nothing is evaluated without it or --data."""
    data: Path | None = None
    """Data of the suite."""
    size: int = 1000
    """Images per generated task."""

    def run(self) -> None:
        from powerclip.interpolate import interpolate_runs

        evaluation = None
        if self.suite or self.data is not None:
            evaluation = EvaluateConfig(suite=self.suite, data=self.data, size=self.size)
        made = interpolate_runs(
            *self.models, weights=self.weights, output=self.output, evaluation=evaluation, console=Console()
        )
        print(printable(f"Wrote {', '.join(map(str, made))}"))


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a model in another library's form, with a model card, and compare it with the original.

    Targets: open_clip; transformers; onnx (both towers, for onnxruntime); hub-folder (powerclip's own form, ready to
    be uploaded). What computes something else than the original is not written.

    Example: powerclip export runs/photos --to onnx
    """

    model: tyro.conf.Positional[str]
    """Run folder, model folder or hub id."""
    to: ExportTarget
    """Whose form."""
    output: Path | None = None
    """Folder to make; default: export/TARGET in the run folder."""
    data: str | None = None
    """Shards whose images and captions are compared; default: the run's own data, else generated scenes."""
    licence: Annotated[str, tyro.conf.arg(aliases=("--license",))] = ""
    """Licence of the weights for the model card, as the Hugging Face hub spells it, for example apache-2.0."""

    def run(self) -> None:
        from powerclip.export import export

        folder, parity = export(self.model, self.to, output=self.output, data=self.data, licence=self.licence)
        print("\n".join(parity.lines()))
        print(printable(f"Wrote {folder}; README.md in it is the model card"))


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write a self-contained HTML page about one or more runs: who is ahead, curves, results, and examples to explore.

    Example: powerclip report runs/demo/clip runs/demo/powerclip --output report.html
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders."""
    output: Path = Path("report.html")
    """The HTML file."""
    watch: bool = False
    """Write the page again whenever a run has something new, until Ctrl-C; the page reloads itself."""

    def run(self) -> None:
        if not self.runs:
            raise PowerclipError("no run folder given; name at least one: powerclip report runs/NAME")
        from powerclip.progress import print_line
        from powerclip.report.html import watch, write_report
        from powerclip.runs import by_name

        say, runs = partial(print_line, Console(stderr=True)), by_name(self.runs)
        if self.watch:
            watch(runs, self.output, progress=lambda text: say(f"{text} ..."))
        print(printable(f"Wrote {write_report(runs, self.output, progress=lambda text: say(f'{text} ...'))}"))


@dataclass(frozen=True, kw_only=True)
class Embed:
    """Write the embeddings of images and captions to a Parquet file, for faiss, DuckDB, an embedding atlas, ...

    SOURCE is anything that powerclip prepare reads, or shards. If it is interrupted, the same command
    continues where it stopped.

    Example: powerclip embed runs/photos data/photos --output embeddings.parquet --workers 4
    """

    model: tyro.conf.Positional[str]
    """Run folder, model folder or hub id; or with --pretrained a model of open_clip by name."""
    source: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="SOURCE")]]
    """Where the pairs are."""
    output: Path
    """The Parquet file."""
    config: Annotated[EmbedConfig, tyro.conf.arg(name="")] = dataclasses.field(default_factory=EmbedConfig)

    def run(self) -> None:
        from powerclip.embed import embed

        embed(self.model, self.source, self.output, self.config, console=Console(stderr=True))


@dataclass(frozen=True, kw_only=True)
class Explore:
    """Open a page in the browser on a model: where it sees phrases and prompts, which caption it prefers, and search.

    Without RUN it is a small model that comes with powerclip, trained on generated scenes.

    Example: powerclip explore runs/photos --images photos; or any model of open_clip, for what needs no phrases:
    powerclip explore ViT-B-32 --pretrained laion2b_s34b_b79k
    """

    model: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="RUN")]] = None
    """Run folder, model folder or hub id; or with --pretrained a model of open_clip by name."""
    config: Annotated[ExploreConfig, tyro.conf.arg(name="")] = dataclasses.field(default_factory=ExploreConfig)

    def run(self) -> None:
        from powerclip.explore import explore

        console = Console(stderr=True)
        explore(self.model, self.config, say=lambda text: console.print(text, highlight=False, soft_wrap=True))
