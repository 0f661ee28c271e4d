"""What runs inside a micro-VM: kernel, initrd, root file system and the images that its drives are made of.

`build` makes and finds a guest, of Debian's packages and without root; `packages` and `images` make its other drives.
"""

from rewarm.guest.build import GuestFiles, build_guest, find_guest
from rewarm.guest.images import DRIVE_BYTES, blank_image, function_image
from rewarm.guest.packages import packages_image

__all__ = [
    "DRIVE_BYTES", "GuestFiles", "blank_image", "build_guest", "find_guest", "function_image", "packages_image",
]  # fmt: skip
