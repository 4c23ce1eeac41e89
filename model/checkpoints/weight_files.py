"""Find the files with a network's tensors, and check what can be checked without torch.

Only safetensors files are read, because a pickle can run code.
"""

from __future__ import annotations

from pathlib import Path

from denoised.model.bounded_files import MAX_INDEX_BYTES, check_regular, read_json
from denoised.model.errors import CheckpointError, abbreviate

NETWORK, ENCODER = "diffusion_pytorch_model", "model"  # stems of the files of diffusers and of transformers
WEIGHTS = f"{NETWORK}.safetensors"
# The same in half precision, for folders that have nothing else.
VARIANTS = ("fp16", "bf16")
PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
MAX_HEADER = 4 * 1024**2  # bytes of JSON; a tensor takes about a hundred
MAX_SHARDS = 1000
CONVERT = (
    "is a pickle, which can run code: convert it to safetensors "
    "(in diffusers: from_pretrained(…, use_safetensors=False), then save_pretrained)"
)


def find_weights(folder: Path, stem: str = NETWORK) -> Path:
    """The file with the tensors of a folder, or the index of its shards.

    stem: how the file is called, without its ending.

    Raises:
        CheckpointError: if there is none; a pickle is named, but never opened.
    """
    whole = f"{stem}.safetensors"
    variants = [f"{stem}.{variant}.safetensors" for variant in VARIANTS]
    indices = [f"{stem}.safetensors.index.{variant}.json" for variant in VARIANTS]
    for name in (whole, f"{whole}.index.json", *variants, *indices):
        if (folder / name).exists():
            return folder / name
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    if pickles := [file for file in files if file.suffix in PICKLES]:
        raise CheckpointError(f"{pickles[0]}: {CONVERT}")
    raise CheckpointError(f"{folder / whole}: missing")


def find_shards(source: Path) -> list[Path]:
    """The safetensors files of an index, or the one file itself; each exists and begins as such a file does.

    Raises:
        CheckpointError: for a missing file, an index that leads elsewhere, and a file that is something else.
    """
    files = _shards(source) if source.suffix == ".json" else [source]
    for file in files:
        _check_beginning(file, check_regular(file))
    return files


def _shards(index: Path) -> list[Path]:
    names = read_json(index, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{index}: weight_map is not an object of tensor names and file names")
    for name in names.values():
        if Path(name).name != name or Path(name).suffix != ".safetensors":
            raise CheckpointError(
                f"{index}: weight_map names {abbreviate(name)}, not a safetensors file in the same folder"
            )
    shards = sorted(set(names.values()))
    if len(shards) > MAX_SHARDS:
        raise CheckpointError(f"{index}: weight_map names {len(shards)} files (allowed: {MAX_SHARDS})")
    return [index.parent / name for name in shards]


def _check_beginning(path: Path, size: int) -> None:
    """Refuse a Git LFS pointer, a pickle that is named like a safetensors file, and a header out of proportion."""
    try:
        with path.open("rb") as file:
            start = file.read(40)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: is a Git LFS pointer, not the weights: run 'git lfs pull'")
    # A safetensors file starts with eight bytes of length, then JSON; a pickle with PROTO, or "PK" of a zip file.
    if start[8:9] != b"{" and start.startswith((b"PK\x03\x04", b"\x80")):
        raise CheckpointError(f"{path}: {CONVERT}")
    header = int.from_bytes(start[:8], "little")
    if len(start) < 9 or header + 8 > size:
        raise CheckpointError(f"{path}: not a complete safetensors file ({size} bytes, its header needs {header + 8})")
    if header > MAX_HEADER:
        raise CheckpointError(f"{path}: its header has {header} bytes (allowed: {MAX_HEADER})")
