"""Where everything of one demo lies, and which sites there are."""

from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
OPERATOR = REPOSITORY / "operator"
DIGITS = REPOSITORY / "examples" / "digits"
MANIFESTS = DIGITS / "manifests"

FLEET = "vision/digits"
RETAIL = "retail/digits"
MODEL = "digits"
HUB_NAMESPACE = "edgefleet-system"

MEMORY = 8 << 30
PLAIN = ("avx2",)
VNNI = ("avx2", "avx512_vnni")


@dataclass(frozen=True)
class Place:
    """One site: where it is, on which cluster of the lab it runs, and which CPU features its agent declares, beside MEMORY."""

    name: str
    region: str
    cluster: str
    features: tuple[str, ...]


PLACES = (
    Place("almaty", "kz", "east", VNNI),
    Place("astana", "kz", "east", PLAIN),
    Place("aktau", "kz", "east", VNNI),
    Place("shymkent", "kz", "east", PLAIN),
    Place("berlin", "de", "west", VNNI),
    Place("hamburg", "de", "west", PLAIN),
    Place("leipzig", "de", "west", VNNI),
    Place("munich", "de", "west", PLAIN),
    Place("austin", "us", "east", PLAIN),
)
FEWER = tuple(place for place in PLACES if place.name not in ("shymkent", "leipzig"))
"""Enough for every act on real nodes, where a site is three pods: two canaries, a wave to half, and the rest."""
CUT_OFF = "hamburg"
"""The site whose line to the hub can be cut."""
REFUSED = next(place.name for place in PLACES if place.region == "us")
ELIGIBLE = tuple(place.name for place in PLACES if place.name != REFUSED)


@dataclass(frozen=True)
class Folders:
    """Everything under `root`; the desk is where the person sits."""

    root: Path

    @property
    def lab(self) -> Path:
        """Servers of the lab; its `run` also registers what the demo starts."""
        return self.root / "lab"

    @property
    def desk(self) -> Path:
        """The person's working folder: the team's Git, keys, releases."""
        return self.root / "desk"

    @property
    def out(self) -> Path:
        """What the demo leaves to be read: `kubectl get` after each act, counts, the story."""
        return self.root / "out"

    @property
    def run(self) -> Path:
        """Pid files and logs of all processes."""
        return self.lab / "run"

    def site(self, name: str) -> Path:
        """One site's own disk."""
        return self.root / "sites" / name
