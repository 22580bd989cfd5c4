"""A disk that loses at a power cut whatever was not synced."""

import os
import stat
from pathlib import Path


class Disk:
    """What is left of a folder after each power cut that can happen while it is written to.

    A file's content is left as it was when it was last synced, empty if it never was; a name in a folder as it was when
    that folder was last synced. So what is left changes at each sync, and only then.
    """

    def __init__(self, root, monkeypatch):
        self.files, self.folders, self.kept, self.left = {}, {}, [], []
        self.root = root.stat().st_ino
        real = os.fsync
        monkeypatch.setattr(os, "fsync", lambda descriptor: (real(descriptor), self._synced(descriptor))[0])
        for path in (root, *root.rglob("*")):  # that is on the disk already
            descriptor = os.open(path, os.O_RDONLY)
            self._synced(descriptor)
            os.close(descriptor)

    def _synced(self, descriptor):
        status = os.fstat(descriptor)
        self.kept.append(os.dup(descriptor))  # its number is not given to another file
        if stat.S_ISDIR(status.st_mode):
            with os.scandir(descriptor) as entries:
                self.folders[status.st_ino] = {e.name: (e.inode(), e.is_dir(follow_symlinks=False)) for e in entries}
        else:
            self.files[status.st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()
        self.left.append(self._tree(self.root))

    def _tree(self, folder):
        return {
            name: self._tree(number) if is_folder else self.files.get(number, b"")
            for name, (number, is_folder) in self.folders.get(folder, {}).items()
        }

    def close(self):
        for descriptor in self.kept:
            os.close(descriptor)


def write_tree(tree, folder):
    """Write what is left, a folder's content by name, into a new folder."""
    folder.mkdir()
    for name, content in tree.items():
        if isinstance(content, dict):
            write_tree(content, folder / name)
        else:
            (folder / name).write_bytes(content)
    return folder
