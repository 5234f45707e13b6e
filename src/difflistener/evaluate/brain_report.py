"""How a brain's evaluation is shown on the terminal."""

from difflistener.evaluate.report import print_table

QUALITY = {
    "reaction": ("reaction", 4), "reaction_over": ("over law", 3), "reaction in silence": ("in silence", 4),
    "motion": ("motion", 4), "motion_over": ("over law", 3), "motion of clips": ("of clips", 4),
    "best_1": ("best of 1", 3), "best_k": ("best of K", 3), "shift": ("shift p", 4), "silence": ("silence p", 4),
}
LOOKS = {
    "expression": ("var expr", 2), "rotation": ("var rot", 2), "jaw": ("var jaw", 2), "smile": ("var smile", 2),
    "fd_expression": ("FD expr", 2), "fd_pose": ("FD pose e3", 3), "fd_velocity": ("FD velocity", 2), "jerk": ("jerk", 2),
    "spectrum_db": ("spectrum dB", 2), "seam_mean": ("seam mean", 2), "seam_largest": ("seam largest", 2),
}


def print_brain_tables(figures: dict) -> None:
    """Print the figures of evaluation.json."""
    rows = figures["rows"]
    print(f"{figures['clips']} conversations, {figures['seconds'] / 60:.1f} min, {figures['samples']} samples, "
          f"{figures['num_steps']} steps")
    if figures["learned_from"]:
        print(f"NOT HELD OUT: the brain was trained on {figures['learned_from']} of these conversations")
    print("\nenergy score of 2 s windows (lower is better) of pitch, smile and brows, and of all 56 numbers; excess over the law\n"
          "(untold, where the row cannot know the attitude);\n"
          "p of the time-shift tests on all 56 numbers, everywhere and in the speaker's silences")
    print_table({name: _quality(row) | {"note": figures["notes"][name]} for name, row in rows.items()}, QUALITY)
    print("\nlooks: variance against truth (1 is right), Frechet distances, jerk against truth, spectrum, seams (1 is none)")
    print_table({name: _looks(row) for name, row in rows.items()}, LOOKS)
    asked = [name for name in rows["law"]["events"] if name != "per_minute"]
    print("\nevents: share of causes that are answered, and mean delay in s; stated by the law given the attitude, and without")
    stated = rows["law"]["events"]
    events = {title: {"p " + name: stated[name][key] for name in asked} | {"d " + name: stated[name]["law_delay"] for name in asked}
              for title, key in (("stated", "law"), ("stated, untold", "law_untold"))}
    for name, row in rows.items():
        answered = [("p " + question, row["events"][question]["probability"]) for question in asked]
        events[name] = dict(answered + [("d " + question, row["events"][question]["delay"]) for question in asked])
    short = {name: name.replace(" to a ", "|").replace(" to ", "|") for name in asked}
    print_table(events, {"p " + name: (short[name][:12], 3) for name in asked})
    print()
    print_table(events, {"d " + name: (short[name][:12], 3) for name in asked})
    if "face" in figures:
        print("\nwhat the face adds: energy score of the brain minus that of audio only, below zero where seeing helps")
        face = {name.replace(" in silence", ", silent"): row for name, row in figures["face"].items()}
        print_table(face, {"difference": ("difference", 4), "share": ("share", 4), "p": ("p", 4),
                                       "windows": ("windows", 0)})
    if "drift" in figures:
        print("\ndrift: last minute against the first of a long conversation (the law's row is chance)")
        print_table(figures["drift"], {"mean_shift": ("mean shift", 3), "std_ratio": ("std ratio", 3),
                                        "events_first": ("events first", 1), "events_last": ("events last", 1)})


def _quality(row: dict) -> dict:
    best = list(row["best_of"].values())
    return row["energy"] | {
        "reaction_over": row["over_law"]["reaction"], "motion_over": row["over_law"]["motion"],
        "best_1": best[0], "best_k": best[-1],
        "shift": row["time_shift"]["motion"]["p"], "silence": row["time_shift"]["motion in silence"]["p"],
    }


def _looks(row: dict) -> dict:
    return row | row["variance"] | {f"fd_{name}": row["frechet"][key] for name, key in
                                    (("expression", "expression"), ("pose", "pose_e3"), ("velocity", "velocity"))}
