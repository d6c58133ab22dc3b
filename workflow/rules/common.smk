"""What all stages share: the sample sheet, settings of a subject, paths that depend on both.

Everything is checked here, when the workflow is parsed, before any job runs.
"""

import glob
import json
import os
import re
import shlex
import subprocess
import sys
from functools import lru_cache, reduce
from inspect import signature
from itertools import chain, count
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, workflow.basedir)

from eavatar.errors import UserError
from eavatar.io import Failure
from eavatar.preflight.editions import digest_files, find_editions, list_parts
from eavatar.preflight.failures import note_failures, read_sentence
from eavatar.preflight.reenactments import read_pairs
from eavatar.preflight.subjects import check_requested, make_plans
from eavatar.settings import FLOORS, merge, read_yaml, required_backbones, variant_of
from eavatar.tables.layout import read_layouts

SHEET = Path(config["subjects"])

# In the order of the file: Snakemake puts what the command line adds first, and the order of the
# variants decides whose stage I is shared.
SETTINGS = merge(read_yaml(Path(workflow.configfiles[-1])), config)

try:
    LAYOUTS = read_layouts(Path(config["layouts"]))
    PLANS, FAULTS = make_plans(
        SHEET, SETTINGS, workflow.config_settings.overwrite_config
    )
    PAIRS = read_pairs(Path(config["reenactments"]), PLANS, FAULTS)
    if workflow.is_main_process:
        if not check_requested(sys.argv[1:], PLANS, FAULTS, SHEET):
            for sentence in FAULTS.values():
                print(f"eavatar: {sentence}", file=sys.stderr)
except UserError as error:
    doctor = f"python -m eavatar doctor --subjects {SHEET}"
    sys.exit(f"eavatar: {error} All faults at once: {doctor}")


wildcard_constraints:
    subject="|".join(map(re.escape, PLANS)),
    sequence="|".join(
        {re.escape(name) for plan in PLANS.values() for name in plan.sequences.names}
    ),
    variant="|".join(
        {re.escape(name) for plan in PLANS.values() for name in plan.variants}
    ),
    edition=r"\d+",
    table="|".join(map(re.escape, LAYOUTS.tables)),
    pair="|".join(map(re.escape, PAIRS)) or "none",
    figure="|".join(map(re.escape, LAYOUTS.figures)),


def paths_of(patterns, *combinator, **values):
    """Snakemake's `expand`, which refuses outputs that a default storage provider holds."""
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return expand([as_written(each) for each in patterns], *combinator, **values)


def as_written(pattern):
    """An output as its rule names it, also where a default storage provider holds it."""
    stored = getattr(pattern, "flags", {}).get("storage_object")
    prefix = str(workflow.storage_settings.default_storage_prefix).rstrip("/")
    return stored.query.removeprefix(f"{prefix}/") if stored else pattern


def kept_or_not(output):
    """Frames or masks, which go when no other job needs them if the settings say so."""
    said = str(SETTINGS["keep_frames"])  # a word, if it is from the command line
    return temp(output) if said.lower() == "false" else output


def configuration(wildcards):
    """The settings of a job: those of its variant, where its rule has variants."""
    variant, plan = wildcards.get("variant"), PLANS[wildcards.subject]
    return plan.variants[variant] if variant else plan.config


def block(path):
    """A function of wildcards: the job's settings at a dotted path, as JSON.

    How a training is carried out is left out: `run_settings` passes it on.
    """

    def settings(wildcards):
        part = configuration(wildcards)
        for name in path.split("."):
            part = getattr(part, name)
        return (
            part.model_dump_json(exclude={"run"})
            if hasattr(part, "model_dump_json")
            else json.dumps(part)
        )

    return settings


def not_compared(function):
    """The same function of wildcards, whose value decides nothing about what to run again.

    It asks for the threads, of which Snakemake takes no note in comparing a job with its last run
    (tests/test_pipeline.py holds it to that).
    """
    asks_for_input = "input" in signature(function).parameters

    def value(wildcards, input, threads):
        return function(wildcards, input) if asks_for_input else function(wildcards)

    return value


@not_compared
def all_settings(wildcards):
    """All of a subject's settings, as JSON."""
    return configuration(wildcards).model_dump_json()


def run_settings(stage):
    """A function of wildcards: how a training is carried out, as JSON; reruns nothing."""

    def settings(wildcards):
        return getattr(configuration(wildcards), stage).run.model_dump_json()

    return not_compared(settings)


def ingest_block(wildcards):
    """The block capture.ingest of the job's sequence, or of all; as JSON."""
    own = wildcards.get("sequence")
    names = [own] if own else PLANS[wildcards.subject].sequences.names
    chosen = {
        "sequences": tuple(map(glob.escape, names)),
        "exclude": (),
        "held_out": (),
    }
    ingest = configuration(wildcards).capture.ingest
    return ingest.model_copy(update=chosen).model_dump_json()


def chosen(split):
    """A function of wildcards: the names of a split's sequences."""

    def names(wildcards):
        return list(getattr(PLANS[wildcards.subject].sequences, split))

    return names


@lru_cache
def editions(subject):
    """The parts of a subject by name: digest, and number of the check that covers it."""
    plan = PLANS[subject]
    parts = list_parts(plan.subject, plan.config, plan.sequences)
    with TemporaryDirectory() as copies:
        folder = edition_folder(subject, Path(copies))
        numbers = find_editions(folder, parts.values())
    return {name: (digest, numbers[digest]) for name, digest in parts.items()}


def edition_folder(subject, copies):
    """The folder of a subject's editions, or of copies where a storage provider holds them."""
    folder = Path(f"results/{subject}/check")
    if workflow.storage_settings.default_storage_provider is None:
        return folder
    for number in count(1):
        name = f"{number}.txt"
        stored = workflow.inputfile(folder / name).storage_object
        if not stored.exists():
            return copies
        stored.set_local_path(copies / name)
        stored.retrieve_object()


def checked(rule):
    """A function of wildcards: the check that covers what a rule takes from the user."""

    def edition(wildcards):
        own = wildcards.get("sequence")
        _, number = editions(wildcards.subject)[f"{rule} {own}" if own else rule]
        return ancient(f"results/{wildcards.subject}/check/{number}.txt")

    return edition


def covered(wildcards):
    """The digests of the parts that an edition covers."""
    edition = int(wildcards.edition)
    parts = editions(wildcards.subject).values()
    return [digest for digest, number in parts if number == edition]


def raw(wildcards, input):
    """The raw capture, generated or the user's."""
    return str(PLANS[wildcards.subject].subject.capture or _parent(input.sequences))


def generated(name):
    """A function of wildcards: an output of `demo_capture`, for a subject that is generated."""

    def path(wildcards):
        if PLANS[wildcards.subject].subject.capture:
            return []
        pattern = getattr(rules.demo_capture.output, name)
        return paths_of(pattern, subject=wildcards.subject)

    return path


def provided(column):
    """A function of wildcards: the sheet's file, else the generated one, else no input.

    The user's are compared by what `checked` says, which sees older files and single sequences.
    """

    def place(wildcards):
        given = getattr(PLANS[wildcards.subject].subject, column)
        if given:
            return ancient(local(str(given)))
        made = hasattr(rules.demo_capture.output, column)
        return generated(column)(wildcards) if made else []

    return place


def optional(column, flag=None):
    """A function of a job: ``--flag file`` of the sheet's file, else of the generated one."""

    def text(wildcards, input):
        given = getattr(PLANS[wildcards.subject].subject, column)
        path = given or getattr(input, column, None)
        return f"--{flag or column} {shlex.quote(str(path))}" if path else ""

    return text


def morphable_model(wildcards):
    """The subject's morphable model: from the sheet, generated, or the configured one."""
    plan, made = PLANS[wildcards.subject], generated("morphable_model")(wildcards)
    given = plan.subject.morphable_model
    if made and not given:
        return made
    return local(str(given or plan.config.morphable_model))


def checked_model(wildcards, input):
    """The same, for a rule whose inputs are generated ones only."""
    plan = PLANS[wildcards.subject]
    given = plan.subject.morphable_model or input.morphable_model
    return str(given or plan.config.morphable_model)


def growing(amount):
    """A function of a job: a resource of which each further attempt gets as much again."""

    def resource(wildcards, attempt):
        return amount * attempt

    return resource


def training_memory(stage):
    """A function of a job: the memory of a training, which holds images, in 10^6 bytes."""

    def resource(wildcards, attempt):
        images = getattr(configuration(wildcards), stage).run.image_memory_gb
        return int(1074 * images) + 8000 * attempt

    return resource


def gpus(path):
    """A function of wildcards: how many GPUs the backend uses that the block at a path chooses."""

    def count(wildcards):
        chosen = reduce(
            getattr, path.split("."), PLANS[wildcards.subject].config
        ).chosen
        return int(chosen.gpu != "unused")

    return count


def training_gpus(wildcards):
    """How many GPUs stage II is trained on."""
    return configuration(wildcards).splat.run.gpus


def generator(wildcards):
    """The generator that makes a subject's prior, or None."""
    return PLANS[wildcards.subject].config.prior.generate.chosen.generator


def generator_environment(wildcards):
    """The environment of a subject's generator."""
    return f"../../envs/{PLANS[wildcards.subject].config.prior.generate.source}.yaml"


@not_compared
def interpreter(wildcards):
    """The interpreter of that environment: the settings', else the one that Snakemake has made."""
    return str(PLANS[wildcards.subject].config.prior.run.python or "python")


@not_compared
def program(wildcards):
    """The script that runs a subject's generator."""
    return str(generator(wildcards).program)


def of_generator(pattern):
    """A function of wildcards: a generator's file; none for a subject without a generator."""

    def path(wildcards):
        if generator(wildcards) is None:
            return []
        return paths_of(pattern, subject=wildcards.subject)

    return path


def ready_mesh(wildcards):
    """The head mesh that is taken over: a generator's, the user's, or none."""
    made = of_generator(rules.run_generator.output.mesh)(wildcards)
    return made or provided("prior")(wildcards)


def flag(name):
    """A function of a job: ``--name file`` of the named input, or nothing without it."""

    def text(wildcards, input):
        path = getattr(input, name)
        return f"--{name} {shlex.quote(str(path))}" if path else ""

    return text


def deployed(wildcards):
    """A switch that says whether Snakemake makes the environments of the rules."""
    methods = workflow.deployment_settings.deployment_method
    return "--use-conda" if "conda" in {str(method) for method in methods} else ""


def input_folder(name):
    """A function of a job: the folder that holds the named input."""

    def folder(wildcards, input):
        return _parent(getattr(input, name))

    return folder


def input_folders(name):
    """A function of a job: the folders that hold the named inputs."""

    def folders(wildcards, input):
        return list(map(_parent, getattr(input, name)))

    return folders


def output_folder(name):
    """A function of a job: the folder that holds the named output."""

    def folder(wildcards, output):
        return _parent(getattr(output, name))

    return folder


def _parent(paths):
    """The folder of a path, or of the first of several."""
    return str(Path(paths if isinstance(paths, str) else paths[0]).parent)


def every_sequence(pattern):
    """A function of wildcards: the pattern for each of the subject's sequences."""

    def paths(wildcards):
        return paths_of(
            pattern,
            subject=wildcards.subject,
            sequence=PLANS[wildcards.subject].sequences.names,
        )

    return paths


def every_variant(pattern):
    """A function of wildcards: the pattern for each of the subject's variants."""

    def paths(wildcards):
        return paths_of(
            pattern,
            subject=wildcards.subject,
            variant=PLANS[wildcards.subject].variants,
        )

    return paths


def variants(wildcards):
    """The names of the subject's variants."""
    return list(PLANS[wildcards.subject].variants)


def drawn_by(subject, method):
    """The subject's variants of a method, in the order of the settings."""
    plan = PLANS[subject]
    return [name for name in plan.variants if plan.variant(name).method == method]


def avatars(subject):
    """The subject's variants that train an avatar, in the order of the settings."""
    return drawn_by(subject, "avatar")


def reported(wildcards):
    """The variant that the report page shows: the first avatar."""
    return avatars(wildcards.subject)[0]


def all_reported(wildcards):
    """The variants that the report pages show, in the order of the subjects."""
    return [avatars(subject)[0] for subject in PLANS]


def every_subject(pattern):
    """A function of wildcards: the pattern for each subject, with the variant of its page."""

    def paths(wildcards):
        return paths_of(
            pattern, zip, subject=list(PLANS), variant=all_reported(wildcards)
        )

    return paths


def of_reported(pattern):
    """A function of wildcards: the pattern for the variant that the report page shows."""

    def path(wildcards):
        return paths_of(pattern, subject=wildcards.subject, variant=reported(wildcards))

    return path


def backbones(wildcards):
    """The backbones of LPIPS that a subject's variants use, as JSON."""
    variants = PLANS[wildcards.subject].variants
    blocks = {"avatar": "splat", "havatar": "havatar"}
    trained = [
        getattr(variants[name], block)
        for method, block in blocks.items()
        for name in drawn_by(wildcards.subject, method)
    ]
    measured = [variant.tables.evaluate for variant in variants.values()]
    return json.dumps(required_backbones(trained, measured))


def stage_one(wildcards):
    """Stage I that an avatar starts from: of the first that learns with the same settings."""
    first = first_alike(wildcards.subject, wildcards.variant, ("sdf",))
    made = rules.train_sdf.output
    return paths_of(
        [made.model, made.settings], subject=wildcards.subject, variant=first
    )


def first_alike(subject, variant, blocks):
    """The first of its method that is trained with the same blocks of settings, seed and cameras."""
    wanted = trained_with(subject, variant, blocks)
    alike = (
        name
        for name in drawn_by(subject, PLANS[subject].variant(variant).method)
        if trained_with(subject, name, blocks) == wanted
    )
    return next(alike, variant)


@lru_cache(None)
def trained_with(subject, variant, blocks):
    """What decides a training: blocks of settings, seed and cameras, as text."""
    settings = PLANS[subject].variants[variant]
    texts = [
        getattr(settings, block).model_dump_json(exclude={"run"}) for block in blocks
    ]
    return (settings.seeds, settings.held_out_cameras, *texts)


def held_out_cameras(wildcards):
    """``--held-out-cameras`` with its words for the command line, or nothing without one."""
    words = configuration(wildcards).held_out_cameras
    return f"--held-out-cameras {shlex.join(words)}" if words else ""


def method(wildcards):
    """What draws the images of a variant."""
    return PLANS[wildcards.subject].variant(wildcards.variant).method


def of_trained(name):
    """A function of wildcards: the output of that name of the training that draws a variant's
    images, of the first that is trained alike; none for images of another code."""

    def path(wildcards):
        if rendered_images(wildcards):
            return []
        last, blocks = list(trainings(wildcards).items())[-1]
        first = first_alike(wildcards.subject, wildcards.variant, blocks)
        pattern = getattr(getattr(rules, last).output, name)
        return paths_of(pattern, subject=wildcards.subject, variant=first)

    return path


def trainings(wildcards):
    """The rules that train what draws a variant, in their order, with the blocks that they and
    those before them learn with."""
    own = method(wildcards)
    if own == "avatar":
        return {"train_sdf": ("sdf",), "train_splat": ("sdf", "splat")}
    return {f"train_{own}": (own,)}


def rendered_files(wildcards):
    """A digest of a variant's images that another code rendered, by their sizes and times."""
    folder = rendered_images(wildcards)
    return folder and digest_files([Path(folder)], Path(folder))


def source(wildcards, input):
    """What a variant's method reads: the folder of the model, or that of the images."""
    return rendered_images(wildcards) or _parent(input.source)


def rendered_images(wildcards):
    """The folder of a variant's images that another code rendered, or None."""
    folder = PLANS[wildcards.subject].variant(wildcards.variant).images
    return folder and folder.replace("{subject}", wildcards.subject)


def held_out_tracking(wildcards, input):
    """The tracking of a sequence to draw: the first that is held out, or else of all."""
    sequences = PLANS[wildcards.subject].sequences
    return f"{input.tracking}/{(sequences.test or sequences.names)[0]}.npz"


def benchmarks(wildcards):
    """Snakemake's of all that trained a variant's model, which may be another's."""
    subject, variant = wildcards.subject, wildcards.variant
    return [
        f"results/{subject}/benchmarks/{name}/{first_alike(subject, variant, blocks)}.tsv"
        for name, blocks in trainings(wildcards).items()
    ]


def layout(wildcards):
    """A paper's table's layout, as JSON."""
    return LAYOUTS.tables[wildcards.table].model_dump_json()


def measured(wildcards):
    """What a paper's table shows: of all subjects that have its variants, with all their seeds, and
    the subjects' floors."""
    chosen = LAYOUTS.tables[wildcards.table]
    pattern = (
        rules.measure_speed.output[0] if chosen.speed else rules.evaluate.output.images
    )
    found = [
        path
        for subject, plan in PLANS.items()
        for name in plan.variants
        if not (chosen.speed and plan.variant(name).method == "images")
        if variant_of(name) in chosen.variants
        for path in paths_of(pattern, subject=subject, variant=name)
    ]
    shown = FLOORS in chosen.variants
    return found + paths_of(rules.floors.output, subject=PLANS if shown else [])


def measured_words(wildcards, input):
    """``--measured`` with its words for the command line, or nothing without one."""
    paths = list(input)
    return f"--measured {shlex.join(paths)}" if paths else ""


def figure_layout(wildcards):
    """A figure's layout, as JSON."""
    return LAYOUTS.figures[wildcards.figure].model_dump_json()


def figure_sources(wildcards):
    """What a figure shows of its variants, in their order."""
    chosen = LAYOUTS.figures[wildcards.figure]
    subject = wildcards.subject
    if not chosen.surfaces:
        pattern = rules.evaluate.output.pictures
        return paths_of(pattern, subject=subject, variant=chosen.variants)
    trained = [first_alike(subject, name, ("sdf",)) for name in chosen.variants]
    return paths_of(rules.train_sdf.output.surfaces, subject=subject, variant=trained)


def figures(wildcards):
    """All figures, of the subjects that have all variants of one."""
    return [
        path
        for name, chosen in LAYOUTS.figures.items()
        for subject, plan in PLANS.items()
        if set(chosen.variants) <= set(plan.variants)
        for path in paths_of(rules.paper_figure.output, figure=name, subject=subject)
    ]


def of_avatar(pattern):
    """A function of wildcards: the pattern for the subject whose avatar a pair draws."""

    def path(wildcards):
        return paths_of(pattern, subject=PAIRS[wildcards.pair].avatar)

    return path


def of_driver(pattern):
    """A function of wildcards: the pattern for the driver, and sequence, that moves it."""

    def path(wildcards):
        pair = PAIRS[wildcards.pair]
        place = as_written(pattern).replace(
            "results/{subject}", str(pair.driver_results)
        )
        paths = paths_of(place, sequence=pair.sequence)
        return list(map(local, paths)) if pair.is_tracked_video else paths

    return path


def moved_by_others(wildcards):
    """The videos, and the sheets beside them, of the pairs whose avatar is the subject's."""
    pairs = [name for name, pair in PAIRS.items() if pair.avatar == wildcards.subject]
    return paths_of(rules.reenact.output, pair=pairs)


def moved_words(wildcards, input):
    """The words of `report` that name those videos."""
    videos = [path for path in input.reenactments if path.endswith(".mp4")]
    return shlex.join(["--reenactments", *videos]) if videos else ""


def reenacted(wildcards):
    """The trained variants of a pair's avatar."""
    subject = PAIRS[wildcards.pair].avatar
    names = PLANS[subject].config.reenactment.variants
    trained = [first_alike(subject, name, ("sdf", "splat")) for name in names]
    made = rules.train_splat.output
    return paths_of([made.model, made.settings], subject=subject, variant=trained)


def pair_words(wildcards, input):
    """The words of `reenact` that tell the pair."""
    pair = PAIRS[wildcards.pair]
    settings = PLANS[pair.avatar].config.reenactment
    words = {
        "--results": _parent(_parent(input.avatar_cameras)),
        "--driver": _parent(_parent(input.cameras)),
        "--sequence": pair.sequence,
        "--smoothing": str(settings.smoothing),
    }
    avatars = ["--avatars", *dict.fromkeys(map(_parent, input.avatars))]
    gaze = ["--freeze-gaze"] if settings.freeze_gaze else []
    return shlex.join([*chain(*words.items()), *avatars, *gaze])


def end_run():
    """Write what has failed, and with it the overview page of the subjects that are complete."""
    output = Path("results/failed.csv")
    failures = [
        row for job in workflow.scheduler.failed for row in describe_failed(job)
    ]
    note_failures(failures, output)
    if failures and workflow.storage_settings.default_storage_provider is None:
        write_partial_overview(output)


def describe_failed(job):
    """The rows on a failed job, or on those of a group that were begun and not done."""
    if job.is_group():
        levels = (
            [each for each in level if is_begun(each)] for level in job.toposorted
        )
        found = next(filter(None, levels), list(job.jobs)[:1])
        return [row for each in found for row in describe_failed(each)]
    log, *_ = job.log
    place = log.storage_object.query if log.is_storage else str(log)
    if job.rule.name == "refuse":
        return [Failure(name, "refuse", text, place) for name, text in FAULTS.items()]
    if log.is_storage and log.storage_object.exists():
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        log.storage_object.retrieve_object()
    subject = job.wildcards_dict.get("subject", "all")
    return [Failure(subject, job.rule.name, read_sentence(Path(log)), place)]


def is_begun(job):
    """Whether a job has a log and not all of its outputs."""
    made = all(is_there(file) for file in job.output)
    return not made and any(is_there(file) for file in job.log)


def is_there(file):
    """Whether there is a file, or a default storage provider has it."""
    return Path(file).exists() or (file.is_storage and file.storage_object.exists())


def write_partial_overview(failures):
    """The overview page without the subjects that are not complete."""
    page = Path(rules.overview.output[0])
    complete = [name for name in PLANS if Path(f"results/{name}/report.html").exists()]
    command = [sys.executable, "-m", "eavatar", "overview", "--failures", str(failures)]
    if complete:
        command += ["--results", *(f"results/{name}" for name in complete)]
        command += ["--shown", *(avatars(name)[0] for name in complete)]
    if subprocess.run([*command, "--output", str(page)]).returncode == 0:
        os.utime(
            page, (0, 0)
        )  # older than what its rule makes it of, once that is complete
