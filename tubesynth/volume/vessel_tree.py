"""From a graph of centreline pieces to rooted vessels, each a path from its root to a tip.

Every connected component gets its own root: the end nearest to given points, or the widest end.
Distances run from there along the shortest way; a loop is cut where both ways round are equally
long, so that distance grows along every piece. At a junction the widest and straightest piece
carries the vessel on and the others begin vessels of their own: so a vessel is smoothed through its
junctions instead of being pulled aside at each of them.
"""

from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from tubesynth.volume.skeleton import Graph, length


@dataclass
class Vessel:
    """points (K, 4): x y z radius in mm, from root to tip.

    stops: the rows where branches begin and end, first and last row included. parent: (vessel
    number, stop number) where this one leaves another, None at a root. free_start, free_end: the
    path ends in the open there, not in a junction or at the cut of a loop.
    """

    points: np.ndarray
    stops: list[int]
    parent: tuple[int, int] | None
    free_start: bool
    free_end: bool


def rooted_vessels(graph: Graph, root_points: np.ndarray | None = None) -> list[Vessel]:
    """Vessels of all components, the longest first; a vessel stands after the one it leaves.

    root_points: (P, 3) mm, where the tree comes from (voxels of the aorta), or None.
    """
    trees = []
    for nodes in components(graph):
        root = find_root(graph, nodes, root_points)
        pieces = directed_pieces(graph, root)
        total = sum(length(points) for piece in pieces.values() for _, points, _ in piece)
        trees.append((-total, tuple(graph.centre[root][:3]), root, pieces))
    vessels = []
    for _, _, root, pieces in sorted(trees, key=lambda tree: tree[:2]):
        vessels += assemble(graph, root, pieces, len(vessels))
    return vessels


def components(graph: Graph) -> list[list[int]]:
    seen, found = set(), []
    for start in graph.at:
        if start not in seen:
            seen.add(start)
            nodes = [start]
            for node in nodes:  # grows while it is walked
                for key in graph.at[node]:
                    for far in graph.edges[key][:2]:
                        if far not in seen:
                            seen.add(far)
                            nodes.append(far)
            found.append(nodes)
    return found


def find_root(graph: Graph, nodes: list[int], root_points: np.ndarray | None) -> int:
    """The end nearest to the root points, else the widest; any node counts if there is no end."""
    candidates = [n for n in nodes if len(graph.at[n]) == 1] or nodes
    if root_points is not None and len(root_points):
        nearest = {
            n: ((root_points - graph.centre[n][:3]) ** 2).sum(axis=1).min() for n in candidates
        }
        return min(candidates, key=lambda n: (nearest[n], tuple(graph.centre[n])))

    def width(node: int) -> float:
        # The tip itself is narrowed by thinning and the far half may lie inside another vessel.
        widths = [graph.centre[node][3]]
        for key in graph.at[node]:
            points = graph.from_node(key, node)[1]
            along = arc(points)
            widths.append(points[along <= min(3.0, along[-1] / 2), 3].mean())
        return max(widths)

    return max(candidates, key=lambda n: (width(n), tuple(graph.centre[n])))


def arc(points: np.ndarray) -> np.ndarray:
    """(K, >=3) -> (K,) distance along the path from its first point."""
    steps = np.linalg.norm(np.diff(points[:, :3], axis=0), axis=1)
    return np.concatenate([[0.0], np.cumsum(steps)])


def directed_pieces(graph: Graph, root: int) -> dict[int, list[tuple]]:
    """The graph as a tree: node -> [(far node, or None at a cut; points to it; free end?)]."""
    distance, arrived_by, queue = {}, {}, [(0.0, 0, root, None)]
    order = 0
    while queue:
        so_far, _, node, by = heappop(queue)
        if node in distance:
            continue
        distance[node], arrived_by[node] = so_far, by
        for key in graph.at[node]:
            far, points = graph.from_node(key, node)
            if far not in distance:
                order += 1
                heappush(queue, (so_far + length(points), order, far, key))
    pieces = {node: [] for node in distance}
    for key in sorted({key for node in distance for key in graph.at[node]}):
        a, b, points = graph.edges[key]
        if a != b and key in (arrived_by[a], arrived_by[b]):
            near = a if arrived_by[b] == key else b
            far, points = graph.from_node(key, near)
            pieces[near].append((far, points, len(graph.at[far]) == 1))
            continue
        along = arc(points)
        cut = (along[-1] + distance[b] - distance[a]) / 2  # as far from the root either way round
        row = int(np.argmin(np.abs(along - cut)))
        if row > 0:
            pieces[a].append((None, points[: row + 1], False))
        if row < len(points) - 1:
            pieces[b].append((None, points[row:][::-1], False))
    return pieces


def assemble(graph: Graph, root: int, pieces: dict, first_number: int) -> list[Vessel]:
    """Join pieces into vessels; numbers in `parent` count from first_number."""
    if not pieces[root]:
        return [Vessel(graph.centre[root][None], [0], None, True, True)]
    vessels = []
    waiting = [(None, piece) for piece in pieces[root]]
    at_end = len(graph.at[root]) == 1
    while waiting:
        parent, (node, points, free) = waiting.pop(0)
        path, stops, number = [points], [0, len(points) - 1], first_number + len(vessels)
        while node is not None and pieces[node]:
            onward = sorted(pieces[node], key=lambda piece: -continues(path[-1], piece[1]))
            waiting += [((number, len(stops) - 1), piece) for piece in onward[1:]]
            node, points, free = onward[0]
            path.append(points)
            stops.append(stops[-1] + len(points) - 1)
        joined = np.vstack([path[0], *[points[1:] for points in path[1:]]])
        vessels.append(Vessel(joined, stops, parent, parent is None and at_end, free))
    return vessels


def continues(before: np.ndarray, after: np.ndarray) -> float:
    """How much `after` looks like `before` carried on: cosine of the bend plus relative width."""
    reach = max(3.0, 2 * after[0, 3])
    back = np.searchsorted(arc(before[::-1]), reach)
    ahead = min(int(np.searchsorted(arc(after), reach)), len(after) - 1)
    incoming = before[-1, :3] - before[max(len(before) - 1 - back, 0), :3]
    outgoing = after[ahead, :3] - after[0, :3]
    size = np.linalg.norm(incoming) * np.linalg.norm(outgoing)
    bend = float(incoming @ outgoing / size) if size > 0 else -1.0
    return bend + float(after[ahead, 3] / max(before[-1, 3], 1e-6))
