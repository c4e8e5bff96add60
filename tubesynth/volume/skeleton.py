"""From skeleton voxels to a graph of centreline pieces without narrow loops and short spurs.

Voxels with three or more of 26 neighbors are junctions, and touching ones form one node; the voxels
between two nodes are an edge. Artifacts of thinning are removed: spurs shorter than the radius of
the vessel they leave, spurs across a flat vessel, and loops narrower than a vessel. Points are rows
(x, y, z, radius) in mm relative to the middle of the volume. The radius is a first estimate: the
distance to the nearest voxel outside.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from tubesynth.volume.polyline import point_tree, total_length
from tubesynth.volume.thinning import VoxelCloud


@dataclass
class Graph:
    """Nodes (4,), and edges (node, node, (K, 4) points from one to the other, both included)."""

    center: dict[int, np.ndarray] = field(default_factory=dict)
    at: dict[int, list[int]] = field(default_factory=dict)  # node -> edges that end in it
    edges: dict[int, tuple[int, int, np.ndarray]] = field(default_factory=dict)
    last_key: int = -1

    def add_node(self, node: int, center: np.ndarray) -> None:
        self.center[node], self.at[node] = center, []

    def add(self, a: int, b: int, points: np.ndarray) -> None:
        self.last_key += 1
        self.edges[self.last_key] = (a, b, points)
        self.at[a].append(self.last_key)
        self.at[b].append(self.last_key)  # a loop on one node counts twice

    def remove(self, key: int) -> None:
        a, b, _ = self.edges.pop(key)
        self.at[a].remove(key)
        self.at[b].remove(key)

    def remove_node(self, node: int) -> None:
        self.center.pop(node)
        self.at.pop(node)

    def from_node(self, key: int, node: int) -> tuple[int, np.ndarray]:
        """The far node and the points of an edge, in the direction away from `node`."""
        a, b, points = self.edges[key]
        return (b, points) if a == node else (a, points[::-1])


def skeleton_graph(cloud: VoxelCloud) -> Graph:
    """The pruned graph. A ring without ends or junctions has one node, at its widest voxel."""
    # radius: distance to the nearest voxel center outside, less half a voxel; (M,)
    radius = point_tree(cloud.outside).query(cloud.skeleton)[0] - cloud.spacing.mean() / 2
    radius = np.maximum(radius, cloud.spacing.min() / 4)
    graph = _trace(np.column_stack([cloud.skeleton, radius]), cloud.spacing)
    _simplify(graph, cloud)
    return graph


def _trace(points: np.ndarray, spacing: np.ndarray) -> Graph:
    """Skeleton voxels (M, 4) as points -> the raw graph of all neighbors."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    # pairs (P, 2) of 26-neighbors: in voxels, a corner neighbor is sqrt(3) = 1.73 away
    total = len(points)
    voxels = points[:, :3] / spacing
    pairs = point_tree(voxels).query_pairs(1.8, output_type="ndarray")
    neighbors: list[list[int]] = [[] for _ in range(total)]
    for a, b in sorted(map(tuple, pairs.tolist())):
        neighbors[a].append(b)
        neighbors[b].append(a)
    # Touching junction voxels (degree 3 or more) share a node; any other voxel is its own cluster.
    degree = np.array([len(n) for n in neighbors])
    inner = pairs[(degree[pairs] >= 3).all(axis=1)]
    touching = coo_matrix((np.ones(len(inner)), (inner[:, 0], inner[:, 1])), (total, total))
    node_of = connected_components(touching, directed=False)[1]  # (M,)
    is_node = degree != 2
    graph, seen = Graph(), np.zeros(total, dtype=bool)
    members: dict[int, list[np.ndarray]] = {}
    for voxel in np.flatnonzero(is_node):
        members.setdefault(int(node_of[voxel]), []).append(points[voxel])
    for node, rows in members.items():
        table = np.array(rows)  # a node lies at the mean of its voxels, with their largest radius
        graph.add_node(node, np.append(table[:, :3].mean(axis=0), table[:, 3].max()))

    def follow(start: int, first: int) -> None:
        """Add the edge that leaves node voxel `start` through its neighbor `first`."""
        path, previous, voxel = [], start, first
        while not is_node[voxel]:
            path.append(voxel)
            seen[voxel] = True
            previous, voxel = voxel, next(n for n in neighbors[voxel] if n != previous)
        a, b = int(node_of[start]), int(node_of[voxel])
        graph.add(a, b, np.vstack([graph.center[a], points[path], graph.center[b]]))

    for start in np.flatnonzero(is_node).tolist():
        for first in neighbors[start]:
            direct = is_node[first] and node_of[first] != node_of[start] and start < first
            if direct or not (is_node[first] or seen[first]):
                follow(start, first)
    # the voxels that remain belong to rings: each gets a node at its widest voxel
    for start in np.lexsort((np.arange(total), -points[:, 3])).tolist():
        if not (is_node[start] or seen[start]):
            is_node[start] = True
            graph.add_node(int(node_of[start]), points[start])
            follow(start, neighbors[start][0])
    return graph


def _simplify(graph: Graph, cloud: VoxelCloud) -> None:
    """Remove narrow loops and spurs in place, until nothing changes."""
    inside = point_tree(cloud.inside / cloud.spacing)
    while True:
        size = len(graph.edges)
        for key in _narrow_loops(graph):
            graph.remove(key)
        _dissolve(graph)
        for _, key in sorted(_spurs(graph, inside, cloud.spacing)):
            # The removal of an earlier spur may have joined this one to a longer vessel.
            if key in graph.edges:
                tip, junction = sorted(graph.edges[key][:2], key=lambda n: len(graph.at[n]))
                if len(graph.at[tip]) == 1 and len(graph.at[junction]) >= 3:
                    graph.remove(key)
                    graph.remove_node(tip)
                    _dissolve(graph, (junction,))
        if len(graph.edges) == size:
            return


def _spurs(graph: Graph, inside, spacing: np.ndarray) -> Iterator[tuple[float, int]]:
    """(length in mm, key) of ends that leave a junction and are no vessels of their own.

    They stay within the junction's radius, or cross a flat vessel. inside: tree of the mask's
    voxels, in voxels.
    """
    for key, (a, b, _) in graph.edges.items():
        if a != b and (len(graph.at[a]) == 1) != (len(graph.at[b]) == 1):
            node = b if len(graph.at[a]) == 1 else a
            points = graph.from_node(key, node)[1]
            reach_mm = float(np.linalg.norm(points[-1, :3] - points[0, :3]))
            if reach_mm < points[0, 3] or _crosses_flat_vessel(graph, key, node, inside, spacing):
                yield reach_mm, key


def _crosses_flat_vessel(graph: Graph, key: int, node: int, inside, spacing: np.ndarray) -> bool:
    """Whether the mask continues beside a spur: on both sides, or as far as the tip of another one.

    Beside the tip of a vessel is none of the mask. The sides are those of the vessel that the spur
    leaves, at twice the spur's own width and a voxel more. Two spurs whose tips are closer than
    they are long may be vessels side by side, and two in one line the vessel itself.
    """
    points = graph.from_node(key, node)[1][:, :3]  # (K, 3) from the junction to the tip
    tip, spur = points[-1], points[-1] - points[0]
    beside_mm = 2 * (float(np.median(graph.edges[key][2][:, 3])) + spacing.max())

    def is_inside(positions: np.ndarray) -> bool:
        distance = inside.query(positions / spacing, p=np.inf)[0]
        return bool((distance <= 0.5 + 1e-6).all())

    continued = []  # unit directions of the other edges along which the mask continues
    for other in set(graph.at[node]) - {key}:
        far, along = graph.from_node(other, node)
        along = along[:, :3]
        if len(graph.at[far]) == 1 and len(along) >= len(points):  # a spur too
            other_spur = along[-1] - along[0]
            size = np.linalg.norm(spur) * np.linalg.norm(other_spur)
            is_apart = np.linalg.norm(other_spur - spur) >= np.linalg.norm(spur)
            is_bent = spur @ other_spur > -0.5 * size
            if is_apart and is_bent and is_inside(np.linspace(tip, along[-1], 4 * len(along))):
                return True
        reach_mm = np.linalg.norm(along - along[0], axis=1)
        row = min(int(np.searchsorted(reach_mm, beside_mm)), len(along) - 1)
        direction = (along[row] - along[0]) / max(reach_mm[row], 1e-9)
        if is_inside(tip + beside_mm * direction[None]):
            continued.append(direction)
    return any(first @ second < -0.5 for first in continued for second in continued)


def _narrow_loops(graph: Graph) -> list[int]:
    """Keys of edges that close a loop shorter than the circumference 2 pi r: holes in the mask."""
    loops: list[int] = []
    first_between: dict[tuple[int, int], int] = {}
    for key, (a, b, points) in graph.edges.items():
        # two edges between the same nodes form a loop, and so does an edge from a node to itself
        other = first_between.setdefault((min(a, b), max(a, b)), key)
        around_mm = total_length(points)
        around_mm += total_length(graph.edges[other][2]) if other != key else 0.0
        if (a == b or other != key) and around_mm < 2 * np.pi * max(points[0, 3], points[-1, 3]):
            if not (a == b and len(graph.at[a]) == 2):  # a ring by itself is a vessel
                loops.append(key)
    return loops


def _dissolve(graph: Graph, nodes=None) -> None:
    """Join the two edges of every node that is no longer a junction."""
    for node in list(graph.at if nodes is None else nodes):
        keys = graph.at.get(node, [])
        if len(keys) == 2 and keys[0] != keys[1]:
            (a, first), (b, second) = (graph.from_node(key, node) for key in keys)
            for key in list(keys):
                graph.remove(key)
            graph.remove_node(node)
            graph.add(a, b, np.vstack([first[::-1], second[1:]]))
