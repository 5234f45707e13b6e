"""The command line: `difflistener VERB ...`. Finds the verb, reads its settings, turns user errors into two lines.

Nothing heavy is imported before a verb runs, so help is instant. Exit codes: 0 done, 1 a problem the user can fix,
2 wrong arguments, 130 interrupted.
"""

import dataclasses
import errno
import importlib
import json
import sys
import warnings
from pathlib import Path

from difflistener.errors import UserError

VERBS = {
    "doctor": ("difflistener.doctor:Doctor", "difflistener.doctor:doctor", "say what works on this machine and what to install"),
    "demo": ("difflistener.demo:Demo", "difflistener.demo:demo", "toy videos -> clip -> body -> brain -> listener video; no download, no GPU"),
    "prepare": ("difflistener.prepare.config:Prepare", "difflistener.prepare.pipeline:prepare", "videos of a speaker and a listener -> clip"),
    "mine": ("difflistener.mine.config:Mine", "difflistener.mine.pipeline:mine", "a recording of two people -> clips in which one speaks and one listens"),
    "corpus": ("difflistener.corpus:Corpus", "difflistener.corpus:write_corpus", "conversations with a known law -> clips, to train and judge brains"),
    "import": ("difflistener.importers.config:Import", "difflistener.importers.run:import_folder", "a public data set or results of a face tracker -> clips"),
    "basis": ("difflistener.prepare.config:FitBasis", "difflistener.prepare.pipeline:fit_shared_basis", "fit one expression basis on several clips"),
    "map bases": ("difflistener.basis_map:MapBases", "difflistener.basis_map:map_bases", "two clips of one film, tracked both ways -> linear map from landmark codes to FLAME"),
    "assets add": ("difflistener.assets:AddAsset", "difflistener.assets:add_asset", "a FLAME model or landmark embedding -> the folder of licensed files"),
    "assets list": ("difflistener.assets:ListAssets", "difflistener.assets:list_assets", "which licensed files are there, and how to get the others"),
    "train body": ("difflistener.body.config:BodyTraining", "difflistener.body.train:train_body", "clip -> 3D Gaussian head of its listener"),
    "train brain": ("difflistener.brain.config:BrainTraining", "difflistener.brain.train:train_brain", "clips -> model of how listeners move"),
    "evaluate body": ("difflistener.evaluate.config:BodyEvaluation", "difflistener.evaluate.body:evaluate_body", "body + clip -> scores beside baselines that learn nothing"),
    "evaluate brain": ("difflistener.evaluate.brain_config:BrainEvaluation", "difflistener.evaluate.brain:evaluate_brain", "brain + corpus -> scores beside the law and baselines that learn nothing"),
    "evaluate motion": ("difflistener.evaluate.motion_config:MotionEvaluation", "difflistener.evaluate.motion:evaluate_motion", "generated motion + true motion -> the scores of a published table, beside baselines that learn nothing"),
    "experiment": ("difflistener.experiment.config:Experiment", "difflistener.experiment.run:experiment", "recipe -> trained, scored and reported rows: a paper's tables"),
    "export body": ("difflistener.export:ExportBody", "difflistener.export:export_body", "body -> .ply files for other viewers"),
    "view": ("difflistener.view:View", "difflistener.view:view", "a body in the browser, with sliders"),
    "generate": ("difflistener.generate:Generation", "difflistener.generate:generate", "brain + clips -> motion of listeners, for evaluate motion"),
    "synthesize": ("difflistener.synthesize:Synthesis", "difflistener.synthesize:synthesize", "speaker + brain + body -> listener video"),
    "live": ("difflistener.live.config:Live", "difflistener.live.server:live", "talk in the browser, and a head listens"),
    "bench body": ("difflistener.bench_body:BodyBench", "difflistener.bench_body:bench_body", "measure how fast bodies render"),
    "bench listener": ("difflistener.bench:Bench", "difflistener.bench:bench", "measure brain, body and encoder end to end"),
    "bench live": ("difflistener.live.bench_config:LiveBench", "difflistener.live.bench_live:bench_live", "measure the live page with a real browser and a made-up person"),
}
"""Verb -> (settings class, function that takes it, one line of help)."""

OUTPUT_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR,
                 errno.ENAMETOOLONG)
"""Of an `OSError` that says where output cannot go; any other is our own mistake."""

TWO_WORDS = {verb.split()[0] for verb in VERBS if " " in verb}
"""Beginnings of the verbs that are two words."""

USAGE = "usage: difflistener VERB [options]      (difflistener VERB --help explains a verb)"


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0
    if arguments[0] == "--version":
        from difflistener import __version__

        print(__version__)
        return 0
    words = 2 if arguments[0] in TWO_WORDS else 1
    verb = " ".join(arguments[:words])
    if verb not in VERBS:
        return _unknown(verb, arguments)
    settings_path, function_path, _ = VERBS[verb]
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            settings = parse(load(settings_path), verb, arguments[words:])
            result = load(function_path)(settings)
    except UserError as error:
        print(f"error: {error.problem}\n{error.remedy}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\ninterrupted: difflistener {verb} stopped; what was finished is kept.\n"
              "Run the same command again, with --resume where the verb has it, to go on.", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno not in OUTPUT_ERRORS:
            raise
        print(f"error: {error.filename or 'a file'} could not be written: {error.strerror}.\n"
              "Free some space or choose another folder, then run the same command again; finished files are kept.", file=sys.stderr)
        return 1
    if isinstance(result, dict):
        print(json.dumps(result))
    return result if isinstance(result, int) else 0


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr, flush=True)


def load(path: str):
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)


def parse(settings_class, verb: str, arguments: list[str]):
    """Settings from the command line, over those of `--config FILE` if it is given."""
    import tyro

    default = None
    if "--config" in arguments:
        at = arguments.index("--config")
        if at + 1 >= len(arguments):
            raise UserError("--config needs a file.", f"For example: difflistener {verb} --config recipes/NAME.json")
        default = read_recipe(settings_class, Path(arguments[at + 1]))
        arguments = arguments[:at] + arguments[at + 2 :]
    settings = tyro.cli(settings_class, prog=f"difflistener {verb}", args=arguments, default=default,
                        config=(tyro.conf.FlagCreatePairsOff,))
    return settings


def read_recipe(settings_class, path: Path):
    """A settings object from a JSON recipe, see `settings_from`."""
    if not path.is_file():
        raise UserError(f"There is no recipe at {path}.", "Name a JSON file such as those in recipes/.")
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}).", "Mend the file, or start from one in recipes/.") from error
    return settings_from(settings_class, values, str(path))


def settings_from(settings_class, values, where: str):
    """A settings object from JSON values, `tyro.MISSING` where one must be given; `where` they stand, for errors.
    Unknown keys are an error that names the nearest known one."""
    import difflib
    import typing

    if not isinstance(values, dict):
        raise UserError(f"{where} holds no settings.", 'Settings are one JSON object, such as {"steps": 1000}.')
    known = {field.name for field in dataclasses.fields(settings_class)}
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), 1)
            raise UserError(f"{where} has the unknown setting {key!r}.",
                            f"Did you mean {near[0]!r}?" if near else f"Known settings: {', '.join(sorted(known))}.")
    hints = typing.get_type_hints(settings_class)
    values = {key: _with_paths(value, hints[key]) for key, value in values.items()}
    missing = [f.name for f in dataclasses.fields(settings_class)
               if f.name not in values and f.default is f.default_factory is dataclasses.MISSING]
    if missing:
        import tyro

        values |= {name: tyro.MISSING for name in missing}
    return settings_class(**values)


def _with_paths(value, hint):
    mentions_path = "Path" in str(hint)
    if isinstance(value, list):
        return tuple(Path(v) if mentions_path else v for v in value)
    return Path(value) if mentions_path and isinstance(value, str) else value


def _help() -> str:
    width = max(map(len, VERBS))
    lines = [USAGE, "", "Generates how a listener moves while somebody speaks, and renders it as a 3D head.", ""]
    lines += [f"  {verb:<{width}}  {line}" for verb, (_, _, line) in VERBS.items()]
    lines += ["", "Start with: difflistener demo --out demo"]
    return "\n".join(lines)


def _unknown(verb: str, arguments: list[str]) -> int:
    import difflib

    near = difflib.get_close_matches(verb, VERBS, 1) or [v for v in VERBS if v.startswith(arguments[0])][:1]
    hint = f"Did you mean: difflistener {near[0]}?" if near else "See: difflistener --help"
    print(f"error: difflistener has no verb {verb!r}.\n{hint}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
