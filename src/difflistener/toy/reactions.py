"""The law of a corpus conversation: what makes a listener nod, smile, raise the brows, blink and look away, and how often.

The whole law, with the numbers of `Law`; "by attitude" means positive / neutral / negative, which a clip keeps:

1. End of a phrase, heard: falling pitch and loudness, then a pause. The listener nods with probability .75 / .55 / .30,
   0.45 s after the end (deviation 0.12 s), 6 to 11 degrees deep, for 0.58 to 0.78 s. A pause inside a phrase (level voice, pitch that
   rises, 0.2 to 0.6 s) is not answered. After an end it also blinks with probability .30, 0.25 s (0.08 s) later.
2. The speaker's smile, seen, at any time: smiled back with probability .85 / .60 / .20, 0.50 s (0.15 s) later, at 0.7 to
   1.0 of its strength and for its duration.
3. A flash of the speaker's brows, seen, at any time: mimicked with probability .60 / .45 / .25, 0.40 s (0.10 s) later, at
   0.7 to 1.0 of its strength.
4. In the speaker's silence nothing is heard, and only the face causes reactions: 2 and 3 hold, and a flash of the brows
   asks for a nod, which comes with probability .75 / .55 / .30, 0.55 s (0.12 s) later. (A flash while talking does not.)
5. Attitude shifts the rates above, the smile at rest (.14 / .05 / 0 of a full smile) and the brows at rest
   (0 / 0 / -.12: drawn down).
6. The rest is the listener's own: blinks as a renewal process (0.5 s, then exponential, mean 3.2 s; those within 0.5 s
   of a blink of 1 give way), looks away (0.5 s, then exponential, mean 7 s between), slow sway of the head, small
   noise on every code.

Delays are normal, held to at least 0.12 s. Causes stand so far apart that the nods they ask for never overlap.
Attitudes are equally likely. Answers do not depend on each other: given the speaker and the attitude each is a coin of
its own.

Draws what happens and when; `conversation` draws how it looks and sounds. Knows nothing of frames. Times in seconds.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

ATTITUDES = ("positive", "neutral", "negative")
MIN_DELAY = 0.12


@dataclass(frozen=True)
class Law:
    """Numbers of the law. Tuples of three are by attitude; pairs are mean and deviation, or least and most."""

    nod_probability: tuple[float, float, float] = (0.75, 0.55, 0.30)
    """Nod after the end of a phrase."""
    nod_delay: tuple[float, float] = (0.45, 0.12)
    """From the end of the phrase to the start of the nod, mean and deviation."""
    ask_probability: tuple[float, float, float] = (0.75, 0.55, 0.30)
    """Nod after a flash of the brows in silence."""
    ask_delay: tuple[float, float] = (0.55, 0.12)
    nod_degrees: tuple[float, float] = (6.0, 11.0)
    """Depth of a nod, least and most."""
    smile_probability: tuple[float, float, float] = (0.85, 0.60, 0.20)
    smile_delay: tuple[float, float] = (0.50, 0.15)
    smile_scale: tuple[float, float] = (0.7, 1.0)
    """Strength of a smile against the one that it answers."""
    brow_probability: tuple[float, float, float] = (0.60, 0.45, 0.25)
    brow_delay: tuple[float, float] = (0.40, 0.10)
    brow_scale: tuple[float, float] = (0.7, 1.0)
    smile_at_rest: tuple[float, float, float] = (0.14, 0.05, 0.0)
    brow_at_rest: tuple[float, float, float] = (0.0, 0.0, -0.12)
    blink_probability: float = 0.30
    """Blink after the end of a phrase."""
    blink_delay: tuple[float, float] = (0.25, 0.08)
    blink_interval: float = 3.2
    """Mean time between own blinks; 42 blinks in 140 s of talking_face.webm give 3.2 s."""
    look_interval: float = 7.0
    """Mean time between looks away."""


@dataclass(frozen=True)
class Script:
    """What the speaker does, all that a listener may react to."""

    seconds: float
    segments: np.ndarray
    """[S,3] start and end of each stretch of voice, and whether a phrase ends with it (1) or pauses (0)."""
    silences: np.ndarray
    """[Q,2] start and end of the times in which the speaker waits."""
    smiles: np.ndarray
    """[M,3] start, duration, strength."""
    flashes: np.ndarray
    """[F,4] start, duration, strength of each flash of the brows, and whether it is in a silence."""
    blinks: np.ndarray
    """[B,2] start, duration."""

    @property
    def phrase_ends(self) -> np.ndarray:
        """[P] times."""
        return self.segments[self.segments[:, 2] == 1, 1]

    @property
    def inner_pauses(self) -> np.ndarray:
        """[I] times at which a pause inside a phrase begins."""
        return self.segments[self.segments[:, 2] == 0, 1]

    @property
    def asking_flashes(self) -> np.ndarray:
        """[A] starts of the flashes in silence."""
        return self.flashes[self.flashes[:, 3] == 1, 0]


class Event(NamedTuple):
    """A reaction of the listener, or one that did not come (`answered` false: what follows then says what was drawn)."""

    kind: str
    """nod, smile, brow, blink or look."""
    cause: str
    """phrase_end, ask, smile, flash or own."""
    cause_time: float
    answered: bool
    delay: float
    """From `cause_time` to the start; 0 for the listener's own."""
    duration: float
    strength: float
    """Radians of a nod or look (signed, to the picture's left), else 0..1."""

    @property
    def start(self) -> float:
        return self.cause_time + self.delay


def draw_script(seconds: float, generator: np.random.Generator) -> Script:
    """A speaker's turns of 2 to 6 phrases, each turn followed by 4 to 9 s of waiting, for `seconds`."""
    segments, silences, now = [], [], generator.uniform(0.5, 1.5)
    while now < seconds:
        for _ in range(generator.integers(2, 7)):
            phrase = _phrase(now, generator)
            if phrase[-1][1] > seconds - 0.2:
                now = seconds
                break
            segments += phrase
            now = phrase[-1][1] + generator.uniform(0.5, 1.4)
        if segments and now < seconds:
            waiting = segments[-1][1], min(now + generator.uniform(4.0, 9.0), seconds)
            silences.append(waiting)
            now = waiting[1]
    silences = np.array(silences, float).reshape(-1, 2)
    return Script(seconds, np.array(segments, float).reshape(-1, 3), silences, _smiles(seconds, generator),
                  _flashes(seconds, silences, generator), renewal(seconds, 0.5, 2.7, (0.16, 0.24), generator))


def _phrase(start: float, generator: np.random.Generator) -> list[tuple[float, float, float]]:
    """Segments of a phrase of 1.2 to 3.4 s of voice; about half of the long ones pause inside."""
    length = generator.uniform(1.2, 3.4)
    share, pause, pauses = generator.uniform(0.4, 0.65), generator.uniform(0.2, 0.6), generator.random() < 0.7
    if length < 1.9 or not pauses:
        return [(start, start + length, 1.0)]
    cut = start + share * length
    return [(start, cut, 0.0), (cut + pause, start + length + pause, 1.0)]


def _smiles(seconds: float, generator: np.random.Generator) -> np.ndarray:
    smiles, now = [], generator.uniform(0.5, 4.0)
    while now < seconds - 1:
        duration = generator.uniform(1.2, 2.6)
        smiles.append((now, duration, generator.uniform(0.6, 1.0)))
        now += duration + 1.8 + generator.exponential(2.5)
    return np.array(smiles, float).reshape(-1, 3)


def _flashes(seconds: float, silences: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Flashes in silences, clear of both their ends, and between them while talking; at least 2.2 s apart."""
    asks = []
    for start, end in silences:
        now = start + generator.uniform(1.5, 2.3)
        while now < end - 1.3:
            asks.append((now, generator.uniform(0.5, 0.8), generator.uniform(0.6, 1.0), 1.0))
            now += generator.uniform(2.4, 3.6)
    times = np.array([ask[0] for ask in asks])
    talking, now = [], generator.uniform(0.5, 5.0)
    while now < seconds - 1:
        waiting = ((silences[:, 0] - 0.8 < now) & (now < silences[:, 1])).any()
        if not waiting and not (np.abs(times - now) < 2.2).any():
            talking.append((now, generator.uniform(0.5, 0.8), generator.uniform(0.5, 1.0), 0.0))
        now += 2.4 + generator.exponential(3.0)
    return np.array(sorted(asks + talking), float).reshape(-1, 4)


def renewal(
    seconds: float, rest: float, mean: float, duration: tuple[float, float], generator: np.random.Generator
) -> np.ndarray:
    """[B,2] start and duration of events with at least `rest` s, and then an exponential time of `mean` s, between starts."""
    rows, now = [], generator.exponential(mean)
    while now < seconds:
        rows.append((now, generator.uniform(*duration)))
        now += rest + generator.exponential(mean)
    return np.array(rows, float).reshape(-1, 2)


def draw_events(script: Script, attitude: str, law: Law, generator: np.random.Generator) -> list[Event]:
    """The listener's reactions and own doings, in order of their kinds. Each cause draws the same numbers, answered or not."""
    which = ATTITUDES.index(attitude)
    events = []

    def react(kind, cause, time, probability, delay, duration, strength):
        happens = generator.random() < probability
        lag = max(generator.normal(*delay), MIN_DELAY)
        events.append(Event(kind, cause, float(time), bool(happens), float(lag), float(duration), float(strength)))

    for cause, times, probability, delay in (("phrase_end", script.phrase_ends, law.nod_probability, law.nod_delay),
                                             ("ask", script.asking_flashes, law.ask_probability, law.ask_delay)):
        for time in times:
            react("nod", cause, time, probability[which], delay, generator.uniform(0.58, 0.78),
                  np.deg2rad(generator.uniform(*law.nod_degrees)))
    for start, duration, strength in script.smiles:
        react("smile", "smile", start, law.smile_probability[which], law.smile_delay, duration,
              strength * generator.uniform(*law.smile_scale))
    for start, duration, strength, _ in script.flashes:
        react("brow", "flash", start, law.brow_probability[which], law.brow_delay, duration,
              strength * generator.uniform(*law.brow_scale))
    for end in script.phrase_ends:
        react("blink", "phrase_end", end, law.blink_probability, law.blink_delay, generator.uniform(0.16, 0.24), 1.0)
    after_phrases = np.array([event.start for event in events if event.kind == "blink" and event.answered])
    for start, duration in renewal(script.seconds, 0.5, law.blink_interval - 0.5, (0.16, 0.24), generator):
        if not (np.abs(after_phrases - start) < 0.5).any():
            events.append(Event("blink", "own", float(start), True, 0.0, float(duration), 1.0))
    for start, _ in renewal(script.seconds, 0.5, law.look_interval - 0.5, (0, 1), generator):
        yaw = generator.choice([-1, 1]) * generator.uniform(0.15, 0.35)
        events.append(Event("look", "own", float(start), True, 0.0, float(generator.uniform(0.8, 2.4)), float(yaw)))
    return events


class Question(NamedTuple):
    """A kind of cause, and how the law answers it."""

    name: str
    kind: str
    """Kind of event that is the answer."""
    times: np.ndarray
    """[C] of the causes."""
    probability: float
    """Of an answer."""
    delay: tuple[float, float] | None
    """Mean and deviation of the answer's delay; None where no answer is due."""
    window: tuple[float, float]
    """Seconds after the cause in which its answer begins, and hardly another event."""


def questions(script: Script, attitude: str, law: Law) -> list[Question]:
    """What a listener with `attitude` is asked by `script`, and the right rates and delays.

    A blink after a phrase may also be an own one; a window of 0.5 s holds one of those in about 0.14 of all cases.
    """
    which = ATTITUDES.index(attitude)
    own = 0.5 / law.blink_interval
    blink = law.blink_probability + (1 - law.blink_probability) * own * (1 - law.blink_probability / 2)
    return [
        Question("nod to a phrase", "nod", script.phrase_ends, law.nod_probability[which], law.nod_delay, (0.0, 1.1)),
        Question("nod to a pause", "nod", script.inner_pauses, 0.0, None, (0.0, 0.8)),
        Question("nod to brows", "nod", script.asking_flashes, law.ask_probability[which], law.ask_delay, (0.0, 1.1)),
        Question("smile to a smile", "smile", script.smiles[:, 0], law.smile_probability[which], law.smile_delay, (0.0, 1.1)),
        Question("brows to brows", "brow", script.flashes[:, 0], law.brow_probability[which], law.brow_delay, (0.0, 0.9)),
        Question("blink to a phrase", "blink", script.phrase_ends, blink, None, (0.0, 0.5)),
    ]
