"""1. Somebody in a recording talks, a listener listens, as fast as life; what it does is written as listener.mp4.

    python examples/listen_to_file.py talk.mp4 bodies/ben brains/ben

The recording stands for a microphone and a camera: sound and pictures are pushed when they would come from them. Frames of the
listener come 25 times a second meanwhile; where the machine is too slow for one, it is skipped, and the one before is held.
"""

import asyncio
import sys
import time

from difflistener.body.model import Body
from difflistener.brain.model import Brain
from difflistener.live.listener import Listener
from difflistener.media import SAMPLES_PER_FRAME, VideoWriter, load_audio, probe, read_frames
from difflistener.motion import FPS

OUTPUT = "listener.mp4"


async def play(listener: Listener, recording: str, sound) -> None:
    """Push the recording in real time, one frame's worth after the other."""
    pictures = read_frames(recording) if listener.sees and probe(recording).has_video else iter(())
    begun = time.monotonic()
    for k in range(len(sound) // SAMPLES_PER_FRAME):
        await asyncio.sleep(begun + (k + 1) / FPS - time.monotonic())
        picture = next(pictures, None)
        if picture is not None:
            listener.push_video(picture, k / FPS)
        listener.push_audio(sound[k * SAMPLES_PER_FRAME : (k + 1) * SAMPLES_PER_FRAME], k / FPS)


async def main(recording: str, body: str, brain: str) -> None:
    body, sound = Body.from_pretrained(body), load_audio(recording)
    last = len(sound) // SAMPLES_PER_FRAME - 1
    async with Listener(Brain.from_pretrained(brain), body) as listener:
        with VideoWriter(OUTPUT, body.config.width, body.config.height, audio=True) as video:
            playing = asyncio.create_task(play(listener, recording, sound))
            async for frame in listener.frames():
                while video.num_frames <= min(frame.number, last):
                    heard = video.num_frames * SAMPLES_PER_FRAME
                    video.write_frame(frame.picture)
                    video.write_audio(sound[heard : heard + SAMPLES_PER_FRAME])
                if playing.done():
                    break
            await playing  # raises what went wrong there
        stats = listener.stats()
    print(f"{OUTPUT}: {stats['frames']} frames, {stats['dropped']} dropped, {stats['eased']} eased; "
          f"a sound is answered after {stats['delay_ms']['p50']} ms")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    asyncio.run(main(*sys.argv[1:]))
