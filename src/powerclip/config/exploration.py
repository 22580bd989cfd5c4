"""Settings of the explorer."""

from dataclasses import dataclass
from pathlib import Path

from powerclip.config.checks import require


@dataclass(frozen=True, kw_only=True)
class ExploreConfig:
    """What ``powerclip explore`` shows beside the model, and to whom."""

    pretrained: str | None = None
    """RUN is a name of open_clip (ViT-B-32, RN50, ...), with the weights of this tag or checkpoint file."""
    images: Path | None = None
    """Folder of images to search; the default is generated scenes."""
    index: Path | None = None
    """Folder for the indexes of such folders; None is ~/.cache/powerclip/search."""
    sam: str | None = None
    """SAM model that proposes regions: a short name (sam2-tiny, ...), hub name or folder."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 7860
    """Port to listen on; 0 takes a free one."""
    public: bool = False
    """Allow a host that other machines can reach. Whoever reaches it sees the model and the images."""
    share: bool = False
    """Also open gradio's tunnel, by which anyone with the link reaches the page through gradio's servers."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""

    def __post_init__(self) -> None:
        require(self, lambda port: 0 <= port < 2**16, "a port, 0 to 65535", "port")
