"""Which pixel is background, torso, head, hair or inner mouth, and what the background looks like without the person.

MediaPipe's selfie segmentation says where a person is; the landmarks and two colour models say which part. Knows
nothing of files, tracking or Gaussians. Axes: T frames, H, W pixels; landmarks [478, 3] in pixels of the frame.

What each label holds (`clip.MASK_LABELS`):
    head   face skin, forehead, ears: person above the jaw line that is not hair
    hair   person above the jaw line of the hair's colour, and long hair that hangs down from there
    mouth  between the inner lips
    torso  the rest of the person: clothes and the neck, which moves with the shoulders as much as with the head
In a frame without a face every pixel of a person is torso: nothing tells its parts apart.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from difflistener.clip import MASK_LABELS
from difflistener.errors import require
from difflistener.prepare.face_points import BROWS, CHIN, FACE_OVAL, FOREHEAD, INNER_LIPS, LIP_BOTTOM, LIP_TOP, NOSE_TIP
from difflistener.prepare.landmarks import quiet

JAW = FACE_OVAL[11:26]
"""The oval from the left jaw angle over the chin to the right one."""
EAR_LOBES = (361, 132)
SKIN = [4, 5, 6, 195, 197, 168, 151, 9, 8, 108, 337, 69, 299, 50, 101, 36, 205, 187, 123, 117, 118, 119, 280, 330, 266, 425,
        411, 352, 346, 347, 348, 116, 345, 142, 371, 203, 423, 129, 358, 126, 355]
"""Nose, cheeks and forehead: points that are skin on nearly every face."""

WORK_SIZE = 512
"""Frames longer than this are segmented at this size: the network sees 256 x 256 anyway."""
PERSON = 128
"""A pixel is a person from this probability (of 255) on."""
PINHOLE = 0.001
"""Share of the frame below which a gap in a person is a fault and not the space between arm and body."""
EDGE_BAND = 6 / 512
"""Half width, as a share of the longer side, of the band in which colours may move the person's edge."""
EDGE_CONTRAST = 60.0
"""Distance in RGB (8 bit) of person and background from which colours are trusted fully."""
PLATE_PERSON = 77
"""A pixel is surely background only below this probability (of 255): 0.3."""
PLATE_MARGIN = 9 / 512
"""Distance from a person, as a share of the longer side, within which a pixel may carry hair, blur or shadow."""
MIN_MARGIN = 9
"""The same in pixels, at least: a codec smears colour over a block of 8 whatever the size of the picture."""


class PersonSegmenter:
    """Probability of a person in one frame: [H, W, 3] uint8 RGB -> [H, W] uint8, 255 = certain.

    The general model (`model_selection=0`): on real clips the landscape one frays shoulders and takes a cloudy sky for
    a person.
    """

    def __init__(self):
        with quiet():
            self._network = require("mediapipe").solutions.selfie_segmentation.SelfieSegmentation(model_selection=0)
            self._network.process(np.zeros((64, 64, 3), np.uint8))

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        import cv2

        height, width = frame.shape[:2]
        scale = WORK_SIZE / max(height, width)
        if scale < 1:
            small = cv2.resize(frame, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
            mask = cv2.resize(self._network.process(small).segmentation_mask, (width, height))
        else:
            mask = self._network.process(np.ascontiguousarray(frame)).segmentation_mask
        return cv2.convertScaleAbs(mask, alpha=255)

    def close(self) -> None:
        self._network.close()


def sharpen(frame: np.ndarray, person: np.ndarray) -> np.ndarray:
    """Move the edge of `person` [H, W] uint8 to where the colours of `frame` [H, W, 3] change.

    The network sees 256 x 256 and rounds off tufts of hair. In a band about its edge each pixel is placed between
    the mean colours of the sure person and of the sure background nearby (the matting equation I = a F + (1 - a) B,
    solved for a); where the two hardly differ the network keeps its say.
    """
    import cv2

    height, width = person.shape
    reach = max(2, round(EDGE_BAND * max(height, width)))
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    outer, inner = cv2.dilate(person, kernel), cv2.erode(person, kernel)
    rows, columns = np.nonzero((outer >= PERSON) & (inner < PERSON))
    if len(rows) == 0:
        return person
    step = max(1, reach // 2)
    colours = cv2.blur(frame, (step, step))[::step, ::step].astype(np.float32)
    window = (2 * (2 * reach // step) + 1,) * 2
    small = colours.shape[1], colours.shape[0]
    colours = np.concatenate([colours, (colours**2).sum(2, keepdims=True)], 2)
    means, enough = [], np.ones(len(rows), bool)
    at = np.minimum(rows // step, small[1] - 1), np.minimum(columns // step, small[0] - 1)
    for sure in (inner[::step, ::step] >= PERSON, outer[::step, ::step] < PERSON):
        sure = sure.astype(np.float32)
        weight = cv2.blur(sure, window)
        total = cv2.blur(colours * sure[..., None], window)
        enough &= weight[at] > 0.02
        means.append(total[at] / np.maximum(weight[at], 1e-6)[:, None])
    off = frame[rows, columns] - means[1][:, :3]
    contrast = (means[0] - means[1])[:, :3]
    power = (contrast**2).sum(1)
    alpha = (off * contrast).sum(1) / np.maximum(power, 1)
    # A pink ear under dark hair lies beside the line between the two colours; it is no less a person for that.
    aside = np.sqrt(np.maximum((off**2).sum(1) - alpha**2 * power, 0))
    spread = np.sqrt(np.maximum(means[1][:, 3] - (means[1][:, :3] ** 2).sum(1), 0))
    alpha = np.maximum(alpha, (aside - 2 * spread) / EDGE_CONTRAST)
    old = person[rows, columns]
    trust = np.where(enough, np.clip(power / EDGE_CONTRAST**2, 0, 1), 0) * 0.75
    sharp = person.copy()
    sharp[rows, columns] = np.clip(old + trust * (np.clip(alpha, 0, 1) * 255 - old), 0, 255)
    return sharp


def label_frames(frames: Iterable[np.ndarray], landmarks: np.ndarray, valid: np.ndarray,
                 segment: Callable[[np.ndarray], np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (frame, labels [H, W] uint8, person probability [H, W] uint8) for each frame, three frames in memory.

    The probability is the median over the frame and its neighbours, so that a flicker of one frame disappears and
    an edge in motion stays where it is.

    Args:
        landmarks: [T, 478, 3] pixels; rows that are not valid are not read.
        valid: [T] bool.
        segment: frame -> person probability uint8, such as a `PersonSegmenter`.
    """
    labeller = Labeller()
    before = here = None
    index = -1
    for frame in frames:
        after = (frame, sharpen(frame, segment(frame)))
        if here is not None:
            yield _labelled(labeller, before, here, after, landmarks, valid, index)
        before, here, index = here or after, after, index + 1
    if here is not None:
        yield _labelled(labeller, before, here, here, landmarks, valid, index)


def _labelled(labeller, before, here, after, landmarks, valid, index):
    low, high = np.minimum(before[1], here[1]), np.maximum(before[1], here[1])
    person = np.maximum(low, np.minimum(high, after[1]))
    return here[0], labeller(here[0], person, landmarks[index] if valid[index] else None), person


class _Colour:
    """A normal distribution of a part's colour, RGB (8 bit), that follows the clip slowly."""

    RATE = 0.05
    FLOOR = 20.0

    def __init__(self):
        self.mean = None

    def update(self, samples: np.ndarray) -> None:
        """`samples` [N, 3]; the half nearest to the median counts, so that a lock of hair or a highlight does not."""
        if len(samples) < 12:
            return
        samples = samples.astype(np.float32)
        far = np.abs(samples - np.median(samples, 0)).sum(1)
        samples = samples[far <= np.median(far) * 1.5]
        mean, covariance = samples.mean(0), np.cov(samples.T) * 1.5 + np.eye(3) * self.FLOOR
        if self.mean is None:
            self.mean, self.covariance = mean, covariance
        self.mean = self.mean + self.RATE * (mean - self.mean)
        self.covariance = self.covariance + self.RATE * (covariance - self.covariance)

    def score(self, colours: np.ndarray) -> np.ndarray:
        """Log density [N] of `colours` [N, 3] up to a constant, with a tail that outliers cannot sink."""
        precision = np.linalg.inv(self.covariance).astype(np.float32)
        off = colours - self.mean.astype(np.float32)
        distance = np.einsum("nc,nc->n", off @ precision, off)
        return -0.5 * np.minimum(distance, 60) - np.float32(0.5 * np.linalg.slogdet(self.covariance)[1])


    def distance(self, other: "_Colour") -> float:
        """Squared distance of the means in units of the mean covariance."""
        off = self.mean - other.mean
        return float(off @ np.linalg.solve((self.covariance + other.covariance) / 2, off))


class Labeller:
    """Labels of one frame after another; only the colours of skin, hair and clothes are remembered between them."""

    def __init__(self):
        self.skin, self.hair, self.cloth = _Colour(), _Colour(), _Colour()

    def __call__(self, frame: np.ndarray, person: np.ndarray, landmarks: np.ndarray | None) -> np.ndarray:
        """Labels [H, W] uint8 of `frame` [H, W, 3] uint8 RGB with `person` [H, W] uint8 and landmarks [478, 3] or None."""
        if landmarks is None:
            return _tidy(person >= PERSON, None) * np.uint8(MASK_LABELS["torso"])
        points = landmarks[:, :2].astype(np.float64)
        up = points[FOREHEAD] - points[CHIN]
        size = max(float(np.hypot(*up)), 1.0)
        up /= size
        right = np.array([-up[1], up[0]])

        oval = _polygon(person.shape, points[FACE_OVAL])
        silhouette = _tidy(_person(person, oval), oval)
        above = _polygon(person.shape, _above_jaw(points, up, right, size)) | oval
        labels = silhouette * np.uint8(MASK_LABELS["torso"])
        labels[silhouette & above] = MASK_LABELS["head"]
        self._find_hair(labels, frame, silhouette, oval, points, up, right, size)
        if np.hypot(*(points[LIP_TOP] - points[LIP_BOTTOM])) > max(0.012 * size, 1.0):
            labels[_polygon(person.shape, points[INNER_LIPS])] = MASK_LABELS["mouth"]
        return labels

    def _find_hair(self, labels, frame, silhouette, oval, points, up, right, size) -> None:
        """Turn head and torso pixels of the hair's colour into hair, in place, at half the resolution."""
        import cv2

        height, width = labels.shape
        centre = (points[CHIN] + points[FOREHEAD]) / 2
        x0, y0 = np.maximum(np.floor(centre - [1.3 * size, 1.5 * size]), 0).astype(int)
        x1, y1 = np.minimum(np.ceil(centre + [1.3 * size, 1.5 * size]), [width, height]).astype(int)
        if x1 - x0 < 8 or y1 - y0 < 8:
            return
        step = max(1, round(size / 75))
        box = slice(y0, y1, step), slice(x0, x1, step)
        part, inside = labels[box], oval[box]
        colours = cv2.blur(frame[y0:y1, x0:x1], (step + 1, step + 1))[::step, ::step].astype(np.float32)
        # Face coordinates: 0 at the chin, 1 at the top of the oval; across in the same unit.
        y, x = np.mgrid[y0:y1:step, x0:x1:step].astype(np.float32)
        x -= points[CHIN][0]
        y -= points[CHIN][1]
        level = (x * up[0] + y * up[1]) / size
        brow = ((points[BROWS] - points[CHIN]) @ up).max() / size
        head = part == MASK_LABELS["head"]

        crown = head & ~inside & (level > 1)
        if crown.any():
            crown &= level > 0.5 * (1 + level[crown].max())
            self.hair.update(colours[crown])
        column, row = ((points[SKIN] - [x0, y0]) / step).astype(int).T
        seen = (column >= 0) & (row >= 0) & (column < part.shape[1]) & (row < part.shape[0])
        self.skin.update(colours[row[seen], column[seen]])
        self.cloth.update(colours[(part == MASK_LABELS["torso"]) & (level < -0.45)][::7])
        if self.hair.mean is None or self.skin.mean is None:
            return

        where = (part > 0) & (~inside | (level > brow + 0.06))
        scores = np.zeros(part.shape, np.float32)
        flat = colours[where]
        hair, skin = self.hair.score(flat), self.skin.score(flat)
        bias = np.interp(level[where], [0.2, 0.45, 0.75, 1.0, 1.2], [-4, -3, -1.5, 0, 1.5])
        # A crown of the skin's own colour is a bald one.
        odds = hair - skin + bias - np.interp(self.hair.distance(self.skin), [1, 4], [4, 0])
        low = ~head[where]
        if self.cloth.mean is not None:
            odds[low] = np.minimum(odds, hair - self.cloth.score(flat) - 3)[low]
        scores[where] = np.clip(odds, -6, 6)
        scores[~where] = -6
        sigma = 0.018 * size / step
        # Smoothed inside the person only: the background has no say at the hair's edge.
        weight = cv2.GaussianBlur(where.astype(np.float32), (0, 0), sigma)
        scores = cv2.GaussianBlur(np.where(where, scores, 0), (0, 0), sigma) / np.maximum(weight, 1e-3)
        found = (scores > 0) & where & (level > -0.9)
        found = cv2.medianBlur(found.astype(np.uint8), 5) > 0
        found = _hanging(found & where, head & (level > 0.6))

        whole = cv2.resize(found.astype(np.float32), (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR) > 0.5
        area = labels[y0:y1, x0:x1]
        edge = (area > 0) & ~oval[y0:y1, x0:x1]
        area[whole & (edge | (area == MASK_LABELS["head"]))] = MASK_LABELS["hair"]


def _above_jaw(points: np.ndarray, up: np.ndarray, right: np.ndarray, size: float) -> np.ndarray:
    """Outline of everything above the jaw: along it, and beside it level with the middle of ear lobe and jaw angle."""
    across = (points @ right) / size
    jaw = points[JAW].copy()
    first = np.sign(across[JAW[0]] - across[JAW[-1]]) or 1.0
    half_widths = np.abs(across[[JAW[0], JAW[-1]]] - across[NOSE_TIP])
    share = half_widths / max(half_widths.sum(), 1e-6)
    height = np.clip((jaw - points[CHIN]) @ up / size / 0.25, 0, 1)
    middle = len(JAW) // 2
    for side, part, towards in ((slice(0, middle), share[0], first), (slice(middle + 1, None), share[1], -first)):
        # On the side that the head turns away from the cheek bulges past the oval, and no neck is seen beside it.
        bulge = np.interp(part, [0.15, 0.4], [0.16, 0.03])
        jaw[side] += (bulge * size * towards * height[side])[:, None] * right
    level = [(points[a] + points[b]) @ up / 2 for a, b in zip((JAW[0], JAW[-1]), EAR_LOBES)]
    corners = [jaw[0] + max(level[0] - jaw[0] @ up, 0) * up, jaw[-1] + max(level[1] - jaw[-1] @ up, 0) * up]
    ends = [corners[0] + 3 * size * first * right, corners[1] - 3 * size * first * right]
    return np.array([ends[0] + 4 * size * up, ends[0], corners[0], *jaw, corners[1], ends[1], ends[1] + 4 * size * up])


def _hanging(found: np.ndarray, roots: np.ndarray) -> np.ndarray:
    """The connected pieces of `found` that reach into `roots`."""
    import cv2

    _, pieces = cv2.connectedComponents(found.astype(np.uint8), connectivity=4)
    rooted = np.bincount(pieces[found & roots], minlength=pieces.max() + 1) > 0
    rooted[0] = False
    return rooted[pieces]


def _polygon(shape: tuple[int, int], points: np.ndarray) -> np.ndarray:
    import cv2

    canvas = np.zeros(shape, np.uint8)
    cv2.fillPoly(canvas, [np.round(np.clip(points, -30000, 30000) * 16).astype(np.int32)], 1, shift=4)
    return canvas.astype(bool)


def _person(person: np.ndarray, oval: np.ndarray) -> np.ndarray:
    """Where a person is: sure pixels, and the face itself, which stands even where the segmentation failed."""
    failed = oval.any() and (person[oval] >= PERSON).mean() < 0.5
    return (person >= PERSON) | (oval & ((person > 25) | failed))


def _tidy(silhouette: np.ndarray, face: np.ndarray | None) -> np.ndarray:
    """Keep the person (the piece with the face, else the largest) and fill its pinholes."""
    import cv2

    outlines, tree = cv2.findContours(silhouette.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if not outlines:
        return silhouette
    pieces = [k for k in range(len(outlines)) if tree[0][k][3] < 0]

    def drawn(k: int) -> np.ndarray:
        return cv2.drawContours(np.zeros(silhouette.shape, np.uint8), outlines, k, 1, cv2.FILLED).astype(bool)

    largest = sorted(pieces, key=lambda k: -cv2.contourArea(outlines[k]))[:3]
    if face is None or len(largest) == 1:
        kept = drawn(largest[0])
    else:
        kept = max((drawn(k) for k in largest), key=lambda piece: np.count_nonzero(piece & face))
    for k, outline in enumerate(outlines):
        if tree[0][k][3] >= 0 and cv2.contourArea(outline) > PINHOLE * silhouette.size:
            kept &= silhouette | ~drawn(k)
    return kept


class Plate:
    """The background without the person, gathered frame by frame: the mean of what was seen clear of every person.

    Give it only frames of one scene (those with a tracked face), or another scene's colours mix in.
    """

    MIN_FRAMES = 3

    def __init__(self):
        self._sum = self._count = None
        self._frames = 0

    def add(self, frame: np.ndarray, person: np.ndarray) -> None:
        """Take in one frame [H, W, 3] uint8 RGB with its person probability [H, W] uint8."""
        import cv2

        if self._sum is None:
            self._sum = np.zeros(frame.shape, np.float32)
            self._count = np.zeros(person.shape, np.float32)
        margin = _margin(person.shape)
        near = cv2.dilate((person >= PLATE_PERSON).astype(np.uint8), np.ones((2 * margin + 1, 2 * margin + 1), np.uint8))
        clear = (near == 0).astype(np.uint8)
        cv2.accumulate(frame, self._sum, mask=clear)
        cv2.accumulate(clear, self._count)
        self._frames += 1

    @property
    def seen(self) -> float:
        """Share of pixels that were seen clear of every person, 0 .. 1."""
        return 0.0 if self._count is None else float((self._count > 0).mean())

    def image(self) -> np.ndarray | None:
        """The plate [H, W, 3] uint8 RGB, smoothly filled where it was never seen.

        None where no background was ever seen (the person fills the frame, or no frame was added).
        """
        import cv2

        if self._count is None or not (self._count > 0).any():
            return None
        known = self._count >= min(self.MIN_FRAMES, self._frames)
        if not known.any():
            known = self._count > 0
        mean = self._sum / np.maximum(self._count, 1)[..., None]
        # The rim of what was seen lies closest to the person: what remains of blur there would spread inwards.
        rim = max(1, _margin(known.shape) // 3)
        inner = cv2.erode(known.astype(np.uint8), np.ones((2 * rim + 1, 2 * rim + 1), np.uint8)) > 0
        known = inner if inner.any() else known
        return np.clip(np.round(fill_smooth(mean, known)), 0, 255).astype(np.uint8)


def _margin(shape: tuple[int, int]) -> int:
    return max(MIN_MARGIN, round(PLATE_MARGIN * max(shape)))


def fill_smooth(image: np.ndarray, known: np.ndarray, sweeps: int = 24) -> np.ndarray:
    """Fill `image` [H, W, 3] float where not `known` [H, W] with a membrane stretched between the known pixels.

    Laplace's equation, solved from coarse to fine (pull-push pyramid, then Jacobi sweeps on each level).
    """
    import cv2

    if known.all():
        return image.copy()
    height, width = known.shape
    image = np.where(known[..., None], image, 0).astype(np.float32)
    if max(height, width) <= 2 or not known.any():
        mean = image[known].mean(0) if known.any() else np.zeros(image.shape[2], np.float32)
        return np.where(known[..., None], image, mean)
    half = ((width + 1) // 2, (height + 1) // 2)
    weight = cv2.resize(known.astype(np.float32), half, interpolation=cv2.INTER_AREA)
    coarse = cv2.resize(image, half, interpolation=cv2.INTER_AREA) / np.maximum(weight, 1e-6)[..., None]
    coarse = fill_smooth(coarse, weight > 0, sweeps)
    guess = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    filled = np.where(known[..., None], image, guess)
    kernel = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], np.float32) / 4
    for _ in range(sweeps):
        relaxed = cv2.filter2D(filled, -1, kernel, borderType=cv2.BORDER_REPLICATE)
        filled = np.where(known[..., None], image, relaxed)
    return filled
