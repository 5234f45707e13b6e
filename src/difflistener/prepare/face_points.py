"""What the 478 MediaPipe points are: named index sets, and the eyes read from them.

Knows nothing of pictures, cameras or trackers. "Left" and "right" are the person's own. Axes: T frames, P = 478.
"""

import numpy as np

from difflistener.motion import fill_gaps

NUM_POINTS = 478

NOSE_TIP, CHIN, FOREHEAD, LIP_TOP, LIP_BOTTOM = 1, 152, 10, 13, 14
"""Lips: the middle of the opening's edges."""
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
MIRROR = np.array([
    0, 1, 2, 248, 4, 5, 6, 249, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 250, 251, 252, 253, 254, 255, 256,
    257, 258, 259, 260, 261, 262, 263, 264, 265, 266, 267, 268, 269, 270, 271, 272, 273, 274, 275, 276, 277, 278,
    279, 280, 281, 282, 283, 284, 285, 286, 287, 288, 289, 290, 291, 292, 293, 294, 295, 296, 297, 298, 299, 300,
    301, 302, 303, 304, 305, 306, 307, 308, 309, 310, 311, 312, 313, 314, 315, 316, 317, 318, 319, 320, 321, 322,
    323, 94, 324, 325, 326, 327, 328, 329, 330, 331, 332, 333, 334, 335, 336, 337, 338, 339, 340, 341, 342, 343,
    344, 345, 346, 347, 348, 349, 350, 351, 352, 353, 354, 355, 356, 357, 358, 359, 360, 361, 362, 363, 364, 365,
    366, 367, 368, 369, 370, 371, 372, 373, 374, 375, 376, 377, 378, 379, 151, 152, 380, 381, 382, 383, 384, 385,
    386, 387, 388, 389, 390, 164, 391, 392, 393, 168, 394, 395, 396, 397, 398, 399, 175, 400, 401, 402, 403, 404,
    405, 406, 407, 408, 409, 410, 411, 412, 413, 414, 415, 416, 417, 418, 195, 419, 197, 420, 199, 200, 421, 422,
    423, 424, 425, 426, 427, 428, 429, 430, 431, 432, 433, 434, 435, 436, 437, 438, 439, 440, 441, 442, 443, 444,
    445, 446, 447, 448, 449, 450, 451, 452, 453, 454, 455, 456, 457, 458, 459, 460, 461, 462, 463, 464, 465, 466,
    467, 3, 7, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44,
    45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69, 70, 71, 72,
    73, 74, 75, 76, 77, 78, 79, 80, 81, 82, 83, 84, 85, 86, 87, 88, 89, 90, 91, 92, 93, 95, 96, 97, 98, 99, 100,
    101, 102, 103, 104, 105, 106, 107, 108, 109, 110, 111, 112, 113, 114, 115, 116, 117, 118, 119, 120, 121, 122,
    123, 124, 125, 126, 127, 128, 129, 130, 131, 132, 133, 134, 135, 136, 137, 138, 139, 140, 141, 142, 143, 144,
    145, 146, 147, 148, 149, 150, 153, 154, 155, 156, 157, 158, 159, 160, 161, 162, 163, 165, 166, 167, 169, 170,
    171, 172, 173, 174, 176, 177, 178, 179, 180, 181, 182, 183, 184, 185, 186, 187, 188, 189, 190, 191, 192, 193,
    194, 196, 198, 201, 202, 203, 204, 205, 206, 207, 208, 209, 210, 211, 212, 213, 214, 215, 216, 217, 218, 219,
    220, 221, 222, 223, 224, 225, 226, 227, 228, 229, 230, 231, 232, 233, 234, 235, 236, 237, 238, 239, 240, 241,
    242, 243, 244, 245, 246, 247, 473, 476, 475, 474, 477, 468, 471, 470, 469, 472])
"""The point opposite each point on a symmetrical face; points on the middle line are their own."""

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


def mouth_opening(landmarks: np.ndarray) -> np.ndarray:
    """Distance of the inner lips over that of the outer eye corners [T], of `landmarks` [T, P, 2 or 3] in any unit."""
    gap = np.linalg.norm(landmarks[:, 13] - landmarks[:, 14], axis=-1)
    corners = [landmarks[:, index] for index in OUTER_EYE_CORNERS]
    return gap / np.maximum(np.linalg.norm(corners[0] - corners[1], axis=-1), 1e-6)
