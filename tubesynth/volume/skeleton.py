"""From skeleton voxels to a graph of centreline pieces: junctions, narrow loops, spurs.

Voxels with three or more of 26 neighbours are junctions and touching ones form one node; what runs
between nodes is an edge. Spurs shorter than the radius of the vessel they leave, and loops narrower
than it, are traces of thinning and go. Points are rows (x, y, z, radius) in mm relative to the
middle of the volume; the radius is rough here (distance to the nearest voxel outside).
"""

from dataclasses import dataclass, field

import numpy as np

from tubesynth.volume.thinning import VoxelCloud


@dataclass
class Graph:
    """Nodes (4,), and edges (node, node, (K, 4) points from one to the other, both included)."""

    centre: dict[int, np.ndarray] = field(default_factory=dict)
    at: dict[int, list[int]] = field(default_factory=dict)  # node -> edges that end in it
    edges: dict[int, tuple[int, int, np.ndarray]] = field(default_factory=dict)
    last_key: int = -1

    def add_node(self, node: int, centre: np.ndarray) -> None:
        self.centre[node], self.at[node] = centre, []

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
        self.centre.pop(node)
        self.at.pop(node)

    def from_node(self, key: int, node: int) -> tuple[int, np.ndarray]:
        """The far node and the points of an edge, walked away from `node`."""
        a, b, points = self.edges[key]
        return (b, points) if a == node else (a, points[::-1])


def skeleton_graph(cloud: VoxelCloud) -> Graph:
    """The pruned graph. A ring without ends or junctions has one node, at its widest voxel."""
    from scipy.spatial import cKDTree

    radius = cKDTree(cloud.outside).query(cloud.skeleton)[0] - cloud.spacing.mean() / 2
    radius = np.maximum(radius, cloud.spacing.min() / 4)
    graph = trace(np.column_stack([cloud.skeleton, radius]), cloud.spacing)
    simplify(graph)
    return graph


def trace(points: np.ndarray, spacing: np.ndarray) -> Graph:
    """Skeleton voxels (M, 4) as points -> the raw graph of everything that touches."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    total = len(points)
    voxels = points[:, :3] / spacing
    pairs = cKDTree(voxels).query_pairs(1.8, output_type="ndarray")  # sqrt(3) reaches a corner
    neighbours = [[] for _ in range(total)]
    for a, b in sorted(map(tuple, pairs.tolist())):
        neighbours[a].append(b)
        neighbours[b].append(a)
    degree = np.array([len(n) for n in neighbours])
    inner = pairs[(degree[pairs] >= 3).all(axis=1)]
    touching = coo_matrix((np.ones(len(inner)), (inner[:, 0], inner[:, 1])), (total, total))
    node_of = connected_components(touching, directed=False)[1]  # a voxel alone is its own cluster
    is_node = degree != 2
    graph, seen = Graph(), np.zeros(total, dtype=bool)
    members = {}
    for voxel in np.flatnonzero(is_node):
        members.setdefault(int(node_of[voxel]), []).append(points[voxel])
    for node, rows in members.items():
        rows = np.array(rows)
        graph.add_node(node, np.append(rows[:, :3].mean(axis=0), rows[:, 3].max()))

    def walk(start: int, first: int) -> None:
        path, last, here = [], start, first
        while not is_node[here]:
            path.append(here)
            seen[here] = True
            last, here = here, next(n for n in neighbours[here] if n != last)
        a, b = int(node_of[start]), int(node_of[here])
        graph.add(a, b, np.vstack([graph.centre[a], points[path], graph.centre[b]]))

    for start in np.flatnonzero(is_node):
        for first in neighbours[start]:
            direct = is_node[first] and node_of[first] != node_of[start] and start < first
            if direct or not (is_node[first] or seen[first]):
                walk(start, first)
    for start in np.lexsort((np.arange(total), -points[:, 3])):  # rings, the widest voxel first
        if not (is_node[start] or seen[start]):
            is_node[start] = True
            graph.add_node(int(node_of[start]), points[start])
            walk(start, neighbours[start][0])
    return graph


def simplify(graph: Graph) -> None:
    """Remove narrow loops and short spurs in place, until nothing changes."""
    while True:
        size = len(graph.edges)
        for key in narrow_loops(graph):
            graph.remove(key)
        dissolve(graph)
        for _, key in sorted(short_spurs(graph)):
            # What an earlier spur's removal changed may have made this one a whole vessel.
            if key in graph.edges:
                tip, junction = sorted(graph.edges[key][:2], key=lambda n: len(graph.at[n]))
                if len(graph.at[tip]) == 1 and len(graph.at[junction]) >= 3:
                    graph.remove(key)
                    graph.remove_node(tip)
                    dissolve(graph, (junction,))
        if len(graph.edges) == size:
            return


def length(points: np.ndarray) -> float:
    return float(np.linalg.norm(np.diff(points[:, :3], axis=0), axis=1).sum())


def short_spurs(graph: Graph):
    """(length, key) of ends that leave a junction and do not come out of the vessel there."""
    for key, (a, b, points) in graph.edges.items():
        if a != b and (len(graph.at[a]) == 1) != (len(graph.at[b]) == 1):
            junction, tip = (points[-1], points[0]) if len(graph.at[a]) == 1 else points[[0, -1]]
            reach = float(np.linalg.norm(tip[:3] - junction[:3]))
            if reach < junction[3]:
                yield reach, key


def narrow_loops(graph: Graph) -> list[int]:
    """Edges that close a loop shorter than their vessel's circumference: pinholes of the mask."""
    found, between = [], {}
    for key, (a, b, points) in graph.edges.items():
        other = between.setdefault((min(a, b), max(a, b)), key)
        around = length(points) + (length(graph.edges[other][2]) if other != key else 0.0)
        if (a == b or other != key) and around < 2 * np.pi * max(points[0, 3], points[-1, 3]):
            if not (a == b and len(graph.at[a]) == 2):  # a ring by itself is a vessel
                found.append(key)
    return found


def dissolve(graph: Graph, nodes=None) -> None:
    """Join the two edges of every node that is no junction any more."""
    for node in list(graph.at if nodes is None else nodes):
        keys = graph.at.get(node, [])
        if len(keys) == 2 and keys[0] != keys[1]:
            (a, first), (b, second) = (graph.from_node(key, node) for key in keys)
            for key in list(keys):
                graph.remove(key)
            graph.remove_node(node)
            graph.add(a, b, np.vstack([first[::-1], second[1:]]))
