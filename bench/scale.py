"""Do import and evaluation of many clips take the same time a clip, and the same memory, however many there are?

    PYTHONPATH=src python bench/scale.py [--clips 100 1000 10000] [--preset lm-listener]

Draws data sets laid out as DualTalk's (4.2 s a side, two clips a conversation), imports each and scores noisy copies of the
truth beside all baselines, every stage in a process of its own. Prints milliseconds a clip and peak memory, as ratios
against the smallest set too, and last one JSON line.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from difflistener.clip import Clip
from difflistener.media import write_wav

FRAMES = 105


def draw(folder: Path, clips: int) -> None:
    """`clips` / 2 conversations in FOLDER/test."""
    (folder / "test").mkdir(parents=True)
    sound = np.random.default_rng(0).standard_normal(FRAMES * 640).astype(np.float32) * 0.05
    for talk in range(clips // 2):
        generator = np.random.default_rng((1, talk))
        for side in (1, 2):
            name = folder / "test" / f"talk{talk:06d}_speaker{side}"
            walk = 0.05 * generator.standard_normal((FRAMES, 56)).cumsum(0).astype(np.float32)
            np.savez(f"{name}.npz", exp=walk[:, :50], pose=0.2 * walk[:, 50:])
            write_wav(Path(f"{name}.wav"), np.roll(sound, 100 * talk))


def predict(clips: Path, out: Path) -> None:
    """Noisy copies of every clip's listener."""
    out.mkdir()
    generator = np.random.default_rng(2)
    for path in sorted(clips.iterdir()):
        motion = np.array(Clip.open(path, check=False).read("listener", "motion"))
        np.save(out / f"{path.name}.npy", motion + 0.02 * generator.standard_normal(motion.shape).astype(np.float32))


def measured(*arguments) -> dict[str, float]:
    """Seconds and peak memory (MB) of one verb."""
    begun = time.monotonic()
    with open(os.devnull, "w") as nowhere:
        process = subprocess.Popen([sys.executable, "-m", "difflistener", *map(str, arguments)], stdout=nowhere, stderr=subprocess.PIPE)
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"difflistener {' '.join(map(str, arguments))}\n{said.decode()[-2000:]}")
    return {"seconds": time.monotonic() - begun, "mb": usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs="+", default=[100, 1000, 10000])
    parser.add_argument("--preset", default="lm-listener")
    arguments = parser.parse_args()
    rows = []
    for clips in sorted(arguments.clips):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            draw(root / "set", clips)
            row = {"clips": clips, "import": measured("import", root / "set", "--out", root / "clips")}
            predict(root / "clips" / "test", root / "made")
            row["evaluate"] = measured("evaluate", "motion", root / "made", root / "clips" / "test", "--preset", arguments.preset,
                                       "--json", root / "scores.json")
            assert json.loads((root / "scores.json").read_text())["sequences"] == clips
        rows.append(row)
        print(f"{clips:>7} clips", end="")
        for verb in ("import", "evaluate"):
            each, first = 1000 * row[verb]["seconds"] / clips, rows[0][verb]
            print(f"   {verb} {each:6.1f} ms a clip ({each / (1000 * first['seconds'] / rows[0]['clips']):.2f}), "
                  f"{row[verb]['mb']:5.0f} MB ({row[verb]['mb'] / first['mb']:.2f})", end="")
        print(flush=True)
    print(json.dumps({"preset": arguments.preset, "frames": FRAMES, "rows": rows}))


if __name__ == "__main__":
    main()
