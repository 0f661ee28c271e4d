"""All snapshots of a server: found, checked before their first use, made when there is none, forgotten.

The snapshot of a Lang layer is called `lang-…` by its key, that of a function by the digest of its revision. Each is
opened against what this machine would make today; one that is damaged or of another machine is taken away, and whoever
asked is told or has a new one made. One is made at a time: it takes a core for seconds.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rewarm.errors import BadDefinition, SnapshotCorrupt, SnapshotMismatch, Unavailable
from rewarm.facts.function import FunctionSpec, LangKey, Revision
from rewarm.facts.snapshot import SnapshotFacts
from rewarm.guest.images import blank_image, function_image
from rewarm.guest.packages import packages_image
from rewarm.snapshot.manifest import Snapshot, open_snapshot, verify
from rewarm.snapshot.pager_client import PagerClient
from rewarm.snapshot.restore import AUTO, POLICIES
from rewarm.store.disk import disk_errors
from rewarm.store.snapshots import Snapshots
from rewarm.vmm.publishing import UserOrder, in_thread, load_order, publish_lang, publish_user
from rewarm.vmm.samples import samples_of
from rewarm.vmm.site import Counts, Images, Site, survey

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

    def __init__(self, home_dir: Path, shelf: Snapshots, policy: str = "auto") -> None:
        """`policy`: how to restore, one of snapshot.restore.POLICIES, or the best that there are means for (auto).

        Raises BadDefinition for another one.
        """
        if policy not in (AUTO, *POLICIES):
            raise BadDefinition(f"REWARM_RESTORE is {AUTO}, {', '.join(POLICIES)}, not {policy!r}")
        self.counts = Counts()
        self.pager_died: Callable[[], None] = lambda: None  # machines that it served will never go on
        self._home_dir = home_dir
        self._shelf = shelf
        self._policy = policy
        self._site: Site | None = None
        self._closed = False
        self._making = asyncio.Lock()
        self._tasks: dict[str, asyncio.Future[Any]] = {}  # by what they are about: one of each at a time
        self._ending: dict[str, asyncio.Future[Any]] = {}  # of those, what was forgotten and is still at it
        self._packages: dict[tuple[str, ...], Path] = {}  # the drive of each set: to find its name takes a while

    # ------------------------------------------------------------ this machine

    async def site(self) -> Site:
        """Raises MicrovmUnavailable, each time until what was missing is there."""
        site = self._site
        if site is None:
            site = await self._once("site", self._survey)
        if self._policy == "uffd" and site.pager is None and site.means.userfaultfd:
            site.pager = PagerClient(self._pager_gone)
            site.pager.start()
        return site

    async def _survey(self) -> Site:
        site = self._site = await asyncio.to_thread(survey, self._home_dir, self._policy, self.counts)
        log.info("micro-VMs run on %s (%s)", site.accel.name.upper(), site.accel.why)
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
        async with self._making:
            log.info("runtime %s: booting a guest to take its snapshot; this is done once", key)
            staged = self._shelf.stage()
            try:
                published = await publish_lang(site, str(key), images, staged)
                folder = await in_thread(self._shelf.place, staged, lang_name(key))
            finally:
                await in_thread(self._shelf.discard, staged)
            log.info("runtime %s: snapshot taken after %.1f s", key, published.cold_s)
        return Asset(site, await in_thread(open_snapshot, folder), images)

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
            return facts_of(recipe.digest, (await self.user(recipe)).snapshot)
        except (SnapshotCorrupt, SnapshotMismatch) as error:
            log.info("making a snapshot of %s: %s", name, error.message)
        lang = await self.lang_for(recipe)
        weights = recipe.weights.name if recipe.weights is not None else None
        samples = await asyncio.to_thread(samples_of, recipe.spec, recipe.code_dir)
        order = UserOrder(recipe.spec, load_order(recipe.spec, recipe.version, weights), samples)
        async with self._making:
            staged = self._shelf.stage()
            try:
                published = await publish_user(lang.site, lang.snapshot, recipe.subject, lang.images, order, staged)
                folder = await self._placed(staged, recipe.digest)
            finally:
                await in_thread(self._shelf.discard, staged)
        log.info(
            "%s sleeps on disk: restored in %.0f ms, %.1f s without", name, published.restore_s * 1e3, published.cold_s
        )
        return facts_of(recipe.digest, await asyncio.to_thread(open_snapshot, folder))

    async def _placed(self, staged: Path, digest: str) -> Path:
        """What is forgotten while it is placed is taken away again."""
        try:
            return await in_thread(self._shelf.place, staged, digest)
        except asyncio.CancelledError:
            self._shelf.drop(digest)
            raise

    def forget(self, name: str) -> None:
        """Delete a snapshot, and give up making it if it is a function's: from now on it is not there.

        Raises SystemFault.
        """
        task = self._tasks.pop(name, None)
        if task is not None and not task.done():
            task.cancel()
            self._ending[name] = task
        grave = self._shelf.bury(name)
        if grave is not None:
            asyncio.get_running_loop().run_in_executor(None, self._shelf.discard, grave)

    async def sweep(self, recipes: Sequence[Recipe]) -> None:
        """Delete the snapshots and drives of all functions but these, and of Lang layers that none of these needs.

        Machines that run from them keep the files they have open. Raises SystemFault.
        """
        digests = {recipe.digest for recipe in recipes}
        await asyncio.to_thread(self._shelf.sweep, digests | {lang_name(recipe.spec.lang_key) for recipe in recipes})
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
        if self._site is not None and self._site.pager is not None:
            await self._site.pager.close()


def lang_name(key: LangKey) -> str:
    return f"lang-{hashlib.sha256(str(key).encode()).hexdigest()}"


def facts_of(digest: str, snapshot: Snapshot) -> SnapshotFacts:
    seconds = snapshot.manifest.seconds
    return SnapshotFacts(digest, snapshot.disk_bytes, seconds.get("restore", 0.0), seconds.get("cold", 0.0))
