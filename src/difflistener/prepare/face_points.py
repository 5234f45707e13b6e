"""What the 478 MediaPipe points are: named index sets, and the eyes read from them.

Knows nothing of pictures, cameras or trackers. "Left" and "right" are the person's own. Axes: T frames, P = 478.
"""

import numpy as np

from difflistener.motion import fill_gaps

NUM_POINTS = 478

FACE_OVAL = np.array([10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152,
                      148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109])
"""Outline, from the top of the forehead over the left ear and the chin (in that order)."""
JAW_LINE = FACE_OVAL[9:28]
"""The part of the outline below the ears, left to right."""
UPPER_LIP_TOP = np.array([61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291])
LOWER_LIP_BOTTOM = np.array([61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291])
UPPER_LIP_INNER = np.array([78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308])
LOWER_LIP_INNER = np.array([78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308])
INNER_LIPS = np.concatenate([UPPER_LIP_INNER, LOWER_LIP_INNER[-2:0:-1]])
"""The mouth opening as a closed polygon."""
LIPS = np.unique(np.concatenate([UPPER_LIP_TOP, LOWER_LIP_BOTTOM, INNER_LIPS]))

RIGHT_LID_UPPER = np.array([33, 246, 161, 160, 159, 158, 157, 173, 133])
RIGHT_LID_LOWER = np.array([33, 7, 163, 144, 145, 153, 154, 155, 133])
LEFT_LID_UPPER = np.array([263, 466, 388, 387, 386, 385, 384, 398, 362])
LEFT_LID_LOWER = np.array([263, 249, 390, 373, 374, 380, 381, 382, 362])
RIGHT_EYE = np.concatenate([RIGHT_LID_UPPER, RIGHT_LID_LOWER[-2:0:-1]])
LEFT_EYE = np.concatenate([LEFT_LID_UPPER, LEFT_LID_LOWER[-2:0:-1]])
"""The eye opening as a closed polygon, from the outer corner."""
RIGHT_IRIS = np.arange(468, 473)
LEFT_IRIS = np.arange(473, 478)
"""Centre first, then four points on the rim."""
IRISES = np.concatenate([RIGHT_IRIS, LEFT_IRIS])
EYELIDS = np.concatenate([RIGHT_EYE, LEFT_EYE])
RIGHT_BROW = np.array([46, 53, 52, 65, 55, 107, 66, 105, 63, 70])
LEFT_BROW = np.array([276, 283, 282, 295, 285, 336, 296, 334, 293, 300])
"""The brow as a closed polygon."""
BROWS = np.concatenate([RIGHT_BROW, LEFT_BROW])

OUTER_EYE_CORNERS = np.array([33, 263])
"""Right, left. Their distance in a template is the unit of length: 1 inter-ocular distance, about 9 cm."""
EARS = np.array([234, 454])
"""The outline in front of the ears; the origin of the head frame lies midway."""
RIGID = np.array([168, 6, 197, 195, 5, 4, 1, 33, 133, 362, 263, 10, 151, 67, 297, 109, 338, 103, 332, 54, 284,
                  21, 251, 162, 389, 127, 356])
"""Points that an expression hardly moves: bridge and tip of the nose, eye corners, forehead, temples."""
MIRRORED = np.array([(33, 263), (133, 362), (234, 454), (127, 356), (93, 323), (162, 389), (21, 251), (54, 284),
                     (103, 332), (67, 297), (109, 338), (48, 278), (98, 327), (116, 345), (117, 346), (50, 280)])
"""Right and left point of pairs that a symmetrical face has opposite each other."""

EYEBALL_RADIUS = 0.41
"""Radius of the eyeball over the width of the eye opening: 12 mm over 29 mm."""
SHUT_FRACTION = 0.3
"""Lid opening of a shut eye over that of an open one, as the tracker reports it, where a clip shows no blink."""


def eye_opening(landmarks: np.ndarray) -> np.ndarray:
    """Lid distance over eye width, left and right [T, 2], of `landmarks` [T, P, 2 or 3] in any unit."""
    openings = []
    for upper, lower in ((LEFT_LID_UPPER, LEFT_LID_LOWER), (RIGHT_LID_UPPER, RIGHT_LID_LOWER)):
        lids = np.linalg.norm(landmarks[:, upper[2:-2]] - landmarks[:, lower[2:-2]], axis=-1).mean(1)
        width = np.linalg.norm(landmarks[:, upper[0]] - landmarks[:, upper[-1]], axis=-1)
        openings.append(lids / np.maximum(width, 1e-6))
    return np.stack(openings, 1)


def eye_levels(landmarks: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """A person's (open, shut) lid opening for the left and the right eye [2, 2], learned from a clip [T, P, 2 or 3].

    Open is the 75th percentile. Shut is the lowest 0.5 % where the clip shows a blink, else `SHUT_FRACTION` of open.
    """
    opening = eye_opening(landmarks if valid is None else landmarks[valid])
    wide = np.percentile(opening, 75, axis=0)
    shut = np.minimum(np.percentile(opening, 0.5, axis=0), SHUT_FRACTION * wide)
    return np.stack([wide, shut], 1)


def eye_closure(landmarks: np.ndarray, valid: np.ndarray | None = None, levels: np.ndarray | None = None) -> np.ndarray:
    """Left and right eyelid closure [T, 2], 0 open .. 1 shut, of `landmarks` [T, P, 2 or 3].

    `levels` [2, 2] from `eye_levels` fixes what open and shut mean (a live user, another clip of the same person).
    Invalid frames are interpolated.
    """
    if levels is None:
        levels = eye_levels(landmarks, valid)
    wide, shut = levels[:, 0], levels[:, 1]
    closure = np.clip((wide - eye_opening(landmarks)) / (wide - shut), 0, 1).astype(np.float32)
    return closure if valid is None else fill_gaps(closure, valid)


def gaze(landmarks: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """Yaw and pitch of the eyes in the head [T, 2], radians, of `landmarks` [T, P, 2 or 3]; about +-5 degrees good.

    Turns have the sign of head rotation in OpenCV axes: pitch > 0 looks down, yaw > 0 looks to the left of the
    picture. Read from the iris centre between the eye corners, mean of both eyes. Invalid frames are interpolated.
    """
    angles = []
    for iris, right_corner, left_corner in ((LEFT_IRIS[0], 362, 263), (RIGHT_IRIS[0], 33, 133)):
        a, b = landmarks[:, right_corner, :2], landmarks[:, left_corner, :2]
        axis = b - a
        width = np.maximum(np.linalg.norm(axis, axis=-1, keepdims=True), 1e-6)
        axis = axis / width
        offset = (landmarks[:, iris, :2] - (a + b) / 2) / (EYEBALL_RADIUS * width)
        along = (offset * axis).sum(-1)
        across = (offset * np.stack([-axis[:, 1], axis[:, 0]], -1)).sum(-1)
        angles.append(np.stack([-np.arcsin(np.clip(along, -1, 1)), np.arcsin(np.clip(across, -1, 1))], 1))
    both = np.mean(angles, axis=0).astype(np.float32)
    return both if valid is None else fill_gaps(both, valid)
