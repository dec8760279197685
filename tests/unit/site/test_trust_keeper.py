"""Which trust bundle is in force, across restarts and crashes."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from edgefleet.api.report import TrustReport
from edgefleet.site.state import StateFile
from edgefleet.site.trust_keeper import TrustKeeper
from edgefleet.trust.bundle import make_bundle, make_root
from edgefleet.trust.bundle_content import BundleContent
from edgefleet.trust.errors import Rejected
from edgefleet.trust.keys import PrivateKey
from edgefleet.trust.publishers import Publisher

ROOT, STRANGER, HUB = PrivateKey.generate(), PrivateKey.generate(), PrivateKey.generate()
ENDS = datetime.now(UTC) + timedelta(days=30)


def root_of(key: PrivateKey) -> bytes:
    return make_root([key.public], signers=[key], threshold=1, version=1, expires_at=ENDS)


PINNED = root_of(ROOT)


def bundle(version: int, *, key: PrivateKey = ROOT, root: bytes = PINNED, ends: datetime = ENDS) -> bytes:
    publishers = {"weld": Publisher((HUB.public,), 1, version)}
    return make_bundle(roots=[root], signers=[key], version=version, content=BundleContent(publishers, (HUB.public,)), expires_at=ends)


class Site:
    """A state folder; `keeper()` is an agent that starts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.changes = 0

    def keeper(self, fail_at: str = "never") -> TrustKeeper:
        """A keeper that dies at a step."""

        def fail(step: str) -> None:
            if step.startswith(fail_at):
                raise OSError(5, "the power is gone")

        def changed() -> None:
            self.changes += 1

        state = StateFile.open(self.folder / "state.json", site="plant-7", checkpoint=fail)
        return TrustKeeper(self.folder / "bundle.json", root=PINNED, state=state, on_change=changed, checkpoint=fail)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """An empty one."""
    return Site(tmp_path)


async def test_without_a_bundle_nothing_is_believed(site: Site) -> None:
    keeper = site.keeper()
    await keeper.restore()
    with pytest.raises(Rejected) as caught:
        keeper.require()
    assert caught.value.reason == "TrustMissing"


async def test_a_bundle_survives_a_restart_and_an_older_one_does_not_replace_it(site: Site) -> None:
    await site.keeper().offer(bundle(2))
    keeper = site.keeper()
    await keeper.restore()
    assert keeper.require().version == 2
    await keeper.offer(bundle(1))
    assert keeper.require().version == 2
    changes = site.changes
    await keeper.offer(bundle(2))
    assert site.changes == changes, "the same again is no change"
    await keeper.offer(bundle(3))
    assert keeper.require().publishers["weld"].min_release_seq == 3
    assert site.changes == changes + 1


@pytest.mark.parametrize("wrong", [b"{", bundle(3, key=STRANGER), bundle(3, key=STRANGER, root=root_of(STRANGER))])
async def test_what_does_not_follow_from_the_root_changes_nothing(site: Site, wrong: bytes) -> None:
    keeper = site.keeper()
    await keeper.offer(wrong)
    with pytest.raises(Rejected, match="refused"):
        keeper.require()
    await keeper.offer(bundle(2))
    await keeper.offer(wrong)
    assert keeper.require().version == 2


async def test_keys_that_a_later_root_dropped_do_not_come_back(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Also after a restart, and though the pinned root still names them."""
    ours = PrivateKey.generate()
    later = make_root([ours.public], signers=[ROOT, ours], threshold=1, version=2, expires_at=ENDS)
    content = BundleContent({"weld": Publisher((HUB.public,))}, (HUB.public,))
    await site.keeper().offer(make_bundle(roots=[PINNED, later], signers=[ours], version=2, content=content, expires_at=ENDS))
    keeper = site.keeper()
    await keeper.restore()
    assert (keeper.require().version, keeper.require().root_version) == (2, 2)
    await keeper.offer(bundle(3))
    assert keeper.require().version == 2
    assert "BundleRollback" in caplog.text


async def test_keys_that_a_later_root_dropped_make_no_other_root(site: Site) -> None:
    """Not in the later root's place, and not after it; also after a restart. Who follows the later root is believed as ever."""
    ours, next_one = PrivateKey.generate(), PrivateKey.generate()
    later = make_root([ours.public], signers=[ROOT, ours], threshold=1, version=2, expires_at=ENDS)
    content = BundleContent({"weld": Publisher((HUB.public,))}, (HUB.public,))

    def offered(version: int, roots: list[bytes], key: PrivateKey) -> bytes:
        return make_bundle(roots=roots, signers=[key], version=version, content=content, expires_at=ENDS)

    rival = make_root([STRANGER.public], signers=[ROOT, STRANGER], threshold=1, version=2, expires_at=ENDS)
    rival_next = make_root([STRANGER.public], signers=[STRANGER], threshold=1, version=3, expires_at=ENDS)
    await site.keeper().offer(offered(2, [PINNED, later], ours))
    for number in range(2):
        keeper = site.keeper()
        await keeper.restore()
        for roots in ([PINNED, rival], [PINNED, rival, rival_next]):
            await keeper.offer(offered(3, roots, STRANGER))
            assert keeper.require().version == 2, number
            assert keeper.report().refused.startswith("BundleRootMismatch: the trust bundle has another root 2")
    third = make_root([next_one.public], signers=[ours, next_one], threshold=1, version=3, expires_at=ENDS)
    await keeper.offer(offered(3, [PINNED, later, third], next_one))
    assert (keeper.require().version, keeper.require().root_version) == (3, 3)


@pytest.mark.parametrize("step", ["write", "sync", "rename", "sync folder"])
@pytest.mark.parametrize("file", ["bundle.json", "state.json"])
async def test_a_crash_leaves_a_bundle_that_is_believed(site: Site, step: str, file: str) -> None:
    await site.keeper().offer(bundle(2))
    at = f"{step} of {file}" if step == "sync folder" else f"{step} {file}"
    with pytest.raises(OSError, match="power"):
        await site.keeper(fail_at=at).offer(bundle(3))
    keeper = site.keeper()
    await keeper.restore()
    assert keeper.require().version in (2, 3)


async def test_the_hub_is_told_what_is_in_force_and_what_is_refused(site: Site) -> None:
    keeper, told = site.keeper(), list[TrustReport]()
    keeper.on_report = lambda: told.append(keeper.report())
    await keeper.offer(bundle(2))
    for _ in range(3):
        await keeper.offer(bundle(1))
    await keeper.offer(bundle(3, key=STRANGER))
    await keeper.offer(bundle(3))
    assert [(one.version, one.refused.partition(":")[0]) for one in told] == [
        (2, "BundleRollback"),
        (2, "BundleUnderSigned"),
        (3, ""),
    ], "once for each that is new, and nothing of what is as it should be"
    assert told[-1].ends == keeper.ends
    # As little room as a Lease has for it.
    assert len(TrustReport(version=1 << 53, ends=ENDS, refused="x" * 300, clock="x" * 200).model_dump_json(by_alias=True)) < 640


async def test_a_stored_bundle_that_ended_says_so_after_a_restart(site: Site) -> None:
    ended = bundle(2, ends=datetime.now(UTC) - timedelta(hours=1))
    (site.folder / "bundle.json").write_bytes(ended)
    keeper = site.keeper()
    await keeper.restore()
    with pytest.raises(Rejected, match="TrustStale"):
        keeper.require()
    await keeper.offer(ended)
    with pytest.raises(Rejected, match="TrustStale"):
        keeper.require()
    await keeper.offer(bundle(3))
    assert keeper.require().version == 3


async def test_a_bundle_past_its_end_is_stale(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = site.keeper()
    await keeper.offer(bundle(2))
    monkeypatch.setattr(StateFile, "now", lambda _: ENDS)
    with pytest.raises(Rejected) as caught:
        keeper.require()
    assert caught.value.reason == "TrustStale"
