"""Serving the page: to whom, for how long, and what is asked of gradio."""

import ipaddress
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from powerclip.config import ExploreConfig
from powerclip.data.limits import MAX_MEMBER_BYTES
from powerclip.errors import PowerclipError, needs_extra
from powerclip.explore.captions import Captions
from powerclip.explore.search import DEFAULT_INDEX, ImageIndex
from powerclip.explore.subject import Subject, find_subject
from powerclip.progress import wait
from powerclip.report.samples import scene_pairs

SCENES = 200
"""Generated scenes that are searched where no folder was given."""


def explore(run: str | None, config: ExploreConfig, *, say: Callable[[str], None]) -> None:
    """Serve the page until Ctrl-C or SIGTERM; its address is passed to ``say``.

    ``run`` is a run or model folder, a hub id, with ``config.pretrained`` a model of open_clip, or None for the model
    that comes with powerclip. PowerclipError if gradio is not installed, the model or folder is missing, or the host is
    not this machine alone and ``config.public`` is not set; OSError if the port is taken.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # by default nothing would be removed
    try:
        with served(run, config, say=say) as address:
            say(f"The page is at {address}; Ctrl-C ends it")
            while True:
                wait(3600)
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def served(run: str | None, config: ExploreConfig, *, say: Callable[[str], None]) -> Iterator[str]:
    """Serve the page while the block runs; yields its address. What visitors upload is removed at the end."""
    _check_host(config)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    say("loading gradio ...")
    with needs_extra("the explorer", "explore"):
        from powerclip.explore.page import LOOK, build
    say("loading the model ...")
    subject = find_subject(run, config)
    with tempfile.TemporaryDirectory(prefix="powerclip-explore-") as name:
        folder = Path(name)
        os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
        captions = Captions(subject=subject, device=config.device, sam=config.sam)
        page = build(subject, captions, _index(subject, config, folder), folder)
        try:
            _, address, shared = page.queue(max_size=64).launch(
                server_name=config.host,
                server_port=config.port or _free_port(config.host),
                share=config.share,
                max_file_size=MAX_MEMBER_BYTES,
                prevent_thread_lock=True,
                quiet=True,
                run_history=False,
                enable_monitoring=False,
                mcp_server=False,
                ssr_mode=False,
                footer_links=[],
                **LOOK,
            )
            if config.share and shared is None:
                raise PowerclipError("gradio's tunnel could not be opened; leave out --share, or try again later")
            yield shared or address
        finally:
            page.close(verbose=False)


def _index(subject: Subject, config: ExploreConfig, folder: Path) -> ImageIndex:
    """The index of the folder that was given, or of generated scenes, which last as long as the page."""
    if config.images is not None:
        return ImageIndex.of(config.images, subject, indexes=config.index or DEFAULT_INDEX)
    scenes = folder / "scenes"
    scenes.mkdir()
    for number, pair in enumerate(scene_pairs(count=SCENES, image_size=96)):
        pair.image.save(scenes / f"{number:03d}.png")
    return ImageIndex.of(scenes, subject, indexes=folder)


def _check_host(config: ExploreConfig) -> None:
    try:
        alone = config.host == "localhost" or ipaddress.ip_address(config.host).is_loopback
    except ValueError:
        alone = False
    if not alone and not config.public:
        raise PowerclipError(
            f"host {config.host} can be reached from other machines, "
            "and whoever reaches it sees the model and the images; add --public if that is what you want"
        )


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.bind((host, 0))
        return int(listener.getsockname()[1])
