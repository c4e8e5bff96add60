"""From a graph of centreline pieces to rooted vessels, each a path from its root to a tip.

Every connected component gets its own root: the end nearest to given points, or the widest end.
Distances from the root follow the shortest path (Dijkstra); a loop is cut where both ways round are
equally long, so that the distance grows along every piece. At a junction the widest and straightest
piece continues the vessel and the others begin new vessels: smoothing then passes through a
junction and does not pull the vessel aside. Points are (K, 4): x, y, z,
radius in mm.
"""

from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from tubesynth.volume.polyline import arc_length, total_length
from tubesynth.volume.skeleton import Graph

# far node, or None at the cut of a loop; (K, 4) points to it; whether it is a free end
Piece = tuple[int | None, np.ndarray, bool]


@dataclass
class Vessel:
    """points (K, 4): x, y, z, radius in mm, from root to tip.

    stops: the rows where branches begin and end, first and last row included. parent: (vessel
    number, stop number) where this one leaves another, None at a root. free_start, free_end:
    whether the path ends freely at that side, not in a junction or at the cut of a loop.
    """

    points: np.ndarray
    stops: list[int]
    parent: tuple[int, int] | None
    free_start: bool
    free_end: bool


def rooted_vessels(graph: Graph, root_points: np.ndarray | None = None) -> list[Vessel]:
    """Vessels of all components, the longest component first; a parent comes before its children.

    root_points: (P, 3) mm, where the tree comes from (voxels of the aorta), or None.
    """
    trees = []
    for nodes in _components(graph):
        root = _find_root(graph, nodes, root_points)
        pieces = _directed_pieces(graph, root)
        length_mm = sum(total_length(points) for node in pieces.values() for _, points, _ in node)
        trees.append((-length_mm, tuple(graph.center[root][:3]), root, pieces))
    vessels: list[Vessel] = []
    for _, _, root, pieces in sorted(trees, key=lambda tree: tree[:2]):
        vessels += _assemble(graph, root, pieces, len(vessels))
    return vessels


def _components(graph: Graph) -> list[list[int]]:
    """The nodes of each connected component."""
    seen: set[int] = set()
    components = []
    for start in graph.at:
        if start not in seen:
            seen.add(start)
            nodes = [start]
            for node in nodes:  # breadth first: the list grows during its iteration
                for key in graph.at[node]:
                    for neighbor in graph.edges[key][:2]:
                        if neighbor not in seen:
                            seen.add(neighbor)
                            nodes.append(neighbor)
            components.append(nodes)
    return components


def _find_root(graph: Graph, nodes: list[int], root_points: np.ndarray | None) -> int:
    """The end nearest to the root points, else the widest; any node counts if there is no end."""
    candidates = [n for n in nodes if len(graph.at[n]) == 1] or nodes
    if root_points is not None and len(root_points):
        nearest = {
            n: ((root_points - graph.center[n][:3]) ** 2).sum(axis=1).min() for n in candidates
        }
        return min(candidates, key=lambda n: (nearest[n], tuple(graph.center[n])))

    def width(node: int) -> float:
        # The mean radius of the first 3 mm, or of half a shorter edge: thinning narrows the tip,
        # and the far half may lie inside another vessel.
        widths = [float(graph.center[node][3])]
        for key in graph.at[node]:
            points = graph.from_node(key, node)[1]
            along = arc_length(points)
            widths.append(float(points[along <= min(3.0, along[-1] / 2), 3].mean()))
        return max(widths)

    return max(candidates, key=lambda n: (width(n), tuple(graph.center[n])))


def _directed_pieces(graph: Graph, root: int) -> dict[int, list[Piece]]:
    """The component as a tree: for each node the pieces that leave it, away from the root."""
    # Dijkstra from the root; arrived_by is the edge of the shortest path to a node
    distance: dict[int, float] = {}
    arrived_by: dict[int, int | None] = {}
    queue: list[tuple[float, int, int, int | None]] = [(0.0, 0, root, None)]
    order = 0  # of equal distances the one that was queued first is taken
    while queue:
        node_distance, _, node, edge = heappop(queue)
        if node in distance:
            continue
        distance[node], arrived_by[node] = node_distance, edge
        for key in graph.at[node]:
            neighbor, points = graph.from_node(key, node)
            if neighbor not in distance:
                order += 1
                heappush(queue, (node_distance + total_length(points), order, neighbor, key))
    pieces: dict[int, list[Piece]] = {node: [] for node in distance}
    for key in sorted({key for node in distance for key in graph.at[node]}):
        a, b, points = graph.edges[key]
        if a != b and key in (arrived_by[a], arrived_by[b]):
            near = a if arrived_by[b] == key else b
            far, points = graph.from_node(key, near)
            pieces[near].append((far, points, len(graph.at[far]) == 1))
            continue
        # An edge on no shortest path closes a loop. It is cut at the arc length s that is equally
        # far from the root by either side: d_a + s = d_b + length - s.
        along = arc_length(points)
        cut = (along[-1] + distance[b] - distance[a]) / 2
        row = int(np.argmin(np.abs(along - cut)))
        if row > 0:
            pieces[a].append((None, points[: row + 1], False))
        if row < len(points) - 1:
            pieces[b].append((None, points[row:][::-1], False))
    return pieces


def _assemble(
    graph: Graph, root: int, pieces: dict[int, list[Piece]], first_number: int
) -> list[Vessel]:
    """Join pieces into vessels; the numbers in `parent` count from first_number."""
    if not pieces[root]:
        return [Vessel(graph.center[root][None], [0], None, True, True)]
    vessels: list[Vessel] = []
    waiting: list[tuple[tuple[int, int] | None, Piece]] = [(None, p) for p in pieces[root]]
    root_is_end = len(graph.at[root]) == 1
    while waiting:
        parent, (node, points, is_free) = waiting.pop(0)
        path, stops, number = [points], [0, len(points) - 1], first_number + len(vessels)
        while node is not None and pieces[node]:
            # the best continuation first; the others wait as children of this stop
            onward = sorted(
                pieces[node], key=lambda piece: -_continuation_score(path[-1], piece[1])
            )
            waiting += [((number, len(stops) - 1), piece) for piece in onward[1:]]
            node, points, is_free = onward[0]
            path.append(points)
            stops.append(stops[-1] + len(points) - 1)
        # neighboring pieces share the junction's point
        joined = np.vstack([path[0], *[points[1:] for points in path[1:]]])
        vessels.append(Vessel(joined, stops, parent, parent is None and root_is_end, is_free))
    return vessels


def _continuation_score(before: np.ndarray, after: np.ndarray) -> float:
    """Score of `after` as the continuation of `before`: cosine of the bend plus relative width.

    Directions are chords over max(3 mm, 2 radii) on either side of the junction, which is the last
    row of `before` and the first of `after`.
    """
    reach_mm = max(3.0, 2 * after[0, 3])
    back = np.searchsorted(arc_length(before[::-1]), reach_mm)
    ahead = min(int(np.searchsorted(arc_length(after), reach_mm)), len(after) - 1)
    incoming = before[-1, :3] - before[max(len(before) - 1 - back, 0), :3]
    outgoing = after[ahead, :3] - after[0, :3]
    size = np.linalg.norm(incoming) * np.linalg.norm(outgoing)
    cosine = float(incoming @ outgoing / size) if size > 0 else -1.0
    return cosine + float(after[ahead, 3] / max(before[-1, 3], 1e-6))
