"""All snapshots of a server: found, checked before their first use, made when there is none, forgotten.

The snapshot of a Lang layer is called `lang-…` by its key, that of a function by the digest of its revision. Each is
opened against what this machine would make today; one that is damaged or of another machine is taken away, and whoever
asked is told or has a new one made. One of each kind is made at a time, which takes a core for seconds; so a start that
waits for a Lang layer does not wait for functions.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rewarm.errors import (
    BadDefinition,
    RewarmError,
    SnapshotCorrupt,
    SnapshotFailed,
    SnapshotMismatch,
    SystemFault,
    Unavailable,
)  # fmt: skip
from rewarm.facts.function import FunctionSpec, LangKey, Revision
from rewarm.facts.snapshot import SnapshotFacts
from rewarm.guest.images import blank_image, function_image
from rewarm.guest.packages import packages_image
from rewarm.snapshot.manifest import Snapshot, open_snapshot, verify
from rewarm.snapshot.pager_client import PagerClient
from rewarm.snapshot.restore import AUTO, POLICIES, asks_for_pager
from rewarm.store.disk import disk_errors
from rewarm.store.snapshots import Snapshots
from rewarm.vmm.publishing import Published, UserOrder, in_thread, load_order, publish_lang, publish_user
from rewarm.vmm.samples import samples_of
from rewarm.vmm.site import VMMS, Counts, Images, Site, survey

log = logging.getLogger("rewarm.sandbox")

T = TypeVar("T")


class Recipe(NamedTuple):
    """What a snapshot of a function is made of, where it lies now."""

    spec: FunctionSpec
    digest: str
    version: int
    code_dir: Path
    weights: Path | None

    @staticmethod
    def of(revision: Revision) -> Recipe:
        weights = Path(revision.weights_path) if revision.weights_path is not None else None
        return Recipe(revision.spec, revision.digest, revision.version, Path(revision.code_dir), weights)

    @property
    def subject(self) -> str:
        """The digest alone does not do: an instance knows its version."""
        return f"{self.digest}@{self.version}"


class Asset(NamedTuple):
    """A snapshot that was checked, and what a machine needs to be restored from it."""

    site: Site
    snapshot: Snapshot
    images: Images


class Library:
    """One per server; on the event loop's thread, with the slow work in others."""

    def __init__(self, home_dir: Path, shelf: Snapshots, policy: str = "auto", vmm: str = "auto") -> None:
        """`policy`: how to restore, one of snapshot.restore.POLICIES, or the best that there are means for (auto).

        `vmm`: in what, as vmm.site.survey takes it. Raises BadDefinition for another one.
        """
        if policy not in (AUTO, *POLICIES):
            raise BadDefinition(f"REWARM_RESTORE is {AUTO}, {', '.join(POLICIES)}, not {policy!r}")
        if vmm not in VMMS:
            raise BadDefinition(f"REWARM_VMM is {', '.join(VMMS)}, not {vmm!r}")
        self.counts = Counts()
        self.lang_there: Callable[[LangKey, int], None] = lambda key, disk_bytes: None  # though nobody raised it
        self.langs_gone: Callable[[list[str]], None] = lambda names: None  # deleted, since no function needs them
        self.pager_died: Callable[[], None] = lambda: None  # machines that it served will never go on
        self._home_dir = home_dir
        self._shelf = shelf
        self._policy = policy
        self._vmm = vmm
        self._site: Site | None = None
        self._closed = False
        self._booting = asyncio.Lock()  # Lang layers
        self._making = asyncio.Lock()  # functions
        self._tasks: dict[str, asyncio.Future[Any]] = {}  # by what they are about: one of each at a time
        self._ending: dict[str, asyncio.Future[Any]] = {}  # of those, what was forgotten and is still at it
        self._discards: set[asyncio.Future[None]] = set()  # what is being deleted
        self._packages: dict[tuple[str, ...], Path] = {}  # the drive of each set: to find its name takes a while

    # ------------------------------------------------------------ this machine

    async def site(self) -> Site:
        """Raises MicrovmUnavailable, each time until what was missing is there."""
        site = self._site
        if site is None:
            site = await self._once("site", self._survey)
        if site.pager is None and asks_for_pager(self._policy, site.means):
            pager = PagerClient(self._pager_gone)
            try:
                pager.start()
                site.pager = pager
            except OSError as error:
                log.warning("memory is restored without userfaultfd: its process does not start: %s", error)
        return site

    async def _survey(self) -> Site:
        site = self._site = await asyncio.to_thread(survey, self._home_dir, self._policy, self.counts, self._vmm)
        log.info("micro-VMs run in %s on %s (%s)", site.vmm.path, site.accel.name.upper(), site.accel.why)
        return site

    @property
    def known(self) -> Site | None:
        """`site`, if somebody asked for it already and it is there."""
        return self._site

    def _pager_gone(self) -> None:
        log.error("the process that fills restored memory has died, and its machines with it; the next has another")
        if self._site is not None:
            self._site.pager = None
        self.pager_died()

    # ------------------------------------------------------------ Lang layers

    async def lang(self, key: LangKey) -> Asset:
        """The snapshot of a Lang layer; made if there is none. Raises what `publish_lang` raises, and as `site`."""
        return await self._once(f"lang {key}", lambda: self._lang(key))

    async def _lang(self, key: LangKey) -> Asset:
        site = await self.site()
        images = await asyncio.to_thread(self._lang_images, key)
        try:
            found = await self._opened(lang_name(key), str(key), site, images)
            if found is not None:
                return Asset(site, found, images)
        except (SnapshotCorrupt, SnapshotMismatch) as error:
            log.warning("runtime %s is made anew: %s", key, error.message)
        async with self._booting:
            log.info("runtime %s: booting a guest to take its snapshot; this is done once", key)
            staged = self._shelf.stage()
            try:
                published = await publish_lang(site, str(key), images, staged)
                folder = await in_thread(self._shelf.place, staged, lang_name(key))
            finally:
                await in_thread(self._shelf.discard, staged)
            log.info("runtime %s: snapshot taken after %.1f s", key, published.cold_s)
        return Asset(site, await in_thread(open_snapshot, folder), images)

    def refuse(self, key: LangKey, refused: Snapshot, error: RewarmError) -> None:
        """No machine can be made of this one, whole as it is: it goes, unless another is in its place already."""
        name = lang_name(key)
        with contextlib.suppress(SystemFault):  # whoever opens it next says it
            if open_snapshot(self._shelf.folder(name)).manifest == refused.manifest:
                log.warning("runtime %s is made anew: %s", key, error.message)
                self.counts.lost += 1
                self.forget(name)

    async def tell_langs(self, keys: Iterable[LangKey]) -> None:
        """Call `lang_there` with those of `keys` that an earlier server left."""
        for key in keys:
            with contextlib.suppress(SystemFault):  # none, or damaged: it is made anew when it is needed
                left = await asyncio.to_thread(open_snapshot, self._shelf.folder(lang_name(key)))
                self.lang_there(key, left.disk_bytes)

    def _lang_images(self, key: LangKey) -> Images:
        return Images(self._packages_image(key), blank_image(self._home_dir), key.vm_bytes, key.packages)

    def _packages_image(self, key: LangKey) -> Path:
        path = self._packages.get(key.packages)
        if path is None or not path.exists():
            path = self._packages[key.packages] = packages_image(self._home_dir, key.packages)
        return path

    # ------------------------------------------------------------ functions

    async def lang_for(self, recipe: Recipe) -> Asset:
        """The Lang layer of a function with its own drive in the place of the blank one."""
        asset = await self.lang(recipe.spec.lang_key)
        return asset._replace(images=await asyncio.to_thread(self._user_images, recipe))

    async def user(self, recipe: Recipe) -> Asset:
        """The snapshot of a function. Raises SnapshotCorrupt (or it is gone), SnapshotMismatch, MicrovmUnavailable."""
        site = await self.site()
        if not self._shelf.folder(recipe.digest).is_dir():  # and no drive is made for it
            raise SnapshotCorrupt(f"there is no snapshot of {recipe.spec.name!r}")
        images = await asyncio.to_thread(self._user_images, recipe)
        found = await self._opened(recipe.digest, recipe.subject, site, images)
        if found is None:
            raise SnapshotCorrupt(f"there is no snapshot of {recipe.spec.name!r}")
        return Asset(site, found, images)

    def _user_images(self, recipe: Recipe) -> Images:
        packages = self._packages_image(recipe.spec.lang_key)
        function = function_image(self._home_dir, recipe.digest, recipe.code_dir, recipe.weights)
        return Images(packages, function, recipe.spec.vm_bytes)

    async def publish(self, recipe: Recipe) -> SnapshotFacts:
        """See to it that the function's snapshot is on disk, and sound. Raises what `publish_user` and `lang` raise.

        CancelledError if it was forgotten meanwhile.
        """
        return await self._once(recipe.digest, lambda: self._publish(recipe))

    async def _publish(self, recipe: Recipe) -> SnapshotFacts:
        name = recipe.spec.name
        if recipe.digest in self._ending:
            await asyncio.wait({self._ending[recipe.digest]})
        try:
            asset = await self.user(recipe)
            return await in_thread(facts_of, recipe.digest, asset.snapshot, asset.images)
        except (SnapshotCorrupt, SnapshotMismatch) as error:
            log.info("making a snapshot of %s: %s", name, error.message)
        weights = recipe.weights.name if recipe.weights is not None else None
        samples = await asyncio.to_thread(samples_of, recipe.spec, recipe.code_dir)
        order = UserOrder(recipe.spec, load_order(recipe.spec, recipe.version, weights), samples)
        lang = await self.lang_for(recipe)
        try:
            published, folder = await self._made(recipe, order, lang)
        except SnapshotCorrupt as error:
            self.refuse(recipe.spec.lang_key, lang.snapshot, error)
            lang = await self.lang_for(recipe)
            published, folder = await self._made(recipe, order, lang)
        finally:  # not before: the core may drop it at once
            if not self._closed and lang.snapshot.folder.is_dir():
                self.lang_there(recipe.spec.lang_key, lang.snapshot.disk_bytes)
        log.info(
            "%s sleeps on disk: restored in %.0f ms, %.1f s without", name, published.restore_s * 1e3, published.cold_s
        )
        snapshot = await asyncio.to_thread(open_snapshot, folder)
        return await in_thread(facts_of, recipe.digest, snapshot, lang.images)

    async def _made(self, recipe: Recipe, order: UserOrder, lang: Asset) -> tuple[Published, Path]:
        """A snapshot, in its place. Raises SnapshotCorrupt if the Lang layer's was dropped or is of no use."""
        async with self._making:
            if not lang.snapshot.folder.is_dir():  # dropped while this waited
                lang = await self.lang_for(recipe)
            staged = self._shelf.stage()
            try:
                published = await publish_user(lang.site, lang.snapshot, recipe.subject, lang.images, order, staged)
                return published, await self._placed(staged, recipe.digest)
            except (FileNotFoundError, SnapshotFailed) as error:
                if not lang.snapshot.folder.is_dir():
                    raise SnapshotCorrupt(f"{lang.snapshot.folder} was deleted while it was used; try again") from error
                if isinstance(error, SnapshotFailed):
                    raise
                raise SnapshotFailed(f"a file was deleted while a snapshot was made: {error}; try again") from error
            finally:
                await in_thread(self._shelf.discard, staged)

    async def _placed(self, staged: Path, digest: str) -> Path:
        """What is forgotten while it is placed is taken away again."""
        try:
            return await in_thread(self._shelf.place, staged, digest)
        except asyncio.CancelledError:
            self._discard(self._shelf.bury(digest))
            raise

    def forget(self, name: str, *, drive: bool = False) -> None:
        """Delete a snapshot, and give up making it if it is a function's: from now on it is not there.

        With `drive`, the copy of the function's code and weights goes with it; a start without it makes it anew. Raises
        SystemFault.
        """
        task = self._tasks.pop(name, None)
        if task is not None and not task.done():
            task.cancel()
            self._ending[name] = task
        self._discard(self._shelf.bury(name))
        image = self._home_dir / "microvm" / f"function-{name}.img"
        if drive and image.exists():
            with disk_errors("remove a drive", image):
                grave = self._shelf.stage()
                os.replace(image, grave / image.name)
            self._discard(grave)

    def _discard(self, grave: Path | None) -> None:
        """In a thread: to delete GBs takes a while."""
        if grave is not None:
            discarding = asyncio.get_running_loop().run_in_executor(None, self._shelf.discard, grave)
            self._discards.add(discarding)
            discarding.add_done_callback(self._discards.discard)

    async def sweep(self, recipes: Sequence[Recipe]) -> None:
        """Delete the snapshots and drives of all functions but these, and of Lang layers that none of these needs.

        Machines that run from them keep the files they have open. Raises SystemFault.
        """
        digests = {recipe.digest for recipe in recipes}
        kept = digests | {lang_name(recipe.spec.lang_key) for recipe in recipes}
        self.langs_gone(await asyncio.to_thread(self._shelf.sweep, kept))
        await asyncio.to_thread(self._sweep_drives, recipes)

    def _sweep_drives(self, recipes: Sequence[Recipe]) -> None:
        kept = {f"function-{recipe.digest}.img" for recipe in recipes}
        kept |= {self._packages_image(recipe.spec.lang_key).name for recipe in recipes}
        for kind in ("function", "packages"):
            for path in (self._home_dir / "microvm").glob(f"{kind}-*.img"):
                if path.name not in kept:
                    with disk_errors("remove a drive that no function uses", path):
                        path.unlink()

    # ------------------------------------------------------------ common

    async def _opened(self, name: str, subject: str, site: Site, images: Images) -> Snapshot | None:
        """What is there under `name`, checked; None if there is none. One that is not to be used is taken away.

        Raises SnapshotCorrupt, SnapshotMismatch.
        """
        try:
            return await in_thread(self._checked, name, subject, site, images)
        except (SnapshotCorrupt, SnapshotMismatch):
            self.counts.lost += 1
            await asyncio.to_thread(self._shelf.drop, name)
            raise

    def _checked(self, name: str, subject: str, site: Site, images: Images) -> Snapshot | None:
        folder = self._shelf.folder(name)
        if not folder.is_dir():
            return None
        snapshot = open_snapshot(folder, site.platform(images))
        if snapshot.manifest.subject != subject:
            raise SnapshotMismatch(f"{folder} is a snapshot of {snapshot.manifest.subject}, not of {subject}")
        if not self._shelf.verified(name):
            seen = self._shelf.seen(name)
            verify(snapshot)
            self._shelf.note(name, seen)
        return snapshot

    async def _once(self, about: str, work: Callable[[], Awaitable[T]]) -> T:
        """One at a time of each; whoever comes meanwhile waits for the same. Goes on if one who waits gives up."""
        task = self._tasks.get(about)
        if task is None:
            if self._closed:
                raise Unavailable("the server is shutting down")
            task = self._tasks[about] = asyncio.ensure_future(work())
            task.add_done_callback(lambda done: self._over(about, done))
        result: T = await asyncio.shield(task)
        return result

    def _over(self, about: str, done: asyncio.Future[Any]) -> None:
        for tasks in (self._tasks, self._ending):
            if tasks.get(about) is done:
                del tasks[about]
        if not done.cancelled():
            done.exception()  # perhaps nobody waits for it any more

    async def close(self) -> None:
        """Give up what is being made, with its machines; nothing is begun any more."""
        self._closed = True
        tasks = [*self._tasks.values(), *self._ending.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        while self._discards:
            await asyncio.wait(self._discards)
        if self._site is not None and self._site.pager is not None:
            await self._site.pager.close()


def lang_name(key: LangKey) -> str:
    return f"lang-{hashlib.sha256(str(key).encode()).hexdigest()}"


def facts_of(digest: str, snapshot: Snapshot, images: Images) -> SnapshotFacts:
    """With the function's drive, which is deleted with the snapshot. Raises OSError."""
    seconds, disk_bytes = snapshot.manifest.seconds, snapshot.disk_bytes + images.function.stat().st_blocks * 512
    return SnapshotFacts(digest, disk_bytes, seconds.get("restore", 0.0), seconds.get("cold", 0.0))
