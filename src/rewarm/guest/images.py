"""Read-only drives: ext4 made of a folder without root, the same bytes each time it is made of the same files."""

from __future__ import annotations

import os
import shutil
import stat
import struct
import uuid
from collections.abc import Callable
from pathlib import Path

from rewarm.guest.workshop import Workshop, run

#: Every drive says that it is so large, so that a snapshot taken with one image can be restored with another. Files are
#: sparse: the rest takes no space.
DRIVE_BYTES = 64 << 30

_BLOCK_BYTES = 4096
_INODE_BYTES = 256
_BLOCKS_PER_GROUP = 8 * _BLOCK_BYTES
#: No journal (nobody writes) and no checksums (times and owners are set afterwards).
_FEATURES = "none,extent,filetype,sparse_super,large_file,huge_file,dir_nlink,extra_isize"
_NAMES = uuid.UUID("b3f1f0e4-5a0c-4f55-9b5e-3d5c5d1f2a10")
_TIME_S = 1_577_836_800  # 2020-01-01, of everything in an image
_IMAGE_FORMAT = 1  # counts what changes the bytes of an image of the same files


def function_image(home_dir: Path, revision_digest: str, code_dir: Path, weights_path: Path | None) -> Path:
    """The drive of a function: /code, and /weights/NAME if it has weights. Made once. Raises SystemFault."""

    def fill(tree: Path) -> None:
        shutil.copytree(code_dir, tree / "code", copy_function=link_or_copy)
        if weights_path is not None:
            (tree / "weights").mkdir()
            link_or_copy(weights_path, tree / "weights" / weights_path.name)

    return made_once(home_dir, f"function-{revision_digest}.img", "rewarm-fn", fill)


def blank_image(home_dir: Path) -> Path:
    """The drive of a guest without a function yet. Made once. Raises SystemFault."""
    return made_once(home_dir, f"blank-{_IMAGE_FORMAT}.img", "rewarm-fn", lambda tree: None)


def made_once(home_dir: Path, name: str, label: str, fill: Callable[[Path], None]) -> Path:
    """The drive `name`: the one that is there, else one of what `fill` puts into the folder that it is given.

    Raises SystemFault, MicrovmUnavailable, and what `fill` does.
    """
    workshop = Workshop(home_dir)
    if (workshop.folder / name).is_file():
        return workshop.folder / name
    with workshop.staging() as scratch:
        tree = scratch / "tree"
        tree.mkdir()
        fill(tree)
        return workshop.place(as_drive(make_image(tree, scratch / "image", label)), name)


def link_or_copy(source: Path | str, target: Path | str) -> None:
    """The same file under a second name, else its bytes. Raises OSError."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or not ours
        shutil.copyfile(source, target)
        shutil.copymode(source, target)


def make_image(tree: Path, image: Path, label: str) -> Path:
    """An ext4 file system of the files, folders and links in `tree`. Returns `image`.

    All belong to root and have one fixed time; of their modes only the owner's right to execute counts. Raises OSError,
    SystemFault, MicrovmUnavailable.
    """
    blocks, inodes = _needed(tree)
    identity = uuid.uuid5(_NAMES, label)
    run(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-O", _FEATURES, "-b", str(_BLOCK_BYTES), "-I", str(_INODE_BYTES),
         "-g", str(_BLOCKS_PER_GROUP), "-N", str(inodes), "-m", "0", "-L", label, "-U", str(identity),
         "-E", f"hash_seed={identity},root_owner=0:0,lazy_itable_init=0,nodiscard,no_copy_xattrs",
         "-d", str(tree), str(image), f"{blocks * (_BLOCK_BYTES >> 10)}k"],
        needs="e2fsprogs",
        env={"MKE2FS_CONFIG": os.devnull, "E2FSPROGS_FAKE_TIME": str(_TIME_S)},
    )  # fmt: skip
    _settle(image)
    return image


def as_drive(image: Path) -> Path:
    """Make it as long as every drive is, with a hole. Returns it. Raises OSError."""
    os.truncate(image, DRIVE_BYTES)
    return image


def _needed(tree: Path) -> tuple[int, int]:
    """Blocks and inodes of a file system that holds `tree`, with some room."""
    blocks, inodes = 0, 16
    for folder, folders, names in os.walk(tree):
        blocks += 1 + sum(len(os.fsencode(name)) + 12 for name in (*folders, *names)) // (_BLOCK_BYTES // 2)
        inodes += 1 + len(names) + sum(Path(folder, name).is_symlink() for name in folders)
        for name in names:
            status = os.lstat(os.path.join(folder, name))
            if stat.S_ISREG(status.st_mode):
                blocks += -(-status.st_size // _BLOCK_BYTES) + 1  # and one for extents of a large one
    blocks += inodes * _INODE_BYTES // _BLOCK_BYTES
    groups = blocks // _BLOCKS_PER_GROUP + 1
    return blocks + blocks // 50 + groups * 8 + 512, inodes + inodes // 50 + 16 * groups


def _settle(image: Path) -> None:
    """Owner, times, generation and mode of every inode, which mke2fs takes from the files as they lie here.

    Superblock and group descriptors as in Linux' Documentation/filesystems/ext4/: little-endian, without checksums.
    """
    with image.open("r+b") as file:
        file.seek(1024)
        super_block = file.read(1024)
        block_count, per_group = struct.unpack_from("<4xI32xI", super_block)
        (group_blocks,) = struct.unpack_from("<I", super_block, 32)
        for group in range(-(-block_count // group_blocks)):
            file.seek(_BLOCK_BYTES + group * 32)
            (table,) = struct.unpack("<I", file.read(12)[8:])
            file.seek(table * _BLOCK_BYTES)
            inodes = bytearray(file.read(per_group * _INODE_BYTES))
            for at in range(0, len(inodes), _INODE_BYTES):
                _settle_inode(inodes, at)
            file.seek(table * _BLOCK_BYTES)
            file.write(inodes)


def _settle_inode(inodes: bytearray, at: int) -> None:
    (mode,) = struct.unpack_from("<H", inodes, at)
    if mode == 0:
        return
    rights = 0o755 if stat.S_ISDIR(mode) or mode & stat.S_IXUSR else 0o644  # of links nobody asks
    struct.pack_into("<HH", inodes, at, stat.S_IFMT(mode) | rights, 0)  # mode, uid
    struct.pack_into("<III", inodes, at + 8, _TIME_S, _TIME_S, _TIME_S)  # of access, change, modification
    struct.pack_into("<H", inodes, at + 24, 0)  # gid
    struct.pack_into("<I", inodes, at + 100, 0)  # generation
    struct.pack_into("<HH", inodes, at + 120, 0, 0)  # uid and gid, upper halves
    struct.pack_into("<IIIII", inodes, at + 132, 0, 0, 0, _TIME_S, 0)  # fractions of seconds; time of creation
