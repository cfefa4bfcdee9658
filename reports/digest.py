"""What identifies a file or a checkpoint in a record."""

import hashlib
from pathlib import Path


def file_sha256(path: Path) -> str:
    """Hash the bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checkpoint_sha256(checkpoint: Path) -> str:
    """Hash the names and contents of a checkpoint's JSON and safetensors files, ordered by name."""
    digest = hashlib.sha256()
    files = [path for pattern in ("*.json", "*.safetensors") for path in checkpoint.glob(pattern)]
    for path in sorted(files, key=lambda path: path.name):
        digest.update(f"{path.name}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()
