"""Which triangle does each sample of a picture see? Vectorised scan conversion in numpy, far to near.

Knows nothing of faces, light or colour. Axes: V vertices, F triangles; picture axes x right, y down, in samples.
"""

import numpy as np


def visible_triangles(xy: np.ndarray, triangles: np.ndarray, width: int, height: int) -> np.ndarray:
    """The last triangle drawn over each sample: [height, width] int32 index into `triangles`, -1 where none.

    Args:
        xy: [V,2] float32 vertex positions; sample (column i, row j) sits at (i + 0.5, j + 0.5).
        triangles: [F,3] int vertex indices in drawing order, farthest first.
    """
    seen = np.full(height * width, -1, np.int32)
    corners = xy[triangles]
    x, y = corners[..., 0], corners[..., 1]
    x, y = np.ascontiguousarray(x.T), np.ascontiguousarray(y.T)
    for low, high in ((0, 1), (1, 2), (0, 1)):
        swap = y[low] > y[high]
        for a in (x, y):
            a[low], a[high] = np.where(swap, a[high], a[low]), np.where(swap, a[low], a[high])
    first = np.clip(np.ceil(y[0] - 0.5), 0, height).astype(np.int32)
    past = np.clip(np.ceil(y[2] - 0.5), 0, height).astype(np.int32)
    in_view = (np.maximum(np.maximum(x[0], x[1]), x[2]) > 0) & (np.minimum(np.minimum(x[0], x[1]), x[2]) < width)
    rows = np.where(in_view, np.maximum(past - first, 0), 0)
    if not rows.any():
        return seen.reshape(height, width)

    span_triangle, span_row = _runs(first, rows)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope_long = np.where(y[2] > y[0], (x[2] - x[0]) / (y[2] - y[0]), 0)
        slope_top = np.where(y[1] > y[0], (x[1] - x[0]) / (y[1] - y[0]), 0)
        slope_bottom = np.where(y[2] > y[1], (x[2] - x[1]) / (y[2] - y[1]), 0)
    edges = np.stack([x[0], y[0], x[1], y[1], slope_long, slope_top, slope_bottom], 1)[span_triangle]
    centre = span_row + np.float32(0.5)
    from_top = centre - edges[:, 1]
    one = edges[:, 0] + from_top * edges[:, 4]
    other = np.where(
        centre < edges[:, 3], edges[:, 0] + from_top * edges[:, 5], edges[:, 2] + (centre - edges[:, 3]) * edges[:, 6]
    )
    start = np.clip(np.ceil(np.minimum(one, other) - 0.5), 0, width).astype(np.int32)
    stop = np.clip(np.ceil(np.maximum(one, other) - 0.5), 0, width).astype(np.int32)
    span, sample = _runs(span_row * width + start, np.maximum(stop - start, 0))
    # Where an index repeats, numpy keeps the last value: the nearest triangle, as they come far to near.
    seen[sample] = span_triangle[span]
    return seen.reshape(height, width)


def _runs(first: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Item index and value for `first[i], first[i] + 1, ...` (`count[i]` of them), all items in a row."""
    owner = np.repeat(np.arange(len(count), dtype=np.int32), count)
    offset = (first - (np.cumsum(count) - count)).astype(np.int32)
    return owner, offset[owner] + np.arange(len(owner), dtype=np.int32)


def planes(xy: np.ndarray, triangles: np.ndarray, attributes: np.ndarray) -> np.ndarray:
    """Each attribute as a plane over the picture: [F, 2 + 3A] rows (x0, y0, value, d/dx, d/dy at (x0, y0)).

    Args:
        xy: [V,2]. triangles: [F,3]. attributes: [V,A], interpolated affinely (exact for small triangles).
    """
    p, a = xy[triangles], attributes[triangles]
    e1, e2 = p[:, 1] - p[:, 0], p[:, 2] - p[:, 0]
    area = e1[:, 0] * e2[:, 1] - e1[:, 1] * e2[:, 0]
    # A sliver has no trustworthy slope; its one value is as good.
    inverse = np.where(np.abs(area) > 0.2, 1 / np.where(area == 0, 1, area), 0)[:, None]
    d1, d2 = a[:, 1] - a[:, 0], a[:, 2] - a[:, 0]
    dx = (d1 * e2[:, 1:2] - d2 * e1[:, 1:2]) * inverse
    dy = (d2 * e1[:, 0:1] - d1 * e2[:, 0:1]) * inverse
    return np.concatenate([p[:, 0], a[:, 0], dx, dy], 1)


def evaluate(rows: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Attributes [N,A] at points x, y [N], from the `planes` row of the triangle seen at each."""
    count = (rows.shape[1] - 2) // 3
    dx, dy = (x - rows[:, 0])[:, None], (y - rows[:, 1])[:, None]
    value = rows[:, 2 + count : 2 + 2 * count] * dx
    value += rows[:, 2 + 2 * count :] * dy
    value += rows[:, 2 : 2 + count]
    return value
