"""Places of processes along the pipeline (`placement=FILE`), and hosts that meet at its widest link."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fgpipe.errors import UserError, bad_value
from fgpipe.plan.topology import Topology


def read(path: str | None, world_size: int, replicas: int = 1) -> tuple[tuple[int, ...], ...]:
    """Ranks of each replica, by position along the pipeline; in order without a file.

    The file is YAML with one key, `ranks`, such as `ranks: [2, 0, 1, 3]`; with several replicas it has a list for each,
    such as `ranks: [[2, 0], [1, 3]]`.

    Raises:
        UserError: it cannot be read, or does not list each rank once.
    """
    length = world_size // replicas
    if path is None:
        return tuple(tuple(range(first, first + length)) for first in range(0, world_size, length))
    listed = _listed(path)
    if replicas == 1:
        _check_once(path, listed, listed, world_size)
        return (tuple(listed),)
    if not all(isinstance(ranks, list) and len(ranks) == length for ranks in listed) or len(listed) != replicas:
        raise _refused(path, listed, f"{replicas} lists of {length} ranks, one for each replica")
    _check_once(path, listed, [rank for ranks in listed for rank in ranks], world_size)
    return tuple(map(tuple, listed))


def _check_once(path: str, listed: list[Any], ranks: list[Any], world_size: int) -> None:
    if not all(type(rank) is int for rank in ranks):
        raise _refused(path, listed, "a list of ranks such as [1, 0]")
    every = f"each rank from 0 to {world_size - 1} once, that with block 0 first"
    twice = [rank for rank in dict.fromkeys(ranks) if ranks.count(rank) > 1]
    unknown = [rank for rank in ranks if not 0 <= rank < world_size]
    missing = [rank for rank in range(world_size) if rank not in ranks]
    for which, what in ((twice, "is there twice"), (unknown, "does not exist"), (missing, "is missing")):
        if which:
            raise _refused(path, listed, f"{every}; {which[0]} {what}")


def _listed(path: str) -> list[Any]:
    form = "a YAML file such as `ranks: [1, 0]`"
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except UnicodeDecodeError as error:
        raise bad_value("placement", path, f"{form} (it is no text)") from error
    except (YAMLError, OmegaConfBaseException) as error:
        reason = getattr(error, "problem", None) or " ".join(str(error).split())
        raise bad_value("placement", path, f"{form} ({reason})") from error
    except OSError as error:
        raise bad_value("placement", path, f"{form} ({error.strerror or error})") from error
    if not isinstance(content, dict) or list(content) != ["ranks"]:
        raise bad_value("placement", path, f"{form}, and nothing else in it")
    if not isinstance(content["ranks"], list):
        raise _refused(path, content["ranks"], "a list of ranks such as [1, 0]")
    return content["ranks"]


def _refused(path: str, ranks: object, allowed: str) -> UserError:
    return bad_value(f"placement={path}: ranks", ranks, allowed)


def wide_boundary(topology: Topology, hosts: Sequence[int], link_bytes: Sequence[int]) -> str | None:
    """A warning if two hosts meet at the widest link between blocks, where there is a narrower one; else None.

    Args:
        hosts: of each rank, in any numbering.
        link_bytes: of a training batch in one replica, upwards from each block but the last.
    """
    widest, narrowest = max(link_bytes, default=0), min(link_bytes, default=0)
    for below, above in (pair for ranks in topology.pipelines for pair in pairwise(ranks)):
        block = topology.of(below)[-1]
        if hosts[below] != hosts[above] and link_bytes[block] == widest > narrowest:
            best = link_bytes.index(narrowest)
            return (
                f"two hosts (ranks {below} and {above}) meet at the widest link, blocks {block} and {block + 1}: "
                f"{widest} bytes a batch; the narrowest, blocks {best} and {best + 1}, has {narrowest} "
                "(partition and placement move the boundary)"
            )
    return None
