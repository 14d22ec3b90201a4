"""Near-duplicates: groups of images that are alike, and which of each group to keep."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from openjepa.inference.search.pairs import Pairs


@dataclass(frozen=True)
class File:
    """What is known of an image's file."""

    height: int
    width: int
    bytes: int
    digest: str
    """Equal for equal files."""


@dataclass(frozen=True)
class Member:
    """One image of a group."""

    row: int
    file: File | None
    """None where the image cannot be read any more."""
    duplicate_of: int | None = None
    """Row of the image that is kept instead; None for an image that is kept."""
    cosine: float | None = None
    """To that one."""
    identical: bool | None = None
    """Whether both files are the same, byte for byte; None for an image that is kept, and where a file cannot be read."""

    @property
    def keep(self) -> bool:
        """Whether the image is kept."""
        return self.duplicate_of is None


@dataclass(frozen=True)
class Group:
    """Images that hang together by pairs that are alike enough; first those to keep, then the others."""

    members: tuple[Member, ...]
    highest: float
    """Largest cosine of a pair in the group."""
    lowest: float
    """Smallest cosine of a removed image to the one that is kept for it."""


def groups_of(pairs: Pairs, file_of: Callable[[int], File | None]) -> list[Group]:
    """The groups, those with the most alike pair first.

    In each group the images are gone through by pixels, then bytes of the file, the largest first, then rows: one that is alike
    enough to an image that is kept already is its duplicate, any other is kept. So no image goes because of a chain of others
    between it and the one that stays.
    """
    alike: dict[int, dict[int, float]] = defaultdict(dict)
    for one, other, cosine in zip(pairs.first.tolist(), pairs.second.tolist(), pairs.cosines.tolist(), strict=True):
        alike[one][other] = alike[other][one] = cosine
    groups = [_group(rows, alike, {row: file_of(row) for row in rows}) for rows in _connected(alike)]
    return sorted(groups, key=lambda group: (-group.highest, min(member.row for member in group.members)))


def _connected(alike: dict[int, dict[int, float]]) -> list[list[int]]:
    """Rows of each connected component, ascending."""
    seen: set[int] = set()
    components = []
    for start in sorted(alike):
        if start in seen:
            continue
        seen.add(start)
        component = [start]
        for row in component:  # grows while it is gone through
            new = [other for other in alike[row] if other not in seen]
            seen.update(new)
            component.extend(new)
        components.append(sorted(component))
    return components


def _group(rows: Sequence[int], alike: dict[int, dict[int, float]], files: dict[int, File | None]) -> Group:
    kept: list[Member] = []
    removed: list[Member] = []
    for row in sorted(rows, key=lambda row: _preference(row, files[row])):
        near = [(alike[row][member.row], -member.row) for member in kept if member.row in alike[row]]
        if not near:
            kept.append(Member(row, files[row]))
            continue
        cosine, negative = max(near)
        own, other = files[row], files[-negative]
        identical = None if own is None or other is None else own.digest == other.digest
        removed.append(Member(row, own, -negative, cosine, identical))
    highest = max(cosine for row in rows for cosine in alike[row].values())
    lowest = min(member.cosine for member in removed if member.cosine is not None)
    return Group((*kept, *removed), highest, lowest)


def _preference(row: int, file: File | None) -> tuple[int, int, int]:
    """Sorts the image to keep first; those that cannot be read come last."""
    return (-file.height * file.width, -file.bytes, row) if file is not None else (1, 0, row)
